"""Parity: how far an artifact agrees with the run it was made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIE = 1e-4  # of the largest logit: decisions closer than this are no decision


@dataclass(frozen=True)
class Parity:
    """Agreement of two sets of logits over `n` samples.

    `flips` counts samples decided differently, ties left out; `relative_difference` is the largest
    difference of a logit over the largest logit.
    """

    max_difference: float
    relative_difference: float
    flips: int
    flip_fraction: float
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def parity(reference: NDArray[Any], found: NDArray[Any]) -> Parity:
    """Compare logits (N, K) of an artifact with those of its run.

    A logit that is not finite on either side makes the differences infinite.
    """
    finite = bool(np.isfinite(reference).all() and np.isfinite(found).all())
    largest = max(float(np.abs(reference).max()), 1e-12) if finite else 1.0
    difference = float(np.abs(reference - found).max()) if finite else float("inf")
    ordered = np.sort(reference, axis=1)
    tied = ordered[:, -1] - ordered[:, -2] <= TIE * largest
    changed = (reference.argmax(axis=1) != found.argmax(axis=1)) & ~tied
    flips, n = int(changed.sum()), len(reference)
    return Parity(difference, difference / largest, flips, flips / max(1, n), n)
