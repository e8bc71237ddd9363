"""Random resized crops: where they lie, and a batch of them at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from trimtab.data.draw import Draw
from trimtab.data.values import as_given

TRIES = 10
LOG_RATIO = math.log(4 / 3)  # of the sides of a crop, at the most


def boxes(draw: Draw, strength: float, heights: Tensor, widths: Tensor) -> Tensor:
    """Draw a crop of every picture: int64 (N, 4), its top, left, height and width.

    `heights` and `widths` (N,) are the sides of the pictures. The area of a crop is uniform from
    1 - `strength` to 1 of the picture's, the logarithm of its ratio of sides uniform from 3:4 to
    4:3; of ten tries the first that lies within the picture counts, else the largest crop of the
    nearest ratio in the middle (Szegedy et al. 2015, section 6, as torchvision does it).
    """
    down, across = sides(draw, strength, heights, widths)
    fits = (down <= heights[:, None]) & (across <= widths[:, None]) & (down > 0) & (across > 0)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    lucky = fits.any(1)
    middle_down, middle_across = largest(heights, widths)
    height = torch.where(lucky, down.gather(1, first)[:, 0], middle_down)
    width = torch.where(lucky, across.gather(1, first)[:, 0], middle_across)
    top = torch.where(lucky, place(draw, "crop.top", heights - height), (heights - height) // 2)
    left = torch.where(lucky, place(draw, "crop.left", widths - width), (widths - width) // 2)
    return torch.stack([top, left, height, width], 1)


def sides(
    draw: Draw, strength: float, heights: Tensor, widths: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw the heights and widths of the tries: int64 (N, 10) each."""
    share = 1 - strength * (1 - draw.uniform("crop.area", TRIES).double())
    ratio = ((draw.uniform("crop.ratio", TRIES).double() - 0.5) * (2 * LOG_RATIO)).exp_()
    area = share * (heights * widths)[:, None]
    down, across = (area / ratio).sqrt_(), (area * ratio).sqrt_()
    return down.round_().long(), across.round_().long()


def largest(heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Return height and width (N,) of the largest crops whose sides are within 3:4 and 4:3."""
    most = math.exp(LOG_RATIO)
    height = torch.minimum(heights, (widths * most).round_().long())
    return height, torch.minimum(widths, (heights * most).round_().long())


def place(draw: Draw, what: str, room: Tensor) -> Tensor:
    """Draw whole numbers (N,) from 0 to `room`."""
    found = (draw.uniform(what).double() * (room + 1)).long()
    return torch.minimum(found, room)


def random_resized_crop(inputs: Tensor, draw: Draw, *, strength: float = 0.92) -> Tensor:
    """Cut a random part out of every picture, and enlarge it to the size of the whole, bilinear.

    At most `strength` of the area is left out (Szegedy et al. 2015, section 6); see `boxes`.
    """
    if not strength:
        return inputs
    height, width = inputs.shape[2:]
    every = torch.ones_like(draw.ids)
    box = boxes(draw, strength, every * height, every * width)
    down = lines(box[:, 0], box[:, 2], height)
    across = lines(box[:, 1], box[:, 3], width)
    grid = torch.empty(len(inputs), height, width, 2, device=inputs.device)
    grid[..., 0], grid[..., 1] = across[:, None], down[:, :, None]
    changed = grid_sample(
        inputs.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return as_given(changed, inputs)


def lines(first: Tensor, length: Tensor, side: int) -> Tensor:
    """Return where the `side` lines of each enlarged part are read, from -1 to 1: (N, side).

    A part is `length` lines from `first` on (N,); nothing beyond its edges is looked at.
    """
    steps = torch.arange(side, dtype=torch.float64, device=first.device) + 0.5
    inside = steps * (length[:, None] / side) - 0.5
    inside = torch.minimum(inside.clamp_(min=0), length[:, None] - 1.0)
    return ((first[:, None] + inside + 0.5) * (2 / side) - 1).float()
