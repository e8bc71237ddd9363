"""Weights trained elsewhere are taken over whole, or refused with what does not fit."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from trimtab.errors import MachineError, UsageError
from trimtab.models import pretrained
from trimtab.models.build import Network, build, save_weights
from trimtab.models.depth import depths_of, head_of
from trimtab.models.image import find_model
from trimtab.models.libraries import torchvision_model
from trimtab.models.pretrained import fitted, require_named, source_of, start_from
from trimtab.models.published import IMAGENET, file_of, published
from trimtab.models.tensors import read_tensors
from trimtab.records.files import write_json
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema

NAME = "shufflenet_v2_x0_5"  # torchvision's smallest
State = dict[str, Tensor]


def recipe_for(path: Path | str, name: str = "cnn_small", **more: Any) -> Recipe:
    changes = {f"model__{key}": value for key, value in more.items()}
    return Recipe().override(model__name=name, model__pretrained=str(path), **changes)


def body_state(schema: Schema, name: str = "cnn_small", seed: int = 5) -> State:
    """Return the state of a network that nobody else has."""
    torch.manual_seed(seed)
    return {key: value.clone() for key, value in find_model(name)(schema).state_dict().items()}


def started(schema: Schema, recipe: Recipe) -> Network:
    network = build(schema, recipe)
    start_from(network, recipe)
    return network


def assert_taken(network: Network, state: State, head: str) -> None:
    own = network.body.state_dict()
    assert [k for k in state if not k.startswith(head) and not torch.equal(own[k], state[k])] == []


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every connection fail the test."""

    def refuse(*given: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# Files


def write_as(kind: str, state: State, path: Path) -> Path:
    if kind == ".safetensors":
        save_file(state, path)
    elif kind == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})  # type: ignore[arg-type]
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("kind", [".safetensors", ".npz", ".pt", ".pth", ".th"])
def test_weights_of_every_kind_of_file_come_back_exactly(
    grey: Schema, tmp_path: Path, kind: str
) -> None:
    state = body_state(grey)
    path = write_as(kind, state, tmp_path / f"w{kind}")
    assert_taken(started(grey, recipe_for(path, keep_head=True)), state, head="-")


def test_int8_arrays_are_multiplied_by_their_scale(tmp_path: Path) -> None:
    values = np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2)
    scale = np.array([0.5, 0.25], np.float32).reshape(2, 1, 1)
    np.savez(tmp_path / "w.npz", **{"a": values, "a:scale": scale, "b": np.int64(3)})
    found = read_tensors(tmp_path / "w.npz")
    assert found.keys() == {"a", "b"}
    assert found["a"].dtype == torch.float32
    assert torch.equal(found["a"], torch.from_numpy(values * scale))


class Trap:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_file_with_code_in_it_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": Trap(tmp_path / "ran")}, tmp_path / "w.pt")
    objects = np.array([Trap(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "w.npz", a=objects)
    for path in (tmp_path / "w.pt", tmp_path / "w.npz"):
        with pytest.raises(UsageError, match="cannot be read as weights") as caught:
            read_tensors(path)
        assert "code" in caught.value.hint
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", [".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 64])
def test_damaged_file_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / f"w{kind}").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as weights"):
        read_tensors(tmp_path / f"w{kind}")


def test_missing_file_says_which_one_belongs_where(
    grey: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"no weights file {tmp_path}/nets/a.npz") as caught:
        started(grey, recipe_for("nets/a.npz"))
    assert "put a.npz there" in caught.value.hint
    with pytest.raises(UsageError, match=r"nets/a is no weights file .* wanted \.safetensors"):
        started(grey, recipe_for("nets/a"))
    with pytest.raises(UsageError, match="no run folder"):
        started(grey, recipe_for(tmp_path))


# Fitting


def test_head_is_new_unless_it_is_kept(colour: Schema, tmp_path: Path) -> None:
    state = body_state(colour)
    path = write_as(".safetensors", state, tmp_path / "w.safetensors")
    network = started(colour, recipe_for(path))
    assert_taken(network, state, head="classifier.")
    assert not torch.equal(network.body.classifier.weight, state["classifier.weight"])


