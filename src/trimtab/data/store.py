"""Holds the pictures of a split so that a random part of them is one gather away."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from trimtab.data.crop import random_resized_crop
from trimtab.data.dataset import Split
from trimtab.data.draw import Draw
from trimtab.data.pictures import Pictures
from trimtab.data.reader import Reader
from trimtab.data.warp import Moves, Places, mirrored, moved, places, widened
from trimtab.machine.threads import single_thread

MOST_BYTES = 1_000_000_000
SHARE = 4  # at most one part in so many of the memory
BLOCK = 2048  # pictures laid out at a time


class Store:
    """The pictures of `split` on `device`, laid out for `moves` where that fits into memory.

    `crop` is the strength of a random resized crop that comes before the moves. Pictures in files,
    and crops on the processor, are read by threads instead.
    """

    def __init__(
        self, split: Split, moves: Moves, device: torch.device, crop: float = 0.0
    ) -> None:  # fmt: skip
        self.split, self.moves, self.device, self.crop = split, moves, device, crop
        self.height, self.width = split.inputs.shape[1:3]
        self.border = moves.border(self.height, self.width)
        self.moving = bool(any(self.border) or moves.flip or moves.flip_vertical)
        self.held = self.hold()
        self.reader = None
        if isinstance(split.inputs, Pictures) or (crop and self.held is None):
            self.reader = Reader(split.inputs, crop)

    @property
    def home(self) -> torch.device:
        """Where the rows that are asked for should be."""
        return self.device if self.reader is None else torch.device("cpu")

    def hold(self) -> Tensor | None:
        """Lay the whole split out, or return None where that does not pay or does not fit.

        Without moves a copy is of use only to carry the pictures to another device.
        """
        count, here = len(self.split), self.device.type == "cpu"
        if not count or isinstance(self.split.inputs, Pictures):
            return None
        if here and (self.crop or not self.moving):
            return None
        held: Tensor | None = None
        for start in range(0, count, BLOCK):
            block = self.rows(torch.arange(start, min(start + BLOCK, count)))
            if self.moving and not self.crop:
                block = self.laid_out(block)
            if held is None:
                if block[0].numel() * count > room(self.device):
                    return None
                held = block.new_empty(count, *block.shape[1:])
            held[start : start + len(block)] = block
        return held

    def rows(self, rows: Tensor) -> Tensor:
        """Return a copy of some pictures (n, H, W, C) as they are in the split, on the device."""
        return torch.from_numpy(self.split.inputs[rows.cpu().numpy()]).to(self.device)

    def pictures(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor]]:
        """Yield each of `draws`, whose ids are on `home`, and its pictures, both on the device.

        Pictures are fresh dense tensors (n, H, W, C) uint8.
        """
        if self.reader is None:
            for draw in draws:
                yield draw, self.loaded(draw)
            return
        for draw, pixels in self.reader.read(draws):
            there = draw.to(self.device)
            with single_thread():  # the others are decoding
                changed = self.moved(pixels.to(self.device), there)
            yield there, changed

    def loaded(self, draw: Draw) -> Tensor:
        """Return pictures that are in memory, or mapped."""
        if self.held is None:
            return self.moved(self.rows(draw.ids), draw)
        if self.moving and not self.crop:
            return moved(self.held, draw.ids, self.places(draw), self.border)
        pixels = self.held.index_select(0, draw.ids)
        if not self.crop:
            return pixels
        cropped = random_resized_crop(pixels.permute(0, 3, 1, 2), draw, strength=self.crop)
        return self.moved(cropped.permute(0, 2, 3, 1).contiguous(), draw)

    def moved(self, pixels: Tensor, draw: Draw) -> Tensor:
        """Move the pictures (n, H, W, C) of a batch."""
        if not self.moving:
            return pixels
        if not any(self.border) and not self.moves.flip_vertical:
            return mirrored(pixels, draw, self.moves.flip)
        own = torch.arange(len(pixels), device=self.device)
        return moved(self.laid_out(pixels), own, self.places(draw), self.border)

    def laid_out(self, pixels: Tensor) -> Tensor:
        """Lay pictures out for the moves."""
        return widened(pixels, self.border[1], bool(self.moves.flip))

    def places(self, draw: Draw) -> Places:
        """Draw where the pictures of a batch are read."""
        return places(draw, self.moves, self.height, self.width)


def room(device: torch.device) -> int:
    """Return the bytes that a split may take: a share of the memory, 1 GB of the processor's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // SHARE
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(MOST_BYTES, memory // SHARE)
