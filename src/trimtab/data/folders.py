"""Lists a folder of pictures: class folders, or a train/valid/test folder of class folders."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.data.entries import (
    LISTED,
    SPLITS,
    Entry,
    Listing,
    class_name,
    count_of,
    listed,
    note,
    shown,
)
from trimtab.errors import DataError
from trimtab.records.finding import Finding

EXTENSIONS = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".avif",
}  # fmt: skip
TABLES = {".csv", ".tsv", ".parquet"}
MAX_BYTES = 256_000_000
IGNORED = {"__MACOSX"}
LAYOUT = "wanted photos/<class>/*.jpg, or photos/train/<class>/*.jpg with valid and test beside it"


@dataclass
class Seen:
    """What a scan met that is no sample."""

    ignored: Counter[str] = field(default_factory=Counter)
    loose: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def list_folder(root: Path) -> Listing:
    """List the pictures below `root`; raises DataError where there is no layout to recognise.

    Hidden files are left out, links to files are followed, links to folders are not.
    """
    seen = Seen()
    folders = folders_in(root, root, seen)
    splits = split_folders(folders, root)
    entries: list[Entry] = []
    for folder, split in splits or [(root, None)]:
        inner = folders_in(folder, root, seen) if splits else folders
        entries += class_entries(inner, root, split, seen)
        if splits and not any(entry.split == split for entry in entries):
            raise DataError(f"{folder} holds no class folders with pictures", LAYOUT)
    if not entries:
        raise nothing_found(root, folders, seen)
    return Listing(entries, str(root), None, findings_of(seen))


def scan(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what lies in `folder`, hidden files left out, sorted by name."""
    try:
        with os.scandir(folder) as found:
            entries = [e for e in found if not e.name.startswith(".") and e.name not in IGNORED]
    except OSError as error:
        raise DataError(f"cannot read the folder {shown(str(folder))}: {error.strerror}",
                        "check its permissions") from error  # fmt: skip
    return sorted(entries, key=lambda entry: entry.name)


def folders_in(folder: Path, root: Path, seen: Seen) -> list[Path]:
    """Return the subfolders of `folder`; files and links beside them are noted."""
    found = []
    for entry in scan(folder):
        if entry.is_dir(follow_symlinks=False):
            found.append(Path(entry.path))
        elif entry.is_dir():
            seen.links.append(id_of(entry.path, root))
        else:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in EXTENSIONS:
                seen.loose.append(id_of(entry.path, root))
            else:
                seen.ignored[suffix or entry.name] += 1
    return found


def split_folders(folders: list[Path], root: Path) -> list[tuple[Path, str | None]]:
    """Return the split folders among `folders`, [] where all are classes; raises DataError."""
    named = [(f, SPLITS[f.name.casefold()]) for f in folders if f.name.casefold() in SPLITS]
    others = [f for f in folders if f.name.casefold() not in SPLITS and has_pictures(f)]
    if not named or (others and not any(has_folders(folder) for folder, _ in named)):
        return []
    names = [split for _, split in named]
    if others:
        classes = listed(folder.name for folder in others)
        raise DataError(
            f"{root} mixes {named[0][0].name}/ with class folders ({classes})",
            "put every class folder into train/, valid/ or test/, or all of them beside each other",
        )
    twice = [folder.name for folder, split in named if names.count(split) > 1]
    if twice:
        raise DataError(f"{root} holds one split twice: {listed(twice)}",
                        "keep one folder per split")  # fmt: skip
    if "train" not in names:
        raise DataError(f"{root} holds {listed(f.name for f, _ in named)} but no train/", LAYOUT)
    return [(folder, split) for folder, split in named]


def has_folders(folder: Path) -> bool:
    """Return whether `folder` holds folders."""
    return any(entry.is_dir(follow_symlinks=False) for entry in scan(folder))


def has_pictures(folder: Path) -> bool:
    """Return whether a picture lies anywhere below `folder`."""
    return next(files_in(folder, folder, Seen()), None) is not None


