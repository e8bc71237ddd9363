"""How the time of a fit is shared out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SCREEN = 0.10
FLIP = 0.06
HEATS = 0.24
COMPRESS = 0.22
PROOF = 0.14


@dataclass
class Budget:
    """A budget in seconds that counts from its creation.

    Shares (of the whole): screen 10 %, flip trial 6 %, heats 24 %, compression 22 %, export and
    verification 14 %; the main training gets the rest and whatever the others leave.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.seconds - self.used)

    def share(self, fraction: float) -> float:
        """Return `fraction` of the whole, but not more than is left."""
        return min(fraction * self.seconds, self.left)

    def until_reserve(self, fraction: float) -> float:
        """Return what may be used while `fraction` of the whole stays in reserve."""
        return max(0.0, self.left - fraction * self.seconds)
