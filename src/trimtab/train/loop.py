"""The training loop on one page: forward, loss, backward, step, log."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

from torch import nn

from trimtab.data.dataset import Dataset
from trimtab.data.feed import Feed
from trimtab.machine.device import seed_everything
from trimtab.machine.interrupt import stop_on_interrupt
from trimtab.machine.memory import kept_memory
from trimtab.machine.probe import Autocast
from trimtab.machine.progress import progress
from trimtab.measure.quality import Scores, logits_of, network_call, score
from trimtab.models.quick import quick_layers
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train.keep import keeper
from trimtab.train.log import Best, Clock, Log, Observe
from trimtab.train.losses import Loss
from trimtab.train.settings import Settings, resolve
from trimtab.train.update import train_step


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
    forecast: dict[str, float]


def train_network(
    network: nn.Module, dataset: Dataset, recipe: Recipe, run: Run | None, *, seed: int = 0,
    budget_seconds: float | None = None, loss: Loss | None = None, observe: Observe | None = None,
) -> TrainResult:  # fmt: skip
    """Train `network` in place and leave it with the weights that were best on valid.

    Ends after the recipe's epochs, at the end of the budget, after `patience` epochs without a
    better valid accuracy, or at Ctrl-C or SIGTERM, whichever comes first. Steps and epochs are
    logged in `run`, where there is one, and it goes on from the newest checkpoint there.
    `augment.flip: auto` means off here (`settle_flip` decides it before). Raises DivergedError
    before an update whose loss or gradients are not finite.
    """
    clock, best, log = Clock(budget_seconds), Best(recipe.train.min_delta), Log(run, observe)
    settings = resolve(network, dataset, recipe, loss, budget_seconds=budget_seconds)
    settings.speed.record(run, settings.device)
    seed_everything(seed)
    feed = Feed(dataset.splits["train"], recipe.augment, batch_size=settings.batch_size, seed=seed,
                classes=len(dataset.schema.classes), device=settings.device)  # fmt: skip
    steps, stalled = len(feed), False
    clock.total_steps, clock.sides = steps * recipe.train.epochs, settings.resolution
    if budget_seconds is None:
        log.pace(steps, clock.total_steps)
    else:
        clock.reserve(evaluation_seconds(network, dataset, settings.autocast))
    with (
        kept_memory(), quick_layers(network),
        progress(1.0, "train") as bar,
        stop_on_interrupt() as stop,
        keeper(recipe, network, settings, clock=clock, best=best, log=log) as kept,
    ):  # fmt: skip
        for epoch in range(clock.epoch, recipe.train.epochs):
            settings.freeze.train_mode()
            ending = False
            for batch in feed.epoch(epoch, clock.step - epoch * steps):
                settings.freeze.follow(clock.progress)
                rate = set_rate(settings, clock.progress)
                value = train_step(network, batch, settings, clock)
                clock.step += 1
                log.add(rate, value, len(batch.ids))
                log.forecast.note(clock)
                if log.due(clock.step):
                    log.step(clock, value.item())
                if bar.due():
                    bar.update(clock.done, log.note(best))
                ending = clock.progress >= 1 or stop.requested
                if ending or kept.due():
                    kept.save(last=ending)
                if ending:
                    break
            with settings.average.applied(network), clock.evaluating():
                scores = evaluate(network, dataset, settings.autocast)
                best.offer(scores, network, clock.step / steps)
            log.epoch(clock, clock.step / steps, scores)
            settings.observe(scores.accuracy)
            clock.epoch += 1
            stalled = clock.step / steps - best.epoch >= recipe.train.patience
            if (stalled or stop.requested) and not ending:
                kept.save(last=True)
            if ending or clock.progress >= 1 or stop.requested or stalled:
                break
    network.load_state_dict(best.weights)
    scores = evaluate(network, dataset)
    return TrainResult(scores, clock.step / steps, clock.seconds, log.speed(clock), stop.requested,
                       stalled, settings, log.forecast.errors(clock.seconds))  # fmt: skip


def set_rate(settings: Settings, done: float) -> float:
    """Set the learning rate of this step and return it."""
    rate = settings.peak * settings.schedule(done)
    for group in settings.optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    return rate


def evaluate(network: nn.Module, dataset: Dataset, autocast: Autocast = nullcontext) -> Scores:
    """Score `network` on valid, in fp32 unless `autocast` says otherwise."""
    valid = dataset.splits["valid"]
    return score(logits_of(network_call(network, autocast), valid), valid.targets, split="valid")


def evaluation_seconds(network: nn.Module, dataset: Dataset, autocast: Autocast) -> float:
    """Return about how long `evaluate` takes, from one batch of valid."""
    valid, call = dataset.splits["valid"], network_call(network, autocast)
    call(valid.inputs[:64])  # the first call prepares kernels
    started = time.perf_counter()
    call(valid.inputs[:64])  # reading is counted: it may mean decoding
    return (time.perf_counter() - started) * len(valid) / min(64, len(valid))
