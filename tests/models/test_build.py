"""A network is built from a recipe, counted, saved and loaded, or refused with what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.errors import UsageError
from trimtab.models import build as room
from trimtab.models.build import (
    Network,
    adopt_module,
    build,
    by_lines,
    load,
    load_weights,
    macs_and_params,
    save_weights,
)
from trimtab.records.files import write_json
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, start_run
from trimtab.records.schema import Schema


class Own(nn.Module):
    """A user's network."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def named(name: str) -> Recipe:
    return Recipe().override(model__name=name)


def finished_run(folder: Path, schema: Schema, network: Network, recipe: Recipe) -> Run:
    run = start_run(folder, kind="train", label="test", recipe=recipe, seed=0)
    write_json(run.path / "data.json", {"schema": schema.model_dump(mode="json")})
    save_weights(network, run.weights)
    return run


def linear_net(schema: Schema) -> nn.Module:
    """Build a net for the test of `package.module:function`."""
    pixels = schema.channels * schema.height * schema.width
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, len(schema.classes)))


def no_net(schema: Schema) -> str:
    """Give something that is no network."""
    return "net"


def test_pixels_are_normalised_inside_the_network(colour: Schema) -> None:
    network = build(colour, named("cnn_small")).eval()
    pixels = torch.rand(2, 3, 32, 32) * 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (colour.mean, colour.std))
    assert torch.equal(network(pixels), network.body((pixels - mean) / std))
    assert {"normalize.mean", "normalize.std"} <= set(network.state_dict())


def test_channel_that_never_changes_is_only_centred(grey: Schema) -> None:
    flat = grey.model_copy(update={"std": (0.0,)})
    assert torch.isfinite(build(flat, named("cnn_small")).eval()(torch.ones(1, 1, 8, 8))).all()


def test_same_seed_builds_the_same_weights(grey: Schema) -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(7)
        return build(grey, named("cnn_small")).body.classifier.weight  # type: ignore[no-any-return,union-attr]

    assert torch.equal(weights(), weights())


def test_recipe_width_and_dropout_are_used(grey: Schema) -> None:
    recipe = named("cnn_small").override(model__width=2.0, model__dropout=0.5)
    body = build(grey, recipe).body
    assert body.get_submodule("stem.conv").out_channels == 32
    assert body.get_submodule("dropout").p == 0.5


def test_users_module_is_copied_and_left_untouched(grey: Schema) -> None:
    own = Own()
    network = build(grey, named("custom:Own-00000000"), own)
    assert network.body is not own
    assert own.relu.inplace
    assert not network.body.relu.inplace
    with torch.no_grad():
        network.body.conv.weight.zero_()
    assert own.conv.weight.abs().sum() > 0


