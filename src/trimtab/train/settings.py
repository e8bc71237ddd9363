"""Resolve everything a training needs before its loop starts, so that the loop has no branches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from trimtab.data.dataset import Dataset
from trimtab.errors import DataError
from trimtab.machine.device import best_device
from trimtab.machine.probe import Autocast, autocast_for, probe_precision
from trimtab.models.strided import sound_strides
from trimtab.records.recipe import Recipe
from trimtab.registry import lookup
from trimtab.train.losses import LOSSES, Loss
from trimtab.train.optimizers import OPTIMIZERS, PEAK_LEARNING_RATE, parameter_groups
from trimtab.train.schedules import SCHEDULES, Schedule

MIN_STEPS_PER_EPOCH = 40
SMALLEST_BATCH, LARGEST_BATCH = 32, 128
PROBE_BATCH = 64
UNKNOWN_OPTIMIZER_RATE = 1e-3


@dataclass(frozen=True)
class Settings:
    """What the loop is called with."""

    device: torch.device
    precision: str
    autocast: Autocast
    batch_size: int
    peak: float
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: Loss
    probed: dict[str, float]


def resolve(network: nn.Module, dataset: Dataset, recipe: Recipe, loss: Loss | None) -> Settings:
    """Choose device, precision, layout, batch size and learning rate, and build the parts."""
    device = best_device()
    network.to(device)
    network.to(memory_format=torch.channels_last)
    precision, probed = resolve_precision(network, dataset, recipe, device)
    peak = peak_learning_rate(recipe)
    return Settings(
        device=device,
        precision=precision,
        autocast=autocast_for(precision, device),
        batch_size=resolve_batch_size(recipe, len(dataset.splits["train"])),
        peak=peak,
        optimizer=build_optimizer(network, recipe, peak),
        schedule=lookup("schedule", SCHEDULES, recipe.train.schedule),
        loss=loss or build_loss(recipe),
        probed=probed,
    )


def resolve_precision(
    network: nn.Module, dataset: Dataset, recipe: Recipe, device: torch.device
) -> tuple[str, dict[str, float]]:
    """Return the recipe's precision, or the faster one by a probe on a random batch."""
    if recipe.train.precision != "auto":
        return recipe.train.precision, {}
    rows = max(2, min(PROBE_BATCH, len(dataset.splits["train"])))
    inputs = torch.rand(rows, *dataset.schema.input_shape, device=device).mul_(255)
    network.train()
    with sound_strides(network):
        return probe_precision(network, inputs.contiguous(memory_format=torch.channels_last))


def resolve_batch_size(recipe: Recipe, samples: int) -> int:
    """Return samples per step: 32 to 128, so that an epoch has 40 steps where that is possible."""
    if recipe.train.batch_size != "auto":
        size = recipe.train.batch_size
    else:
        size = SMALLEST_BATCH
        while size < LARGEST_BATCH and samples // (2 * size) >= MIN_STEPS_PER_EPOCH:
            size *= 2
    if samples < 2:
        raise DataError(f"the train split holds {samples} sample(s)", "add training data")
    return min(size, samples)


def peak_learning_rate(recipe: Recipe) -> float:
    """Return the recipe's learning rate, or the usual peak of its optimizer."""
    if recipe.train.learning_rate != "auto":
        return float(recipe.train.learning_rate)
    return PEAK_LEARNING_RATE.get(recipe.train.optimizer, UNKNOWN_OPTIMIZER_RATE)


def build_optimizer(network: nn.Module, recipe: Recipe, peak: float) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over two parameter groups."""
    part = lookup("optimizer", OPTIMIZERS, recipe.train.optimizer)
    groups = parameter_groups(network, recipe.regularize.weight_decay)
    settings = {"lr": peak, "momentum": recipe.train.momentum}
    return accepting(part, settings)(groups)  # type: ignore[no-any-return]


def build_loss(recipe: Recipe) -> Loss:
    """Build the recipe's loss."""
    part = lookup("loss", LOSSES, recipe.train.loss)
    return accepting(part, {"label_smoothing": recipe.regularize.label_smoothing})


def accepting(part: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """Bind those `settings` that `part` names as parameters."""
    names = inspect.signature(part).parameters
    return partial(part, **{key: value for key, value in settings.items() if key in names})
