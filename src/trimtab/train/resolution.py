"""Pictures that grow in the course of a training (Howard 2018, progressive resizing)."""

from __future__ import annotations

import torch
from torch.nn import functional

from trimtab.data.dataset import Batch, Dataset
from trimtab.machine.progress import say
from trimtab.records.recipe import Recipe

SMALLEST_SIDE = 8


def side_at(resolution: tuple[float, ...], progress: float) -> float:
    """Return the side of pictures at `progress` in [0, 1], as a fraction of the full one."""
    return resolution[min(int(progress * len(resolution)), len(resolution) - 1)]


def pixels_at(
    full: tuple[int, int], resolution: tuple[float, ...], progress: float
) -> tuple[int, int]:
    """Return height and width at `progress` in [0, 1] of pictures that are `full` in the end.

    No side shrinks below 8 pixels: networks need some.
    """
    share = side_at(resolution, progress) if resolution else 1.0
    height, width = (max(min(SMALLEST_SIDE, side), round(side * share)) for side in full)
    return height, width


def resized(batch: Batch, resolution: tuple[float, ...], progress: float) -> Batch:
    """Return the batch at the side that belongs to `progress`, averaged over what is left out."""
    height, width = batch.inputs.shape[2:]
    size = pixels_at((height, width), resolution, progress)
    if size == (height, width):
        return batch
    inputs = functional.interpolate(batch.inputs, size, mode="bilinear", antialias=True)
    return batch._replace(inputs=inputs.contiguous(memory_format=torch.channels_last))


def tell_unshrunk(recipe: Recipe, dataset: Dataset) -> None:
    """Warn where pictures are too small to be made smaller, as the recipe asks."""
    _, height, width = dataset.schema.input_shape
    sides, phases = recipe.train.resolution, len(recipe.train.resolution)
    sizes = {pixels_at((height, width), sides, index / phases) for index in range(phases)}
    if sizes == {(height, width)} and set(sides) != {1.0}:
        say(
            f"warning: train.resolution changes nothing: pictures of {height}x{width} pixels stay "
            "as they are"
        )
