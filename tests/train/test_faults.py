"""Signals at awkward moments, numbers that are none, clocks that jump: nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.data.dataset import Batch
from trimtab.data.feed import Feed
from trimtab.errors import DivergedError, Interrupted, Preempted
from trimtab.machine import progress
from trimtab.machine.progress import OUTPUT
from trimtab.models import quick
from trimtab.models.build import load
from trimtab.records.files import read_json
from trimtab.records.recipe import Recipe, read_recipe
from trimtab.records.run import LEDGER, METRICS, Run, list_runs
from trimtab.train import loop
from trimtab.train.checkpoint import Checkpoints
from trimtab.train.log import Clock, Log
from trimtab.train.run import resume, train
from trimtab.train.update import costs_of_steps

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PLAIN = {"train__epochs": 3, "train__layout": "contiguous", "train__average": "ema"}


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def still_working(before: set[threading.Thread]) -> list[str]:
    """Return the threads begun since `before` that do not end by themselves."""
    begun = set(threading.enumerate()) - before
    for thread in begun:
        thread.join(5)
    return [thread.name for thread in begun if thread.is_alive()]


def send_in(monkeypatch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Send this process a signal, once, inside an evaluation or while a batch is made."""
    owner, name = {"evaluation": (loop, "evaluate"), "data": (Feed, "epoch")}[place]
    real, sent = getattr(owner, name), [0]

    def watched(*given: Any, **named: Any) -> Any:
        if not sent[0]:
            sent[0] = 1
            os.kill(os.getpid(), number)
        return real(*given, **named)

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize("place", ["evaluation", "data"])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted),
                                               (signal.SIGTERM, Preempted)])  # fmt: skip
