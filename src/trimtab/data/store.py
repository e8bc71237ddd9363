"""Holds the pictures of a split so that a random part of them is one gather away."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from trimtab.data.dataset import Split
from trimtab.data.draw import Draw
from trimtab.data.warp import Moves, moved, places, widened

MOST_BYTES = 1_000_000_000
SHARE = 4  # at most one part in so many of the memory
BLOCK = 2048  # pictures laid out at a time


class Store:
    """The pictures of `split` on `device`, laid out for `moves` where that fits into memory."""

    def __init__(self, split: Split, moves: Moves, device: torch.device) -> None:
        self.split, self.moves, self.device = split, moves, device
        self.height, self.width = split.inputs.shape[1:3]
        self.border = moves.border(self.height, self.width)
        self.moving = bool(any(self.border) or moves.flip or moves.flip_vertical)
        self.held = self.hold()

    def hold(self) -> Tensor | None:
        """Lay the whole split out, or return None where that does not pay or does not fit.

        Without moves a copy is of use only to carry the pictures to another device.
        """
        count = len(self.split)
        if not count or (not self.moving and self.device.type == "cpu"):
            return None
        held: Tensor | None = None
        for start in range(0, count, BLOCK):
            block = self.laid_out(self.rows(torch.arange(start, min(start + BLOCK, count))))
            if held is None:
                if block[0].numel() * count > room(self.device):
                    return None
                held = block.new_empty(count, *block.shape[1:])
            held[start : start + len(block)] = block
        return held

    def rows(self, rows: Tensor) -> Tensor:
        """Return a copy of some pictures (n, H, W, C) as they are in the split, on the device."""
        return torch.from_numpy(self.split.inputs.take(rows.cpu().numpy(), 0)).to(self.device)

    def laid_out(self, pixels: Tensor) -> Tensor:
        """Lay pictures out for the moves."""
        return widened(pixels, self.border[1], bool(self.moves.flip)) if self.moving else pixels

    def pictures(self, rows: Tensor, draw: Draw) -> Tensor:
        """Return the pictures `rows` (n,), moved: a fresh dense tensor (n, H, W, C) uint8."""
        if not self.moving:
            return self.rows(rows) if self.held is None else self.held.index_select(0, rows)
        at = places(draw, self.moves, self.height, self.width)
        if self.held is not None:
            return moved(self.held, rows, at, self.border)
        own = torch.arange(len(rows), device=self.device)
        return moved(self.laid_out(self.rows(rows)), own, at, self.border)


def room(device: torch.device) -> int:
    """Return the bytes that a split may take: a share of the memory, 1 GB of the processor's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // SHARE
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(MOST_BYTES, memory // SHARE)
