"""Data whose pictures stay in their files: what of them is kept, and when that is better."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.data import cache
from trimtab.data.cache import Stored
from trimtab.data.entries import LISTED, Entry, Listing, count_of, listed, note
from trimtab.data.pictures import Inputs, Pictures, unchanged
from trimtab.data.pixels import MAX_SIDE
from trimtab.data.prepare import Prepared, prepare
from trimtab.errors import DataError, MachineError
from trimtab.machine.folders import cache_folder, free_bytes
from trimtab.records.finding import Finding
from trimtab.records.schema import Schema
from trimtab.records.sections import DataSection

SHARE = 2  # at most one part in so many of the free disk is for decoded pictures
LIMIT_BYTES = cache.LIMIT_BYTES
LOST = "gone or changed since the training began"


def decoded_bytes(listing: Listing, choices: DataSection) -> int:
    """Return what the decoded pictures of a listing take at the most."""
    side = MAX_SIDE if choices.image_size == "auto" else choices.image_size
    return len(listing.entries) * side * side * (1 if choices.channels == 1 else 3)


def fits(listing: Listing, choices: DataSection) -> bool:
    """Return whether the decoded pictures fit into the cache, or are in memory as it is."""
    if not in_files(listing):
        return True
    room = min(LIMIT_BYTES, free_bytes(cache_folder()) // SHARE)
    return decoded_bytes(listing, choices) <= room


def in_files(listing: Listing) -> bool:
    """Return whether pictures are files, or the bytes of files, that can be decoded again."""
    return not any(isinstance(entry.content, np.ndarray) for entry in listing.entries)


def stream(listing: Listing, choices: DataSection, seed: int, key: str) -> Prepared:
    """Check everything once, decode nothing for good; raises DataError.

    What was found is noted in the cache, so that the next training with the source `key` starts
    at once.
    """
    if not in_files(listing):
        raise DataError("data.storage is stream, and the pictures are in memory already",
                        "leave data.storage at auto")  # fmt: skip
    if (known := recall(listing, choices, key)) is not None:
        return known
    made = prepare(listing, choices, seed, None, stream=True)
    size = decoded_bytes(listing, choices)
    finding = note("streamed", "info", "the pictures are decoded from their files in every epoch; "
                   f"decoded, they would take up to {size / 1e9:,.1f} GB", bytes=size)  # fmt: skip
    made.told["findings"].append(finding.model_dump())
    kept = {name: record(split) for name, split in made.splits.items()}
    with suppress(OSError, MachineError):  # then they are checked again the next time
        facts = {"splits": kept, "schema": made.schema.model_dump(mode="json")}
        cache.remember(key, made.fingerprint, {**made.told, "stream": facts})
        cache.remember(content_key(made.fingerprint), made.fingerprint, {"key": key})
    return made


def record(split: Stored) -> dict[str, Any]:
    """Return what is noted of a split."""
    assert isinstance(split.inputs, Pictures)
    entries = split.inputs.entries
    return {"ids": split.ids, "targets": split.targets, "sides": split.inputs.sides.tolist(),
            "given": [entry.split for entry in entries],
            "stamps": [entry.stamp for entry in entries]}  # fmt: skip


def content_key(fingerprint: str) -> str:
    """Return the key of the note that says under which key a content was noted."""
    return f"content-{fingerprint}"


def recall(listing: Listing, choices: DataSection, key: str) -> Prepared | None:
    """Return what is known of the source `key`, or None."""
    known = cache.recall(key)
    if known is None:
        return None
    fingerprint, told = known
    try:
        schema = Schema.model_validate(told["stream"]["schema"])
        entries = {entry.id: entry for entry in listing.entries}
        splits = {name: recalled(entries, split, schema, choices)
                  for name, split in told["stream"]["splits"].items()}  # fmt: skip
    except cache.DAMAGE:
        return None
    return Prepared(splits, schema, fingerprint, told)


def as_begun(listing: Listing, choices: DataSection, fingerprint: str) -> Prepared | None:
    """Return data as a run began with them, though some of their files are gone or changed now.

    Others of their classes stand in for those when they are read. None where nothing is noted of
    the `fingerprint`, where too many are lost, and where anything else is not as it was.
    """
    try:
        key = str((cache.recall(content_key(fingerprint)) or ("", {}))[1]["key"])
        told = (cache.recall(key) or ("", {}))[1]
        before = begun(told["stream"])
        out = {row["id"] for kind in ("quarantined", "left_out") for row in told[kind]}
    except (*cache.DAMAGE, IndexError):
        return None
    now = {entry.id: entry for entry in listing.entries if entry.id not in out}
    if any(name not in before or entry[1:3] != before[name][1:3] for name, entry in now.items()):
        return None  # a new picture, or another label or split
    kept = [entry for name, entry in now.items() if unchanged(entry.stamp, before[name].stamp)]
    lost = before.keys() - {entry.id for entry in kept}
    if len(lost) > choices.max_bad_fraction * len(before):
        return None
    return recall(replace(listing, entries=[*kept, *(before[name] for name in lost)]), choices, key)


def begun(noted: dict[str, Any]) -> dict[str, Entry]:
    """Return the noted entries by their ids, all of them as if they were lost."""
    classes = noted["schema"]["classes"]
    return {
        name: Entry(name, classes[target], given, b"", stamp, LOST)
        for split in noted["splits"].values()
        for name, target, given, stamp in zip(
            split["ids"], split["targets"], split["given"], split["stamps"], strict=True
        )
    }


def recalled(
    entries: dict[str, Entry], split: dict[str, Any], schema: Schema, choices: DataSection
) -> Stored:  # fmt: skip
    """Return a noted split with the entries that it names."""
    chosen = [entries[name] for name in split["ids"]]
    sides = np.array(split["sides"], np.int64).reshape(len(chosen), 2)
    size = (schema.height, schema.width, schema.channels)
    pictures = Pictures(chosen, split["targets"], sides, size, choices.max_bad_fraction)
    return Stored(pictures, split["targets"], split["ids"])


def lost(splits: Iterable[Inputs]) -> list[Finding]:
    """Name the pictures that could not be read any more after the data were opened."""
    faults = [{"id": inputs.entries[row].id, "reason": reason}
              for inputs in splits if isinstance(inputs, Pictures)
              for row, reason in sorted(inputs.faults.items())]  # fmt: skip
    if not faults:
        return []
    ids = [f"{fault['id']} ({fault['reason']})" for fault in faults]
    return [note("lost_pictures", "warning", f"{count_of(len(ids), 'picture')} could not be read "
                 f"any more during the training, others of their classes stood in: {listed(ids)}",
                 "bring them back", count=len(ids), samples=faults[:LISTED])]  # fmt: skip
