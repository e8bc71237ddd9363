"""Augmentation policies: each picture gets changes drawn from one list."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.data.colour import recoloured, sharpened
from trimtab.data.draw import Draw
from trimtab.data.values import WHITE, as_given, per_sample
from trimtab.data.warp import resampled

LAYERS = 2  # changes per picture of RandAugment (Cubuk et al. 2020, section 4)
LEVELS = 256


class Change(NamedTuple):
    """A change of float pictures (n, C, H, W) by levels (n,); how far it goes in each policy."""

    apply: Callable[[Tensor, Tensor], Tensor]
    far: float
    wide: float
    signed: bool = True


def randaugment(inputs: Tensor, draw: Draw, *, strength: float = 0.3) -> Tensor:
    """Change every picture by two drawn changes of one strength in [0, 1] (Cubuk et al. 2020).

    Signs are drawn. Ranges as in its table; shifts are fractions of the side.
    """
    if not strength:
        return inputs
    values = inputs.float().contiguous()
    for layer in range(LAYERS):
        levels = torch.full((len(inputs),), strength, device=inputs.device)
        far = [change.far for change in CHANGES]
        values = changed_by(values, draw.branched(f"randaugment {layer}"), levels, far)
    return as_given(values, inputs)


def trivialaugment(inputs: Tensor, draw: Draw, *, strength: float = 1.0) -> Tensor:
    """Change every picture by one drawn change of a drawn strength (Müller & Hutter 2021).

    The wide ranges of its table; shifts stay within 0.45 of the side. `strength` is the largest
    share of the ranges, 1 as published.
    """
    if not strength:
        return inputs
    branch = draw.branched("trivialaugment")
    wide = [change.wide for change in CHANGES]
    levels = branch.uniform("level") * strength
    values = inputs.float().contiguous()
    return as_given(changed_by(values, branch, levels, wide), inputs)


def changed_by(values: Tensor, draw: Draw, levels: Tensor, extents: list[float]) -> Tensor:
    """Change float pictures by one drawn change each; one call per change for all that drew it."""
    drawn = draw.integers("change", 0, len(CHANGES))
    signs = draw.signs("sign")
    counts = torch.bincount(drawn, minlength=len(CHANGES)).tolist()
    groups = drawn.argsort(stable=True).split(counts)
    changed = values.clone()
    for change, extent, rows in zip(CHANGES, extents, groups, strict=True):
        if len(rows):
            level = levels[rows] * extent * (signs[rows] if change.signed else 1)
            changed[rows] = change.apply(values[rows], level.double())
    return changed.clamp_(0, WHITE)


def same(values: Tensor, level: Tensor) -> Tensor:
    """Change nothing."""
    return values


def turn(values: Tensor, level: Tensor) -> Tensor:
    """Turn by `level` degrees."""
    return resampled(values, angle=torch.deg2rad(level))


def slant_x(values: Tensor, level: Tensor) -> Tensor:
    """Slant to the side by a tangent of `level`."""
    return resampled(values, slant_x=level)


def slant_y(values: Tensor, level: Tensor) -> Tensor:
    """Slant down by a tangent of `level`."""
    return resampled(values, slant_y=level)


def move_x(values: Tensor, level: Tensor) -> Tensor:
    """Move to the side by `level` of the width."""
    return resampled(values, move_x=level)


def move_y(values: Tensor, level: Tensor) -> Tensor:
    """Move down by `level` of the height."""
    return resampled(values, move_y=level)


def lighten(values: Tensor, level: Tensor) -> Tensor:
    """Multiply the light by 1 + `level`."""
    return values * per_sample(1 + level.float())


def respread(values: Tensor, level: Tensor) -> Tensor:
    """Multiply the contrast by 1 + `level`."""
    none = torch.zeros_like(level)
    return recoloured(values, none, level, none, none)


def saturate(values: Tensor, level: Tensor) -> Tensor:
    """Multiply the saturation by 1 + `level`."""
    none = torch.zeros_like(level)
    return recoloured(values, none, none, level, none)


def posterize(values: Tensor, level: Tensor) -> Tensor:
    """Set the lowest `level` of 8 bits to zero, rounded."""
    step = per_sample(2.0 ** level.round().float())
    return (values / step).floor() * step


def solarize(values: Tensor, level: Tensor) -> Tensor:
    """Turn over the values in the upper `level` of the range."""
    return torch.where(values < per_sample(LEVELS * (1 - level.float())), values, WHITE - values)


def autocontrast(values: Tensor, level: Tensor) -> Tensor:
    """Stretch each channel over the full range."""
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = high <= low
    stretched = (values - low) * (WHITE / torch.where(flat, 1, high - low))
    return torch.where(flat, values, stretched)


def equalize(values: Tensor, level: Tensor) -> Tensor:
    """Make each channel's histogram flat, as Pillow's ImageOps.equalize does."""
    count, channels, height, width = values.shape
    pixels = values.reshape(count * channels, height * width).round().long()
    counts = torch.zeros(count * channels, LEVELS, dtype=torch.long, device=values.device)
    counts.scatter_add_(1, pixels, torch.ones_like(pixels))
    last = counts.gather(1, pixels.amax(1, keepdim=True))
    step = (pixels.shape[1] - last) // (LEVELS - 1)
    below = counts.cumsum(1) - counts
    table = (below + step // 2) // step.clamp(min=1)
    flat = table.clamp_(max=LEVELS - 1).gather(1, pixels).view(values.shape)
    return torch.where(step.view(count, channels, 1, 1) == 0, values, flat.float())


CHANGES = (
    Change(same, 0, 0),
    Change(turn, 30, 135),
    Change(slant_x, 0.3, 0.99),
    Change(slant_y, 0.3, 0.99),
    Change(move_x, 0.45, 0.45),
    Change(move_y, 0.45, 0.45),
    Change(lighten, 0.9, 0.99),
    Change(respread, 0.9, 0.99),
    Change(saturate, 0.9, 0.99),
    Change(sharpened, 0.9, 0.99),
    Change(posterize, 4, 6, signed=False),
    Change(solarize, 1, 1, signed=False),
    Change(autocontrast, 0, 0),
    Change(equalize, 0, 0),
)
