"""Decodes every entry once, in threads: pixels of one size, digests, and what failed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trimtab.data import decode
from trimtab.data.entries import Entry, digest_of
from trimtab.machine.processor import core_count
from trimtab.machine.progress import progress

CHUNK = 32  # entries per task: a task per tiny picture would cost more than decoding it
BLOCK_BYTES = 128_000_000
GUESS_FROM = 200
KEEP_SIDE, MAX_SIDE, MIN_SIDE, STEP_SIDE = 64, 128, 4, 8

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One decoded entry: its fitted pixels (H, W, C) and facts about the original."""

    pixels: Pixels
    digest: bytes
    width: int
    height: int
    grey: bool


@dataclass
class Decoded:
    """All entries that could be read, in order; row i of `pixels` is entry `rows[i]`."""

    pixels: Pixels
    rows: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)
    grey: bool = True

    @property
    def short_sides(self) -> list[int]:
        """The short side of every original, in pixels."""
        return [min(sides) for sides in zip(self.widths, self.heights, strict=True)]


def decode_entries(
    entries: list[Entry], side: int | None, channels: int | None, file: IO[bytes] | None
) -> Decoded:
    """Decode all entries into `file` and return a read-only view of it, which is empty without.

    `side` None: the median short side (see `auto_side`); `channels` None: 1 where every picture is
    grey in content, else 3. Pixels are as `decode.decode` gives them for that size.
    """
    tried = side or guess_side(entries)
    decoded = decode_pass(entries, tried, channels or 3, file)
    if side is None and decoded.rows and auto_side(decoded.short_sides) != tried:
        decoded = decode_pass(entries, auto_side(decoded.short_sides), channels or 3, file)
    if channels is None and decoded.grey:
        decoded.pixels = decoded.pixels[..., :1]
    return decoded


def auto_side(short_sides: list[int]) -> int:
    """Return the median short side, 4 to 128; above 64 a multiple of 8."""
    side = int(min(MAX_SIDE, max(MIN_SIDE, median(short_sides))))
    return side if side <= KEEP_SIDE else side - side % STEP_SIDE


def guess_side(entries: list[Entry]) -> int:
    """Return the side that the headers of a sample of entries suggest."""
    step = max(1, len(entries) // GUESS_FROM)
    sides = [found for entry in entries[::step] if (found := header_side(entry))]
    return auto_side(sides) if sides else KEEP_SIDE


def header_side(entry: Entry) -> int:
    """Return the short side in an entry's header, 0 where it cannot be read."""
    try:
        if isinstance(entry.content, np.ndarray):
            return int(min(entry.content.shape[:2]))
        return min(decode.size_of(content_of(entry)))
    except (OSError, decode.DecodeError):
        return 0


def decode_pass(
    entries: list[Entry], side: int, channels: int, file: IO[bytes] | None
) -> Decoded:  # fmt: skip
    """Decode all entries at one size into `file`, from its start."""
    if file is not None:
        file.seek(0)
        file.truncate()
    found = Decoded(np.empty((0, side, side, channels), np.uint8))
    with progress(len(entries), "read") as bar:
        for index, picture in enumerate(pictures(entries, side, channels)):
            if isinstance(picture, str):
                found.faults[index] = picture
            else:
                if file is not None:
                    file.write(picture.pixels.data)
                add(found, index, picture)
            bar.update(index + 1)
    if file is not None:
        found.pixels = view_of(file, (len(found.rows), side, side, channels))
    return found


def add(found: Decoded, index: int, picture: Picture) -> None:
    """Note the facts of one picture."""
    found.rows.append(index)
    found.digests.append(picture.digest)
    found.widths.append(picture.width)
    found.heights.append(picture.height)
    found.grey = found.grey and picture.grey


def view_of(file: IO[bytes], shape: tuple[int, int, int, int]) -> Pixels:
    """Return what was written to `file` as a read-only array."""
    if not shape[0]:
        return np.empty(shape, np.uint8)
    if isinstance(file, io.BytesIO):
        return np.frombuffer(file.getvalue(), np.uint8).reshape(shape)
    file.flush()
    return np.memmap(file, np.uint8, mode="r", shape=shape)


def pictures(entries: list[Entry], side: int, channels: int) -> Iterator[Picture | str]:
    """Yield every entry's picture, or why there is none, in order."""
    work = partial(read_chunk, side=side, channels=channels)
    block = max(1, BLOCK_BYTES // (side * side * channels * CHUNK)) * CHUNK
    with ThreadPoolExecutor(core_count()) as pool:
        for start in range(0, len(entries), block):
            part = entries[start : start + block]
            chunks = [part[at : at + CHUNK] for at in range(0, len(part), CHUNK)]
            for found in pool.map(work, chunks):
                yield from found


def read_chunk(entries: list[Entry], side: int, channels: int) -> list[Picture | str]:
    """Decode a few entries."""
    return [read_entry(entry, side, channels) for entry in entries]


def read_entry(entry: Entry, side: int, channels: int) -> Picture | str:
    """Decode one entry, or say why that is not possible."""
    if entry.fault:
        return entry.fault
    try:
        image = image_of(entry)
    except decode.DecodeError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    full = np.asarray(image)
    grey = is_grey(full)
    seen = np.ascontiguousarray(full[..., 0] if grey and full.ndim == 3 else full)
    digest = digest_of(repr(seen.shape).encode(), seen.data)
    fitted = decode.fit_picture(image, channels, (side, side))
    return Picture(fitted, digest, image.width, image.height, grey)


def image_of(entry: Entry) -> Image.Image:
    """Return an entry's picture at full resolution; raises DecodeError or OSError."""
    if isinstance(entry.content, np.ndarray):
        return decode.picture_of(entry.content)
    return decode.open_picture(content_of(entry))


def content_of(entry: Entry) -> bytes:
    """Return the bytes of an entry's file."""
    if entry.fault:
        raise decode.DecodeError(entry.fault)
    if isinstance(entry.content, bytes):
        return entry.content
    with open(entry.content, "rb") as file:
        return file.read()


def is_grey(pixels: Pixels) -> bool:
    """Return whether all channels are equal; a coarse look settles most colour pictures."""
    if pixels.ndim == 2:
        return True
    return same_channels(pixels[::16, ::16]) and same_channels(pixels)


def same_channels(pixels: Pixels) -> bool:
    """Return whether r == g == b everywhere."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return bool((red == green).all() and (green == blue).all())
