"""Atomic files, append-only logs and the lock of a run folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from trimtab.errors import BusyError, MachineError
from trimtab.machine.failpoints import failpoint
from trimtab.machine.progress import say

FULL = {errno.ENOSPC, errno.EDQUOT}
LOCK = "run.lock"
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError on `path` into a MachineError that says what to do."""
    try:
        yield
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise MachineError(message, way_out(error)) from error


def way_out(error: OSError) -> str:
    """Return the hint for a write that failed with `error`."""
    if error.errno in FULL:
        return "free some space, or choose a folder on another disk with --out"
    return "choose another folder with --out, or make this one writable"


def make_folder(path: Path) -> Path:
    """Create `path` and its parents; raise MachineError where that is not possible."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a crash leaves the old file or the new one, never a torn one.

    A crash may leave a temporary file beside it, which `locked` removes.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with explained(path):
        try:
            with open(temporary, "wb") as file:
                try_lock(file.fileno())
                file.write(content)
                failpoint("file.before_sync")
                make_durable(file)
                failpoint("file.before_rename")
                os.replace(temporary, path)  # before the lock goes with the handle
                failpoint("file.after_rename")
            sync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing and make it durable at the end of the block."""
    with open(path, "wb") as file:
        yield file
        make_durable(file)


def make_durable(file: BinaryIO) -> None:
    """Return when what was written to `file` is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """Make a file's content durable, or what was created, renamed or deleted inside a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file written by trimtab."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row with a single write, so that a crash can tear only the last line.

    What an earlier crash tore is removed first; where the disk is full nothing is appended.
    """
    line = json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    with explained(path), open(path, "a+b", buffering=0) as file:
        failpoint("log.before_row")
        end = whole_bytes(file)
        if file.write(line) != len(line):
            os.ftruncate(file.fileno(), end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def whole_bytes(file: FileIO) -> int:
    """Return the length of a log's whole rows, and cut off what stands behind them."""
    end = file.seek(0, os.SEEK_END)
    if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
        end = os.pread(file.fileno(), end, 0).rfind(b"\n") + 1
        os.ftruncate(file.fileno(), end)
    return end


def sync_logs(paths: Iterable[Path]) -> None:
    """Make the rows appended so far durable, before something else says that they are there."""
    there = [path for path in paths if path.exists()]
    for path in [*there, *{path.parent for path in there}]:  # a new one's name, too
        sync_path(path)


def rewind(path: Path, known: int) -> None:
    """Cut a log back to the length it had; warn where it is shorter than that."""
    length = length_of(path)
    if length < known:
        say(f"warning: {path} has lost rows: {length:,} bytes, there were {known:,}")
    elif length > known:
        with explained(path):
            os.truncate(path, known)


def length_of(path: Path) -> int:
    """Return the length of a log in bytes; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read all whole rows of an append-only log; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; raise BusyError with the holder's pid when it is taken.

    The kernel releases the lock with the process, so no stale lock can stay behind. Temporary
    files of processes that were killed are removed.
    """
    with explained(folder / LOCK):
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown process"
            raise BusyError(
                f"{folder} is in use by {holder}",
                "wait until it has finished, or choose another folder with --out",
            ) from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        remove_temporaries(folder)
        yield


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files in `folder` that no living process is writing."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and is_abandoned(path):
            path.unlink(missing_ok=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Mark a folder as in work by a lock that the kernel releases with the process."""
    handle = os.open(path, os.O_RDONLY)
    try:
        try_lock(handle)
        yield
    finally:
        os.close(handle)


def is_abandoned(path: Path) -> bool:
    """Return whether no living process holds `path`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return try_lock(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open path; False where another process has it, True where disks know no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the lock of the run folder keeps others out
    return True
