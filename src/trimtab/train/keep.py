"""Keep a training: what a checkpoint holds of it, and how it goes on from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import MachineError
from trimtab.machine.compiled import broken_compiler
from trimtab.machine.device import best_device
from trimtab.machine.progress import say
from trimtab.models.kernels import why_not
from trimtab.records.files import length_of, read_json, rewind
from trimtab.records.recipe import Recipe
from trimtab.records.run import (
    LEDGER,
    METRICS,
    Run,
    changed_environment,
    environment,
    update_facts,
)
from trimtab.records.sections import FRESH
from trimtab.train.checkpoint import Checkpoint, Checkpoints
from trimtab.train.log import Best, Clock, Log
from trimtab.train.settings import Settings
from trimtab.train.state import restore_training, training_state

FOLDER = "checkpoints"
NATIVE, MISSING = "native layers", "missing"
PROLONGED = "prolonged"  # after so many epochs the training was over, and went on


@dataclass
class Keeper:
    """Saves and restores one training; without `checkpoints` it does neither."""

    network: nn.Module
    settings: Settings
    clock: Clock
    best: Best
    log: Log
    checkpoints: Checkpoints | None = None

    def due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        return self.checkpoints is not None and self.checkpoints.due()

    def save(self, *, last: bool = False) -> None:
        """Copy the whole state; it is written beside the training.

        Raises MachineError where there is no room; only warns for the `last` one, since the
        training is done.
        """
        if self.checkpoints is None:
            return
        try:
            self.checkpoints.save(self.clock.step, *self.state())
        except MachineError as error:
            if not last:
                raise
            say(f"warning: {error.message}")

    def state(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Return the tensors and the facts of a checkpoint."""
        groups = {"best": self.best.weights, "average": self.settings.average.tensors()}
        full = {name: tensors for name, tensors in groups.items() if tensors}
        return training_state(self.network, self.settings.optimizer, facts=self.facts(),
                              groups=full)  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Return what is no tensor."""
        clock, best, plateau = self.clock, self.best, self.settings.plateau
        return {
            "step": clock.step, "epoch": clock.epoch, "seconds": clock.seconds,
            "total_steps": clock.total_steps,
            "log": self.log.facts(), "micro_batch": self.settings.micro_batch,
            "best": {"accuracy": best.accuracy, "epoch": best.epoch, "mark": best.mark,
                     "highest": best.highest},
            "average": self.settings.average.facts(), "scale": self.settings.scale.facts(),
            "plateau": plateau.state() if plateau else None,
            "logged_bytes": logged_bytes(self.log.run),
        }  # fmt: skip

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint; what was logged after it is dropped."""
        facts = found.facts
        lost = restore_training(found, self.network, self.settings.optimizer)
        if lost:
            say(f"warning: random generators of another machine are not here: {', '.join(lost)}")
        clock, best = self.clock, self.best
        clock.step, clock.epoch, clock.earlier = facts["step"], facts["epoch"], facts["seconds"]
        best.accuracy, best.epoch = facts["best"]["accuracy"], facts["best"]["epoch"]
        best.mark = facts["best"]["mark"]
        best.highest = facts["best"].get("highest", best.mark)
        known = self.log.run.facts if self.log.run is not None else {}
        longer = facts.get("total_steps", clock.total_steps) != clock.total_steps
        if longer or known.get(PROLONGED) == clock.epoch:
            best.epoch = clock.epoch  # more epochs are asked for, with patience anew
        best.weights = found.tensors("best") if "best" in found.groups else {}
        self.log.restore(facts["log"])
        self.settings.micro_batch = facts["micro_batch"]
        self.settings.scale.restore(facts["scale"])
        average = found.tensors("average") if "average" in found.groups else {}
        self.settings.average.restore(average, facts["average"])
        if self.settings.plateau is not None:
            self.settings.plateau.restore(facts["plateau"])
        if self.log.run is not None:
            rewind(self.log.run.path / METRICS, facts["logged_bytes"])
        if self.log.run is not None:
            tell_changes(self.log.run)
        say(f"going on from step {found.step:,} ({100 * clock.progress:.0f} % done)")


