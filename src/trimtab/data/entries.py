"""What every source becomes: a listing of entries, each with an id, a label and its content."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from trimtab.errors import DataError
from trimtab.records.finding import Finding
from trimtab.registry import did_you_mean

SPLITS = {
    "train": "train", "training": "train",
    "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
LISTED = 20  # ids that a finding names


class Entry(NamedTuple):
    """One sample before it is decoded.

    `content` is a path, the bytes of a file, or pixels (H, W[, C]) uint8; `stamp` changes when the
    content does; `fault` says why it cannot be read where that is known already.
    """

    id: str
    label: str
    split: str | None
    content: Any
    stamp: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Listing:
    """All entries of a source; `classes` where the source gives their order."""

    entries: list[Entry]
    source: str | None = None
    classes: tuple[str, ...] | None = None
    findings: list[Finding] = field(default_factory=list)


def note(
    name: str, severity: Literal["info", "warning", "error"], message: str, remedy: str = "",
    **evidence: Any,
) -> Finding:  # fmt: skip
    """Make a finding."""
    return Finding(name=name, severity=severity, message=message, remedy=remedy, evidence=evidence)


def shown(text: str) -> str:
    """Return `text` with control characters written out, so that a terminal stays as it is."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(ids: Iterable[str], limit: int = 5) -> str:
    """Return the first ids as text."""
    names = [shown(name) for name in ids]
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def count_of(number: int, thing: str) -> str:
    """Return `1 copy` or `2,310 copies`."""
    if number == 1:
        return f"1 {thing}"
    return f"{number:,} " + (f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s")


def split_of(name: str, where: str) -> str:
    """Return the split that `name` means; raises DataError."""
    split = SPLITS.get(name.strip().casefold())
    if split is None:
        raise DataError(f"{where}: '{shown(name)}' is no split", did_you_mean(name, SPLITS))
    return split


def class_name(text: str, where: str) -> str:
    """Return a class name as it is written everywhere; raises DataError.

    Equal text in two Unicode spellings is one class. Names fill one line of labels.txt.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name or name.casefold() == "nan":
        raise DataError(
            f"{where}: the label is missing", "give every sample a class name or leave it out"
        )
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
        raise DataError(f"{where}: the class name '{shown(name)}' holds control characters",
                        "rename the class")  # fmt: skip
    return name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names sorted: by value where all are whole numbers, else by text."""
    unique = set(names)
    if all(name.isascii() and name.isdigit() for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique))


def twins(classes: Iterable[str]) -> list[Finding]:
    """Name classes that differ only in case."""
    by_fold: dict[str, list[str]] = {}
    for name in classes:
        by_fold.setdefault(name.casefold(), []).append(name)
    pairs = [names for names in by_fold.values() if len(names) > 1]
    if not pairs:
        return []
    return [note("class_twins", "warning", f"classes differ only in case: {listed(pairs[0])}",
                 "give them one name if they mean the same", classes=pairs[:LISTED])]  # fmt: skip


def digest_of(*parts: bytes | memoryview) -> bytes:
    """Return a 16-byte digest of `parts`; the length of each counts."""
    found = blake2b(digest_size=16)
    for part in parts:
        found.update(memoryview(part).nbytes.to_bytes(8, "little"))
        found.update(part)
    return found.digest()
