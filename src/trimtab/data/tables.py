"""Lists a table of pictures: CSV, TSV or Parquet with image, label and perhaps split columns."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.data.entries import (
    Entry,
    Listing,
    class_name,
    digest_of,
    listed,
    note,
    shown,
    split_of,
)
from trimtab.data.folders import id_of, look
from trimtab.errors import DataError, MachineError
from trimtab.registry import did_you_mean

IMAGE_COLUMNS = ("path", "file_name", "image")
LABEL_COLUMNS = ("label", "target", "class", "y")
SPLIT_COLUMNS = ("split",)
DELIMITERS = (",", ";", "\t")
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
MAX_BYTES = 16_000_000_000


@dataclass(frozen=True)
class Columns:
    """The names of the columns in use; `also` are other columns that could have been meant."""

    image: str
    label: str
    split: str | None
    also: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One line: where it stands, and its cells."""

    where: str
    image: Any
    label: Any
    split: Any


def list_table(path: Path) -> Listing:
    """List the samples of a table; paths in it are relative to the table's folder.

    Raises DataError for a table without the columns, and for labels that are no classes.
    """
    if path.suffix.lower() == ".parquet":
        columns, rows, classes = parquet_rows(path)
    else:
        columns, rows = text_rows(path)
        classes = None
    entries = [entry_of(row, path.parent, number) for number, row in enumerate(rows)]
    if not entries:
        raise DataError(f"{path} holds no rows", "a header and one line per picture are wanted")
    refuse_floats(entries, path)
    findings = []
    if columns.also:
        used = f"'{columns.image}' holds the pictures and '{columns.label}' the labels"
        findings.append(note("columns", "info", f"{path.name}: {used}; not used: "
                             f"{listed(columns.also)}", unused=list(columns.also)))  # fmt: skip
    return Listing(unique(entries), str(path), classes, findings)


def choose_columns(names: list[str], where: str) -> Columns:
    """Find the columns by name; raises DataError with the closest name."""
    image, others = one_of(names, IMAGE_COLUMNS, "image", where)
    label, more = one_of(names, LABEL_COLUMNS, "label", where)
    split = next((name for name in names if name.strip().casefold() in SPLIT_COLUMNS), None)
    return Columns(image, label, split, tuple(others + more))


def one_of(
    names: list[str], wanted: tuple[str, ...], what: str, where: str
) -> tuple[str, list[str]]:
    """Return the first column of `wanted` and the others that would have done as well."""
    known = {name.strip().casefold(): name for name in names}
    found = [known[name] for name in wanted if name in known]
    if found:
        return found[0], found[1:]
    guesses = {name: did_you_mean(name.strip().casefold(), wanted) for name in names}
    hints = [f"'{shown(n)}': {hint}" for n, hint in guesses.items() if hint.startswith("did")]
    raise DataError(
        f"{where} has no {what} column: wanted one of {', '.join(wanted)}; "
        f"got {', '.join(shown(name) for name in names[:20]) or 'none'}",
        hints[0] if hints else f"rename the column of the {what}s to '{wanted[0]}'",
    )


def text_rows(path: Path) -> tuple[Columns, list[Row]]:
    """Read a CSV or TSV file; raises DataError naming the line."""
    text = read_text(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        check_header(header, path)
        columns = choose_columns(header, str(path))
        at = [header.index(name) if name else -1
              for name in (columns.image, columns.label, columns.split)]  # fmt: skip
        return columns, list(rows_of(reader, at, len(header), path))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}", "is it a CSV file?") from error


def rows_of(reader: Any, at: list[int], width: int, path: Path) -> Iterator[Row]:
    """Yield the rows below the header; every row has as many cells as it."""
    for cells in reader:
        where = f"{path.name}, line {reader.line_num}"
        if cells and len(cells) != width:
            raise DataError(f"{where}: {len(cells)} cells, the header has {width}",
                            "put a cell that holds the delimiter in quotes")  # fmt: skip
        if cells:
            yield Row(where, *(cells[column] if column >= 0 else None for column in at))


def check_header(header: list[str], path: Path) -> None:
    """Refuse column names that stand twice."""
    names = Counter(name.strip().casefold() for name in header)
    twice = [name for name, count in names.items() if count > 1 and name]
    if twice:
        raise DataError(f"{path}: column '{shown(twice[0])}' stands twice", "rename one of them")


