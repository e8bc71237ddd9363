"""The sweep of learning rates: a true suggestion, and nothing of the user's is touched."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.report.reading import read
from trimtab.errors import DivergedError, Interrupted, MachineError, UsageError
from trimtab.machine.device import seed_everything
from trimtab.models.build import build
from trimtab.models.depthwise import Depthwise
from trimtab.train import speed as speeds
from trimtab.train import sweep as sweeping
from trimtab.train.loop import train_network
from trimtab.train.lr_find import LrFind, lr_find
from trimtab.train.optimizers import OPTIMIZERS, PEAK_LEARNING_RATE
from trimtab.train.sweep import ABOVE, BELOW, sweep
from trimtab.train.valley import FEWEST


@pytest.fixture
def recipe(tiny_recipe: Any) -> Any:
    """A recipe whose speed is not probed."""
    return tiny_recipe.override(train__layout="contiguous", train__epochs=5)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something in front of an update of the sweep."""

    def arrange(number: int, act: Callable[[], None]) -> None:
        real, done = sweeping.train_step, 0

        def step(*given: Any) -> Any:
            nonlocal done
            done += 1
            if done == number:
                act()
            return real(*given)

        monkeypatch.setattr(sweeping, "train_step", step)

    return arrange


def diverge() -> None:
    raise DivergedError("the loss is nan, not finite")


class Own(nn.Module):
    """A user's module with batch norm, dropout and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.features[0].weight.requires_grad_(False)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (N, 1, H, W) to logits (N, 10)."""
        return self.head(self.drop(self.features(inputs).mean((2, 3))))  # type: ignore[no-any-return]


# The suggestion


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_training_at_the_suggestion_is_no_worse_than_far_below_and_far_above(
    optimizer: str, tiny_dataset: Any, recipe: Any, tmp_path: Path
) -> None:
    chosen = recipe.override(train__optimizer=optimizer)
    found = lr_find(tiny_dataset, recipe=chosen, out=tmp_path / "find")
    assert found.suggestion is not None, found.reason
    reached = [accuracy_at(found.suggestion * factor, tiny_dataset, chosen)
               for factor in (1, 1 / 30, 30)]  # fmt: skip
    assert reached[0] > 0.6
    assert reached[0] >= max(reached[1:]) + 0.1


def accuracy_at(rate: float, dataset: Any, recipe: Any) -> float:
    seed_everything(0)
    network = build(dataset.schema, recipe)
    chosen = recipe.override(train__learning_rate=rate)
    try:
        return train_network(network, dataset, chosen, None).scores.accuracy
    except DivergedError:
        return 0.0


def test_rates_too_low_to_learn_give_the_usual_one_and_say_that_it_was_not_found(
    tiny_dataset: Any, recipe: Any, tmp_path: Path
) -> None:
    low = recipe.override(train__learning_rate=1e-10)
    found = lr_find(tiny_dataset, recipe=low, out=tmp_path, steps=40)
    assert found.suggestion is None
    assert not found.clear
    assert found.usual == PEAK_LEARNING_RATE["adamw"]
    assert found.setting == f"--set train.learning_rate={found.usual:g}"
    assert "no suggestion: the curve is flat" in str(found)
    assert "the usual rate of adamw, not one that was found" in str(found)


def test_rates_that_diverge_at_once_say_lower(
    tiny_dataset: Any, recipe: Any, tmp_path: Path
) -> None:
    high = recipe.override(train__optimizer="sgd", train__learning_rate=1e8)
    found = lr_find(tiny_dataset, recipe=high, out=tmp_path)
    assert found.suggestion is None
    assert found.ended in {"diverged", "not finite"}
    assert "must be lower" in found.reason
    assert len(found.rates) < FEWEST
    assert found.setting is None
    assert "--set" not in str(found)
    assert json.loads((tmp_path / "lr_find.json").read_text("utf-8"))["setting"] is None


# The sweep


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_rate_rises_exponentially_for_every_optimizer_and_each_of_its_groups(
    optimizer: str, tiny_dataset: Any, recipe: Any
) -> None:
    chosen = recipe.override(train__optimizer=optimizer, train__bias_rate=8.0,
                             model__width=0.25)  # fmt: skip
    if optimizer == "adagrad":
        chosen = chosen.override(train__momentum=0.9)
    network = build(tiny_dataset.schema, chosen)
    found = sweep(network, tiny_dataset, chosen, steps=13, seed=0)
    ratios = {round(b / a, 9) for a, b in zip(found.rates, found.rates[1:], strict=False)}
    assert ratios == {round((BELOW * ABOVE) ** (1 / 12), 9)}
    assert found.rates[0] == pytest.approx(PEAK_LEARNING_RATE[optimizer] / BELOW)
    groups = found.settings.optimizer.param_groups
    assert len({group["rate"] for group in groups}) > 1
    for group in groups:
        assert group["lr"] == pytest.approx(found.rates[-1] * group["rate"])