def class_entries(folders: list[Path], root: Path, split: str | None, seen: Seen) -> list[Entry]:
    """Return the entries of class folders; empty ones are noted."""
    entries: list[Entry] = []
    for folder in folders:
        label = class_name(readable(folder.name), shown(str(folder)))
        before = len(entries)
        for file in files_in(folder, root, seen):
            stamp, fault = look(file.path)
            entries.append(Entry(id_of(file.path, root), label, split, file.path, stamp, fault))
        if len(entries) == before:
            seen.empty.append(id_of(str(folder), root))
    return entries


def files_in(folder: Path, root: Path, seen: Seen) -> Iterator[os.DirEntry[str]]:
    """Yield what has a picture's name anywhere below `folder`; links to folders are not entered."""
    waiting = [str(folder)]
    while waiting:
        inner = []
        for entry in scan(waiting.pop()):
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in EXTENSIONS:
                yield entry
            elif entry.is_dir(follow_symlinks=False):
                inner.append(entry.path)
            elif entry.is_dir():
                seen.links.append(id_of(entry.path, root))
            else:
                seen.ignored[suffix or entry.name] += 1
        waiting += reversed(inner)


def look(path: str) -> tuple[str, str]:
    """Return a file's stamp (size, times) and why it cannot be a picture, without opening it."""
    try:
        found = os.stat(path)
    except OSError as error:
        broken = os.path.islink(path)
        return "", "a link to a file that is not there" if broken else error.strerror or str(error)
    stamp = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    if stat.S_ISDIR(found.st_mode):
        return stamp, "a folder, not a file"
    if not stat.S_ISREG(found.st_mode):
        return stamp, "a pipe or device, not a file"
    return stamp, f"over {MAX_BYTES:,} bytes" if found.st_size > MAX_BYTES else ""


def readable(text: str) -> str:
    """Return a file name as valid text, whatever its bytes are."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def id_of(path: str, root: Path | str) -> str:
    """Return the path relative to `root` with forward slashes: the id of a sample."""
    inside = path.removeprefix(f"{root}{os.sep}")
    return readable(
        (os.path.relpath(path, root) if inside == path else inside).replace(os.sep, "/")
    )


def nothing_found(root: Path, folders: list[Path], seen: Seen) -> DataError:
    """Say why a folder gave no samples."""
    tables = [e.name for e in scan(root) if os.path.splitext(e.name)[1].lower() in TABLES]
    if tables:
        return DataError(f"{root} holds no class folders", f"did you mean {root / tables[0]}?")
    if seen.loose:
        count = count_of(len(seen.loose), "picture")
        return DataError(f"{root} holds {count} but no class folders", LAYOUT)
    if seen.links:
        links = count_of(len(seen.links), "link")
        return DataError(f"{root} holds {links} to folders, which are not followed", LAYOUT)
    got = ", ".join(f"{count} {suffix}" for suffix, count in seen.ignored.most_common(5))
    where = f" in {count_of(len(folders), 'folder')}" if folders else ""
    return DataError(f"{root} holds no pictures: got {got or 'no files'}{where}", LAYOUT)


def findings_of(seen: Seen) -> list[Finding]:
    """Say what a scan left out."""
    found = []
    if seen.ignored:
        total = sum(seen.ignored.values())
        found.append(note("ignored_files", "info", f"{count_of(total, 'file')} without a picture's "
                          "extension left out",
                          files=dict(seen.ignored.most_common(LISTED))))  # fmt: skip
    if seen.loose:
        found.append(note("loose_pictures", "warning", f"{count_of(len(seen.loose), 'picture')} "
                          f"outside of any class folder left out: {listed(seen.loose)}",
                          "move them into a class folder", ids=seen.loose[:LISTED]))  # fmt: skip
    if seen.links:
        found.append(note("folder_links", "warning", f"{count_of(len(seen.links), 'link')} to "
                          f"folders not followed: {listed(seen.links)}",
                          "put the folder itself there", ids=seen.links[:LISTED]))  # fmt: skip
    if seen.empty:
        found.append(note("empty_class_folder", "warning", "folders without pictures are no "
                          f"classes: {listed(seen.empty)}", "remove or fill them",
                          ids=seen.empty[:LISTED]))  # fmt: skip
    return found
