"""The state of one fit: what was asked, what was screened, what was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.data.dataset import Dataset
from trimtab.plan.budget import Budget
from trimtab.plan.candidates import Candidate
from trimtab.plan.screen import Screened
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, start_run
from trimtab.records.target import Target
from trimtab.train.run import train_into


@dataclass
class Heat:
    """A short training that helps to choose the network."""

    screened: Screened
    run: Run
    accuracy: dict[str, Any]
    complete: bool
    why: str = ""

    def row(self) -> dict[str, Any]:
        """Return this heat as a row of table.json; file and latency are the untrained network's."""
        s = self.screened
        return {
            "name": self.run.name, "steps": ["short training"], "accuracy": self.accuracy,
            "p50_ms": s.p50_ms, "p95_ms": s.p95_ms, "p99_ms": s.p99_ms,
            "size_bytes": s.size_bytes, "params": s.params, "macs": s.macs, "kept": False,
            "why": self.why, "chosen": False, "trained": True, "parent": None,
            "threads": s.threads, "speedup": None, "flip_fraction": None,
            "f1": float((self.run.measured("f1") or {"value": 0.0})["value"]),
        }  # fmt: skip


@dataclass
class Job:
    """One fit on its way."""

    run: Run
    dataset: Dataset
    recipe: Recipe
    target: Target
    budget: Budget
    seed: int
    model: nn.Module | None = None
    screened: list[Screened] = field(default_factory=list)
    heats: list[Heat] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    threads: int = 1
    starved: bool = False
    interrupted: bool = False

    def folder(self, name: str) -> Path:
        """Return the folder of a candidate."""
        return self.run.path / "candidates" / name

    def train(self, name: str, label: str, seconds: float) -> tuple[Run, bool]:
        """Train the network `label` as candidate `name`; return its run and whether it completed.

        A training is complete when it ended by its epochs or by early stopping, not by the clock.
        Raises KeyboardInterrupt after the weights are saved where the user asked to stop.
        """
        recipe = self.recipe.override(model__name=label)
        run = start_run(self.folder(name), kind="train", label=label, recipe=recipe, seed=self.seed)
        result = train_into(run, self.dataset, recipe, model=self.model, budget_seconds=seconds,
                            seed=self.seed, resumable=False)  # fmt: skip
        if result.interrupted:
            self.heats.append(
                Heat(self.find(label), run, result.scores.to_dict(), False, "stopped")
            )
            raise KeyboardInterrupt
        return run, result.stopped_early or result.epochs >= recipe.train.epochs

    def find(self, label: str) -> Screened:
        """Return the screened candidate named `label`."""
        return next(row for row in self.screened if row.name == label)
