"""Checkpoint folders on disk: whole or absent, proven by a manifest, the older deleted last."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trimtab.machine.failpoints import failpoint
from trimtab.records.files import held, is_abandoned, sha256_file, sync_path, synced

MANIFEST = "manifest.json"
VERSION = 1
FOLDER = re.compile(r"step-(\d{8,})(?:-(\d+))?")
LEFTOVER = re.compile(FOLDER.pattern + r"\.[0-9a-f]{8}\.tmp")

Chunks = Iterable[bytes | memoryview]


def step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints of `folder`, whole or not, the highest step first."""
    found = [path for path in folder.iterdir() if FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=order_of, reverse=True)


def order_of(path: Path) -> tuple[int, int]:
    """Return the step of a checkpoint's folder, and which one of that step it is."""
    match = FOLDER.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def publish(folder: Path, step: int, files: Mapping[str, Chunks]) -> Path:
    """Write `files` (name → content in pieces) as the checkpoint of `step`; return its folder.

    It appears under its name only when all of it is durable; a crash before that leaves a `.tmp`,
    an error leaves nothing. Raises OSError.
    """
    final = free_name(folder, step)
    staging = temporary_of(final)
    staging.mkdir()
    try:
        with held(staging):
            entries = {name: write_file(staging / name, files[name]) for name in files}
            failpoint("checkpoint.before_manifest")
            write_file(staging / MANIFEST, [sealed(step, entries)])
            sync_path(staging)
            failpoint("checkpoint.before_rename")
            os.rename(staging, final)
            failpoint("checkpoint.after_rename")
            sync_path(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final


def free_name(folder: Path, step: int) -> Path:
    """Return where the checkpoint of `step` goes: never over another one of the same step."""
    name, count = f"step-{step:08d}", 1
    while (path := folder / (name if count == 1 else f"{name}-{count}")).exists():
        count += 1
    return path


def temporary_of(path: Path) -> Path:
    """Return a name for `path` while it is written or deleted, used by nobody else."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def write_file(path: Path, chunks: Chunks) -> dict[str, Any]:
    """Write one file durably; return its size in bytes and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    if path.name != MANIFEST:
        failpoint("checkpoint.before_file")
    with synced(path) as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        failpoint("checkpoint.before_sync")
    return {"bytes": size, "sha256": digest.hexdigest()}


def sealed(step: int, entries: Mapping[str, Any]) -> bytes:
    """Return the manifest of `entries`, which holds a hash of itself, too."""
    body = {"version": VERSION, "step": step, "files": dict(entries)}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=2).encode() + b"\n"


def faults(path: Path, *, contents: bool = True) -> list[str]:
    """Return what is wrong with the checkpoint `path`, a text per file; nothing where it is whole.

    `contents=False` looks at the sizes alone and reads no file but the manifest.
    """
    try:
        entries = manifest_of(path)
    except OSError as error:
        return [f"{MANIFEST}: {error.strerror or error}"]
    except (ValueError, TypeError, KeyError) as error:
        return [f"{MANIFEST}: {error}"]
    checked = ((name, fault_of(path / name, entries[name], contents)) for name in entries)
    return [f"{name}: {fault}" for name, fault in checked if fault]


def manifest_of(path: Path) -> dict[str, Any]:
    """Return file → size and hash; raises ValueError where the manifest does not fit itself."""
    content = (path / MANIFEST).read_bytes()
    body = json.loads(content)
    if body["version"] != VERSION:
        raise ValueError(f"version {body['version']}, this trimtab reads {VERSION}")
    if content != sealed(body["step"], body["files"]) or body["step"] != order_of(path)[0]:
        raise ValueError("changed after it was written")
    entries: dict[str, Any] = body["files"]
    if any(Path(name).name != name for name in entries):
        raise ValueError("names a file outside of its folder")
    return entries


def fault_of(path: Path, entry: Mapping[str, Any], contents: bool) -> str:
    """Return how a file differs from its entry in the manifest, or an empty text."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{size} bytes, wanted {entry['bytes']}"
        if contents and sha256_file(path) != entry["sha256"]:
            return "changed after it was written"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def discard(path: Path) -> None:
    """Delete a checkpoint: it loses its name first, so that no half of it is ever seen."""
    failpoint("checkpoint.before_delete")
    doomed = temporary_of(path)
    os.rename(path, doomed)
    for file in doomed.iterdir():
        failpoint("checkpoint.between_deletes")
        file.unlink()
    doomed.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what dead processes left half written or half deleted in `folder`."""
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name) and is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
