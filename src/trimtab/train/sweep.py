"""A short training whose learning rate rises until the loss diverges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, count

from torch import nn

from trimtab.data.dataset import Batch, Dataset
from trimtab.data.feed import Feed
from trimtab.errors import DivergedError
from trimtab.machine.interrupt import stop_on_interrupt
from trimtab.machine.memory import kept_memory
from trimtab.machine.progress import progress
from trimtab.models.quick import quick_layers
from trimtab.records.recipe import Recipe
from trimtab.train.log import Clock
from trimtab.train.loop import set_rate
from trimtab.train.settings import Settings, resolve
from trimtab.train.state import random_tensors, restore_random
from trimtab.train.update import train_step

BELOW, ABOVE = 1000.0, 100.0  # how far the sweep reaches around the peak learning rate
KEPT = 0.9  # share of the running loss that stays per step
TOO_HIGH = 3.0  # times the lowest loss, above it: fastai's lr_find stops at four times the lowest
LEAST_SPAN = 0.1  # of the fall so far: a lowest loss near 0 is no measure
FIRST_STEPS = 5


@dataclass
class Sweep:
    """Learning rates and the losses (one batch each, before its update) that they met.

    `ended` is `top` (the highest rate was reached), `diverged`, `not finite` or `stopped`.
    """

    settings: Settings
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    ended: str = "top"
    running: float = 0.0
    lowest: float = float("inf")

    def add(self, rate: float, loss: float) -> None:
        """Take what one step met."""
        self.rates.append(rate)
        self.losses.append(loss)
        self.running = KEPT * self.running + (1 - KEPT) * loss
        self.lowest = min(self.lowest, self.level)

    @property
    def level(self) -> float:
        """The running mean of the loss, free of its start at 0 (Kingma & Ba 2015, section 3)."""
        return self.running / (1 - KEPT ** len(self.losses))

    @property
    def diverged(self) -> bool:
        """Whether the running loss stands far above its lowest."""
        if len(self.losses) < FIRST_STEPS:
            return False
        span = max(abs(self.lowest), LEAST_SPAN * (self.losses[0] - self.lowest))
        return self.level - self.lowest > TOO_HIGH * span


def sweep(
    network: nn.Module, dataset: Dataset, recipe: Recipe, *, steps: int, seed: int
) -> Sweep:  # fmt: skip
    """Train `network` for `steps` updates at most while the learning rate rises exponentially.

    It rises from a thousandth of the recipe's peak to a hundred times it, with the recipe's
    optimizer, loss, augmentation, batch size and precision, at full resolution. Where the recipe
    has a phase in which only the head learns, that phase is swept, and sharpness-aware steps that
    come later are not. It is compiled only where the recipe demands it: compiling takes longer than
    the sweep. A loss or gradient that is not finite ends it, as does a loss that diverges and a
    first Ctrl-C.
    """
    if recipe.train.compile == "auto":
        recipe = recipe.override(train__compile=False)
    settings = rising(resolve(network, dataset, recipe, None))
    feed = Feed(dataset.splits["train"], recipe.augment, batch_size=settings.batch_size, seed=seed,
                classes=len(dataset.schema.classes), device=settings.device)  # fmt: skip
    found, clock = Sweep(settings), Clock(None, total_steps=steps - 1)
    settings.freeze.train_mode()
    settings.freeze.follow(0.0)
    with (
        kept_memory(), quick_layers(network),
        progress(1.0, "lr-find") as bar,
        stop_on_interrupt() as stop,
    ):  # fmt: skip
        for batch in endless(feed):
            rate = set_rate(settings, clock.progress)
            try:
                loss = train_step(network, batch, settings, clock).item()
            except DivergedError:
                found.ended = "not finite"
                break
            found.add(rate, loss)
            clock.step += 1
            bar.update(clock.progress, f"rate {rate:.2g} · loss {loss:.3f}")
            if found.diverged or stop.requested:
                found.ended = "diverged" if found.diverged else "stopped"
                break
            if clock.step == steps:
                break
    return found


def rising(settings: Settings) -> Settings:
    """Return settings where progress changes the learning rate alone: it rises exponentially."""
    span, regularize = BELOW * ABOVE, settings.regularize
    if regularize.sharpness_start > 0:
        regularize = regularize.model_copy(update={"sharpness": 0.0})
    return replace(settings, peak=settings.peak * ABOVE, resolution=(), regularize=regularize,
                   schedule=lambda progress: float(span ** (progress - 1)))  # fmt: skip


def endless(feed: Feed) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other."""
    return chain.from_iterable(feed.epoch(number) for number in count())


@contextmanager
def generators_restored() -> Iterator[None]:
    """Give torch's random generators the state back that they had before the block."""
    before = random_tensors()
    try:
        yield
    finally:
        restore_random(before)