def test_head_of_other_classes_is_learnt_anew_and_cannot_be_kept(
    colour: Schema, tmp_path: Path
) -> None:
    few = colour.model_copy(update={"classes": ("a", "b")})
    state = body_state(few)
    path = write_as(".safetensors", state, tmp_path / "w.safetensors")
    assert_taken(started(colour, recipe_for(path)), state, head="classifier.")
    with pytest.raises(UsageError, match=r"not for these classes: classifier\.bias"):
        started(colour, recipe_for(path, keep_head=True))


def test_weights_without_a_head_or_counters_are_enough(colour: Schema, tmp_path: Path) -> None:
    state = {k: v for k, v in body_state(colour).items()
             if "classifier" not in k and not k.endswith("num_batches_tracked")}  # fmt: skip
    path = write_as(".safetensors", state, tmp_path / "w.safetensors")
    assert_taken(started(colour, recipe_for(path)), state, head="classifier.")
    with pytest.raises(UsageError, match=r"not for these classes: classifier\.bias"):
        started(colour, recipe_for(path, keep_head=True))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.pop("stem.conv.weight"), r"1 missing \(stem\.conv\.weight\)"),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (lambda s: s.update({"stage1.norm.bias": torch.ones(7)}),
         r"1 of another shape \(stage1\.norm\.bias\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)  # fmt: skip
def test_weights_that_do_not_fit_are_counted_named_and_refused(
    colour: Schema, tmp_path: Path, change: Any, fault: str
) -> None:
    state = body_state(colour)
    change(state)
    path = write_as(".safetensors", state, tmp_path / "w.safetensors")
    network = build(colour, recipe := recipe_for(path))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UsageError, match=fault):
        start_from(network, recipe)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_weights_of_the_other_librarys_model_of_that_name_say_how_to_name_it(
    colour: Schema, tmp_path: Path
) -> None:
    save_file(body_state(colour, "torchvision.efficientnet_b0"), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="missing") as caught:
        started(colour, recipe_for(tmp_path / "w.safetensors", "efficientnet_b0"))
    assert "torchvision.efficientnet_b0" in caught.value.hint


def folder_of_run(path: Path, schema: Schema) -> Path:
    """Write what of a run is read where its weights are taken."""
    path.mkdir()
    write_json(path / "run.json", {"kind": "train"})
    write_json(path / "data.json", {"schema": schema.model_dump(mode="json")})
    save_weights(build(schema, Recipe().override(model__name="cnn_small")),
                 path / "weights.safetensors")  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("classes", "told"),
    [("acbdefghij", "class 2 is 'c', in the data 'b'"),
     ("abcdefghix", "class 10 is 'x', in the data 'j'"),
     ("abc", "it has 3, the data have 10")],
    ids=["order", "names", "number"],
)  # fmt: skip
def test_head_of_a_run_is_kept_for_its_own_classes_only(
    colour: Schema, tmp_path: Path, classes: str, told: str
) -> None:
    other = colour.model_copy(update={"classes": tuple(classes)})
    recipe = recipe_for(folder_of_run(tmp_path / "other", other), keep_head=True)
    with pytest.raises(UsageError, match=told):
        started(colour, recipe)
    started(colour, recipe_for(tmp_path / "other"))
    started(colour, recipe_for(folder_of_run(tmp_path / "same", colour), keep_head=True))


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "inception_v3"])
def test_published_files_fit_whose_names_are_old_or_which_hold_more_heads(
    colour: Schema, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    beside = {} if name == "densenet121" else {"aux_logits": True, "init_weights": False}
    with torch.device("meta"):  # names and shapes are enough
        body = torchvision_model(name, colour)
        state = models.get_model(name, weights=None, **beside).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", key): value
           for key, value in state.items()}  # fmt: skip
    assert old.keys() != body.state_dict().keys()
    monkeypatch.setattr(pretrained, "read_tensors", lambda path: old)
    monkeypatch.setattr(pretrained, "file_of", lambda *given, **more: Path("w.pth"))
    for word in ("cache", "w.pth"):
        source = source_of(recipe_for(word, f"torchvision.{name}"))
        found = fitted(body, source, keep_head=False, model=name)
        head = head_of(body)[0] + "."
        assert found.keys() == {key for key in body.state_dict() if not key.startswith(head)}


@pytest.mark.parametrize("kind", [models.GoogLeNet, models.Inception3])
def test_pixels_of_torchvisions_inceptions_are_what_their_own_transform_makes_them(
    kind: Any,
) -> None:
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in IMAGENET)
    own = kind._transform_input(SimpleNamespace(transform_input=True), (pixels - mean) / std)
    for name in ("googlenet", "torchvision.inception_v3"):
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in published(name).statistics)
        torch.testing.assert_close((pixels - mean) / std, own)


