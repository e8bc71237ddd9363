"""Pixel values on their way through an augmentation: to float, and back to what was given."""

from __future__ import annotations

import torch
from torch import Tensor

WHITE = 255.0


def as_given(changed: Tensor, inputs: Tensor) -> Tensor:
    """Bring float values, which may be changed in place, to the range and the type of `inputs`."""
    if inputs.dtype == torch.uint8:
        changed = changed.round_()
    return changed.clamp_(0, WHITE).to(inputs.dtype)


def per_sample(values: Tensor) -> Tensor:
    """Return values (N,) in a shape that spreads over pictures (N, C, H, W)."""
    return values.view(-1, 1, 1, 1)


def between(unit: Tensor, extent: float) -> Tensor:
    """Spread float32 draws in [0, 1) over [-extent, extent)."""
    return (unit - 0.5) * (2 * extent)
