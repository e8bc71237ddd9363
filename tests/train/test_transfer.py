"""A training that starts from weights of another: head first, early layers slower, exact resume."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trimtab.errors import UsageError
from trimtab.export.onnx import open_onnx, write_onnx
from trimtab.measure.quality import network_call
from trimtab.models.build import load
from trimtab.models.image import find_model
from trimtab.plan.fit import require_parts
from trimtab.records.recipe import Recipe, read_recipe
from trimtab.records.run import Run
from trimtab.train import loop
from trimtab.train.adopt import adopt
from trimtab.train.freeze import Freeze
from trimtab.train.optimizers import OPTIMIZERS, find_optimizer, parameter_groups
from trimtab.train.run import resume, train

ROOT = Path(__file__).parents[2]
EPOCHS = 3


@pytest.fixture
def weights(tiny_run: Run, tmp_path: Path) -> Path:
    """The weights of a trained run, as a file of their own."""
    return Path(shutil.copy(tiny_run.weights, tmp_path / "learnt.safetensors"))


def recipe_of(tiny_recipe: Recipe, weights: Path, **changes: Any) -> Recipe:
    settled = {"train__epochs": EPOCHS, "train__layout": "contiguous", "train__head_only": 0.5,
               "train__layer_decay": 0.7, "model__pretrained": str(weights)}  # fmt: skip
    return tiny_recipe.override(**{**settled, **changes})


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    """Let a training fail in place of the update that comes after `updates`."""
    done, real = 0, loop.train_step

    def step(*given: Any) -> Any:
        nonlocal done
        done += 1
        if done > updates:
            raise RuntimeError("stopped by the test")
        return real(*given)

    monkeypatch.setattr(loop, "train_step", step)


# What learns


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize("name", [*sorted(OPTIMIZERS), "lamb", "Adamax"])
def test_only_the_head_moves_until_the_body_is_thawed(name: str) -> None:
    network = small_net()
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=0.5)
    optimizer = find_optimizer(name)(groups, lr=0.01)
    every = [one for group in optimizer.param_groups for one in group["params"]]
    freeze = Freeze(network, every, head_only=0.5, norms=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def moved(progress: float) -> set[str]:
        freeze.follow(progress)
        optimizer.zero_grad()
        network(torch.rand(6, 1, 8, 8)).square().sum().backward()
        optimizer.step()
        return {
            key for key, one in network.state_dict().items() if not torch.equal(one, before[key])
        }

    assert moved(0.0) == moved(0.49) == {"7.weight", "7.bias"}
    assert all(one.grad is None for one in network[:7].parameters())
    assert {"0.weight", "1.weight", "1.running_mean", "4.num_batches_tracked"} <= moved(0.5)


def test_what_was_frozen_for_good_is_not_thawed() -> None:
    network = small_net()
    network[0].weight.requires_grad_(False)
    groups = parameter_groups(network, weight_decay=0.0)
    every = [one for group in groups for one in group["params"]]
    freeze = Freeze(network, every, head_only=0.5, norms=True)
    for progress in (0.0, 0.5):
        freeze.follow(progress)
    assert not network[0].weight.requires_grad
    assert network[3].weight.requires_grad
    assert not network[1].training
    assert network[7].training


def test_rates_fall_by_the_factor_for_each_block_and_roles_stay() -> None:
    network = small_net()
    plain = parameter_groups(network, weight_decay=0.1)
    groups = parameter_groups(network, weight_decay=0.1, layer_decay=0.5)
    rates = {id(one): group["rate"] for group in groups for one in group["params"]}
    assert [rates[id(one)] for one in network.parameters()] == [0.25] * 4 + [0.5] * 4 + [1] * 2
    roles = {id(one): role for group in groups if "roles" in group
             for one, role in zip(group["params"], group["roles"], strict=True)}  # fmt: skip
    assert roles == {id(one): role for one, role in
                     zip(plain[0]["params"], plain[0]["roles"], strict=True)}  # fmt: skip
    assert {group["weight_decay"] for group in groups if "roles" in group} == {0.1}


# The whole training


def test_run_starts_where_another_ended_and_says_from_what(
    tiny_dataset: Any, tiny_recipe: Recipe, tiny_run: Run, weights: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_recipe, weights, model__keep_head=True, model__freeze_norms=True,
                       train__learning_rate=1e-9, train__epochs=1)  # fmt: skip
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    one, two = (run.measured("accuracy"), tiny_run.measured("accuracy"))
    assert one
    assert two
    assert one["value"] == two["value"]
    told = run.measured("pretrained") or {}
    assert told["file"] == "learnt.safetensors"
    assert told["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert told["head"] == "kept"
    assert run.recipe.model.pretrained == "learnt.safetensors"
    for path in run.path.rglob("*.*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    weights.unlink()
    assert torch.equal(load(run).normalize.mean, load(tiny_run).normalize.mean)


def test_normalisation_of_the_weights_is_part_of_the_exported_file(
    tiny_dataset: Any, tiny_recipe: Recipe, weights: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_recipe, weights, train__epochs=1, model__mean=[0.3], model__std=[0.2])
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    write_onnx(load(run), tiny_dataset.schema, tmp_path / "m.onnx")
    pixels = tiny_dataset.splits["valid"].inputs[:8]
    wanted = network_call(load(run))(pixels)
    np.testing.assert_allclose(open_onnx(tmp_path / "m.onnx")(pixels), wanted, rtol=1e-3, atol=1e-3)
    assert load(run).normalize.mean.item() == pytest.approx(0.3 * 255)


def test_a_run_folder_serves_as_weights(
    tiny_dataset: Any, tiny_recipe: Recipe, tiny_run: Run, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_recipe, tiny_run.path, train__epochs=1, train__head_only=0.99)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    old, new = load_file(tiny_run.weights), load_file(run.weights)
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert {"body.classifier.weight", "body.classifier.bias"} <= changed
    assert (run.measured("pretrained") or {})["file"] == "weights.safetensors"


@pytest.mark.parametrize(
    ("updates", "optimizer"),
    [(0, "adamw"), (3, "muon"), (20, "adamw"), (20, "muon")],
    ids=["at once", "frozen", "thawed", "thawed muon"],
)
def test_resumed_training_needs_no_weights_file_and_ends_in_the_same_bits(
    updates: int, optimizer: str, tiny_dataset: Any, tiny_recipe: Recipe, weights: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, weights, train__optimizer=optimizer, train__average="ema",
                       train__checkpoint_seconds=1e-9)  # fmt: skip
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole", seed=3)
    with monkeypatch.context() as patch:
        stop_after(patch, updates)
        with pytest.raises(RuntimeError, match="by the test"):
            train(tiny_dataset, recipe=recipe, out=tmp_path / "parts", seed=3)
    weights.unlink()
    parts = resume(tmp_path / "parts", data=tiny_dataset)
    one, two = load_file(whole.weights), load_file(parts.weights)
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


def test_same_command_resumes_by_the_name_of_its_weights(
    tiny_dataset: Any, tiny_recipe: Recipe, weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe, out = recipe_of(tiny_recipe, weights), tmp_path / "r"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError, match="by the test"):
            train(tiny_dataset, recipe=recipe, out=out)
    with pytest.raises(UsageError, match=r"pretrained is 'learnt\.safetensors', got 'other\.npz'"):
        train(tiny_dataset, recipe=recipe.override(model__pretrained="other.npz"), out=out)
    assert train(tiny_dataset, recipe=recipe, out=out).facts["status"] == "finished"


def test_killed_before_its_first_checkpoint_the_same_command_starts_from_the_same_weights(
    tiny_dataset: Any, tiny_recipe: Recipe, weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe, out = recipe_of(tiny_recipe, weights), tmp_path / "r"
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        with pytest.raises(RuntimeError, match="by the test"):
            train(tiny_dataset, recipe=recipe, out=out)
    for whole_one in (out / "checkpoints").iterdir():
        whole_one.rename(whole_one.with_name("step-00000000.0123abcd.tmp"))
    run = train(tiny_dataset, recipe=recipe, out=out)
    one, two = load_file(whole.weights), load_file(run.weights)
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert [row["what"] for row in run.ledger].count("pretrained") == 1


def test_missing_weights_leave_no_run_and_no_training_from_fresh_ones(
    tiny_dataset: Any, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_recipe, tmp_path / "gone.npz")
    with pytest.raises(UsageError, match=r"no weights file .*gone\.npz"):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_setting_for_weights_that_are_not_wanted_is_refused(
    tiny_dataset: Any, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"model\.pretrained none takes no model\.keep_head"):
        train(tiny_dataset, recipe=tiny_recipe.override(model__keep_head=True), out=tmp_path / "r")
    with pytest.raises(UsageError, match="needs the network it is for"):
        train(tiny_dataset, recipe=Recipe().override(model__pretrained="cache"), out=tmp_path / "r")
    with pytest.raises(UsageError, match="adopt keeps the weights"):
        adopt(small_net(), tiny_dataset, recipe=Recipe().override(model__pretrained="cache"))
    with pytest.raises(UsageError, match="needs the network it is for"):
        require_parts(Recipe().override(model__pretrained="cache"))


def test_adopted_network_takes_no_recipe_that_describes_another(
    tiny_dataset: Any, tiny_run: Run, tmp_path: Path
) -> None:
    net, own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), load(tiny_run)
    stated = Recipe().override(model__mean=[0.5], model__std=[0.25])
    for model, recipe in (
        (net, Recipe().override(model__width=2.0)), (net, stated.override(model__dropout=0.1)),
        (net, Recipe().override(model__whiten=True)), (own, stated),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="the recipe describes a model"):
            adopt(model, tiny_dataset, recipe=recipe, out=tmp_path / "r")
        assert not (tmp_path / "r").exists()
    run = adopt(net, tiny_dataset, recipe=stated, out=tmp_path / "r")
    assert load(run).normalize.mean.item() == pytest.approx(127.5)


def test_recipe_for_transfer_runs_on_made_weights(
    tiny_dataset: Any, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    recipe = read_recipe(ROOT / "recipes" / "transfer.yaml").override(
        data__image_size=16, train__epochs=1, train__precision="fp32", augment__flip=False
    )
    thousand = tiny_dataset.schema.model_copy(update={
        "classes": tuple(str(number) for number in range(1000)), "channels": 3})  # fmt: skip
    place = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-7ebf99e0.pth"
    place.parent.mkdir(parents=True)
    torch.save(find_model("mobilenet_v2")(thousand).state_dict(), place)
    run = train(digits_folder, recipe=recipe, out=tmp_path / "r")
    assert (run.measured("pretrained") or {})["file"] == place.name
    assert load(run).normalize.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
