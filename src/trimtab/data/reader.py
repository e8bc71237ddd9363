"""Reads parts of pictures in threads, some batches before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.data.crop import boxes
from trimtab.data.draw import Draw
from trimtab.data.pictures import Box, Inputs, Pictures, centre
from trimtab.data.scaled import resized
from trimtab.machine.processor import core_count

AHEAD = 2  # chunks of batches read before they are asked for
PER_TASK = 4  # pictures: a task for each would cost the interpreter too much

Pixels = NDArray[np.uint8]


class Reader:
    """Serves random crops of `inputs`, or their middles with `crop` 0, as uint8 (n, H, W, C).

    What is served depends on the draws alone, neither on the number of threads nor on how far
    they are ahead.
    """

    def __init__(self, inputs: Inputs, crop: float, threads: int | None = None) -> None:
        self.inputs, self.crop = inputs, crop
        self.pool = ThreadPoolExecutor(threads or core_count(), "decode")

    def read(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor]]:
        """Yield each of `draws` with its pictures, `AHEAD` of them under way beyond that."""
        waiting: deque[tuple[Draw, Tensor, list[Future[None]]]] = deque()
        try:
            for draw in draws:
                waiting.append((draw, *self.start(draw)))
                if len(waiting) > AHEAD:
                    yield finished(*waiting.popleft())
            while waiting:
                yield finished(*waiting.popleft())
        finally:  # also where the reader of the batches stops early, or a picture fails
            for _, _, tasks in waiting:
                for task in tasks:
                    task.cancel()

    def start(self, draw: Draw) -> tuple[Tensor, list[Future[None]]]:
        """Begin to fill a fresh tensor with the pictures of `draw`, which is on the processor."""
        rows = draw.ids.tolist()
        pixels = torch.empty(len(rows), *self.inputs.shape[1:], dtype=torch.uint8)
        places, filled = self.places(draw), pixels.numpy()
        tasks = [
            self.pool.submit(self.fill, filled[at : at + PER_TASK], rows[at : at + PER_TASK],
                             places[at : at + PER_TASK])
            for at in range(0, len(rows), PER_TASK)
        ]  # fmt: skip
        return pixels, tasks

    def places(self, draw: Draw) -> list[Box]:
        """Return which part of each picture is read."""
        sides = self.sides(draw.ids)
        if not self.crop:
            return [centre(*each) for each in sides.tolist()]
        return [tuple(each) for each in boxes(draw, self.crop, *sides.unbind(1)).tolist()]

    def sides(self, rows: Tensor) -> Tensor:
        """Return height and width (n, 2) of some pictures."""
        if isinstance(self.inputs, Pictures):
            return torch.from_numpy(self.inputs.sides[rows.numpy()])
        return torch.tensor(self.inputs.shape[1:3]).expand(len(rows), 2)

    def fill(self, pixels: Pixels, rows: list[int], places: list[Box]) -> None:
        """Write some pictures to `pixels` (n, H, W, C)."""
        if isinstance(self.inputs, Pictures):
            region = self.inputs.region
        else:
            region = partial(region_of, self.inputs)
        for target, row, box in zip(pixels, rows, places, strict=True):
            target[:] = region(row, box)


def finished(
    draw: Draw, pixels: Tensor, tasks: list[Future[None]]
) -> tuple[Draw, Tensor]:  # fmt: skip
    """Wait until all pictures are there; raises what reading one of them raised."""
    for task in tasks:
        task.result()
    return draw, pixels


def region_of(inputs: Pixels, row: int, box: Box) -> Pixels:
    """Return a part of a decoded picture, resized to the size of the whole."""
    top, left, height, width = box
    part = inputs[row, top : top + height, left : left + width]
    return resized(np.array(part, order="C"), inputs.shape[1:3])
