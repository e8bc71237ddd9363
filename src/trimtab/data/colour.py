"""Augmentations that change values: a matrix per picture for its colours, one for its blur."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.data.draw import Draw
from trimtab.data.values import WHITE, as_given, between, per_sample

YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # NTSC 1953
FULL_TURN = 2 * torch.pi


def recolour(
    inputs: Tensor, draw: Draw, *, brightness: float = 0, contrast: float = 0,
    saturation: float = 0, hue: float = 0,
) -> Tensor:  # fmt: skip
    """Change hue, saturation, contrast and brightness at random, as one matrix per picture."""
    if inputs.shape[1] == 1:
        saturation = hue = 0
    if not (brightness or contrast or saturation or hue):
        return inputs
    drawn = [
        between(draw.uniform(name).double(), extent)
        for name, extent in (("brightness", brightness), ("contrast", contrast),
                             ("saturation", saturation), ("hue", hue))
    ]  # fmt: skip
    return recoloured(inputs, *drawn)


def recoloured(
    inputs: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Change the colours of pictures (N, C, H, W), C 1 or 3, by values (N,); 0 is no change.

    The hue is turned about the grey axis of YIQ, which keeps the luma and is linear, unlike HSV.
    """
    count, channels, height, width = inputs.shape
    pixels = inputs.float().reshape(count, channels, height * width)
    grey, turn = colour_matrices(channels, hue)
    spread = (1 + contrast.double())[:, None, None]
    strong = (1 + saturation.double())[:, None, None]
    matrix = spread * (strong * turn + (1 - strong) * grey)
    luma = grey[:1] @ pixels.mean(2, keepdim=True).double()
    offset = (1 - spread) * luma + WHITE * brightness.double()[:, None, None]
    changed = torch.baddbmm(offset.float().expand(-1, channels, 1), matrix.float(), pixels)
    return as_given(changed.view(inputs.shape), inputs)


def colour_matrices(channels: int, hue: Tensor) -> tuple[Tensor, Tensor]:
    """Return what makes colours grey (C, C) and what turns their hue (N, C, C), float64."""
    if channels == 1:
        one = hue.new_ones(1, 1, dtype=torch.float64)
        return one, one
    basis = torch.tensor(YIQ, dtype=torch.float64, device=hue.device)
    angle = FULL_TURN * hue.double()
    turn = torch.zeros(len(hue), 3, 3, dtype=torch.float64, device=hue.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1] = angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    return basis[:1].expand(3, 3), torch.linalg.inv(basis) @ turn @ basis


def blur(inputs: Tensor, draw: Draw, *, strength: float = 1.0) -> Tensor:
    """Blur every picture by a Gaussian of its own deviation, at most `strength` pixels."""
    if not strength:
        return inputs
    return as_given(blurred(inputs, draw.uniform("blur").double() * strength), inputs)


def sharpen(inputs: Tensor, draw: Draw, *, strength: float = 1.0) -> Tensor:
    """Add a share of at most `strength` of what a blur of one pixel takes away (unsharp mask)."""
    if not strength:
        return inputs
    return as_given(sharpened(inputs, draw.uniform("sharpen") * strength), inputs)


def sharpened(inputs: Tensor, share: Tensor) -> Tensor:
    """Return float pictures with `share` (N,) of their fine detail added; negative blurs."""
    values = inputs.float()
    detail = values - blurred(values, torch.ones(1, dtype=torch.float64, device=inputs.device))
    return values + per_sample(share.float()) * detail


def blurred(inputs: Tensor, deviation: Tensor) -> Tensor:
    """Return float pictures (N, C, H, W) blurred by a Gaussian of `deviation` (N,) or (1,)."""
    down, across = (smoothing(deviation, size) for size in inputs.shape[2:])
    upright = down[:, None] @ inputs.float().contiguous()
    return (upright.flatten(1, 2) @ across.mT).view(inputs.shape)


def smoothing(deviation: Tensor, size: int) -> Tensor:
    """Return matrices (N, size, size) that blur a line of `size` pixels, mirrored at its ends.

    A Gaussian by any deviation is one multiplication, whatever the others in the batch are.
    """
    far = torch.arange(2 * size, device=deviation.device)
    width = deviation.double().clamp(min=1e-3)[:, None]
    weights = torch.exp(-((far / width) ** 2) / 2).float()
    row, column = far[:size, None], far[:size]
    before = row + column + 1
    reaches = ((row - column).abs(), before, 2 * size - before)
    direct, low, high = (weights.index_select(1, reach.view(-1)) for reach in reaches)
    found = direct.add_(low).add_(high).view(-1, size, size)
    return found / found.sum(2, keepdim=True)