def test_sweep_begins_with_the_weights_that_the_recipe_names(
    tiny_dataset: Any, recipe: Any, tiny_run: Any, tmp_path: Path
) -> None:
    learnt = recipe.override(model__pretrained=str(tiny_run.path), model__keep_head=True)
    losses = [lr_find(tiny_dataset, recipe=one, steps=FEWEST, out=tmp_path).losses[0]
              for one in (learnt, recipe)]  # fmt: skip
    assert losses[0] < 0.9 * losses[1]


def test_with_a_phase_of_the_head_alone_that_phase_is_swept(
    tiny_dataset: Any, recipe: Any, tmp_path: Path
) -> None:
    chosen = recipe.override(train__head_only=0.3)
    network = build(tiny_dataset.schema, chosen)
    before = copy.deepcopy(network.state_dict())
    sweep(network, tiny_dataset, chosen, steps=12, seed=0)
    after = network.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {
        "body.classifier.weight", "body.classifier.bias",
    }  # fmt: skip
    found = lr_find(tiny_dataset, recipe=chosen, steps=FEWEST, out=tmp_path)
    assert found.to_dict()["head_only"] is True
    assert "the head alone" in str(found)


def test_steps_that_a_training_takes_late_are_not_swept(tiny_dataset: Any, recipe: Any) -> None:
    always = recipe.override(regularize__sharpness=0.5)
    late = always.override(regularize__sharpness_start=0.5)
    losses = {}
    for name, chosen in {"plain": recipe, "late": late, "always": always}.items():
        torch.manual_seed(0)
        network = build(tiny_dataset.schema, chosen)
        losses[name] = sweep(network, tiny_dataset, chosen, steps=12, seed=0).losses
    assert losses["late"] == losses["plain"] != losses["always"]


