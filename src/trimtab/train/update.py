"""One optimizer update: the batch as it is learnt from, its gradients, the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from trimtab.data.dataset import Batch
from trimtab.errors import DivergedError, MachineError, UsageError
from trimtab.machine.probe import LAYOUTS
from trimtab.machine.progress import say
from trimtab.records.recipe import Recipe
from trimtab.train.gradients import ascend, clip, l1_penalty
from trimtab.train.log import Clock, Costs
from trimtab.train.losses import sample_weights
from trimtab.train.norms import norms_of
from trimtab.train.resolution import pixels_at, resized
from trimtab.train.settings import Settings

Found = TypeVar("Found")

LEAST_SHARE = 32  # samples that tell which way is up, where there are as many
SHOWN = 8
NO_MEMORY = "can't allocate memory"  # how torch says it on a processor


def train_step(network: nn.Module, batch: Batch, settings: Settings, clock: Clock) -> Tensor:
    """Do one optimizer update and return the loss of the batch, still on the device.

    Of a sharpness-aware update it is the loss of the share of the batch that says which way is up.
    Raises DivergedError before the update where the loss or a gradient is no finite number; in
    fp16, where a gradient may be too large for it, the update is left out.
    """
    batch = learnt_from(network, batch, settings, clock)
    radius, start = settings.regularize.sharpness, settings.regularize.sharpness_start
    sharp = radius > 0 and clock.progress >= start
    value = (uphill_gradients if sharp else gradients_of)(network, batch, settings)
    if not is_finite(value, batch, settings, clock.step + 1):
        return value
    if settings.regularize.l1 > 0:
        l1_penalty(settings.weights, settings.regularize.l1)
    clip(settings.parameters, norm=settings.regularize.clip_norm,
         value=settings.regularize.clip_value)  # fmt: skip
    settings.optimizer.step()
    settings.average.update(network, clock.progress)
    return value


def learnt_from(network: nn.Module, batch: Batch, settings: Settings, clock: Clock) -> Batch:
    """Return the batch as it is learnt from: its size, its hard samples, its order in memory."""
    if settings.resolution:
        batch = resized(batch, settings.resolution, clock.progress)
    if settings.hard_fraction < 1:
        whole = batch
        batch = retried(lambda: hardest(network, whole, settings), settings)
    inputs = batch.inputs.contiguous(memory_format=LAYOUTS[settings.way.layout])
    return batch if inputs is batch.inputs else batch._replace(inputs=inputs)


def costs_of_steps(recipe: Recipe, full: tuple[int, int]) -> Costs:
    """Return what steps cost beside each other by the recipe, from which share of the training on.

    A pass costs what it has pixels, one of the `full` height and width 1. Not in it are what frozen
    layers save, the search for hard samples, and that a share of a small batch is larger than asked
    for.
    """
    sides, radius = recipe.train.resolution or (1.0,), recipe.regularize.sharpness
    start, share = recipe.regularize.sharpness_start, recipe.regularize.sharpness_share
    starts = sorted({index / len(sides) for index in range(len(sides))} | {start if radius else 0})

    def cost(progress: float) -> float:
        passes = 1 + share if radius and progress >= start else 1.0
        height, width = pixels_at(full, sides, progress)
        return passes * (height * width) / (full[0] * full[1])

    ends = [*starts[1:], 1.0]
    return tuple((a, cost((a + b) / 2)) for a, b in zip(starts, ends, strict=True))


def hardest(network: nn.Module, batch: Batch, settings: Settings) -> Batch:
    """Return the samples of largest loss, as many as the recipe's share of the batch says.

    Source: Jiang et al. 2019 (1910.00762), with the share fixed.
    """
    count = max(2, round(settings.hard_fraction * len(batch.ids)))
    if count >= len(batch.ids):
        return batch
    with torch.no_grad(), settings.autocast(), held_norms(network):
        parts = [network(part.inputs).float() for part, _ in passes(batch, settings.micro_batch)]
    losses = settings.loss(torch.cat(parts), batch)
    if losses.ndim != 1:
        raise UsageError(f"train.hard_fraction needs a loss per sample, got {tuple(losses.shape)}",
                         "let your loss return (N,) without its mean")  # fmt: skip
    rows = losses.topk(count).indices.sort().values
    inputs = batch.inputs[rows].contiguous(memory_format=torch.channels_last)
    return Batch(inputs, batch.targets[rows], batch.ids[rows])


def gradients_of(network: nn.Module, batch: Batch, settings: Settings) -> Tensor:
    """Fill the gradients of a whole batch, in smaller passes where memory does not hold it."""
    return retried(lambda: accumulate(network, batch, settings), settings)


def uphill_gradients(network: nn.Module, batch: Batch, settings: Settings) -> Tensor:
    """Fill the gradients that a batch has a little uphill; return the loss where the weights are.

    Which way is up, that loss and what norms keep come from the recipe's share of the batch alone.
    Sources: Foret et al. 2021 (2010.01412); for the share Bahri et al. 2022 (2110.08529).
    """
    count = max(LEAST_SHARE, round(settings.regularize.sharpness_share * len(batch.ids)))
    value = gradients_of(network, Batch(*(tensor[:count] for tensor in batch)), settings)
    undo = ascend(settings.parameters, settings.regularize.sharpness)
    with held_norms(network):  # the moved weights are no state of the training
        gradients_of(network, batch, settings)
    undo()
    return value


@contextmanager
def held_norms(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are inside the block.

    Nothing is written to them at all: a momentum of 0 would let NaN in, which 0 times NaN is. Those
    that learn normalise by their batch all the same, frozen ones by what they hold.
    """
    norms = [norm for norm in norms_of(network) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def retried(work: Callable[[], Found], settings: Settings) -> Found:
    """Return what `work` returns, in smaller passes after each time that memory runs out."""
    while True:
        try:
            return work()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and NO_MEMORY not in str(error):
                raise
            shrink(settings, error)


def shrink(settings: Settings, error: RuntimeError) -> None:
    """Halve the samples of a pass; raises MachineError where it cannot be less."""
    settings.optimizer.zero_grad(set_to_none=True)
    size = min(settings.micro_batch, settings.batch_size)
    if size <= 2:
        raise MachineError("memory does not hold two samples of this network",
                           "choose a smaller network or data.image_size") from error  # fmt: skip
    settings.micro_batch = (size + 1) // 2
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    say(f"memory is short: {settings.micro_batch} samples at a time, the same batch per step")


def accumulate(network: nn.Module, batch: Batch, settings: Settings) -> Tensor:
    """Add the gradients of all passes of a batch and return its loss, both times the scale."""
    for parameter in settings.parameters:  # as zero_grad does, without its bookkeeping
        parameter.grad = None
    forward, total = settings.compiled or network, None
    for part, share in passes(batch, settings.micro_batch, settings.class_weights):
        with settings.autocast():
            outputs = forward(part.inputs)
        value = settings.loss(outputs.float(), part).mean()
        factor = share * settings.scale.factor
        value = value if factor == 1 else value * factor
        value.backward()
        total = value.detach() if total is None else total + value.detach()
    assert total is not None
    return total


def passes(
    batch: Batch, size: int, class_weights: Tensor | None = None
) -> Iterator[tuple[Batch, float]]:
    """Yield parts of about `size` samples, none of them alone, each with its share of the batch.

    A share is one of samples, or of their weights where classes weigh differently: so the parts'
    losses, each a weighted mean, add up to that of the batch.
    """
    count = len(batch.ids)
    if size >= count:
        yield batch, 1.0
        return
    number = max(1, min(-(-count // size), count // 2))
    bounds = [round(index * count / number) for index in range(number + 1)]
    for start, end in pairwise(bounds):
        part = Batch(*(tensor[start:end] for tensor in batch))
        share = (end - start) / count
        if class_weights is not None:
            own, whole = (sample_weights(b.targets, class_weights).sum() for b in (part, batch))
            share = float(own / whole)
        yield part, share


def is_finite(value: Tensor, batch: Batch, settings: Settings, step: int) -> bool:
    """Return whether there is an update to do; divide loss and gradients by the scale.

    False in fp16 for gradients that a smaller scale can hold. Raises DivergedError, with the rows
    of the batch, for a loss or gradients that are not finite at all.
    """
    gradients = [p.grad for p in settings.parameters if p.grad is not None]
    if settings.scale.unscale([value, *gradients]):
        return True
    sound = bool(value.isfinite())
    if sound and settings.scale.factor >= 1 and not settings.scale.fixed:
        say(f"step {step}: a gradient is too large for fp16; this update is left out, the next one "
            f"has the scale {settings.scale.factor:g}")  # fmt: skip
        return False
    what = "a gradient is" if sound else f"the loss is {value.item()},"
    rows = ", ".join(str(row) for row in batch.ids[:SHOWN].tolist())
    more = ", …" if len(batch.ids) > SHOWN else ""
    raise DivergedError(f"step {step}: {what} not finite, with train samples {rows}{more}",
                        "lower train.learning_rate (a third is a good try)")  # fmt: skip