@contextmanager
def keeper(
    recipe: Recipe, network: nn.Module, settings: Settings, *, clock: Clock, best: Best, log: Log
) -> Iterator[Keeper]:
    """Keep a training whose run is `resumable`, going on from the newest checkpoint there."""
    kept = Keeper(network, settings, clock, best, log)
    if log.run is None or not log.run.facts.get("resumable"):
        yield kept
        return
    if "begun" not in log.run.facts:
        known = length_of(log.run.path / LEDGER)  # what was measured before stays
        update_facts(log.run, begun=logged_bytes(log.run), ledger_bytes=known,
                     resolved=resolved(settings), **means_to_compute())  # fmt: skip
    every, over = recipe.train.checkpoint_seconds, False
    folder, logs = log.run.path / FOLDER, log.run.logs
    try:
        with Checkpoints(folder, every_seconds=every, logs=logs) as kept.checkpoints:
            begin(kept, recipe)
            yield kept
            over = True
    except MachineError as error:
        if not over:
            raise
        say(f"warning: {error.message}")  # what has been trained is not thrown away


def begin(kept: Keeper, recipe: Recipe) -> None:
    """Go on from the newest checkpoint, or make sure that there is room for the first."""
    run, checkpoints = kept.log.run, kept.checkpoints
    assert run is not None
    assert checkpoints is not None
    found = checkpoints.newest()
    if found is not None:
        kept.restore(found)
        update_facts(run, resumed=[*run.facts.get("resumed", []), found.step])
        return
    checkpoints.require_space(kept.state()[0])
    rewind(run.path / METRICS, run.facts["begun"])
    if recipe.model.pretrained != FRESH:
        kept.save()  # from here on the run does without the file


def resolved(settings: Settings) -> dict[str, Any]:
    """Return the choices that were left open, as overrides of the recipe."""
    return {
        "train__precision": settings.way.precision, "train__layout": settings.way.layout,
        "train__batch_size": settings.batch_size, "train__compile": settings.way.compiled,
        "train__learning_rate": settings.peak,
    }  # fmt: skip


def possible(recipe: Recipe, settled: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was `settled` when a training began, without what this machine cannot do.

    What the recipe left open is given up, and said; what it demands stays, to be refused.
    """
    kept, device = dict(settled), best_device()
    lost: list[str] = []
    half = recipe.train.precision == "auto" and kept.get("train__precision") == "fp16"
    if half and device.type != "cuda":
        del kept["train__precision"]
        lost.append(f"fp16 needs a CUDA device, got {device.type}; the precision is chosen anew")
    compiled = recipe.train.compile == "auto" and kept.get("train__compile")
    if compiled and (broken := broken_compiler(device)):
        kept["train__compile"] = False
        lost.append(f"{broken}; it goes on without compiling")
    if lost:
        say(f"warning: not to the bit what it would have been: {'; '.join(lost)}")
    return kept


def means_to_compute() -> dict[str, Any]:
    """Return what sums depend on and the environment does not tell."""
    means: dict[str, Any] = {"threads": torch.get_num_threads()}
    if best_device().type == "cpu":  # elsewhere there are no native layers
        means[NATIVE] = MISSING if why_not() else "compiled"
    return means


def tell_changes(run: Run) -> None:
    """Say what differs from where `run` was begun and may change the last bits."""
    now = means_to_compute()
    known = {NATIVE: MISSING, **run.facts}
    before = {name: known[name] for name in now if name in known}
    before |= read_json(run.path / "environment.json")
    now |= environment(run.facts["seed"])
    if changed := changed_environment(before, now):
        say(f"warning: not to the bit what it would have been: {'; '.join(changed)}")


def logged_bytes(run: Run | None) -> int:
    """Return the length of the step and epoch log."""
    return length_of(run.path / METRICS) if run is not None else 0