def test_a_signal_in_an_evaluation_or_between_batches_saves_and_the_run_goes_on(
    place: str, number: int, error: type[Exception], tiny_dataset: Any, tiny_recipe: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe, before = tiny_recipe.override(**PLAIN), set(threading.enumerate())
    with monkeypatch.context() as patch:
        send_in(patch, place, number)
        with pytest.raises(error):
            train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert still_working(before) == []
    assert children() == []
    assert load(Run(tmp_path / "r"))
    run = resume(tmp_path / "r", data=tiny_dataset)
    assert run.facts["status"] == "finished"
    assert still_working(before) == []


# Numbers that are none


def spoil(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a NaN in the fourth update of a training."""
    real, count = loop.train_step, [0]

    def step(network: Any, batch: Batch, settings: Any, clock: Any) -> Any:
        count[0] += 1
        if count[0] == 4 and where == "input":
            batch.inputs[0, 0, 0, 0] = torch.nan
        if count[0] == 4 and where == "loss":
            settings.loss = lambda outputs, batch: outputs.sum(1) * torch.inf
        if count[0] == 4 and where == "gradient":
            next(network.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        value = real(network, batch, settings, clock)
        if count[0] == 3 and where == "weights":
            next(network.parameters()).data[0] = torch.nan
        return value

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize("where", ["input", "loss", "gradient", "weights"])
def test_a_number_that_is_none_stops_on_a_step_that_is_not_logged_and_names_samples(
    where: str, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Log, "due", lambda log, step: False)
    monkeypatch.setattr(Checkpoints, "due", lambda kept: True)  # one at every step
    spoil(where, monkeypatch)
    recipe = tiny_recipe.override(**PLAIN)
    with pytest.raises(DivergedError, match=r"step 4: .* not finite, with train samples \d+"):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    with Checkpoints(tmp_path / "r" / "checkpoints") as kept:
        newest = kept.newest()
    assert newest is not None
    assert newest.step == (2 if where == "weights" else 3)
    assert all(one.isfinite().all() for group in newest.groups
               for one in newest.tensors(group).values())  # fmt: skip


def test_outputs_that_are_no_numbers_never_become_the_best(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = loop.train_step, [0]

    def step(network: Any, *given: Any) -> Any:
        value = real(network, *given)
        count[0] += 1
        if count[0] % 9 == 0:  # the last step of an epoch, whatever the evaluation says of it
            next(network.parameters()).data[0] = torch.nan
        return value

    monkeypatch.setattr(loop, "train_step", step)
    recipe = tiny_recipe.override(**{**PLAIN, "train__average": "none", "train__batch_size": 32})
    with pytest.raises(DivergedError, match="outputs on valid are not finite"):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert list_runs(tmp_path) == []


# Logs


def watch_syncs(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the length that each file had when it was last made durable, as it goes on."""
    durable: dict[str, int] = {}
    real = os.fsync

    def watched(handle: int) -> None:
        real(handle)
        durable[Path(os.readlink(f"/proc/self/fd/{handle}")).name] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", watched)
    return durable


def test_what_a_checkpoint_or_an_end_tells_of_the_logs_is_durable_before(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable, told = watch_syncs(monkeypatch), []
    rename, replace = os.rename, os.replace

    def renamed(source: Path, target: Path) -> None:
        if not str(target).endswith(".tmp"):
            known = read_json(Path(source) / "state.json")["logged_bytes"]
            told.append(("checkpoint", known > 0, durable.get(METRICS, 0) >= known))
        rename(source, target)

    def replaced(source: Path, target: Path) -> None:
        if Path(target).name == "run.json" and "status" in read_json(Path(source)):
            told.extend((path.name, path.stat().st_size > 0,
                         durable.get(path.name) == path.stat().st_size)
                        for path in Run(tmp_path / "r").logs)  # fmt: skip
        replace(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    recipe = tiny_recipe.override(**PLAIN, train__checkpoint_seconds=1e-6)
    train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert {name for name, *_ in told} == {"checkpoint", LEDGER, METRICS}
    assert any(filled for name, filled, _ in told if name == "checkpoint")
    assert all(filled for name, filled, _ in told if name != "checkpoint")
    assert all(safe for *_, safe in told)


@pytest.mark.parametrize("lost", [20, None])
def test_rows_of_the_log_that_are_lost_are_told_when_it_goes_on(
    lost: int | None, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        send_in(patch, "evaluation", signal.SIGTERM)
        with pytest.raises(Preempted):
            train(tiny_dataset, recipe=tiny_recipe.override(**PLAIN), out=tmp_path / "r")
    log = tmp_path / "r" / METRICS
    left, known = log.read_bytes()[:-lost] if lost else b"", log.stat().st_size
    log.write_bytes(left)
    monkeypatch.setattr(OUTPUT, "quiet", False)
    resume(tmp_path / "r", data=tiny_dataset)
    told = re.findall(r"metrics.jsonl has lost rows: (\S+) bytes, there were (\S+)\n",
                      capsys.readouterr().err)  # fmt: skip
    assert told == [(f"{len(left):,}", f"{known:,}")]
    assert all(line.startswith(b"{") for line in log.read_bytes().splitlines())


# Clocks


def test_a_wall_clock_that_jumps_changes_neither_order_nor_result(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = tiny_recipe.override(**PLAIN, train__checkpoint_seconds=1e-6)
    steady = train(tiny_dataset, recipe=recipe, out=tmp_path / "steady")
    monkeypatch.setattr(OUTPUT, "quiet", False)
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-86_400, 31_536_000)[next(jumps) % 2])
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert run.weights.read_bytes() == steady.weights.read_bytes()
    assert min(row["seconds"] for row in run.metrics) >= 0
    left = re.findall(r"· (\S+) left", capsys.readouterr().err)
    assert len(left) >= 9
    assert all(re.fullmatch(r"\?|(\d+h)?(\d+m)?(\d+s)?", text) for text in left), left
    older, newest = sorted((run.path / "checkpoints").iterdir())
    os.utime(newest, (0, 0))
    assert older.name < newest.name
    assert resume(run, data=tiny_dataset, epochs=4).facts["resumed"] == [int(newest.name[-8:])]


def test_forecasts_of_the_end_are_scored_in_the_ledger(tiny_run: Run) -> None:
    row = tiny_run.measured("eta_error")
    assert row is not None
    assert {"at_0.1", "at_0.25", "at_0.5"} <= row.keys()
    assert row["value"] == max((row[key] for key in row if key.startswith("at_")), key=abs)


def test_the_end_is_told_by_the_work_that_growing_pictures_leave() -> None:
    clock = Clock(None, total_steps=100, step=50, costs=((0.0, 0.25), (0.5, 1.0)))
    assert clock.done == pytest.approx(0.25 / 1.25)
    clock.step = 75
    assert clock.done == pytest.approx((0.25 + 0.5) / 1.25)
    clock.step = 100
    assert clock.done == pytest.approx(1)
    assert Clock(None, total_steps=100, step=50).done == 0.5


def test_the_end_of_a_training_is_told_by_what_its_own_steps_cost(
    tiny_dataset: Any, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe.override(train__epochs=1, regularize__sharpness=0.1,
                                  regularize__sharpness_start=0.5)  # fmt: skip
    made: list[Clock] = []
    real = loop.Clock
    monkeypatch.setattr(loop, "Clock", lambda *given: made.append(real(*given)) or made[-1])
    train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert [clock.costs for clock in made] == [((0.0, 1.0), (0.5, 2.0))]


@pytest.mark.parametrize(
    ("sides", "sharp", "wanted"),
    [
        ((), {}, ((0, 1),)),
        ((0.5, 1.0), {}, ((0, 0.25), (0.5, 1))),
        ((), {"sharpness": 0.1}, ((0, 2),)),
        ((0.5, 1.0), {"sharpness": 0.1, "sharpness_start": 0.5, "sharpness_share": 0.25},
         ((0, 0.25), (0.5, 1.25))),
        ((0.5, 1.0), {"sharpness": 0.1, "sharpness_start": 0.8, "sharpness_share": 0.25},
         ((0, 0.25), (0.5, 1), (0.8, 1.25))),
    ],
)  # fmt: skip
def test_steps_cost_by_their_pixels_and_passes(
    tiny_recipe: Recipe, sides: Any, sharp: dict[str, float], wanted: Any
) -> None:
    sharp = {f"regularize__{name}": value for name, value in sharp.items()}
    recipe = tiny_recipe.override(train__resolution=sides, **sharp)
    assert costs_of_steps(recipe, (32, 64)) == wanted


def test_pictures_that_cannot_shrink_cost_what_they_have(tiny_recipe: Recipe) -> None:
    recipe = tiny_recipe.override(train__resolution=(0.5, 1.0))
    assert costs_of_steps(recipe, (8, 8)) == ((0, 1), (0.5, 1))


# What each recipe computes

GOLDEN_TORCH = "2.15"
ORDER = "e34188db17d2588b"
LINEAR = [0.12, 0.08, 0.04]
ONE_CYCLE = [0.04, 0.93301270189, 0.37059047745]  # of the peak
GOLDEN = {
    "quick": ([2.305026, 2.29907, 2.310407], [0.003 * one for one in ONE_CYCLE]),
    "images": ([2.304864, 2.298768, 2.295375], [0.003 * one for one in ONE_CYCLE]),
    "cifar10": ([2.306671, 4.213064, 5.493332], LINEAR),
    # the third differs by 0.2 % between instruction sets
    "cifar10_94": ([2.343546, 17.550737], LINEAR),
    "transfer": ([2.302585, 2.340637, 2.372898], [0.001 * one for one in ONE_CYCLE]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_recipe_computes_the_losses_it_did(
    name: str, tiny_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and rates of the first steps, by torch's own layers, and which samples they had.

    A processor adds up in its own order, which moves the sixth digit of a first loss, and later
    ones by up to a thousandth. A changed draw, initial value or loss moves more of the first one;
    rates and samples are the same everywhere. Where a change is meant, they are recorded anew.
    """
    if not torch.__version__.startswith(GOLDEN_TORCH + "."):
        pytest.skip(f"recorded with torch {GOLDEN_TORCH}, others may draw other numbers")
    monkeypatch.setattr(quick, "is_here", lambda: False)
    recipe = read_recipe(RECIPES / f"{name}.yaml").override(
        train__epochs=1, augment__flip=True, train__precision="fp32", train__layout="contiguous",
        train__batch_size=100, model__pretrained="none",
    )  # fmt: skip
    order, real = blake2b(digest_size=8), loop.train_step

    def watched(network: Any, batch: Batch, *others: Any) -> Any:
        order.update(batch.ids.numpy().tobytes())
        return real(network, batch, *others)

    monkeypatch.setattr(loop, "train_step", watched)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r", seed=5)
    steps = [row for row in run.metrics if "loss" in row]
    losses, rates = GOLDEN[name]
    assert len(steps) == 3
    found = [row["loss"] for row in steps][: len(losses)]
    assert found == pytest.approx(losses, rel=1e-3)
    assert found[0] == pytest.approx(losses[0], rel=1e-5)
    assert [row["lr"] for row in steps] == pytest.approx(rates, rel=1e-9)
    assert order.hexdigest() == ORDER
