"""How the time of a fit is shared out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SCREEN = 0.10
FLIP = 0.04
HEATS = 0.12
COMPRESS = 0.16
PROOF = 0.14
PROOF_SECONDS = 75.0


@dataclass
class Budget:
    """A budget in seconds that counts from its creation.

    Shares (of the whole, at the most): screen 10 %, flip trial 4 %, heats 12 %, compression 16 %,
    export and verification 14 % or 75 s; the main training gets the rest and whatever the others
    leave.
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

    @property
    def proof(self) -> float:
        """Seconds kept for export and verification."""
        return min(PROOF * self.seconds, PROOF_SECONDS)

    def share(self, fraction: float) -> float:
        """Return `fraction` of the whole, but not more than is left."""
        return min(fraction * self.seconds, self.left)

    def before(self, *stages: float) -> float:
        """Return the seconds left before later `stages` (shares) and the proof."""
        return max(0.0, self.left - sum(stages) * self.seconds - self.proof)

    def shares(self) -> dict[str, float]:
        """Return the seconds each stage gets at the most; training gets what is left."""
        stages = {"screen": SCREEN, "flip trial": FLIP, "heats": HEATS, "compress": COMPRESS}
        found = {name: share * self.seconds for name, share in stages.items()}
        found["prove"] = self.proof
        return {**found, "train": self.seconds - sum(found.values())}
