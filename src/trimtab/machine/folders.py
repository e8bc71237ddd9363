"""Where things may be written on this machine, and how much room is left there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cache_folder() -> Path:
    """Return where decoded data are kept: TRIMTAB_CACHE, else `trimtab` in the user's cache."""
    if own := os.environ.get("TRIMTAB_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def nearest_folder(folder: Path) -> Path:
    """Return `folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds `folder`, which need not exist yet."""
    return shutil.disk_usage(nearest_folder(folder)).free


def size_bytes(folder: Path) -> int:
    """Return the sum of the files below `folder`; 0 for what is not there or vanished meanwhile."""
    return sum(size_of(path) for path in folder.rglob("*"))


def size_of(path: Path) -> int:
    """Return the size of a file; 0 for anything else."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
