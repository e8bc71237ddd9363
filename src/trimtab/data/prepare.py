"""Turns a listing into checked splits: decode, quarantine, duplicates, split, statistics."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.data.cache import Stored, write_split
from trimtab.data.entries import LISTED, Entry, Listing, count_of, listed, note, shown
from trimtab.data.pictures import Inputs, Pictures
from trimtab.data.pixels import Decoded, decode_entries
from trimtab.data.split import (
    NAMES,
    Samples,
    carve,
    class_findings,
    duplicate_findings,
    in_hash_order,
    leak_findings,
    leave_out,
)
from trimtab.errors import DataError
from trimtab.records.finding import Finding
from trimtab.records.schema import Schema
from trimtab.records.sections import DataSection

FIRST = 5
ROWS = 1024
SPEAKING = 2048  # pictures that say what mean and spread are where all would be too many

Pixels = NDArray[np.uint8]
Decode = Callable[[list[Entry], int | None, int | None, IO[bytes] | None], Decoded]


@dataclass(frozen=True)
class Prepared:
    """Checked data: splits, schema, and what was found on the way."""

    splits: dict[str, Stored]
    schema: Schema
    fingerprint: str
    told: dict[str, Any]  # quarantined, left_out, findings, sizes: JSON-able


@dataclass(frozen=True)
class Placed:
    """The split of every decoded row, None for rows left out, and what was found."""

    splits: list[str | None]
    left_out: list[dict[str, str]]
    findings: list[Finding]


def prepare(
    listing: Listing, choices: DataSection, seed: int, folder: Path | None, *, stream: bool = False,
    decode: Decode = decode_entries,
) -> Prepared:  # fmt: skip
    """Decode and check everything; raises DataError.

    The splits are written as .npy files into `folder`, or kept in memory without one; with
    `stream` they stay in the files they came from. `decode` may know pictures from before.
    """
    side = None if choices.image_size == "auto" else choices.image_size
    channels = None if choices.channels == "auto" else choices.channels
    with ExitStack() as stack:
        file: IO[bytes] | None = None if stream else io.BytesIO()
        if folder is not None:
            file = stack.enter_context(open(folder / "pool.bin", "w+b"))
        decoded = decode(listing.entries, side, channels, file)
        quarantined = quarantine(listing.entries, decoded, choices.max_bad_fraction)
        good = [listing.entries[row] for row in decoded.rows]
        samples = Samples([e.id for e in good], [e.label for e in good], decoded.digests)
        classes = listing.classes or ()
        placed = place(samples, [entry.split for entry in good], classes, choices, seed)
        rows = rows_of(placed.splits, samples.ids)
        pool = undecoded(good, decoded, choices) if stream else decoded.pixels
        splits = {name: store(name, chosen, pool, samples, classes, folder)
                  for name, chosen in rows.items()}  # fmt: skip
    told = {
        "quarantined": quarantined, "left_out": placed.left_out, "sizes": sizes_of(decoded),
        "findings": [f.model_dump() for f in
                     [*listing.findings, *bad_findings(quarantined), *placed.findings]],
    }  # fmt: skip
    schema = schema_of(splits["train"].inputs, classes)
    return Prepared(splits, schema, fingerprint_of(schema, splits, rows, decoded.digests), told)


def undecoded(good: list[Entry], decoded: Decoded, choices: DataSection) -> Pictures:
    """Return the entries that can be decoded as pictures that are not yet."""
    sides = np.array([decoded.heights, decoded.widths], np.int64).T
    height, width, channels = decoded.pixels.shape[1:]
    return Pictures(good, [0] * len(good), sides, (height, width, channels),
                    choices.max_bad_fraction)  # fmt: skip


def rows_of(splits: list[str | None], ids: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each split, in the order of a hash of their ids."""
    found: dict[str, list[int]] = {name: [] for name in NAMES if name in splits}
    for row, split in enumerate(splits):
        if split is not None:
            found[split].append(row)
    return {name: in_hash_order(ids, rows) for name, rows in found.items()}


def quarantine(entries: Sequence[Entry], decoded: Decoded, allowed: float) -> list[dict[str, str]]:
    """Return the entries that cannot be decoded, with reasons; raises DataError for too many."""
    bad = [{"id": entries[row].id, "reason": reason} for row, reason in decoded.faults.items()]
    if len(bad) > allowed * len(entries):
        first = "; ".join(f"{shown(row['id'])}: {row['reason']}" for row in bad[:FIRST])
        raise DataError(
            f"{len(bad):,} of {count_of(len(entries), 'picture')} cannot be used, at most "
            f"{100 * allowed:g} % may be: {first}",
            "remove or repair them, or raise data.max_bad_fraction in the recipe",
        )
    return bad