@pytest.mark.parametrize(("choice", "times"), [("auto", 0), (False, 0), (True, 1)])
def test_sweep_is_compiled_only_where_the_recipe_demands_it(
    choice: Any, times: int, tiny_dataset: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def compile_for(*given: Any) -> float:
        done.append(1)
        return 0.0

    monkeypatch.setattr(speeds, "compile_for", compile_for)
    long = recipe.override(train__epochs=10**8, train__compile=choice)
    sweep(build(tiny_dataset.schema, long), tiny_dataset, long, steps=2, seed=0)
    assert len(done) == times


def test_sweep_steps_as_the_loop_does(
    tiny_dataset: Any, recipe: Any, at_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe.override(model__name="dwconv_small")
    network, seen, kept = build(tiny_dataset.schema, chosen), [], []

    @contextmanager
    def keeping() -> Iterator[None]:
        kept.append(1)
        yield
        kept.pop()

    def look() -> None:
        quick = sum(isinstance(module, Depthwise) for module in network.modules())
        seen.append((quick, len(kept)))

    monkeypatch.setattr(sweeping, "kept_memory", keeping)
    at_step(2, look)
    sweep(network, tiny_dataset, chosen, steps=3, seed=0)
    assert seen == [(5, 1)]
    assert not any(isinstance(module, Depthwise) for module in network.modules())


def test_loss_that_is_not_finite_ends_the_sweep_and_raises_nothing(
    tiny_dataset: Any, recipe: Any, tmp_path: Path, at_step: Any
) -> None:
    at_step(30, diverge)
    found = lr_find(tiny_dataset, recipe=recipe, out=tmp_path)
    assert found.ended == "not finite"
    assert len(found.losses) == 29
    assert all(map(math.isfinite, found.losses))


def test_loss_that_is_not_finite_from_the_first_step_on_says_lower_and_is_drawn(
    tiny_dataset: Any, recipe: Any, tmp_path: Path, at_step: Any
) -> None:
    at_step(1, diverge)
    found = lr_find(tiny_dataset, recipe=recipe, out=tmp_path)
    assert (found.rates, found.suggestion) == ((), None)
    assert "must be lower" in str(found)
    assert "must be lower" in read((tmp_path / "lr_find.svg").read_text("utf-8")).text


def test_same_seed_gives_the_same_curve_and_another_one_another(
    tiny_dataset: Any, recipe: Any, tmp_path: Path
) -> None:
    first, again, other = (
        lr_find(tiny_dataset, recipe=recipe, steps=12, out=tmp_path, seed=seed).losses
        for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("steps", [0, FEWEST - 1, 10**9])
def test_number_of_steps_out_of_range_is_refused(
    steps: int, tiny_dataset: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"steps is {steps}"):
        lr_find(tiny_dataset, steps=steps, out=tmp_path)


# What is the user's


def test_module_optimizer_and_random_generators_are_as_they_were(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    seed_everything(3)
    own = Own()
    own.features.eval()
    optimizer = torch.optim.Adam(own.head.parameters(), lr=0.1)
    own(torch.rand(4, 1, 8, 8)).sum().backward()
    optimizer.step()
    state, known = copy.deepcopy(own.state_dict()), copy.deepcopy(optimizer.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in own.parameters()]
    flags = [p.requires_grad for p in own.parameters()]
    modes = [module.training for module in own.modules()]
    numbers = torch.get_rng_state()
    recipe = tiny_recipe.override(model__name="auto", train__bias_rate=4.0)
    found = lr_find(tiny_dataset, recipe=recipe, model=own, out=tmp_path, steps=30)
    assert found.model.startswith("custom:Own")
    assert all(torch.equal(value, state[name]) for name, value in own.state_dict().items())
    assert str(optimizer.state_dict()) == str(known)
    for parameter, before in zip(own.parameters(), gradients, strict=True):
        same = before is None if parameter.grad is None else torch.equal(parameter.grad, before)
        assert same
    assert [p.requires_grad for p in own.parameters()] == flags
    assert [module.training for module in own.modules()] == modes
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_sweep_does_change_the_network_it_is_given(tiny_dataset: Any, recipe: Any) -> None:
    """Without this the test above could not fail."""
    network = build(tiny_dataset.schema, recipe)
    before = copy.deepcopy(network.state_dict())
    sweep(network, tiny_dataset, recipe, steps=12, seed=0)
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert any("running_mean" in key for key in changed)
    assert any(key.endswith("weight") for key in changed)


def test_random_generators_are_restored_after_an_error_too(
    tiny_dataset: Any, recipe: Any, tmp_path: Path, at_step: Any
) -> None:
    def fail() -> None:
        raise RuntimeError("planted")

    at_step(3, fail)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="planted"):
        lr_find(tiny_dataset, recipe=recipe, out=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


# Files and words


@pytest.fixture(scope="module")
def swept(tiny_dataset: Any, tiny_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> LrFind:
    return lr_find(tiny_dataset, recipe=tiny_recipe, out=tmp_path_factory.mktemp("lr") / "find")


def test_files_hold_what_the_value_holds(swept: LrFind, tmp_path: Path) -> None:
    kept = json.loads((swept.path / "lr_find.json").read_text("utf-8"))
    assert kept == json.loads(json.dumps(swept.to_dict()))
    assert kept["losses"] == list(swept.losses)
    assert kept["setting"] == f"--set train.learning_rate={swept.suggestion:g}"
    assert kept["setting"] in str(swept)
    again = swept.picture(tmp_path / "again.svg")
    assert again.read_bytes() == (swept.path / "lr_find.svg").read_bytes()


def test_picture_is_whole_and_its_marks_stand_where_the_numbers_say(swept: LrFind) -> None:
    text = (swept.path / "lr_find.svg").read_text("utf-8")
    assert "var(" not in text
    assert "prefers-color-scheme: dark" in text
    drawn = read(text)
    ticks = [(float(t.attributes["x"]), math.log10(float(t.text)))
             for t in drawn.all("text", "mid")]  # fmt: skip
    (a, low), (b, high) = ticks[0], ticks[-1]
    (bound,) = drawn.all("line", "bound")
    at = low + (float(bound.attributes["x1"]) - a) * (high - low) / (b - a)
    assert swept.suggestion is not None
    assert at == pytest.approx(math.log10(swept.suggestion), abs=0.01)
    assert f"suggested: {swept.suggestion:g}" in drawn.text
    assert swept.verdict.split(":")[0] in drawn.text


def test_notebooks_show_the_picture_as_an_image_of_its_own(swept: LrFind) -> None:
    (image,) = read(swept._repr_html_()).all("img")
    assert image.attributes["src"].startswith("data:image/svg+xml;base64,")


def test_first_ctrl_c_ends_the_sweep_and_keeps_what_was_swept(
    tiny_dataset: Any, recipe: Any, tmp_path: Path, at_step: Any
) -> None:
    at_step(20, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match="20 rates so far"):
        lr_find(tiny_dataset, recipe=recipe, out=tmp_path)
    kept = json.loads((tmp_path / "lr_find.json").read_text("utf-8"))
    assert kept["ended"] == "stopped"
    assert len(kept["losses"]) == 20


def test_recipe_that_cannot_be_swept_leaves_no_folder_and_nothing_of_others_goes(
    tiny_dataset: Any, recipe: Any, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    for name in ("new", "kept"):
        with pytest.raises(UsageError, match="unknown optimizer"):
            lr_find(tiny_dataset, recipe=recipe.override(train__optimizer="sdg"),
                    out=tmp_path / name)  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "notes.txt"]


def test_folder_that_cannot_be_written_is_told_before_the_sweep(
    tiny_dataset: Any, recipe: Any, tmp_path: Path, at_step: Any
) -> None:
    at_step(1, lambda: pytest.fail("it swept first"))
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="file"):
        lr_find(tiny_dataset, recipe=recipe, out=tmp_path / "file" / "find")
