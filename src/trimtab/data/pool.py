"""What was decoded once serves every split of it, whatever the seed and the shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.data import cache
from trimtab.data.entries import Entry
from trimtab.data.pictures import Inputs
from trimtab.data.pixels import Decoded, Pixels, decode_entries, read_entry, view_of
from trimtab.machine.progress import progress

ROWS = 1024  # copied at once
FACTS = ("rows", "widths", "heights", "grey")


class Pool:
    """Decodes the entries of a source, or copies them from the cache's last split of them."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.decoded: Decoded | None = None

    def __call__(
        self, entries: list[Entry], side: int | None, channels: int | None, file: IO[bytes] | None
    ) -> Decoded:
        """Return what `decode_entries` would."""
        known = recalled(self.key, entries, file) if file is not None else None
        self.decoded = known or decode_entries(entries, side, channels, file)
        return self.decoded

    def remember(self, fingerprint: str) -> None:
        """Note that the content `fingerprint` in the cache holds the pixels; raises OSError."""
        assert self.decoded is not None
        facts = {name: getattr(self.decoded, name) for name in FACTS}
        facts["digests"] = [digest.hex() for digest in self.decoded.digests]
        facts["faults"] = {str(row): reason for row, reason in self.decoded.faults.items()}
        cache.remember(self.key, fingerprint, facts)


def recalled(key: str, entries: list[Entry], file: IO[bytes]) -> Decoded | None:
    """Copy the pictures of the source `key` from the cache into `file`; None where it cannot be."""
    known = cache.recall(key)
    stored = cache.load(known[0]) if known else None
    if known is None or stored is None or len({entry.id for entry in entries}) < len(entries):
        return None
    try:
        found = decoded_of(known[1], next(iter(stored[0].values())).inputs)
        good = [entries[row] for row in found.rows]
        file.seek(0)
        file.truncate()
        with progress(len(good), "read") as bar:
            for part in parts(good, stored[0]):
                file.write(part.data)
                bar.update(file.tell() // part[0].nbytes)
    except cache.DAMAGE:
        return None
    found.pixels = view_of(file, (len(good), *found.pixels.shape[1:]))
    return found


def decoded_of(facts: dict[str, Any], inputs: Inputs) -> Decoded:
    """Return what is noted of decoded pictures, without their pixels, which are like `inputs`."""
    return Decoded(
        np.empty((0, *inputs.shape[1:]), np.uint8),
        **{name: facts[name] for name in FACTS},
        digests=[bytes.fromhex(digest) for digest in facts["digests"]],
        faults={int(row): reason for row, reason in facts["faults"].items()},
    )


def parts(entries: list[Entry], splits: dict[str, cache.Stored]) -> Iterator[Pixels]:
    """Yield the pixels of entries in order, some at a time; raises OSError for a lost picture."""
    sources = list(splits.values())
    places = {name: (number, row) for number, split in enumerate(sources)
              for row, name in enumerate(split.ids)}  # fmt: skip
    for start in range(0, len(entries), ROWS):
        some = entries[start : start + ROWS]
        at = np.array([places.get(entry.id, (-1, -1)) for entry in some], np.int64)
        yield gathered(some, at, [split.inputs for split in sources])


def gathered(entries: list[Entry], at: NDArray[np.int64], sources: list[Inputs]) -> Pixels:
    """Return the pixels of some entries: source and row of each, or -1 for those left out."""
    shape = sources[0].shape[1:]
    pixels = np.empty((len(entries), *shape), np.uint8)
    for number, inputs in enumerate(sources):
        chosen = at[:, 0] == number
        pixels[chosen] = inputs[at[chosen, 1]]
    for index in np.flatnonzero(at[:, 0] < 0):
        picture = read_entry(entries[index], shape[0], shape[2])
        if isinstance(picture, str):
            raise OSError(picture)
        pixels[index] = picture.pixels
    return pixels
