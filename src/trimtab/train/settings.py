"""Resolve everything a training needs before its loop starts, so that the loop has no branches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.data.dataset import Dataset
from trimtab.errors import DataError, UsageError
from trimtab.machine.compiled import Compiled, leave_compiler_unloaded
from trimtab.machine.device import best_device
from trimtab.machine.probe import Autocast, Way, autocast_for
from trimtab.records.recipe import Recipe, fields_of
from trimtab.records.sections import FRESH, RegularizeSection
from trimtab.registry import lookup
from trimtab.train.average import Average, start_average
from trimtab.train.freeze import Freeze
from trimtab.train.losses import LOSSES, Loss, balanced_weights
from trimtab.train.norms import set_norms
from trimtab.train.optimizers import find_optimizer, parameter_groups, usual_rate
from trimtab.train.scale import Scale, scale_for
from trimtab.train.schedules import (
    SCHEDULES,
    Plateau,
    Schedule,
    with_floor,
    with_settings,
    with_warmup,
)
from trimtab.train.speed import Speed, passes_of_step, resolve_speed, rows_of_pass

MIN_STEPS_PER_EPOCH = 40
SMALLEST_BATCH, LARGEST_BATCH = 32, 128
DECOUPLED, DECOUPLED_DECAY, COUPLED_DECAY = {"adamw", "lion"}, 0.05, 5e-4
SCHEDULE_FIELDS = ("cycles", "gamma", "milestones", "power", "plateau_patience")
# Field: the choice it belongs to, and those of its values that make no use of it.
HEARD_BY: dict[str, tuple[str, set[Any]]] = {
    "train.average_decay": ("average", {"none", "swa"}),
    "train.average_every": ("average", {"none", "swa", "ema"}),
    "model.keep_head": ("pretrained", {FRESH}),
    "augment.policy_strength": ("policy", {"none", "trivialaugment"}),
    "regularize.sharpness_start": ("sharpness", {0}),
    "regularize.sharpness_share": ("sharpness", {0}),
}
LOSS_FIELDS = {
    "label_smoothing": "regularize.label_smoothing", "class_weights": "train.class_weights",
    "gamma": "train.focal_gamma", "delta": "train.huber_delta", "q": "train.quantile",
}  # fmt: skip


@dataclass
class Settings:
    """What the loop is called with; `micro_batch` alone changes, where memory runs out."""

    device: torch.device
    speed: Speed
    scale: Scale
    autocast: Autocast
    batch_size: int
    micro_batch: int
    peak: float
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    plateau: Plateau | None
    loss: Loss
    class_weights: Tensor | None
    average: Average
    regularize: RegularizeSection
    resolution: tuple[float, ...]
    hard_fraction: float
    freeze: Freeze

    @property
    def way(self) -> Way:
        """How the network computes."""
        return self.speed.way

    @property
    def compiled(self) -> Compiled | None:
        """What is called in its place, where it is compiled."""
        return self.speed.compiled

    @cached_property
    def parameters(self) -> list[Tensor]:
        """The parameters that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def observe(self, score: float) -> None:
        """Tell a schedule that listens what an epoch reached."""
        if self.plateau is not None:
            self.plateau.observe(score)

    @cached_property
    def weights(self) -> list[Tensor]:
        """Those of them with two dimensions or more: no norms, no biases."""
        return [parameter for parameter in self.parameters if parameter.ndim > 1]

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return self.way.precision


