"""Augmentations that move pixels: shifts and flips by one gather, turns by one resampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from trimtab.data.draw import Draw
from trimtab.data.values import as_given, between

Value = Tensor | float


@dataclass(frozen=True)
class Moves:
    """Which whole-pixel moves are drawn; `flip` is "", "random" or "alternating"."""

    shift: float = 0.0
    flip: str = ""
    flip_vertical: bool = False

    def border(self, height: int, width: int) -> tuple[int, int]:
        """Return the largest offset down and across, in pixels."""
        down, across = (min(round(side * self.shift), side - 1) for side in (height, width))
        return down, across


@dataclass(frozen=True)
class Places:
    """Where each of N pictures is read: `top`, `left` (N,) from 0; None where it never differs."""

    top: Tensor | None
    left: Tensor | None
    mirrored: Tensor | None
    upside_down: Tensor | None


def places(draw: Draw, moves: Moves, height: int, width: int) -> Places:
    """Draw where the pictures of a batch are read."""
    down, across = moves.border(height, width)
    return Places(
        draw.integers("shift.down", 0, 2 * down + 1) if down else None,
        draw.integers("shift.across", 0, 2 * across + 1) if across else None,
        mirrored_by(draw, moves.flip),
        coin(draw, "flip_vertical") if moves.flip_vertical else None,
    )


def coin(draw: Draw, what: str) -> Tensor:
    """Return true (N,) with probability one half."""
    return draw.bits(what) < 0


def mirrored_by(draw: Draw, flip: str) -> Tensor | None:
    """Return which pictures are mirrored, or None where none ever is.

    Alternating: by a coin per sample in the first epoch, then every other epoch (Jordan 2024,
    section 3.6).
    """
    if flip == "alternating":
        first = coin(Draw(draw.seed, 0, draw.ids, draw.branch), "flip")
        return first ^ bool(draw.epoch % 2)
    return coin(draw, "flip") if flip else None


def mirrored(pixels: Tensor, draw: Draw, flip: str) -> Tensor:
    """Mirror those pictures (N, H, W, C) that are drawn; on the processor in place, one by one.

    Choosing between two whole batches there would cost many times as much.
    """
    chosen = mirrored_by(draw, flip)
    if chosen is None:
        return pixels
    if pixels.device.type != "cpu":
        return torch.where(chosen[:, None, None, None], reflected(pixels), pixels)
    for row in chosen.nonzero()[:, 0].tolist():
        pixels[row : row + 1] = reflected(pixels[row : row + 1])
    return pixels


def reflected(pixels: Tensor) -> Tensor:
    """Return the mirror image of pictures (N, H, W, C), channels side by side.

    In the order in which torch mirrors whole registers at once.
    """
    return pixels.permute(0, 3, 1, 2).flip(3).permute(0, 2, 3, 1)


def widened(pixels: Tensor, across: int, both: bool) -> Tensor:
    """Lay pictures (N, H, W, C) out for `moved`: (N, H, S, W + 2 across, C), S 2 if `both`, else 1.

    Rows are continued by their mirror image, the edge not repeated; a second copy is mirrored as
    a whole.
    """
    count, height, width, channels = pixels.shape
    shape = (count, height, 1 + both, width + 2 * across, channels)
    wide = pixels.new_empty(shape)
    first = wide[:, :, 0]
    first[:, :, across : across + width] = pixels
    if across:
        first[:, :, :across] = pixels[:, :, 1 : across + 1].flip(2)
        first[:, :, across + width :] = pixels[:, :, -across - 1 : -1].flip(2)
    if both:
        wide[:, :, 1] = first.flip(2)
    return wide


def moved(wide: Tensor, rows: Tensor, at: Places, border: tuple[int, int]) -> Tensor:
    """Read the pictures `rows` (N,) of `wide` at their places: (N, H, W, C), by one gather."""
    total, height, sides, stride, channels = wide.shape
    down, across = border
    width = stride - 2 * across
    lines = lines_of(height, down, at.upside_down is not None, rows.device).mul_(sides * stride)
    chosen = at.top if at.top is not None else torch.zeros_like(rows)
    if at.upside_down is not None:
        chosen = chosen + at.upside_down * (2 * down + 1)
    left: Tensor | int = at.left if at.left is not None else 0
    if at.mirrored is not None:
        left = torch.where(at.mirrored, stride + 2 * across - left, left)
    first = (rows * (height * sides * stride) + left)[:, None] + lines.index_select(0, chosen)
    count = total * height * sides * stride - width + 1
    windows = wide.as_strided((count, width * channels), (channels, 1))
    return windows.index_select(0, first.view(-1)).view(len(rows), height, width, channels)


def lines_of(height: int, down: int, turned: bool, device: torch.device) -> Tensor:
    """Return the lines a shifted picture reads, (2 down + 1, H); as many upside down below these.

    What comes in at an edge is the picture mirrored, the edge not repeated.
    """
    ends = torch.arange(-down, down + 1, device=device)[:, None]
    lines = (ends + torch.arange(height, device=device)).abs_()
    lines = (height - 1) - ((height - 1) - lines).abs_()
    return torch.cat([lines, lines.flip(1)]) if turned else lines


def moved_batch(inputs: Tensor, draw: Draw, moves: Moves) -> Tensor:
    """Move the pictures of a batch (N, C, H, W) of any type."""
    pixels = inputs.permute(0, 2, 3, 1)
    border = moves.border(*pixels.shape[1:3])
    wide = widened(pixels, border[1], bool(moves.flip))
    at = places(draw, moves, *pixels.shape[1:3])
    rows = torch.arange(len(pixels), device=pixels.device)
    return moved(wide, rows, at, border).permute(0, 3, 1, 2)


def affine(
    inputs: Tensor, draw: Draw, *, rotate: float = 0, zoom: float = 0, shear: float = 0
) -> Tensor:
    """Turn, scale and slant every picture at random in one resampling.

    `rotate` and `shear` are the largest angles in degrees, `zoom` the largest change of scale.
    """
    if not (rotate or zoom or shear):
        return inputs
    angle, slant = (
        torch.deg2rad(between(draw.uniform(name).double(), degrees))
        for name, degrees in (("rotate", rotate), ("shear", shear))
    )
    scale = 1 + between(draw.uniform("zoom").double(), zoom)
    return resampled(inputs, angle=angle, scale=scale, slant_x=slant.tan())


def resampled(
    inputs: Tensor, *, angle: Value = 0.0, scale: Value = 1.0, slant_x: Value = 0.0,
    slant_y: Value = 0.0, move_x: Value = 0.0, move_y: Value = 0.0,
) -> Tensor:  # fmt: skip
    """Resample pictures (N, C, H, W), bilinear, mirrored at the border.

    Values are (N,) or one for all: `angle` in radians, `scale` a factor, `slant_…` the tangent
    of a shear, `move_…` a fraction of the side. The pictures are moved, then turned and scaled,
    then slanted.
    """
    height, width = inputs.shape[2:]
    angle, scale, slant_x, slant_y, move_x, move_y = (
        torch.as_tensor(value, dtype=torch.float64, device=inputs.device).expand(len(inputs))
        for value in (angle, scale, slant_x, slant_y, move_x, move_y)
    )
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    ratio = height / width
    from_x = (cosine - slant_y * sine, (sine + slant_y * cosine) / ratio)
    from_y = ((slant_x * cosine - sine) * ratio, cosine + slant_x * sine)
    grid = torch.empty(len(inputs), height, width, 2, device=inputs.device)
    for axis, moved_by in enumerate((-2 * move_x, -2 * move_y)):
        across = from_x[axis][:, None] * centres(width, inputs.device)
        down = from_y[axis][:, None] * centres(height, inputs.device) + moved_by[:, None]
        torch.add(across.float()[:, None], down.float()[:, :, None], out=grid[..., axis])
    changed = grid_sample(
        inputs.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    return as_given(changed, inputs)


def centres(size: int, device: torch.device) -> Tensor:
    """Return where the pixels of a side lie, from -1 at one edge to 1 at the other: (size,)."""
    places = torch.arange(size, dtype=torch.float64, device=device)
    return (places * 2 + 1) / size - 1


def cutout(
    inputs: Tensor, draw: Draw, *, strength: float = 0.25, fill: Tensor | None = None
) -> Tensor:
    """Blank a square around a random pixel of every picture; what of it lies outside is lost.

    `strength` is its side as a fraction of the short side; `fill` the colour (C,), best the mean
    of the data, middle grey where not given (DeVries & Taylor 2017, section 3.2).
    """
    side = round(strength * min(inputs.shape[2:]))
    if not side:
        return inputs
    if fill is None:
        fill = torch.full((inputs.shape[1],), 128, device=inputs.device)
    pixels = inputs.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format)
    return blank_(pixels, draw, side, fill).permute(0, 3, 1, 2)


def blank_(pixels: Tensor, draw: Draw, side: int, fill: Tensor) -> Tensor:
    """Blank squares of `side` pixels in place; `pixels` (N, H, W, C), dense.

    A line of a square, whole or cut by an edge, is the union of two lines of half its length, and
    so all squares are written as windows of one size.
    """
    count, height, width, channels = pixels.shape
    device, half = pixels.device, (side + 1) // 2
    first = draw.integers("cutout.across", 0, width)[:, None] - side // 2
    cut = torch.cat([first.clamp(min=0), (first + side).clamp_(max=width) - half], 1)
    top = draw.integers("cutout.down", 0, height)[:, None] - side // 2
    lines = (top + torch.arange(side, device=device)).clamp_(0, height - 1)
    lines += torch.arange(count, device=device)[:, None] * height
    index = (lines * width)[:, :, None] + cut[:, None]
    total = count * height * width - half + 1
    windows = pixels.as_strided((total, half * channels), (channels, 1))
    windows[index.view(-1)] = fill.to(pixels.dtype).repeat(half)
    return pixels
