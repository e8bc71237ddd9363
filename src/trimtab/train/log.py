"""What a training knows of itself: how far it is, the best so far, its log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor, nn

from trimtab.errors import DivergedError
from trimtab.machine.progress import OUTPUT
from trimtab.measure.quality import Scores
from trimtab.records.run import Run

Observe = Callable[[dict[str, Any]], None]
Costs = tuple[tuple[float, float], ...]
FORECASTS = (0.1, 0.25, 0.5)
LOG_SECONDS = 0.5
LOGGED_STEPS = 200  # of a training, at the least where it has them
LOGGED_OF_EPOCH = 10  # at the most
SAVING_SECONDS = 0.2
SAVED_BYTES = 150e6  # of the weights, in a second: they are written and their checkpoint ends
LEAVING_SECONDS = 0.1  # the end of a command
TYPICAL_OF = 5  # last evaluations, by which the next one is judged


@dataclass
class Clock:
    """How far a training is: by steps, or by time where the budget is the tighter bound.

    `step` counts updates and `epoch` the epochs that were evaluated; `reserved` seconds are kept
    for the last evaluations; `earlier` were used before the training was resumed; `costs` are what
    steps cost beside each other, from which share of the training on; `evaluations` are what the
    last looks took, in the precision of the training, and `exact` is how much longer one in fp32
    takes; `saving` is what writing takes.
    """

    budget_seconds: float | None
    total_steps: int = 1
    step: int = 0
    epoch: int = 0
    earlier: float = 0.0
    reserved: float = 0.0
    costs: Costs = ((0.0, 1.0),)
    evaluations: list[float] = field(default_factory=list)
    exact: float = 1.0
    saving: float = SAVING_SECONDS
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resumption included."""
        return self.earlier + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Fraction done in [0, 1]."""
        by_time = 0.0
        if self.budget_seconds is not None:
            by_time = self.seconds / max(1e-9, self.budget_seconds - self.reserved)
        return min(1.0, max(self.step / self.total_steps, by_time))

    @property
    def done(self) -> float:
        """Share of the work done in [0, 1], by which the end is told: some steps are quick."""
        if self.budget_seconds is not None or len(self.costs) == 1:
            return self.progress
        ends = [start for start, _ in self.costs[1:]] + [1.0]
        pieces = [(cost, start, end) for (start, cost), end in zip(self.costs, ends, strict=True)]
        whole = sum(cost * (end - start) for cost, start, end in pieces)
        passed = (cost * max(0.0, min(self.progress, end) - start) for cost, start, end in pieces)
        return sum(passed) / whole

    @property
    def is_last(self) -> bool:
        """Whether the look of now is the last: it is over, or is before there could be another."""
        if self.budget_seconds is None:
            return self.progress >= 1
        look = median(self.evaluations or [0.0])
        return self.progress >= 1 or self.seconds + look >= self.budget_seconds - self.reserved

    @property
    def is_up(self) -> bool:
        """Whether there is a budget, and it is over."""
        return self.budget_seconds is not None and self.progress >= 1

    @contextmanager
    def evaluating(self, *, exactly: bool = False) -> Iterator[None]:
        """Learn from the evaluation inside the block, in fp32 or not, what the last ones take."""
        started = time.monotonic()
        yield
        self.reserve((time.monotonic() - started) / (self.exact if exactly else 1.0))

    def reserve(self, evaluation_seconds: float) -> None:
        """Keep time for what comes after the last step: evaluations, saving, a command's exit.

        One evaluation may be held up; the middle one of the last few counts. The weights are judged
        in fp32 at the end, and before it, if there are others, to know which are the best.
        """
        self.evaluations = [*self.evaluations, evaluation_seconds][-TYPICAL_OF:]
        first = self.epoch == 0 and len(self.evaluations) == 1
        looks = self.exact if first else 1 + self.exact
        wanted = looks * median(self.evaluations) + self.saving
        wanted += LEAVING_SECONDS if OUTPUT.began is not None else 0.0
        self.reserved = min(wanted, 0.5 * (self.budget_seconds or 0.0))


@dataclass
class Forecast:
    """What was told of the end on the way: share done → seconds the whole would take."""

    told: dict[str, float] = field(default_factory=dict)

    def note(self, clock: Clock) -> None:
        """Remember the forecast of the first step beyond each of FORECASTS."""
        if len(self.told) == len(FORECASTS):
            return
        share, done = FORECASTS[len(self.told)], clock.done
        if done >= share:
            self.told[f"{share:g}"] = clock.seconds / done

    def errors(self, seconds: float) -> dict[str, float]:
        """Return how far each forecast of what was left was off, as a share of what was left."""
        return {f"at_{share}": (told - seconds) / max(1e-9, (1 - float(share)) * seconds)
                for share, told in self.told.items()}  # fmt: skip


@dataclass
class Best:
    """The weights to end with: the best so far by accuracy on valid, the later of equals.

    Or always the last, where the best are not to be `restored`. `epoch` is that of the last gain of
    more than `min_delta`, up to `mark`; `highest` is the best accuracy of any look; `scores` are
    those in fp32, if they are known.
    """

    min_delta: float = 0.0
    restored: bool = True
    accuracy: float = -1.0
    epoch: float = 0.0
    mark: float = -1.0
    highest: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)
    scores: Scores | None = None

    def is_stale(self, epoch: int, patience: int) -> bool:
        """Return whether after `epoch` looks the last gain is as far back as that."""
        return epoch - self.epoch >= patience

    def offer(self, scores: Scores, network: nn.Module, epoch: float) -> None:
        """Keep these weights, if they are the ones to end with so far.

        Raises DivergedError for outputs such as NaN.
        """
        if not np.isfinite(scores.logits).all():
            raise DivergedError(f"epoch {epoch:g}: outputs on valid are not finite",
                                "lower train.learning_rate (a third is a good try)")  # fmt: skip
        self.highest = max(self.highest, scores.accuracy)
        if scores.accuracy > self.mark + self.min_delta:
            self.mark, self.epoch = scores.accuracy, epoch
        if scores.accuracy >= self.accuracy or not self.restored:
            self.accuracy = scores.accuracy
            self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}


@dataclass
class Log:
    """Writes the step and epoch log: every so many steps, or twice a second where `every` is 0.

    `total` is the sum of the losses of this epoch's `samples`, which stays on a graphics processor
    until the epoch ends; `rate` is the learning rate of the last step.
    """

    run: Run | None
    observe: Observe | None
    images: int = 0
    every: int = 0
    samples: int = 0
    rate: float = 0.0
    total: float | Tensor = 0.0
    last: float = 0.0
    forecast: Forecast = field(default_factory=Forecast)
    loss: float = math.nan
    since: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    def pace(self, steps: int, total: int) -> None:
        """Choose which steps are logged, from the steps of an epoch and of the whole training.

        The clock has no say in it, so that a resumed training logs what the whole one would. One
        with a budget does not know its steps, and is not to be repeated anyway.
        """
        self.every = max(1, steps // LOGGED_OF_EPOCH, total // LOGGED_STEPS)

    def due(self, step: int) -> bool:
        """Return whether the step of this number, from 1 on, is logged."""
        if self.every == 0:
            return time.monotonic() - self.last >= LOG_SECONDS
        return (step - 1) % self.every == 0

    def add(self, rate: float, loss: Tensor, samples: int) -> None:
        """Take the mean loss of one step's samples, without waiting for the device."""
        self.rate = rate
        self.images += samples
        self.samples += samples
        value = loss.item() if loss.device.type == "cpu" else loss.double()
        self.total = self.total + samples * value

    def step(self, clock: Clock, loss: float) -> None:
        """Log one step."""
        self.last, self.loss = time.monotonic(), loss
        self.write({"step": clock.step, "loss": round(loss, 6), "lr": self.rate, "progress":
                    round(clock.progress, 4), "seconds": round(clock.seconds, 3)})  # fmt: skip

    def epoch(self, clock: Clock, epoch: float, scores: Scores) -> None:
        """Log the end of an epoch, with the mean loss of its samples, and begin the next."""
        mean = float(self.total) / max(1, self.samples)
        self.write({"step": clock.step, "epoch": round(epoch, 3), "valid_accuracy": scores.accuracy,
                    "train_loss": round(mean, 6), "lr": self.rate,
                    "seconds": round(clock.seconds, 3)})  # fmt: skip
        self.samples, self.total = 0, 0.0

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, so that an epoch in work goes on to the same mean."""
        return {"images": self.images, "samples": self.samples, "rate": self.rate,
                "total": float(self.total), "eta": dict(self.forecast.told)}  # fmt: skip

    def restore(self, facts: dict[str, Any]) -> None:
        """Go on from what `facts` returned."""
        self.images, self.samples, self.rate = facts["images"], facts["samples"], facts["rate"]
        self.since, self.forecast.told = (self.since[0], self.images), facts["eta"]
        self.total = facts["total"]

    def write(self, row: dict[str, Any]) -> None:
        """Append a row and show it to the observer."""
        if self.run is not None:
            self.run.log(**row)
        if self.observe is not None:
            self.observe(row)

    def note(self, best: Best) -> str:
        """Return what the progress line says."""
        accuracy = f" · valid {100 * best.accuracy:.1f} %" if best.accuracy >= 0 else ""
        started, images = self.since
        speed = (self.images - images) / max(1e-9, time.monotonic() - started)
        return f"loss {self.loss:.3f}{accuracy} · {speed:,.0f} img/s"

    def speed(self, clock: Clock) -> float:
        """Images per second over the whole training, evaluation included."""
        return self.images / max(1e-9, clock.seconds)