def resolve(
    network: nn.Module, dataset: Dataset, recipe: Recipe, loss: Loss | None, *,
    budget_seconds: float | None = None,
) -> Settings:  # fmt: skip
    """Choose device, precision, layout, batch size and learning rate, and build the parts."""
    require_heard(recipe)
    device = best_device()
    network.to(device)
    set_norms(network, recipe)
    peak, size = peak_learning_rate(recipe), resolve_batch_size(recipe, dataset)
    steps = recipe.train.epochs * -(-len(dataset.splits["train"]) // size)
    shape = (rows_of_pass(recipe, size), *dataset.schema.input_shape)
    pixels = torch.rand(shape, device=device).mul_(255)
    speed = resolve_speed(network, pixels, recipe, steps=steps,
                          passes=passes_of_step(recipe, size),
                          budget_seconds=budget_seconds)  # fmt: skip
    optimizer = build_optimizer(network, recipe, peak)
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    schedule, weights = build_schedule(recipe), build_class_weights(recipe, dataset, device)
    micro = size + 1 if recipe.train.micro_batch == "auto" else min(recipe.train.micro_batch, size)
    return Settings(
        device=device, speed=speed, scale=scale_for(speed.way.precision, device),
        autocast=autocast_for(speed.way.precision, device),
        batch_size=size, micro_batch=micro, peak=peak,  # a lone last sample joins the batch before
        optimizer=optimizer, schedule=outer_schedule(recipe, schedule),
        plateau=schedule if isinstance(schedule, Plateau) else None,
        loss=loss or build_loss(recipe, weights), class_weights=weights,
        average=build_average(network, recipe),
        regularize=recipe.regularize,
        resolution=recipe.train.resolution, hard_fraction=recipe.train.hard_fraction,
        freeze=Freeze(network, trained, head_only=recipe.train.head_only,
                      norms=recipe.model.freeze_norms),
    )  # fmt: skip


def resolve_batch_size(recipe: Recipe, dataset: Dataset) -> int:
    """Return samples per step: 32 to 128, so that an epoch has 40 steps where that is possible."""
    samples = len(dataset.splits["train"])
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
    return usual_rate(recipe.train.optimizer)


def build_optimizer(network: nn.Module, recipe: Recipe, peak: float) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over its parameter groups."""
    name, decay = recipe.train.optimizer, recipe.regularize.weight_decay
    if decay == "auto":
        decay = DECOUPLED_DECAY if name.lower() in DECOUPLED else COUPLED_DECAY
    groups = parameter_groups(network, weight_decay=decay, bias_rate=recipe.train.bias_rate,
                              layer_decay=recipe.train.layer_decay)  # fmt: skip
    leave_compiler_unloaded()
    part = find_optimizer(name)
    taken = accepted(part, recipe, name, {"momentum": "train.momentum"})
    return part(groups, lr=peak, **taken)


def build_schedule(recipe: Recipe) -> Schedule:
    """Build the recipe's schedule with those of its settings that it takes."""
    name = recipe.train.schedule
    part = lookup("schedule", SCHEDULES, name)
    fields = {field: f"train.{field}" for field in SCHEDULE_FIELDS}
    return with_settings(part, accepted(part, recipe, name, fields))


def outer_schedule(recipe: Recipe, schedule: Schedule) -> Schedule:
    """Put the recipe's warm-up in front of `schedule` and its floor below it."""
    return with_warmup(with_floor(schedule, recipe.train.final_rate), recipe.train.warmup)


def build_average(network: nn.Module, recipe: Recipe) -> Average:
    """Start the recipe's average of the weights."""
    decay = recipe.train.average_decay
    return start_average(network, recipe.train.average, decay=None if decay == "auto" else decay,
                         every=recipe.train.average_every)  # fmt: skip


def build_class_weights(recipe: Recipe, dataset: Dataset, device: torch.device) -> Tensor | None:
    """Return the weight of each class (K,), or None where all weigh the same."""
    if recipe.train.class_weights == "none":
        return None
    targets = dataset.splits["train"].targets
    return balanced_weights(targets, len(dataset.schema.classes)).to(device)


def build_loss(recipe: Recipe, weights: Tensor | None) -> Loss:
    """Build the recipe's loss with those of its settings that it takes."""
    name = recipe.train.loss
    part = lookup("loss", LOSSES, name)
    settings = accepted(part, recipe, name, LOSS_FIELDS)
    if "class_weights" in settings:
        settings["class_weights"] = weights
    return partial(part, **settings)


def require_heard(recipe: Recipe) -> None:
    """Raise UsageError for a setting that was changed and belongs to a part that is not chosen."""
    for place, (choice, deaf) in HEARD_BY.items():
        section, field = place.split(".")
        values, usual = getattr(recipe, section), fields_of(section)[field].default
        if getattr(values, field) != usual and getattr(values, choice) in deaf:
            raise UsageError(f"{section}.{choice} {getattr(values, choice)} takes no {place}, "
                             f"which is {getattr(values, field)}",
                             f"leave out {place}, or set it to {usual}")  # fmt: skip


def accepted(
    part: Callable[..., Any], recipe: Recipe, name: str, fields: Mapping[str, str]
) -> dict[str, Any]:
    """Return the recipe's value of each of `fields` (parameter: section.field) that `part` takes.

    Raises UsageError for one that was changed and is not taken: nothing is ignored in silence.
    """
    known, found = inspect.signature(part).parameters, {}
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for parameter, place in fields.items():
        section, field = place.split(".")
        value = getattr(getattr(recipe, section), field)
        if parameter in known or takes_all:
            found[parameter] = value
        elif value != fields_of(section)[field].default:
            raise UsageError(f"{name} takes no {parameter}, and the recipe sets {place} to {value}",
                             f"leave out {place}, or choose another part than {name}")  # fmt: skip
    return found
