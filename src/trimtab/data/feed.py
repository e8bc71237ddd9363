"""The train batches of an epoch: shuffled, augmented, float, many prepared at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from trimtab.data.augment import moves_of, steps_of
from trimtab.data.dataset import Batch, Split
from trimtab.data.draw import Draw
from trimtab.data.mixing import mix
from trimtab.data.store import Store
from trimtab.data.warp import blank_
from trimtab.machine.threads import single_thread
from trimtab.records.sections import AugmentSection

CHUNK_BYTES = 6_000_000  # uint8 pixels moved at once, enough that the cost per call is little
CHANGED_BYTES = 1_200_000  # the same where float values are changed: they should stay in the cache
PIECE_BYTES = 400_000  # of these turned to float at once
MEAN_OF = 1024  # pictures that say what the mean colour is

Item = TypeVar("Item")


class Feed:
    """Batches of `split` as `augment` says, on `device`; `classes` is K of mixed targets (N, K).

    Order and changes depend on `seed` and the number of the epoch alone, so that a resumed
    training sees the same batches. A last batch of one sample joins the one before it: batch norm
    needs two. `flip: auto` means off. Raises UsageError for an unknown policy.
    """

    def __init__(
        self, split: Split, augment: AugmentSection, *, batch_size: int, seed: int, classes: int,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.device, self.seed, self.augment = torch.device(device), seed, augment
        self.bounds = bounds(len(split), batch_size)
        self.store = Store(split, moves_of(augment), self.device, augment.crop)
        self.steps = steps_of(augment)
        self.targets = torch.from_numpy(np.array(split.targets)).to(self.device)
        self.square = round(augment.cutout * min(split.inputs.shape[1:3]))
        if self.square:
            self.fill = mean_colour(split).to(self.device)
        batch_bytes = batch_size * math.prod(split.inputs.shape[1:])
        piece = max(1, PIECE_BYTES // batch_bytes)
        most = CHANGED_BYTES if self.steps else CHUNK_BYTES
        self.piece, self.chunk = piece, piece * max(1, most // (piece * batch_bytes))
        self.mix = None
        if augment.mixup or augment.cutmix:
            self.mix = partial(mix, mixup=augment.mixup, cutmix=augment.cutmix, classes=classes)

    def __len__(self) -> int:
        return len(self.bounds)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, from batch `start` on; every sample comes once."""
        order = torch.randperm(len(self.targets), generator=generator_of(self.seed, number))
        order = order.to(self.store.home)
        chunks = list(grouped(self.bounds[start:], self.chunk))
        draws = (Draw(self.seed, number, order[chunk[0][0] : chunk[-1][1]]) for chunk in chunks)
        for chunk, (draw, pixels) in zip(chunks, self.store.pictures(draws), strict=True):
            sizes = [end - first for first, end in chunk]
            parts = (self.inputs(pixels, draw, sizes), self.targets[draw.ids].split(sizes),
                     draw.ids.split(sizes))  # fmt: skip
            batches = map(Batch._make, zip(*parts, strict=True))
            yield from batches if self.mix is None else self.mixed(batches, number)

    def inputs(self, pixels: Tensor, draw: Draw, sizes: list[int]) -> Iterator[Tensor]:
        """Yield the inputs of some batches (N, C, H, W), channels last, from what was moved."""
        if self.steps:
            values = pixels.permute(0, 3, 1, 2).contiguous().float()
            for step in self.steps:
                values = step(values, draw)
            pixels = values.permute(0, 2, 3, 1).contiguous()
        if self.square:
            blank_(pixels, draw, self.square, self.fill)
        first = 0
        for piece in grouped(sizes, self.piece):
            part = self.floats(pixels[first : first + sum(piece)])
            first += sum(piece)
            yield from part.permute(0, 3, 1, 2).split(piece)

    def floats(self, pixels: Tensor) -> Tensor:
        """Return pixels as float32, by this thread alone where the other cores are decoding."""
        if self.store.reader is None:
            return pixels.float()
        with single_thread():
            return pixels.float()

    def mixed(self, batches: Iterator[Batch], epoch: int) -> Iterator[Batch]:
        """Blend the samples within each batch."""
        assert self.mix is not None
        for batch in batches:
            yield self.mix(batch, Draw(self.seed, epoch, batch.ids))


def bounds(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Return first and last row (exclusive) of each batch; none but an only one is a singleton."""
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


def generator_of(*counters: int) -> torch.Generator:
    """Return a generator whose numbers depend on `counters` alone."""
    digest = blake2b(repr(counters).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def grouped(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def mean_colour(split: Split) -> Tensor:
    """Return the mean of the first pictures, which are a fair sample: (C,) uint8."""
    mean = np.asarray(split.inputs[:MEAN_OF]).mean((0, 1, 2))
    return torch.from_numpy(np.rint(mean).astype(np.uint8))
