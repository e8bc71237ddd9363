"""How big: bytes on disk."""

from __future__ import annotations

from pathlib import Path


def file_bytes(path: Path) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size
