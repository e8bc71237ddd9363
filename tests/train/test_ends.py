"""How a training ends: with what was reached, and with a way on where more is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.errors import Interrupted, UsageError
from trimtab.machine import failpoints
from trimtab.machine.progress import OUTPUT, Bar
from trimtab.models.build import load
from trimtab.records.files import write_json, write_text
from trimtab.records.run import Run
from trimtab.train import loop, settings
from trimtab.train.log import Best
from trimtab.train.optimizers import usual_rate
from trimtab.train.run import epochs_done, resume, train

Stop = Callable[..., None]


def epochs_of(run: Run) -> list[float]:
    return [row["epoch"] for row in run.metrics if "epoch" in row]


def recipe_of(tiny_recipe: Any, **changes: Any) -> Any:
    return tiny_recipe.override(augment__flip=True, **{"train__epochs": 5, **changes})


def stopped(dataset: Any, tiny_recipe: Any, out: Path, stop_at: Stop) -> Run:
    """Return a training of 5 epochs of 10 steps that was stopped after 2.3 of them."""
    size = len(dataset.splits["train"]) // 10 + 1
    stop_at(2 * 10 + 3)
    with pytest.raises(Interrupted):
        train(dataset, recipe=recipe_of(tiny_recipe, train__batch_size=size), out=out)
    return Run(out)


# More epochs than it had


@pytest.mark.parametrize("epochs", [5, 9])
def test_training_that_stopped_early_goes_on_from_where_it_was(
    epochs: int, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    stuck = recipe_of(tiny_recipe, train__patience=1, train__learning_rate=1e-12)
    run = train(tiny_dataset, recipe=stuck, out=tmp_path / "r")
    assert run.facts["stopped_early"]
    assert epochs_of(run) == [1, 2]
    assert epochs_of(resume(run, data=tiny_dataset, epochs=epochs))[:3] == [1, 2, 3]


def test_patience_that_ends_with_the_last_epoch_ended_nothing_early(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    stuck = recipe_of(tiny_recipe, train__epochs=2, train__patience=1, train__learning_rate=1e-12)
    run = train(tiny_dataset, recipe=stuck, out=tmp_path / "r")
    assert epochs_of(run) == [1, 2]
    assert not run.facts["stopped_early"]


@pytest.mark.parametrize("status", ["interrupted", "broken off"])
def test_fewer_epochs_than_are_behind_a_training_are_refused_and_change_nothing(
    status: str, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    run = stopped(tiny_dataset, tiny_recipe, tmp_path / "r", stop_at)
    if status == "broken off":
        facts = {key: value for key, value in run.facts.items() if key not in ("status", "epochs")}
        write_json(run.path / "run.json", facts)
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=f"is {status} after 2.[0-9]+ epochs"):
        resume(run, data=tiny_dataset, epochs=2)
    assert before == {path.name: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    assert epochs_of(resume(run, data=tiny_dataset, epochs=3))[-1] == 3


def test_epochs_behind_a_training_go_by_its_steps_whatever_was_asked_for_since(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    run = stopped(tiny_dataset, tiny_recipe, tmp_path / "r", stop_at)
    assert epochs_done(run) == pytest.approx(2.3)
    facts = {key: value for key, value in run.facts.items() if key not in ("status", "epochs")}
    write_json(run.path / "run.json", facts)  # as if killed soon after `resume --epochs 50`
    write_text(run.path / "recipe.yaml", run.recipe.override(train__epochs=50).to_yaml())
    assert epochs_done(run) == pytest.approx(2.3)


def test_what_is_left_and_the_rate_are_those_of_the_training_that_goes_on(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, train__learning_rate="auto")
    stop_at(4)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    begun: list[float] = []
    monkeypatch.setattr(Bar, "begin", lambda self, done: begun.append(done))
    peak = usual_rate(recipe.train.optimizer)
    monkeypatch.setattr(settings, "usual_rate", lambda name: 1000 * peak)
    run = resume(tmp_path / "r", data=tiny_dataset)
    steps = run.metrics[-1]["step"]
    assert begun == [pytest.approx(4 / steps)]
    assert max(row["lr"] for row in run.metrics) <= peak


# No room for a checkpoint


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_only_checkpoint_that_cannot_be_written_costs_no_weights(
    interrupted: bool, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole = train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "whole")
    monkeypatch.setattr(OUTPUT, "quiet", False)
    failpoints.arm("checkpoint.before_manifest:1:enospc")
    if interrupted:
        stop_at(4)
        with pytest.raises(Interrupted) as caught:
            train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
        assert "no checkpoint could be written" in caught.value.hint
        assert load(tmp_path / "r")
    else:
        run = train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
        one, other = load(whole).state_dict(), load(run).state_dict()
        assert all(torch.equal(one[name], value) for name, value in other.items())
        assert run.facts["status"] == "finished"
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "warning: no checkpoint in" in told


# The last weights, not the best


def losing(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    """Let each look after the first find `by` less accuracy than the one before."""
    real, looks = loop.evaluate, []

    def evaluate(*words: Any) -> Any:
        looks.append(words)
        scores = real(*words)
        accuracy = max(0.0, 0.99 - by * (len(looks) - 1))
        return replace(scores, accuracy=accuracy, low=accuracy - 0.05, high=accuracy + 0.05)

    monkeypatch.setattr(loop, "evaluate", evaluate)


@pytest.mark.parametrize(("by", "told"), [(0.01, False), (0.1, True)])
def test_last_weights_that_lost_what_earlier_ones_knew_are_told(
    by: float, told: bool, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    losing(monkeypatch, by)
    recipe = recipe_of(tiny_recipe, train__epochs=3, train__restore_best=False)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    found = [one for one in run.findings if one.name == "past_its_best"]
    assert len(found) == told
    if told:
        assert found[0].evidence["best"] == pytest.approx(0.99)
        losing(monkeypatch, 0.0)
        longer = resume(run, data=tiny_dataset, epochs=6)
        assert not [one for one in longer.findings if one.name == "past_its_best"]


def test_the_best_of_all_looks_is_known_whatever_gain_patience_waits_for(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, 0.1)
    recipe = recipe_of(tiny_recipe, train__epochs=3, train__restore_best=False,
                       train__min_delta=0.995)  # fmt: skip
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    (found,) = (one for one in run.findings if one.name == "past_its_best")
    assert found.evidence["best"] == pytest.approx(0.99)


def test_the_last_weights_are_those_of_an_interrupted_and_resumed_training_too(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, train__epochs=3, train__restore_best=False,
                       train__precision="fp32", train__layout="contiguous")  # fmt: skip
    real = Best.offer

    def falling(self: Best, scores: Any, network: nn.Module, epoch: float) -> None:
        real(self, replace(scores, accuracy=0.9 - 0.1 * epoch), network, epoch)

    monkeypatch.setattr(Best, "offer", falling)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole", seed=3)
    stop_at(9)
    with pytest.raises(Interrupted, match="the last weights so far"):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r", seed=3)
    run = resume(tmp_path / "r", data=tiny_dataset)
    one, other = load(whole).state_dict(), load(run).state_dict()
    assert all(torch.equal(one[name], value) for name, value in other.items())
