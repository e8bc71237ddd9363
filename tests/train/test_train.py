"""Training learns, stops when it should, and writes what it measured."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.errors import DivergedError, Interrupted, UsageError
from trimtab.machine.probe import PLAIN, probe
from trimtab.machine.progress import OUTPUT
from trimtab.models.build import build, load
from trimtab.records.run import open_run
from trimtab.train import loop
from trimtab.train.flip import are_recognised
from trimtab.train.log import LEAVING_SECONDS, SAVED_BYTES, SAVING_SECONDS, Best, Clock
from trimtab.train.loop import evaluate, train_network
from trimtab.train.run import train
from trimtab.train.settings import resolve_batch_size


def test_trained_run_holds_what_it_measured(tiny_run: Any, tiny_dataset: Any) -> None:
    accuracy = tiny_run.measured("accuracy")
    assert accuracy["value"] > 0.5
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy["n"] == len(tiny_dataset.splits["valid"])
    assert tiny_run.facts["status"] == "finished"
    epochs = [row for row in tiny_run.metrics if "epoch" in row]
    assert len(epochs) == tiny_run.recipe.train.epochs
    again = evaluate(load(tiny_run), tiny_dataset)
    assert again.accuracy == accuracy["value"] == max(r["valid_accuracy"] for r in epochs)


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(train__epochs=2)
    states = [
        load(train(tiny_dataset, recipe=recipe, out=tmp_path / str(i), seed=seed)).state_dict()
        for i, seed in enumerate((5, 5, 6))
    ]
    same = [torch.equal(states[0][key], states[1][key]) for key in states[0]]
    other = [torch.equal(states[0][key], states[2][key]) for key in states[0]]
    assert all(same)
    assert not all(other)


@pytest.mark.parametrize("guess", [None, 100.0], ids=["measured", "held_up"])
def test_budget_ends_a_training_that_has_epochs_left(
    guess: float | None, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if guess is not None:  # half of the budget would be kept for evaluations that are quick
        monkeypatch.setattr(loop, "evaluation_seconds", lambda *_: guess)
    recipe = tiny_recipe.override(train__epochs=100_000, train__patience=100_000)
    started = time.monotonic()
    run = train(tiny_dataset, recipe=recipe, budget=8, out=tmp_path / "r")
    assert 0.7 * 8 < time.monotonic() - started < 1.3 * 8
    rates = [r["lr"] for r in run.metrics if "lr" in r]
    assert rates[-1] < 0.2 * max(rates)
    assert not any(finding.name == "short_budget" for finding in run.findings)


def test_time_kept_for_the_end_follows_what_evaluations_usually_take() -> None:
    clock = Clock(100.0)
    clock.reserve(20.0)
    wrong = 2 * clock.reserved  # at first, one look is all there will be
    for _ in range(3):
        with clock.evaluating():
            pass
    usual = clock.reserved
    clock.reserve(20.0)
    assert clock.reserved == pytest.approx(usual, abs=0.1), "one that was held up counts for little"
    assert usual < 0.1 * wrong
    for _ in range(3):
        clock.reserve(20.0)
    assert clock.reserved == pytest.approx(wrong, abs=1.0)


def test_time_for_two_looks_is_kept_once_there_is_something_to_compare_with() -> None:
    clock = Clock(100.0, exact=3.0)
    clock.reserve(4.0)
    assert clock.reserved == pytest.approx(12.0, abs=1.0), "fp32 only"
    clock.reserve(4.0)
    assert clock.reserved == pytest.approx(16.0, abs=1.0), "and one in the training's precision"
    resumed = Clock(100.0, exact=3.0, epoch=2)
    resumed.reserve(4.0)
    assert resumed.reserved == clock.reserved


def test_the_end_is_told_from_some_of_valid_in_both_precisions(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(network: nn.Module, autocast: Any = nullcontext) -> Any:
        seconds = 4e-4 if autocast is nullcontext else 2e-4
        return lambda pixels: time.sleep(seconds * len(pixels))

    monkeypatch.setattr(loop, "network_call", slow)
    network, clock = nn.Linear(1000, 150), Clock(50.0)
    settings = SimpleNamespace(precision="bf16", autocast=lambda: nullcontext())
    loop.expect_end(clock, network, tiny_dataset, settings)  # type: ignore[arg-type]
    samples = len(tiny_dataset.splits["valid"])
    assert clock.exact == pytest.approx(2.0, rel=0.3)
    assert clock.evaluations == [pytest.approx(2e-4 * samples, rel=0.3)]
    assert clock.saving == pytest.approx(SAVING_SECONDS + 4 * 150_150 / SAVED_BYTES)
    assert clock.reserved >= clock.exact * clock.evaluations[0] + clock.saving
    untold = Clock(None)
    loop.expect_end(untold, network, tiny_dataset, settings)  # type: ignore[arg-type]
    assert untold == replace(Clock(None), started=untold.started)


def test_a_look_in_fp32_counts_as_one_in_the_precision_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, now = Clock(100.0, exact=4.0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with clock.evaluating(exactly=True):
        now[0] += 4.0
    with clock.evaluating():
        now[0] += 1.0
    assert clock.evaluations == [1.0, 1.0]


def test_a_first_reading_that_waits_for_a_disk_does_not_make_fp32_the_quicker_one(
    tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([10.0, 2.0])
    monkeypatch.setattr(loop, "evaluation_seconds", lambda *_: next(seconds))
    settings, clock = SimpleNamespace(precision="bf16", autocast=nullcontext), Clock(50.0)
    loop.expect_end(clock, nn.Linear(2, 2), tiny_dataset, settings)  # type: ignore[arg-type]
    assert clock.exact == 1.0
    assert clock.evaluations == [10.0]


def test_a_look_is_the_last_where_no_other_would_fit() -> None:
    clock = Clock(100.0, exact=2.0, earlier=60.0)
    clock.reserve(10.0)
    assert not clock.is_last
    clock.earlier = 75.0
    assert clock.progress < 1
    assert clock.is_last, "a second one of 10 s would end in the 20 s of the last"
    assert Clock(None, total_steps=10, step=10).is_last
    assert not Clock(None, total_steps=10, step=9).is_last


@pytest.mark.parametrize(("epochs", "looks"), [(1, 1), (2, 3)])
def test_a_training_with_one_look_makes_it_in_fp32_and_only_once(
    epochs: int, looks: int, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kept, real = [], loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *words: kept.append(words[2:]) or real(*words))
    recipe = tiny_recipe.override(train__epochs=epochs, train__precision="bf16")
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert len(kept) == looks
    assert kept[-1] == ((nullcontext,) if epochs == 1 else ())
    found = run.measured("accuracy")
    assert found is not None
    assert found["value"] == real(load(run), tiny_dataset).accuracy


def test_budget_that_ends_before_the_first_epoch_is_told(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(OUTPUT, "quiet", False)
    recipe = tiny_recipe.override(train__batch_size=4)
    run = train(tiny_dataset, recipe=recipe, budget=0.01, out=tmp_path / "r")
    (found,) = (one for one in run.findings if one.name == "short_budget")
    assert found.severity == "warning"
    assert 0 < found.evidence["epochs"] < 1
    assert f"warning: {found.message}" in capsys.readouterr().err


def test_train_loss_of_an_epoch_is_the_mean_over_its_samples(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[float, int]] = []
    real = loop.train_step

    def step(network: Any, batch: Any, *given: Any) -> Any:
        value = real(network, batch, *given)
        met.append((value.item(), len(batch.ids)))
        return value

    monkeypatch.setattr(loop, "train_step", step)
    run = train(tiny_dataset, recipe=tiny_recipe.override(train__epochs=2), out=tmp_path / "r")
    rows = [row for row in run.metrics if "epoch" in row]
    for row, steps in zip(rows, (met[: len(met) // 2], met[len(met) // 2 :]), strict=True):
        assert len({count for _, count in steps}) > 1  # a short last batch weighs less
        mean = sum(value * count for value, count in steps) / sum(count for _, count in steps)
        assert row["train_loss"] == pytest.approx(mean, abs=1e-6)


def test_training_stops_early_when_nothing_gets_better(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(train__epochs=50, train__patience=1, train__learning_rate=1e-12)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert run.facts["stopped_early"]
    assert run.facts["epochs"] < 50


def test_loss_that_is_no_number_ends_training_with_a_hint(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(train__optimizer="sgd", train__learning_rate=1e30)
    with pytest.raises(
        DivergedError, match=r"step \d+: .* not finite, with train samples \d+"
    ) as caught:
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert "learning_rate" in caught.value.hint
    assert caught.value.exit_code == 7


def test_interrupt_saves_the_best_weights_and_says_where(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe.override(train__epochs=100_000, train__patience=100_000)
    real, steps = loop.train_step, count(1)

    def step(*given: Any) -> Any:
        if next(steps) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(Interrupted) as caught:
        train(tiny_dataset, recipe=recipe, budget=60, out=tmp_path / "r")
    run = open_run(tmp_path / "r")
    assert caught.value.exit_code == 130
    assert str(run.path) in caught.value.message
    assert run.facts["status"] == "interrupted"
    assert evaluate(load(run), tiny_dataset).accuracy == (run.measured("accuracy") or {})["value"]


@pytest.mark.parametrize("restored", [True, False])
def test_the_end_has_the_best_weights_or_the_last_ones_as_the_recipe_says(
    restored: bool, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    looks: list[dict[str, torch.Tensor]] = []
    real = Best.offer

    def falling(self: Best, scores: Any, network: nn.Module, epoch: float) -> None:
        looks.append({k: v.clone() for k, v in network.state_dict().items()})
        real(self, replace(scores, accuracy=0.9 - 0.1 * len(looks)), network, epoch)

    monkeypatch.setattr(Best, "offer", falling)
    recipe = tiny_recipe.override(train__epochs=3, train__restore_best=restored)
    ended = load(train(tiny_dataset, recipe=recipe, out=tmp_path / "r")).state_dict()
    chosen = looks[0 if restored else -1]
    assert len(looks) == 3
    assert all(torch.equal(chosen[name], value) for name, value in ended.items())
    assert not all(torch.equal(looks[0][name], looks[-1][name]) for name in ended)


def test_users_own_module_trains_and_is_left_as_it_was(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    channels, height, width = tiny_dataset.schema.input_shape
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(channels * height * width, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    before = module[1].weight.detach().clone()
    run = train(
        tiny_dataset,
        recipe=tiny_recipe.override(model__name="auto"),
        model=module,
        out=tmp_path / "r",
    )
    assert (run.measured("accuracy") or {})["value"] > 0.4
    assert torch.equal(module[1].weight, before)


def test_users_own_loss_is_called(tiny_dataset: Any, tiny_recipe: Any) -> None:
    seen = []

    def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append(len(batch.targets))
        return nn.functional.cross_entropy(outputs, batch.targets)

    network = build(tiny_dataset.schema, tiny_recipe)
    rows: list[dict[str, Any]] = []
    train_network(network, tiny_dataset, tiny_recipe.override(train__epochs=1), None, loss=loss,
                  observe=rows.append)  # fmt: skip
    assert sum(seen) == len(tiny_dataset.splits["train"])
    assert any("valid_accuracy" in row for row in rows)


def test_probe_leaves_network_as_it_was_and_never_picks_the_slower(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = build(tiny_dataset.schema, tiny_recipe)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    pixels = torch.rand(8, *tiny_dataset.schema.input_shape) * 255
    way, seconds = probe(network, pixels, seconds=0.3)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert seconds[way] <= seconds[PLAIN]
    assert seconds[way] <= min(seconds.values()) * 1.06


@pytest.mark.parametrize(
    ("samples", "size"), [(2, 2), (20, 20), (1258, 32), (6000, 128), (3000, 64), (45_000, 128)]
)
def test_batch_size_gives_an_epoch_enough_steps(samples: int, size: int, tiny_recipe: Any) -> None:
    dataset: Any = SimpleNamespace(splits={"train": range(samples)})
    assert resolve_batch_size(tiny_recipe, dataset) == size


def test_unknown_part_of_a_recipe_is_refused(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="unknown optimizer 'adamv'") as caught:
        train(
            tiny_dataset, recipe=tiny_recipe.override(train__optimizer="adamv"), out=tmp_path / "r"
        )
    assert "adam" in caught.value.hint


def test_mirrored_digits_are_not_taken_for_digits(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    run = train(
        tiny_dataset,
        recipe=tiny_recipe.override(augment__flip="auto", train__epochs=12),
        out=tmp_path / "r",
    )
    trial = run.measured("flip_trial")
    assert trial is not None
    assert trial["used"] is False
    assert run.recipe.augment.flip is False


def test_a_trial_that_learnt_nothing_does_not_switch_mirroring_on(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(augment__flip="auto", train__epochs=1, train__learning_rate=1e-12)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    trial = run.measured("flip_trial")
    assert trial is not None
    assert trial["plain"] < 0.3
    assert run.recipe.augment.flip is False


def test_pictures_whose_mirror_image_is_of_their_class_are_mirrored(
    tiny_recipe: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    targets = np.arange(300) % 3
    pixels = rng.integers(0, 60, (300, 8, 8), dtype=np.uint8)
    for row, target in enumerate(targets):
        pixels[row, 2 * target : 2 * target + 3] += 150  # a band at one of three heights
    run = train(
        (pixels, targets), recipe=tiny_recipe.override(augment__flip="auto"), out=tmp_path / "r"
    )
    assert run.recipe.augment.flip is True


def test_mirroring_needs_more_than_a_small_trial() -> None:
    plain, mirrored = np.zeros(400, bool), np.zeros(400, bool)
    plain[:40], mirrored[2:42] = True, True
    assert are_recognised(plain, mirrored)
    mirrored[:] = False
    mirrored[40:80] = True  # as many, but none of the same: nothing is known
    assert not are_recognised(plain, mirrored)


def test_own_module_beside_a_recipe_that_names_another_is_refused(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="model= gives another"):
        train(tiny_dataset, recipe=tiny_recipe, model=nn.Linear(1, 1), out=tmp_path / "r")


def test_a_command_keeps_time_for_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    for began in (None, 0.0):
        monkeypatch.setattr(OUTPUT, "began", began)
        clock = Clock(100.0)
        clock.reserve(1.0)
        kept.append(clock.reserved)
    assert kept[1] - kept[0] == pytest.approx(LEAVING_SECONDS)
