"""Atomic files, append-only logs and the lock of a run folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from trimtab.errors import BusyError, MachineError

FULL = {errno.ENOSPC, errno.EDQUOT}
LOCK = "run.lock"


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
    """Write `content` so that a crash leaves the old file or the new one, never a torn one."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with explained(path):
        try:
            with synced(temporary) as file:
                file.write(content)
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing and make it durable at the end of the block."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or deleted inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
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
    """Append one row with a single write, so that a crash can tear only the last line."""
    with explained(path), open(path, "ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


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

    The kernel releases the lock with the process, so no stale lock can stay behind.
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
        yield