def bad_findings(quarantined: list[dict[str, str]]) -> list[Finding]:
    """Name what was quarantined."""
    if not quarantined:
        return []
    ids = [f"{row['id']} ({row['reason']})" for row in quarantined]
    return [note("undecodable", "warning", f"{count_of(len(ids), 'picture')} left out, since they "
                 f"cannot be used: {listed(ids)}", "remove or repair them",
                 count=len(ids), samples=quarantined[:LISTED])]  # fmt: skip


def place(
    samples: Samples, given: list[str | None], classes: tuple[str, ...], choices: DataSection,
    seed: int,
) -> Placed:  # fmt: skip
    """Give every row its split; raises DataError where a class or a split would be empty."""
    splits: list[str | None] = list(given)
    told: list[dict[str, str]] = []
    if None in given and any(given):
        raise DataError("some samples name a split and others do not", "give every sample a split")
    if not set(given) & {"valid", "test"}:
        shares = {"test": choices.test_fraction, "valid": choices.valid_fraction}
        splits = list(carve(samples, shares, seed))
    else:
        gone, told = leave_out(samples, [split or "train" for split in given])
        splits = [None if row in gone else split for row, split in enumerate(given)]
        if "valid" not in given:
            train = [row for row, split in enumerate(splits) if split == "train"]
            carved = carve(samples.take(train), {"valid": choices.valid_fraction}, seed)
            for row, split in zip(train, carved, strict=True):
                splits[row] = split
    findings = class_findings(counts_of(samples.labels, splits, classes))
    return Placed(splits, told, [*findings, *repeats(samples, splits), *leak_findings(told)])


def repeats(samples: Samples, splits: list[str | None]) -> list[Finding]:
    """Name duplicates among the rows that stay."""
    return duplicate_findings(samples.take(row for row, split in enumerate(splits) if split))


def counts_of(
    labels: Sequence[str], splits: Sequence[str | None], classes: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Count pictures per split and class; raises DataError for an empty train or valid."""
    pairs = Counter(zip(splits, labels, strict=True))
    names = [name for name in NAMES if name in splits]
    for name in ("train", "valid"):
        if name not in names:
            raise DataError(f"the {name} split holds no usable pictures", "add some")
    return {name: {label: pairs[name, label] for label in classes} for name in names}


def store(
    name: str, rows: list[int], pixels: Inputs, samples: Samples, classes: tuple[str, ...],
    folder: Path | None,
) -> Stored:  # fmt: skip
    """Write one split to `folder`, take it into memory, or leave it where it is."""
    targets = {label: target for target, label in enumerate(classes)}
    labels, ids = [targets[samples.labels[row]] for row in rows], [samples.ids[row] for row in rows]
    if isinstance(pixels, Pictures):
        return Stored(pixels.part(rows, labels), labels, ids)
    if folder is None:
        return Stored(pixels[rows], labels, ids)
    with open(folder / f"{name}.npy", "wb") as file:
        write_split(file, pixels, rows)
    return Stored(np.load(folder / f"{name}.npy", mmap_mode="r"), labels, ids)


def schema_of(train: Inputs, classes: tuple[str, ...]) -> Schema:
    """Return the schema, with mean and standard deviation per channel of the train pixels.

    Of pictures that would have to be decoded for it, a part speaks for all.
    """
    _, height, width, channels = train.shape
    if isinstance(train, Pictures):
        train = train[:SPEAKING]
    total = np.zeros(channels, np.uint64)
    squares = np.zeros(channels, np.uint64)
    for start in range(0, len(train), ROWS):
        part = train[start : start + ROWS]
        total += part.sum(axis=(0, 1, 2), dtype=np.uint64)
        squares += np.square(part, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.uint64)
    count = len(train) * height * width
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # a floor: black stays black
    return Schema(classes=classes, channels=channels, height=height, width=width,
                  mean=tuple(mean.tolist()), std=tuple(std.tolist()))  # fmt: skip


def sizes_of(decoded: Decoded) -> dict[str, dict[str, float]]:
    """Return the smallest, median and largest width and height of the originals, in pixels."""
    sides = {"width": decoded.widths, "height": decoded.heights}
    return {name: {"min": min(found), "median": median(found), "max": max(found)}
            for name, found in sides.items() if found}  # fmt: skip


def fingerprint_of(
    schema: Schema, splits: dict[str, Stored], rows: dict[str, list[int]], digests: list[bytes]
) -> str:
    """Return a digest of ids, labels, splits, input shape and full-resolution pixels."""
    found = blake2b(digest_size=16)
    found.update(json.dumps([schema.classes, schema.input_shape]).encode())
    for name, split in splits.items():
        found.update(json.dumps([name, split.ids, split.targets]).encode())
        found.update(b"".join(digests[row] for row in rows[name]))
    return found.hexdigest()
