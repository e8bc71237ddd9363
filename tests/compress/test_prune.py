"""Pruning makes a network physically smaller, keeps its classes, and writes how to do it again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trimtab.compress.importance import magnitude, members, normalised, output_variance
from trimtab.compress.prune import (
    Layer,
    allot,
    as_edits,
    cut_channels,
    plan_edits,
    prune,
    recalibrate,
    score_layers,
)
from trimtab.errors import CompressError, UsageError
from trimtab.measure.quality import logits_of, network_call
from trimtab.models.build import Network, adopt_module, build, load
from trimtab.models.edits import channel_group, dependency_graph, replay
from trimtab.records.files import write_json
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.records.schema import Schema
from trimtab.train.run import train

PICTURES = Schema(classes=("a", "b", "c"), channels=3, height=16, width=16,
                  mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pruned(tiny_run: Run, tiny_dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "pruned"
    return prune(tiny_run, keep=0.6, data=tiny_dataset, out=folder)


def network_of(body: nn.Module) -> Network:
    return build(PICTURES, Recipe().override(model__name="custom:x"), body)


def random_pixels() -> Tensor:
    return torch.rand(8, 3, 16, 16) * 255


def planned(network: Network, keep: float) -> list[dict[str, Any]]:
    layers = score_layers(network, PICTURES, random_pixels(), magnitude)
    return plan_edits(network, PICTURES, layers, keep)


def whole_group(network: Network, layer: nn.Module) -> Any:
    graph = dependency_graph(network, PICTURES)
    return channel_group(graph, layer, range(graph.get_out_channels(layer)))


def unit(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


# The verb


def test_pruned_run_is_smaller_and_still_knows_the_digits(pruned: Run, tiny_run: Run) -> None:
    for what in ("params", "macs"):
        after, before = pruned.measured(what), pruned.measured(f"{what}_before")
        assert after
        assert before
        assert after["value"] < 0.7 * before["value"]
        assert before["value"] == tiny_run.measured(what)["value"]  # type: ignore[index]
    assert pruned.weights.stat().st_size < 0.75 * tiny_run.weights.stat().st_size
    accuracy = pruned.measured("accuracy")
    assert accuracy
    assert accuracy["value"] > 0.2, "twice as often right as by chance, after two epochs"
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_pruned_run_says_what_it_is_and_where_it_comes_from(pruned: Run, tiny_run: Run) -> None:
    assert pruned.facts["kind"] == "prune"
    assert pruned.facts["keep"] == 0.6
    assert pruned.facts["importance"] == "magnitude"
    assert pruned.facts["status"] == "finished"
    assert pruned.parent is not None
    assert pruned.parent.path == tiny_run.path.resolve()
    assert pruned.recipe == tiny_run.recipe
    assert pruned.data["fingerprint"] == tiny_run.data["fingerprint"]
    assert {edit["kind"] for edit in pruned.edits} == {"prune"}
    assert any("epoch" in row for row in pruned.metrics)


def test_pruned_run_loads_with_the_accuracy_it_was_given(pruned: Run, tiny_dataset: Any) -> None:
    network = load(pruned)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 8 == 0 for conv in convs)
    valid = tiny_dataset.splits["valid"]
    decided = logits_of(network_call(network), valid).argmax(1)
    accuracy = pruned.measured("accuracy")
    assert accuracy
    assert float(np.mean(decided == valid.targets)) == pytest.approx(accuracy["value"])


def test_pruned_run_can_be_pruned_again(pruned: Run, tiny_dataset: Any, tmp_path: Path) -> None:
    again = prune(pruned, keep=0.7, importance="output_variance", data=tiny_dataset,
                  out=tmp_path / "again")  # fmt: skip
    assert again.edits[: len(pruned.edits)] == pruned.edits
    assert len(again.edits) > len(pruned.edits)
    assert again.measured("params")["value"] < pruned.measured("params")["value"]  # type: ignore[index]
    assert isinstance(load(again), Network)


def test_users_own_importance_decides_what_goes(
    tiny_run: Run, tiny_dataset: Any, tmp_path: Path
) -> None:
    def first_are_best(group: Any) -> Tensor:
        return torch.arange(len(group[0].idxs), 0, -1).float()

    run = prune(tiny_run, keep=0.6, importance=first_are_best, data=tiny_dataset,
                budget="1s", out=tmp_path / "own")  # fmt: skip
    assert run.facts["importance"] == "first_are_best"
    for edit in run.edits:
        first = edit["remove"][0]
        assert edit["remove"] == list(range(first, first + len(edit["remove"])))


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan"), True, "0.5"])
def test_share_out_of_range_is_refused(tiny_run: Run, keep: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in \(0, 1\]"):
        prune(tiny_run, keep=keep, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keeping_all_is_an_error_and_leaves_no_folder(
    tiny_run: Run, tiny_dataset: Any, tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match="nothing was cut"):
        prune(tiny_run, keep=1.0, data=tiny_dataset, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_importance_names_the_closest(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown importance") as caught:
        prune(tiny_run, importance="magnitud", out=tmp_path / "run")
    assert "magnitude" in caught.value.hint


def test_importance_of_the_wrong_shape_is_refused(
    tiny_run: Run, tiny_dataset: Any, tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match="finite numbers"):
        prune(tiny_run, keep=0.5, importance=lambda group: torch.ones(3), data=tiny_dataset,
              out=tmp_path / "run")  # fmt: skip


def test_quantized_run_is_refused(pruned: Run, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in ("run.json", "recipe.yaml", "data.json"):
        (twin / name).write_bytes((pruned.path / name).read_bytes())
    write_json(twin / "edits.json", [{"kind": "quantize", "scheme": "int8"}])
    with pytest.raises(UsageError, match="quantized already"):
        prune(twin, keep=0.5, out=tmp_path / "run")


# Which channels stay


def test_best_channels_stay_over_all_layers() -> None:
    strong = Layer("strong", torch.arange(32, 0, -1) + 100.0)
    weak = Layer("weak", torch.arange(32, 0, -1) + 0.0)
    assert allot([strong, weak], 0.625) == [32, 8]
    assert as_edits([strong, weak], 0.625) == [
        {"kind": "prune", "layer": "weak", "remove": list(range(8, 32))}
    ]


@pytest.mark.parametrize(
    ("channels", "floor"), [(6, 6), (8, 8), (20, 8), (32, 8), (64, 16), (72, 24)]
)
def test_no_layer_falls_below_a_quarter_or_eight_channels(channels: int, floor: int) -> None:
    layer = Layer("x", torch.rand(channels))
    assert allot([layer], 0.01) == [floor]


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
def test_channels_kept_are_near_the_wanted_share(keep: float) -> None:
    layers = [Layer(str(size), torch.rand(size) + 0.5) for size in (16, 32, 64, 64, 128, 12)]
    kept = allot(layers, keep)
    assert abs(sum(kept) - keep * 316) <= 8
    assert all(k % 8 == 0 or k == layer.channels for k, layer in zip(kept, layers, strict=True))


def test_grouped_channels_leave_every_group_alike() -> None:
    layer = Layer("x", torch.rand(64), groups=16)
    best = layer.ranked()
    assert sorted(best) == list(range(64))
    assert layer.step == 16
    for start in range(0, 64, 16):
        assert {place % 4 for place in best[start : start + 16]} == {best[start] % 4}


# Networks of other shapes


@pytest.mark.parametrize("name", ["dwconv_small", "resnet8", "mobilenetv3_small_100", "cnn_medium"])
def test_channels_stay_at_multiples_of_eight_and_the_classes_whole(name: str) -> None:
    network = build(PICTURES, Recipe().override(model__name=name))
    edits = planned(network, 0.5)
    smaller = replay(copy.deepcopy(network), edits, PICTURES)
    convs = [m for m in smaller.modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.out_channels % 8 == 0 for conv in convs)
    assert "body.classifier" not in {edit["layer"] for edit in edits}
    counts = [sum(p.numel() for p in n.parameters()) for n in (smaller, network)]
    assert counts[0] < 0.6 * counts[1]


def test_grouped_convolutions_are_cut() -> None:
    body = nn.Sequential(unit(3, 32), unit(32, 64, groups=4), unit(64, 32),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))  # fmt: skip
    network = network_of(body)
    smaller = replay(copy.deepcopy(network), planned(network, 0.5), PICTURES)
    grouped = smaller.get_submodule("body.1.0")
    assert grouped.groups == 4
    assert grouped.out_channels < 64
    assert grouped.out_channels % 8 == 0


class Flattening(nn.Module):
    """A tutorial network: the flattened size is written in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unit(3, 32), unit(32, 32)
        self.pool, self.head = nn.MaxPool2d(4), nn.Linear(32 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.second(self.first(x)))
        return self.head(x.view(-1, 32 * 16))  # type: ignore[no-any-return]


