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
from trimtab.measure.quality import BATCH, Scores, logits_of, network_call, score
from trimtab.models.quick import quick_layers
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train.keep import keeper
from trimtab.train.log import SAVED_BYTES, Best, Clock, Log, Observe
from trimtab.train.losses import Loss
from trimtab.train.settings import Settings, resolve
from trimtab.train.update import costs_of_steps, train_step

PROBED = 16  # samples, by which is told how many more may be judged to tell how long all take
EXPECTING = 0.01  # of a budget, to tell how long an evaluation takes
EXPECTING_SECONDS = 2.0  # at the most


@dataclass
class TrainResult:
    """What a training reached; the network holds the weights it ends with."""

    scores: Scores
    best: float  # accuracy on valid at any look
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
    """Train `network` in place and leave it with the weights that were best on valid, or the last.

    `train.restore_best` says which. Ends after the recipe's epochs, at the end of the budget, after
    `patience` epochs without a better valid accuracy, or at Ctrl-C or SIGTERM, whichever comes
    first. Steps and epochs are logged in `run`, where there is one, and it goes on from the newest
    checkpoint there. `augment.flip: auto` means off here (`settle_flip` decides it before). Raises
    DivergedError before an update whose loss or gradients are not finite.
    """
    clock, log = Clock(budget_seconds), Log(run, observe)
    best = Best(recipe.train.min_delta, recipe.train.restore_best)
    settings = resolve(network, dataset, recipe, loss, budget_seconds=budget_seconds)
    settings.speed.record(run, settings.device)
    seed_everything(seed)
    feed = Feed(dataset.splits["train"], recipe.augment, batch_size=settings.batch_size, seed=seed,
                classes=len(dataset.schema.classes), device=settings.device)  # fmt: skip
    steps = len(feed)
    clock.total_steps = steps * recipe.train.epochs
    clock.costs = costs_of_steps(recipe, dataset.schema.input_shape[1:])
    if budget_seconds is None:
        log.pace(steps, clock.total_steps)
    with (
        kept_memory(), quick_layers(network),
        progress(1.0, "train") as bar,
        stop_on_interrupt() as stop,
        keeper(recipe, network, settings, clock=clock, best=best, log=log) as kept,
    ):  # fmt: skip
        expect_end(clock, network, dataset, settings)
        bar.begin(clock.done)
        stalled = best.is_stale(clock.epoch, recipe.train.patience)
        for epoch in range(clock.epoch, recipe.train.epochs if not stalled else 0):
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
            only = not best.weights and (ending or clock.is_last)
            with settings.average.applied(network), clock.evaluating(exactly=only):
                scores = judge(network, dataset, settings, best, at=clock.step / steps, only=only)
            log.epoch(clock, clock.step / steps, scores)
            settings.observe(scores.accuracy)
            clock.epoch += 1
            stalled = best.is_stale(clock.epoch, recipe.train.patience)
            if (stalled or stop.requested or clock.is_up) and not ending:
                kept.save(last=True)
            if ending or clock.progress >= 1 or stop.requested or stalled:
                break
        network.load_state_dict(best.weights)
        scores = best.scores or evaluate(network, dataset)
    early = stalled and clock.epoch < recipe.train.epochs
    return TrainResult(
        scores,
        best.highest,
        clock.step / steps,
        clock.seconds,
        log.speed(clock),
        stop.requested,
        early,
        settings,
        log.forecast.errors(clock.seconds),
    )


def set_rate(settings: Settings, done: float) -> float:
    """Set the learning rate of this step and return it."""
    rate = settings.peak * settings.schedule(done)
    for group in settings.optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    return rate


def judge(
    network: nn.Module, dataset: Dataset, settings: Settings, best: Best, *, at: float, only: bool
) -> Scores:
    """Look at the network, `at` so many epochs, and remember it if it is the one to end with.

    In the precision of the training, or in fp32 where this is the `only` look there will be: then
    no other is needed at the end.
    """
    scores = evaluate(network, dataset, nullcontext if only else settings.autocast)
    best.offer(scores, network, at)
    best.scores = scores if only else None
    return scores


def evaluate(network: nn.Module, dataset: Dataset, autocast: Autocast = nullcontext) -> Scores:
    """Score `network` on valid, in fp32 unless `autocast` says otherwise."""
    valid = dataset.splits["valid"]
    return score(logits_of(network_call(network, autocast), valid), valid.targets, split="valid")


def expect_end(clock: Clock, network: nn.Module, dataset: Dataset, settings: Settings) -> None:
    """Tell the clock of a training with a budget how long evaluations and saving will take."""
    if clock.budget_seconds is None:
        return
    share = min(EXPECTING_SECONDS, EXPECTING * clock.budget_seconds)
    look = evaluation_seconds(network, dataset, settings.autocast, share)
    if settings.precision != "fp32":
        exact = evaluation_seconds(network, dataset, nullcontext, share)
        clock.exact = max(1.0, exact / look)  # it may have waited for a disk, which this did not
    held = network.state_dict().values()
    clock.saving += sum(one.numel() * one.element_size() for one in held) / SAVED_BYTES
    clock.reserve(look)


def evaluation_seconds(
    network: nn.Module, dataset: Dataset, autocast: Autocast, seconds: float
) -> float:
    """Return about how long `evaluate` takes, from as much of valid as fits into `seconds`."""
    call, valid = network_call(network, autocast), dataset.splits["valid"]

    def judging(samples: int) -> float:
        started = time.perf_counter()
        for first in range(0, samples, BATCH):  # reading is counted: it may mean decoding
            call(valid.inputs[first : min(samples, first + BATCH)])
        return time.perf_counter() - started

    few = min(PROBED, len(valid))
    judging(few)  # the first call prepares kernels
    samples = min(len(valid), round(few * max(1.0, seconds / judging(few))))
    return judging(samples) * len(valid) / samples
