"""Small folders of pictures for the data room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def noise() -> Callable[..., Any]:
    """Random pixels (height, width, channels) from a seed."""

    def make(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> Any:
        random = np.random.default_rng(seed)
        return random.integers(0, 256, (height, width, channels), dtype=np.uint8)

    return make


@pytest.fixture
def photos(tmp_path: Path, noise: Any) -> Callable[..., Path]:
    """Write class folders: `photos({"cat": 5, "dog": 5})`, every picture another one."""
    drawn = iter(range(100_000))

    def make(counts: dict[str, int], root: str = "photos", **size: int) -> Path:
        for name, count in counts.items():
            folder = tmp_path / root / name
            folder.mkdir(parents=True, exist_ok=True)
            for row in range(count):
                Image.fromarray(noise(next(drawn), **size)).save(folder / f"{row:03d}.png")
        return tmp_path / root

    return make


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
