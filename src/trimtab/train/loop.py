"""The training loop on one page: forward, loss, backward, step, log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from trimtab.data.augment import augmented_batches, bounds
from trimtab.data.dataset import Batch, Dataset
from trimtab.errors import DivergedError
from trimtab.machine.device import seed_everything
from trimtab.machine.interrupt import stop_on_interrupt
from trimtab.machine.probe import Autocast
from trimtab.machine.progress import progress
from trimtab.measure.quality import Scores, logits_of, network_call, score
from trimtab.models.strided import sound_strides
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train.losses import Loss
from trimtab.train.settings import Settings, resolve

Observe = Callable[[dict[str, Any]], None]
LOG_SECONDS = 0.5
FINAL_EVALUATION_SHARE = 0.97


@dataclass
class TrainResult:
    """What a training reached; the network holds its best weights."""

    scores: Scores
    epochs: float
    seconds: float
    images_per_second: float
    interrupted: bool
    stopped_early: bool
    settings: Settings


@dataclass
class Clock:
    """How far a training is: by steps, or by time where the budget is the tighter bound."""

    total_steps: int
    budget_seconds: float | None
    started: float = field(default_factory=time.monotonic)
    step: int = 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Fraction done in [0, 1]."""
        by_time = 0.0
        if self.budget_seconds is not None:
            by_time = self.seconds / max(1e-9, FINAL_EVALUATION_SHARE * self.budget_seconds)
        return min(1.0, max(self.step / self.total_steps, by_time))


@dataclass
class Best:
    """The best weights so far, by accuracy on valid, the later of equals; `epoch` is the first."""

    scores: Scores | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    epoch: float = 0.0

    def offer(self, scores: Scores, network: nn.Module, epoch: float) -> None:
        """Keep these weights if none were better."""
        if self.scores is None or scores.accuracy >= self.scores.accuracy:
            if self.scores is None or scores.accuracy > self.scores.accuracy:
                self.epoch = epoch
            self.scores = scores
            self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}


def train_network(
    network: nn.Module, dataset: Dataset, recipe: Recipe, run: Run | None, *, seed: int = 0,
    budget_seconds: float | None = None, loss: Loss | None = None, observe: Observe | None = None,
) -> TrainResult:  # fmt: skip
    """Train `network` in place and leave it with the weights that were best on valid.

    Ends after the recipe's epochs, at the end of the budget, after `patience` epochs without a
    better valid accuracy, or at Ctrl-C, whichever comes first. Steps and epochs are logged in
    `run`, where there is one. `data.flip: auto` means off here (`settle_flip` decides it before).
    Raises DivergedError where the loss is no longer finite.
    """
    clock = Clock(1, budget_seconds)
    seed_everything(seed)
    settings = resolve(network, dataset, recipe, loss)
    train, best = dataset.splits["train"], Best()
    steps = len(bounds(len(train), settings.batch_size))
    clock.total_steps = steps * recipe.train.epochs
    log, flip = Log(run, observe), recipe.data.flip is True
    with sound_strides(network), progress(1.0, "train") as bar, stop_on_interrupt() as stop:
        for epoch in range(recipe.train.epochs):
            network.train()
            order = augmented_batches(train, settings.batch_size, seed=seed, epoch=epoch,
                                      shift=recipe.data.shift, flip=flip)  # fmt: skip
            for batch in order:
                rate = set_rate(settings, clock.progress)
                value = train_step(network, batch, settings)
                clock.step += 1
                log.images += len(batch.targets)
                if log.due():
                    log.step(clock, rate, value.item())
                    bar.update(clock.progress, log.note(best))
                if clock.progress >= 1 or stop.requested:
                    break
            log.require_finite(clock, value.item())
            scores = evaluate(network, dataset, settings.autocast)
            best.offer(scores, network, clock.step / steps)
            log.epoch(clock, clock.step / steps, scores)
            stalled = clock.step / steps - best.epoch >= recipe.train.patience
            if clock.progress >= 1 or stop.requested or stalled:
                break
    network.load_state_dict(best.weights)
    scores = evaluate(network, dataset)
    return TrainResult(scores, clock.step / steps, clock.seconds, log.speed(clock),
                       stop.requested, stalled, settings)  # fmt: skip


def set_rate(settings: Settings, done: float) -> float:
    """Set the learning rate of this step and return it."""
    rate = settings.peak * settings.schedule(done)
    for group in settings.optimizer.param_groups:
        group["lr"] = rate
    return rate


def train_step(network: nn.Module, batch: Batch, settings: Settings) -> Tensor:
    """Do one optimizer update and return the loss, still on the device."""
    batch = Batch(*(tensor.to(settings.device, non_blocking=True) for tensor in batch))
    with settings.autocast():
        outputs = network(batch.inputs)
    value = settings.loss(outputs.float(), batch)
    settings.optimizer.zero_grad(set_to_none=True)
    value.backward()
    settings.optimizer.step()
    return value.detach()


def evaluate(network: nn.Module, dataset: Dataset, autocast: Autocast = nullcontext) -> Scores:
    """Score `network` on valid, in fp32 unless `autocast` says otherwise."""
    valid = dataset.splits["valid"]
    return score(logits_of(network_call(network, autocast), valid), valid.targets, split="valid")


@dataclass
class Log:
    """Writes the step and epoch log, and watches that the loss stays finite."""

    run: Run | None
    observe: Observe | None
    images: int = 0
    last: float = 0.0
    loss: float = math.nan
    started: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Return whether it is time to log a step."""
        return time.monotonic() - self.last >= LOG_SECONDS

    def step(self, clock: Clock, rate: float, loss: float) -> None:
        """Log one step."""
        self.last = time.monotonic()
        self.require_finite(clock, loss)
        self.loss = loss
        self.write(
            {
                "step": clock.step,
                "loss": round(loss, 6),
                "lr": rate,
                "progress": round(clock.progress, 4),
                "seconds": round(clock.seconds, 3),
            }
        )

    def epoch(self, clock: Clock, epoch: float, scores: Scores) -> None:
        """Log the end of an epoch."""
        self.write({"step": clock.step, "epoch": round(epoch, 3), "valid_accuracy": scores.accuracy,
                    "seconds": round(clock.seconds, 3)})  # fmt: skip

    def write(self, row: dict[str, Any]) -> None:
        """Append a row and show it to the observer."""
        if self.run is not None:
            self.run.log(**row)
        if self.observe is not None:
            self.observe(row)

    def require_finite(self, clock: Clock, loss: float) -> None:
        """Raise DivergedError for a loss that is no number."""
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} at step {clock.step}",
                "lower it with --set train.learning_rate=… (a third is a good try)",
            )

    def note(self, best: Best) -> str:
        """Return what the progress line says."""
        accuracy = f" · valid {100 * best.scores.accuracy:.1f} %" if best.scores else ""
        return (
            f"loss {self.loss:.3f}{accuracy} · {self.images / max(1e-9, self.elapsed()):,.0f} img/s"
        )

    def elapsed(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self.started

    def speed(self, clock: Clock) -> float:
        """Images per second over the whole training, evaluation included."""
        return self.images / max(1e-9, clock.seconds)
