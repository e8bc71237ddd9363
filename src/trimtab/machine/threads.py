"""How threads behave; imported before torch is."""

from __future__ import annotations

import os


def calm_threads() -> None:
    """Let idle OpenMP threads sleep instead of spin; a value the user set is kept.

    Spinning pools on busy cores can make a network many times slower. Has an effect only before
    torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
