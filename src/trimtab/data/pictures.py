"""Pictures of a split that stay in their files and are decoded whenever they are asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.data import decode
from trimtab.data.entries import Entry, count_of, shown
from trimtab.data.folders import look
from trimtab.data.pixels import content_of
from trimtab.errors import DataError
from trimtab.machine.processor import core_count
from trimtab.machine.progress import say

TRIES = 3
PAUSE_SECONDS = 0.05  # after the first failure; twice as long after the second
FIRST = 5

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass
class Pictures:
    """The inputs (N, H, W, C) uint8 of a split, read by rows as an array is.

    `sides` (N, 2) are height and width of the upright originals. A file that cannot be read any
    more, tried three times, is told of and put aside in `faults`; the next picture of its class
    stands in for it from then on. More than `allowed` of all rows raise DataError.
    """

    entries: Sequence[Entry]
    targets: Sequence[int]
    sides: NDArray[np.int64]
    size: tuple[int, int, int]  # H, W, C
    allowed: float
    faults: dict[int, str] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape (N, H, W, C) of all pictures together."""
        return (len(self), *self.size)

    def __getitem__(self, index: Any) -> Pixels:
        """Return pictures as `decode` gives them, and so as a network meets them afterwards.

        `index` is a row, a slice or an array of rows.
        """
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self.whole(int(rows))
        with ThreadPoolExecutor(core_count()) as pool:
            found = list(pool.map(self.whole, rows.tolist()))
        return np.stack(found) if found else np.empty((0, *self.size), np.uint8)

    def part(self, rows: Sequence[int], targets: Sequence[int]) -> Pictures:
        """Return some rows, whose targets are `targets`, as pictures of their own."""
        return Pictures([self.entries[row] for row in rows], targets, self.sides[list(rows)],
                        self.size, self.allowed)  # fmt: skip

    def whole(self, row: int) -> Pixels:
        """Return one picture (H, W, C), its short side resized and its centre cut out."""
        size, channels = self.size[:2], self.size[2]
        return self.settled(row, lambda at: decode.decode(self.content(at), channels, size))

    def region(self, row: int, box: Box) -> Pixels:
        """Return a part of one picture, resized to (H, W, C); see `scaled.region`.

        What stands in for a picture is its own centre.
        """
        from trimtab.data.scaled import region  # here, since looking at data needs no torch

        def read(at: int) -> Pixels:
            chosen = box if at == row else centre(*self.sides[at].tolist())
            return region(self.content(at), self.size[2], chosen, self.size[:2])

        return self.settled(row, read)

    def content(self, row: int) -> bytes:
        """Return the bytes of a file; raises DecodeError where it was changed since the check."""
        entry = self.entries[row]
        if isinstance(entry.content, str):
            stamp, fault = look(entry.content)
            if fault:
                raise decode.DecodeError(fault)
            if not unchanged(stamp, entry.stamp):
                raise decode.DecodeError("the file was changed since it was checked")
        return content_of(entry)

    def settled(self, row: int, read: Callable[[int], Pixels]) -> Pixels:
        """Return what `read` gives for a row, or for the next of its class that can be read."""
        for at in self.candidates(row):
            if at in self.faults:
                continue
            try:
                return tried(partial(read, at))
            except (OSError, decode.DecodeError) as error:
                self.put_aside(at, getattr(error, "strerror", None) or str(error))
        raise DataError(f"no picture of the class of {shown(self.entries[row].id)} can be read",
                        "see that the folder is still there")  # fmt: skip

    def candidates(self, row: int) -> Iterator[int]:
        """Yield the row and then the others of its class, in order, from the next one on."""
        yield row
        for at in [*range(row + 1, len(self)), *range(row)]:
            if self.targets[at] == self.targets[row]:
                yield at

    def put_aside(self, row: int, reason: str) -> None:
        """Note that a row cannot be read, and say so; raises DataError where too many cannot."""
        with self.lock:
            if row in self.faults:
                return
            self.faults[row] = reason
        count = len(self.faults)
        if count > self.allowed * len(self):
            first = "; ".join(f"{shown(self.entries[at].id)}: {why}"
                              for at, why in list(self.faults.items())[:FIRST])  # fmt: skip
            raise DataError(
                f"{count:,} of {count_of(len(self), 'picture')} cannot be read any more, at most "
                f"{100 * self.allowed:g} % may be: {first}",
                "bring them back and resume, or raise data.max_bad_fraction in the recipe",
            )
        say(f"{shown(self.entries[row].id)} cannot be read any more ({reason}); the next picture "
            f"of its class stands in for it ({count:,} put aside so far)")  # fmt: skip


def tried(read: Callable[[], Pixels]) -> Pixels:
    """Return what `read` gives; a failure may be of the moment, so it is called three times."""
    for attempt in range(TRIES - 1):
        try:
            return read()
        except (OSError, decode.DecodeError):
            time.sleep(PAUSE_SECONDS * 2**attempt)
    return read()


def unchanged(stamp: str, before: str) -> bool:
    """Return whether two stamps of a file tell the same size and time of the last change."""
    return stamp.split()[:2] == before.split()[:2]


def centre(height: int, width: int) -> Box:
    """Return the largest square in the middle of a picture."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


Inputs = Pixels | Pictures