def test_layer_whose_cut_breaks_the_forward_is_left_whole() -> None:
    network = network_of(Flattening())
    edits = planned(network, 0.5)
    assert [edit["layer"] for edit in edits] == ["body.first.0"]
    replay(network, edits, PICTURES)


def test_flattened_pictures_are_cut_with_their_channels() -> None:
    body = nn.Sequential(unit(3, 16), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16 * 16, 3))
    network = replay(network_of(body), planned(network_of(body), 0.5), PICTURES)
    assert network.get_submodule("body.3").in_features == 8 * 16


def test_classes_made_by_a_convolution_are_never_cut() -> None:
    body = nn.Sequential(unit(3, 32), nn.Conv2d(32, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = network_of(body)
    assert [edit["layer"] for edit in planned(network, 0.5)] == ["body.0.0"]


def test_network_that_cannot_be_cut_is_refused(tiny_dataset: Any) -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network = build(tiny_dataset.schema, Recipe().override(model__name="custom:x"), body)
    with pytest.raises(CompressError, match="nothing was cut"):
        cut_channels(network, tiny_dataset, magnitude, 0.5, 0)


# Scores and statistics


def test_magnitude_is_the_norm_of_all_weights_that_leave_together() -> None:
    body = nn.Sequential(unit(3, 16), unit(16, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 3))  # fmt: skip
    network = network_of(body)
    root, norm, after = (network.get_submodule(f"body.{n}") for n in ("0.0", "0.1", "1.0"))
    with torch.no_grad():
        norm.weight.uniform_()
    squares = (root.weight.square().sum((1, 2, 3)) + norm.weight.square()
               + after.weight.square().sum((0, 2, 3)))  # fmt: skip
    scores = magnitude(whole_group(network, root))
    torch.testing.assert_close(scores, normalised(squares.sqrt().detach()))


def test_grouped_weights_are_read_by_the_inputs_they_belong_to() -> None:
    body = nn.Sequential(unit(3, 8), unit(8, 16, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(16, 3))  # fmt: skip
    network = network_of(body)
    reader = network.get_submodule("body.1.0")
    with torch.no_grad():
        reader.weight[:8, 1] = 0  # input 1 belongs to the first half
        reader.weight[8:, 2] = 0  # input 6 is the third of the second half
        network.get_submodule("body.0.0").weight.fill_(0)
        network.get_submodule("body.0.1").weight.fill_(0)
    group = whole_group(network, network.get_submodule("body.0.0"))
    assert {member.reads for member in members(group)} == {True, False}
    assert magnitude(group).eq(0).nonzero().flatten().tolist() == [1, 6]


def test_output_variance_sees_what_the_next_layer_sees() -> None:
    body = nn.Sequential(unit(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    network = network_of(body)
    with torch.no_grad():
        network.get_submodule("body.0.1").bias[3] = -100.0  # ReLU never lets it through
    layers = score_layers(network, PICTURES, random_pixels(), output_variance)
    assert [layer.name for layer in layers] == ["body.0.0"]
    assert layers[0].scores.argmin() == 3
    assert layers[0].scores[3] == 0


def test_batch_norms_are_measured_anew() -> None:
    network = network_of(nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    norm = network.get_submodule("body.0")
    batches = [torch.rand(4, 3, 16, 16) * 255 for _ in range(3)]
    norm.running_mean.fill_(9)
    recalibrate(network, batches)
    inputs = torch.cat([network.normalize(b) for b in batches])
    torch.testing.assert_close(norm.running_mean, inputs.mean((0, 2, 3)))
    assert norm.momentum == 0.1
    assert not network.training


def test_edits_are_plain_data(pruned: Run) -> None:
    assert json.loads(json.dumps(pruned.edits)) == pruned.edits
    assert all(isinstance(edit["layer"], str) for edit in pruned.edits)


def test_network_without_norms_is_tuned_whatever_the_recipe_it_was_adopted_with_says_of_them(
    tiny_dataset: Any, tmp_path: Path
) -> None:
    from trimtab.train.adopt import adopt

    body = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))  # fmt: skip
    recipe = Recipe().override(
        train__epochs=1, augment__flip=False, train__precision="fp32", train__layout="contiguous",
        train__bias_rate=4.0,
    )  # fmt: skip
    run = adopt(body, tiny_dataset, recipe=recipe, out=tmp_path / "own")
    assert prune(run, keep=0.5, data=tiny_dataset, out=tmp_path / "small").measured("accuracy")


def test_a_whitened_first_layer_is_cut_and_not_trained(tiny_dataset: Any, tmp_path: Path) -> None:
    recipe = Recipe().override(
        augment__flip=False, model__name="wcnn_small", model__whiten=True, train__epochs=1,
        train__optimizer="muon", train__bias_rate=16,
    )  # fmt: skip
    parent = train(tiny_dataset, recipe=recipe, out=tmp_path / "parent")
    child = prune(parent, keep=0.5, data=tiny_dataset, out=tmp_path / "child")
    first, cut = (next(m for m in load(run).modules() if isinstance(m, nn.Conv2d)).weight
                  for run in (parent, child))  # fmt: skip
    rows = {tuple(row.flatten().tolist()) for row in first}
    assert all(tuple(row.flatten().tolist()) in rows for row in cut)


def test_users_own_module_goes_through(tiny_dataset: Any, tmp_path: Path) -> None:
    from trimtab.train.run import train

    body = nn.Sequential(unit(1, 24), unit(24, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(24, 10))  # fmt: skip
    recipe = Recipe().override(train__epochs=1, augment__flip=False, train__precision="fp32")
    run = train(tiny_dataset, recipe=recipe, model=body, out=tmp_path / "own")
    assert run.recipe.model.name == adopt_module(body)
    small = prune(run, keep=0.5, data=tiny_dataset, out=tmp_path / "small")
    assert load(small).get_submodule("body.0.0").out_channels in (8, 16)