def test_grey_pictures_see_what_the_filters_saw_in_their_colour_copies(
    colour: Schema, grey: Schema, tmp_path: Path
) -> None:
    schema = colour.model_copy(update={"height": 8, "width": 8, "classes": grey.classes})
    path = write_as(".safetensors", body_state(schema), tmp_path / "w.safetensors")
    settings = {"keep_head": True, "mean": [0.4], "std": [0.2]}
    one = started(grey, recipe_for(path, **settings)).eval()
    three = started(schema, recipe_for(path, **settings)).eval()
    pixels = torch.rand(4, 1, 8, 8) * 255
    torch.testing.assert_close(one(pixels), three(pixels.expand(-1, 3, -1, -1)))
    back = write_as(".safetensors", one.body.state_dict(), tmp_path / "grey.safetensors")
    again = started(schema, recipe_for(back, **settings)).eval()
    torch.testing.assert_close(one(pixels), again(pixels.expand(-1, 3, -1, -1)))


def test_network_that_whitens_its_first_layer_takes_no_pretrained_weights(grey: Schema) -> None:
    recipe = recipe_for("w.npz", "wcnn_small", whiten=True)
    with pytest.raises(UsageError, match="would overwrite"):
        started(grey, recipe)


def test_weights_need_the_name_of_their_network() -> None:
    require_named(Recipe())
    with pytest.raises(UsageError, match="cache needs the network"):
        require_named(recipe_for("cache", "auto"))


# Normalisation


def test_pictures_are_normalised_as_for_the_weights(colour: Schema, tmp_path: Path) -> None:
    path = write_as(".safetensors", body_state(colour), tmp_path / "w.safetensors")
    found = started(colour, recipe_for(path)).normalize
    assert found.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    told = started(colour, recipe_for(path, mean=[0.5], std=[0.25])).normalize
    assert told.mean.flatten().tolist() == [127.5] * 3
    assert told.std.flatten().tolist() == [63.75] * 3


@pytest.mark.parametrize(
    ("name", "told"),
    [("cnn_small", r"as for ImageNet \(model\.mean 0\.485 0\.456 0\.406, model\.std 0\.229 "),
     ("test_resnet", r"as for the default weights of test_resnet \(model\.mean 0\.5 0\.5 0\.5, ")],
)  # fmt: skip
def test_statistics_that_a_file_does_not_tell_are_told(
    colour: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pretrained, "say", said.append)
    path = write_as(".safetensors", body_state(colour, name), tmp_path / "w.safetensors")
    started(colour, recipe_for(path, name))
    assert re.search(told, said[-1])
    started(colour, recipe_for(path, name, mean=[0.5], std=[0.25]))
    assert "normalised" not in said[-1]


def test_a_runs_own_normalisation_comes_with_its_weights(colour: Schema, tmp_path: Path) -> None:
    other = colour.model_copy(update={"mean": (9.0, 8.0, 7.0), "std": (3.0, 2.0, 1.0)})
    network = build(other, Recipe().override(model__name="cnn_small"))
    path = write_as(".safetensors", network.state_dict(), tmp_path / "w.safetensors")
    found = started(colour, recipe_for(path))
    assert_taken(found, network.body.state_dict(), head="classifier.")
    assert found.normalize.mean.flatten().tolist() == pytest.approx([9, 8, 7])


@pytest.mark.parametrize(
    "given",
    [{"mean": [0.5]}, {"mean": [0.5] * 3, "std": [0.5]}, {"mean": [0.1] * 2, "std": [1] * 2}],
)  # fmt: skip
def test_statistics_that_are_not_for_the_data_are_refused(
    colour: Schema, given: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"model\.mean has \d numbers"):
        build(colour, recipe_for("none", **given))


# Caches of the libraries