def test_model_by_import_path_gets_only_the_settings_that_were_changed(
    grey: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    name = f"{Path(__file__).stem}:linear_net"
    assert build(grey, named(name)).body[1].in_features == 64
    with pytest.raises(UsageError, match=r"cannot build model .* 'width'"):
        build(grey, named(name).override(model__width=2.0))


def test_imported_model_that_gives_no_module_is_refused(
    grey: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(UsageError, match="gave str"):
        build(grey, named(f"{Path(__file__).stem}:no_net"))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own(classes=4), r"must return logits \(samples, classes\) = \(3, 3\), got \(3, 4\)"),
        (nn.Conv2d(3, 3, 3), "does not take pictures of 8x8x1"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Flatten(0)), r"got \(9,\)"),
    ],
)
def test_network_that_does_not_fit_the_data_is_refused(
    grey: Schema, own: nn.Module, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(grey, named("custom:x"), own)


def test_weights_come_back_exactly_from_any_memory_layout(grey: Schema, tmp_path: Path) -> None:
    network = build(grey, named("resnet8")).to(memory_format=torch.channels_last)
    save_weights(network, tmp_path / "w.safetensors")
    other = build(grey, named("resnet8"))
    load_weights(other, tmp_path / "w.safetensors")
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_weights_of_another_network_are_named_and_refused(grey: Schema, tmp_path: Path) -> None:
    save_weights(build(grey, named("cnn_small")), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"missing \(body\.stage1.*unexpected \(body\.stage1"):
        load_weights(build(grey, named("resnet8")), tmp_path / "w.safetensors")


def test_weights_of_another_shape_are_named_and_refused(grey: Schema, tmp_path: Path) -> None:
    save_weights(build(grey, named("cnn_small")), tmp_path / "w.safetensors")
    wide = build(grey, named("cnn_small").override(model__width=2))
    with pytest.raises(UsageError, match=r"of another shape \(body\.classifier\.weight"):
        load_weights(wide, tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_damaged_weights_are_refused(grey: Schema, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="no readable safetensors"):
        load_weights(build(grey, named("cnn_small")), tmp_path / "w.safetensors")


def test_missing_weights_are_refused(grey: Schema, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read weights"):
        load_weights(build(grey, named("cnn_small")), tmp_path / "none.safetensors")


def test_run_loads_in_eval_mode_with_its_own_outputs(grey: Schema, tmp_path: Path) -> None:
    network = build(grey, named("cnn_small"))
    run = finished_run(tmp_path / "run", grey, network, named("cnn_small"))
    loaded, pixels = load(run.path), torch.rand(2, 1, 8, 8) * 255
    assert not loaded.training
    assert torch.equal(loaded(pixels), network.eval()(pixels))


def test_run_of_a_users_module_loads_in_the_same_process(grey: Schema, tmp_path: Path) -> None:
    own = Own()
    recipe = named(adopt_module(own))
    network = build(grey, recipe, own)
    run = finished_run(tmp_path / "run", grey, network, recipe)
    pixels = torch.rand(2, 1, 8, 8) * 255
    assert torch.equal(load(run)(pixels), network.eval()(pixels))


def test_run_of_a_users_module_asks_for_it_in_another_process(
    grey: Schema, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Own()
    recipe = named(adopt_module(own))
    run = finished_run(tmp_path / "run", grey, build(grey, recipe, own), recipe)
    monkeypatch.setattr(room, "ADOPTED", {})
    with pytest.raises(UsageError, match="not known in this process") as caught:
        load(run)
    assert "pass model=" in caught.value.hint
    with pytest.raises(UsageError, match="holds model 'custom:Own"):
        load(run, nn.Linear(2, 2))
    assert isinstance(load(run, own), Network)
    assert isinstance(load(run), Network)


def test_name_of_a_users_module_depends_on_its_layers_only() -> None:
    first, second = Own(), Own()
    assert adopt_module(first) == adopt_module(second)
    assert adopt_module(first) != adopt_module(Own(classes=9))


def test_macs_and_parameters_are_counted_by_hand(grey: Schema) -> None:
    network = build(grey, named("custom:x"), Own()).train()
    macs, parameters = macs_and_params(network, grey)
    assert macs == 8 * 8 * 16 * 9 + 16 * 3
    assert parameters == 16 * 9 + 16 + 16 * 3 + 3
    assert network.training


def test_depthwise_convolutions_count_one_input_each(grey: Schema) -> None:
    own: Any = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))  # fmt: skip
    macs, _ = macs_and_params(build(grey, named("custom:x"), own), grey)
    assert macs == 64 * 8 + 64 * 8 * 9 + 24


@pytest.mark.parametrize("what", ["cnn_small", nn.Identity])
def test_what_is_no_module_is_refused_as_model(what: Any) -> None:
    with pytest.raises(UsageError, match="a network"):
        room.adopt_module(what)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_normalised_by_lines_are_the_same_to_the_bit(channels: int) -> None:
    torch.manual_seed(0)
    pixels = (torch.rand(2, channels, 5, 7) * 255).contiguous(memory_format=torch.channels_last)
    mean, std = torch.rand(channels, 1, 1) * 128, 1 + torch.rand(channels, 1, 1) * 64
    found = by_lines(pixels, mean, std)
    assert found.equal((pixels - mean) / std)
    assert found.is_contiguous(memory_format=torch.channels_last)
