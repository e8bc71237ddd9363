"""Keeps decoded data on disk: written whole or not at all, checked, mapped, limited in size."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.data.pictures import Inputs
from trimtab.machine.folders import cache_folder
from trimtab.records.files import read_json, write_json

VERSION = 1
LIMIT_BYTES = 20_000_000_000
STALE_SECONDS = 24 * 3600
MAX_SOURCES = 1000
SAMPLED_BLOCKS, BLOCK_BYTES = 256, 4096
ROWS_PER_WRITE = 1024

Pixels = NDArray[np.uint8]
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)


class Stored(NamedTuple):
    """One split as it lies on disk."""

    inputs: Inputs
    targets: list[int]
    ids: list[str]


@contextmanager
def workspace() -> Iterator[Path]:
    """Give a temporary folder inside the cache, removed afterwards; raises OSError."""
    home = cache_folder() / "tmp"
    home.mkdir(parents=True, exist_ok=True)
    remove_stale(home)
    folder = home / uuid.uuid4().hex
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(home: Path) -> None:
    """Remove what processes that were killed left behind."""
    for folder in home.iterdir():
        used, _ = weigh(folder)
        if time.time() - used > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def write_split(file: IO[bytes], pixels: Pixels, rows: list[int]) -> None:
    """Write some rows of `pixels` to `file` in the .npy format, a few at a time."""
    shape = (len(rows), *pixels.shape[1:])
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    for start in range(0, len(rows), ROWS_PER_WRITE):
        file.write(np.ascontiguousarray(pixels[rows[start : start + ROWS_PER_WRITE]]).data)


def keep(folder: Path, fingerprint: str, splits: dict[str, dict[str, Any]], facts: Any) -> None:
    """Move a folder of written splits to its final place in the cache; raises OSError.

    `splits` holds targets and ids, `facts` what else belongs to the content. Where another process
    was faster, its entry stays.
    """
    files = {f"{name}.npy": checksum(folder / f"{name}.npy") for name in splits}
    entry = {"version": VERSION, "files": files, "splits": splits, "facts": facts}
    write_json(folder / "entry.json", entry)
    place = place_of(fingerprint)
    place.parent.mkdir(parents=True, exist_ok=True)
    if load(fingerprint) is None:
        forget(place)
        os.rename(folder, place)
    shrink(place)


def load(fingerprint: str) -> tuple[dict[str, Stored], Any] | None:
    """Return the splits and facts of an entry, mapped read-only; None where it is not whole."""
    try:
        place = place_of(fingerprint)
        entry = read_json(place / "entry.json")
        if entry["version"] != VERSION:
            return None
        if any(checksum(place / name) != known for name, known in entry["files"].items()):
            return None
        found = {name: open_split(place / f"{name}.npy", split)
                 for name, split in entry["splits"].items()}  # fmt: skip
    except DAMAGE:
        return None
    with suppress(OSError):  # a cache that may only be read serves as well
        os.utime(place)
    return found, entry["facts"]


def open_split(path: Path, split: dict[str, Any]) -> Stored:
    """Map one split; raises ValueError where its parts do not fit together."""
    inputs = np.load(path, mmap_mode="r", allow_pickle=False)
    if not len(inputs) == len(split["targets"]) == len(split["ids"]):
        raise ValueError(f"{path.name} does not fit its labels")
    return Stored(inputs, split["targets"], split["ids"])


def remember(key: str, fingerprint: str, told: Any) -> None:
    """Note that the source `key` gave the content `fingerprint`, and what was told of it."""
    path = alias_of(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"version": VERSION, "fingerprint": fingerprint, "told": told})


def recall(key: str) -> tuple[str, Any] | None:
    """Return the fingerprint and what was told of the source `key`, if it was seen before."""
    try:
        alias = read_json(alias_of(key))
        if alias["version"] == VERSION:
            return str(alias["fingerprint"]), alias["told"]
    except DAMAGE:
        return None
    return None


def forget(place: Path) -> None:
    """Remove an entry; whoever has it mapped keeps its pages."""
    gone = cache_folder() / "tmp" / uuid.uuid4().hex
    with suppress(FileNotFoundError):  # it never was, or another process removed it
        os.rename(place, gone)
        shutil.rmtree(gone, ignore_errors=True)


def place_of(fingerprint: str) -> Path:
    """Return where the entry of a content lies."""
    if not fingerprint.isalnum():
        raise ValueError(f"'{fingerprint}' is no fingerprint")
    return cache_folder() / "data" / fingerprint


def alias_of(key: str) -> Path:
    """Return where the note on a source lies."""
    return cache_folder() / "sources" / f"{key}.json"


def checksum(path: Path) -> str:
    """Return a digest of a file's size and of evenly spaced blocks of it.

    Finds files that are cut, emptied or overwritten without reading gigabytes.
    """
    size = path.stat().st_size
    found = blake2b(str(size).encode(), digest_size=16)
    step = max(BLOCK_BYTES, size // SAMPLED_BLOCKS)
    with open(path, "rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            found.update(file.read(BLOCK_BYTES))
    return found.hexdigest()


def shrink(in_use: Path) -> None:
    """Remove what was not used for longest until the cache is within its limits."""
    weights = {path: weigh(path) for path in (cache_folder() / "data").iterdir()}
    total = sum(size for _, size in weights.values())
    for path in sorted(weights, key=lambda path: weights[path][0]):
        if total > LIMIT_BYTES and path != in_use:
            forget(path)
            total -= weights[path][1]
    notes = sorted((cache_folder() / "sources").glob("*.json"), key=lambda path: weigh(path)[0])
    for path in notes[:-MAX_SOURCES]:
        path.unlink(missing_ok=True)


def weigh(path: Path) -> tuple[float, int]:
    """Return when a file or folder was last used and how many bytes it takes; (0, 0) if gone."""
    try:
        inner = path.iterdir() if path.is_dir() else [path]
        return path.stat().st_mtime, sum(file.stat().st_size for file in inner)
    except FileNotFoundError:
        return 0.0, 0