def read_text(path: Path) -> str:
    """Read a text file as UTF-8, or UTF-16 with its mark; raises DataError."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text", "save the table as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}, line {line}: a NUL character", "is it a CSV file?")
    return text


def delimiter_of(text: str) -> str:
    """Return the delimiter that the header holds most often."""
    return max(DELIMITERS, key=text.partition("\n")[0].count)


def parquet_rows(path: Path) -> tuple[Columns, list[Row], tuple[str, ...] | None]:
    """Read the columns that are needed from a Parquet file; raises DataError."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MachineError("reading Parquet needs pyarrow", "pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            meta, schema = file.metadata, file.schema_arrow
            columns = choose_columns(schema.names, str(path))
            check_bytes(
                sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)), path
            )
            names = [n for n in (columns.image, columns.label, columns.split) if n]
            table = file.read(columns=names)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {str(error)[:120]}",
                        "write it again") from error  # fmt: skip
    cells = [table[n].to_pylist() if n else [None] * len(table)
             for n in (columns.image, columns.label, columns.split)]  # fmt: skip
    rows = [Row(f"{path.name}, row {i}", *row) for i, row in enumerate(zip(*cells, strict=True))]
    classes = named_classes(schema.metadata or {}, columns.label)
    return columns, [renamed(row, classes) for row in rows], classes


def check_bytes(size: int, path: Path) -> None:
    """Refuse a table that does not fit into memory."""
    if size > MAX_BYTES:
        raise DataError(f"{path} holds {size:,} bytes, at most {MAX_BYTES:,} are read",
                        "write the pictures into class folders")  # fmt: skip


def named_classes(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face `datasets` keeps beside the numbers."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(class_name(str(name), f"column '{label}'") for name in names)


def renamed(row: Row, classes: tuple[str, ...] | None) -> Row:
    """Return the row with the class's name for its number."""
    if classes is None or not isinstance(row.label, int):
        return row
    if not 0 <= row.label < len(classes):
        raise DataError(f"{row.where}: label {row.label} of {len(classes)} classes",
                        f"labels are 0 to {len(classes) - 1}")  # fmt: skip
    return Row(row.where, row.image, classes[row.label], row.split)


def entry_of(row: Row, folder: Path, number: int) -> Entry:
    """Return the entry of a row."""
    label = class_name(label_text(row.label, row.where), row.where)
    split = split_of(str(row.split or ""), row.where) if row.split is not None else None
    image = row.image
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            name = row.image.get("path") or f"{number:06d}"
            return Entry(os.path.basename(name), label, split, image, digest_of(image).hex())
    if isinstance(image, bytes):
        return Entry(f"{number:06d}", label, split, image, digest_of(image).hex())
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{row.where}: no path of a picture, got {image!r}", "leave the row out")
    path = existing(folder, image.strip())
    stamp, fault = look(path)
    return Entry(id_of(path, folder), label, split, path, stamp, fault)


def existing(folder: Path, name: str) -> str:
    """Return the path that `name` means; tables written on Windows use backslashes."""
    path = os.path.normpath(os.path.join(folder, name))
    if "\\" in name and not os.path.lexists(path):
        return os.path.normpath(os.path.join(folder, name.replace("\\", "/")))
    return path


def label_text(value: Any, where: str) -> str:
    """Return a label as text; raises DataError for what is no class."""
    if value is None or value != value:
        raise DataError(
            f"{where}: the label is missing", "give every sample a class name or leave it out"
        )
    if isinstance(value, float):
        raise DataError(f"{where}: the label is {value}, wanted a class name or a whole number",
                        "write labels as whole numbers or text")  # fmt: skip
    return str(value)


def refuse_floats(entries: list[Entry], path: Path) -> None:
    """Refuse a label column of decimal numbers: a quantity, or classes spoilt on the way."""
    labels = {entry.label for entry in entries}
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return
    odd = [label for label in labels if not label.lstrip("-").isdigit()]
    if numbers and odd:
        raise DataError(f"{path}: labels are decimal numbers such as {min(odd)}, wanted classes",
                        "write labels as whole numbers or text")  # fmt: skip


def unique(entries: list[Entry]) -> list[Entry]:
    """Add a number to ids that stand more than once, so that each means one row."""
    seen: Counter[str] = Counter()
    found = []
    for entry in entries:
        seen[entry.id] += 1
        count = seen[entry.id]
        found.append(entry if count == 1 else entry._replace(id=f"{entry.id}#{count}"))
    return found