@pytest.mark.usefixtures("no_network")
def test_torchvisions_weights_come_from_its_cache(
    colour: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    recipe = recipe_for("cache", NAME)
    place = tmp_path / "hub" / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    with pytest.raises(UsageError, match=f"there is no file {place}") as caught:
        started(colour, recipe)
    assert "model.pretrained: download" in caught.value.hint
    assert "/models/shufflenetv2_x0.5" in caught.value.hint
    thousand = colour.model_copy(update={"classes": tuple(str(i) for i in range(1000))})
    place.parent.mkdir(parents=True)
    state = body_state(thousand, NAME)
    torch.save(state, place)
    network = build(colour, recipe)
    told = start_from(network, recipe)
    assert_taken(network, state, head="fc.")
    assert told["file"] == place.name
    assert told["sha256"] == hashlib.sha256(place.read_bytes()).hexdigest()


@pytest.mark.usefixtures("no_network")
def test_timms_weights_come_from_the_cache_of_the_hub(
    colour: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    recipe = recipe_for("cache:r160_in1k", "test_resnet")
    with pytest.raises(UsageError, match=r"model\.safetensors of timm/test_resnet\.r160_in1k"):
        started(colour, recipe)
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    state = body_state(colour, "test_resnet")
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    assert_taken(started(colour, recipe), state, head="fc.")


@pytest.mark.usefixtures("no_network")
def test_copy_of_weights_that_are_not_the_default_is_to_be_told_its_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hints = []
    for word in ("cache:ra4_e3600_r224_in1k", "cache"):
        with pytest.raises(UsageError, match="is not in the cache of the hub") as caught:
            source_of(recipe_for(word, "mobilenetv3_large_100"))
        hints.append(caught.value.hint)
    assert "with model.mean: [0.5, 0.5, 0.5] and model.std: [0.5, 0.5, 0.5]" in hints[0]
    assert "model.mean" not in hints[1]


def test_weights_are_fetched_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked = []

    def fetch(url: str, place: str, known: str, **more: Any) -> None:
        asked.append((url, known))
        Path(place).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    weights = published(NAME)
    with pytest.raises(UsageError):
        file_of(weights, fetch=False)
    assert asked == []
    assert file_of(weights, fetch=True).read_bytes() == b"weights"
    assert asked == [(weights.url, "f707e7126e")]
    assert file_of(weights, fetch=True).exists()
    assert len(asked) == 1


def test_network_that_is_not_there_is_told_with_the_way_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*given: Any, **more: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MachineError, match="Network is unreachable") as caught:
        file_of(published(NAME), fetch=True)
    assert "without a network, put" in caught.value.hint


def test_weights_that_nobody_publishes_are_told() -> None:
    with pytest.raises(UsageError, match="nobody publishes weights of 'cnn_small'"):
        published("cnn_small")
    with pytest.raises(UsageError, match="no weights 'V9' of mobilenet_v2") as caught:
        published("mobilenet_v2", "V9")
    assert "IMAGENET1K_V2" in caught.value.hint
    with pytest.raises(UsageError, match="no weights 'V9' of resnet18") as caught:
        published("resnet18", "V9")
    assert "a1_in1k" in caught.value.hint


# Depth


def test_depth_counts_blocks_from_the_head(colour: Schema) -> None:
    body = find_model("cnn_small")(colour)
    depths = depths_of(Network(colour, body))
    found = {name: depths[id(one)] for name, one in body.named_parameters()}
    assert found["classifier.weight"] == found["classifier.bias"] == 0
    assert found["stage2.conv.weight"] == found["stage2.norm.bias"] == 1
    assert found["stem.conv.weight"] == 3


@pytest.mark.parametrize(
    ("name", "first", "head"),
    [("cnn_medium", 7, "classifier"), ("mobilenet_v2", 19, "classifier.1"), ("resnet18", 9, "fc"),
     ("wcnn_small", 4, "classifier"), ("vit_tiny_patch16_224", 13, "head"),
     ("cifar_resnet20", 10, "linear"), ("mobilenetv3_small_100", 14, "classifier")],
)  # fmt: skip
def test_depth_and_head_of_usual_networks(colour: Schema, name: str, first: int, head: str) -> None:
    body = find_model(name)(colour)
    depths = depths_of(body)
    assert max(depths.values()) == first
    assert min(depths.values()) == 0
    assert depths.keys() == {id(one) for one in body.parameters()}
    assert head_of(body)[0] == head


def test_norms_of_a_flat_network_go_with_the_layer_before_them() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1),
                        nn.Flatten(), nn.Linear(2, 2))  # fmt: skip
    depths = depths_of(net)
    found = [depths[id(one)] for one in net.parameters()]
    assert found == [2, 2, 2, 2, 1, 1, 0, 0]
