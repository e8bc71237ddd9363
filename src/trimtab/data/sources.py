"""Tells what kind of data a user gave, and lists its entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.data.arrays import list_arrays
from trimtab.data.entries import Listing, in_order, listed, note, shown, twins
from trimtab.data.folders import TABLES, list_folder
from trimtab.data.tables import list_table
from trimtab.errors import DataError

KINDS = "a folder of class folders, a CSV or Parquet file, arrays (x, y), or a torch Dataset"


def list_source(source: Any) -> Listing:
    """List the entries of a folder, a table, arrays `(x, y)`, a Dataset, or a dict of splits.

    The listing's classes are complete and in order: the source's own order, else sorted. Raises
    DataError where there is nothing to learn from.
    """
    if isinstance(source, str | Path):
        listing = list_path(Path(source))
    elif hasattr(source, "__getitem__") or hasattr(source, "__iter__"):
        listing = list_arrays(source)
    else:
        raise DataError(f"cannot read data from {type(source).__name__}", f"give {KINDS}")
    return with_classes(listing)


def list_path(path: Path) -> Listing:
    """List a folder or a table."""
    where = shown(str(path))
    try:
        path = path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the data {where}: {reason}", "check the path") from error
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() in TABLES and path.is_file():
        return list_table(path)
    raise DataError(f"{where} is no folder and no table, wanted {KINDS}",
                    "unpack archives first; tables end in .csv, .tsv or .parquet")  # fmt: skip


def with_classes(listing: Listing) -> Listing:
    """Complete the class names and refuse fewer than two."""
    present = {entry.label for entry in listing.entries}
    given = tuple(name for name in listing.classes or () if name in present)
    classes = given + in_order(present - set(given))
    if len(classes) < 2:
        raise one_class(listing, classes)
    absent = [name for name in listing.classes or () if name not in present]
    findings = [*listing.findings, *twins(classes)]
    if absent:
        findings.append(note("class_without_pictures", "warning", "classes without a single "
                             f"picture are left out: {listed(absent)}",
                             "add pictures of them", classes=absent))  # fmt: skip
    return Listing(listing.entries, listing.source, classes, findings)


def one_class(listing: Listing, classes: tuple[str, ...]) -> DataError:
    """Say that there is only one class, and where more may lie."""
    hint = "a classifier needs at least two"
    if listing.source and Path(listing.source).is_dir():
        inner = Path(listing.source) / classes[0]
        nested = inner.is_dir() and any(each.is_dir() for each in inner.iterdir())
        hint = f"did you mean {shown(str(inner))}?" if nested else f"{hint} class folders"
    where = shown(listing.source) if listing.source else "the data"
    return DataError(f"{where} holds one class only: '{shown(classes[0])}'", hint)
