"""How good: metrics of decisions, each with its direction and unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A metric of outputs (N, K) and targets (N,)."""

    compute: Callable[[Array, Array], float]
    higher_is_better: bool
    unit: str


def accuracy(outputs: Array, targets: Array) -> float:
    """Share of samples whose largest logit is the true class."""
    return float((outputs.argmax(axis=1) == targets).mean()) if len(targets) else 0.0


def f1(outputs: Array, targets: Array) -> float:
    """Macro F1: the mean over the classes that occur of 2PR / (P + R) (van Rijsbergen 1979)."""
    matrix = confusion(outputs, targets)
    hits = np.diag(matrix).astype(float)
    sizes = matrix.sum(axis=0) + matrix.sum(axis=1)
    occurs = matrix.sum(axis=1) > 0
    return float((2 * hits / np.maximum(sizes, 1))[occurs].mean()) if occurs.any() else 0.0


def confusion(outputs: Array, targets: Array) -> NDArray[np.int64]:
    """Return counts (K, K): row the true class, column the decided one."""
    classes = outputs.shape[1]
    cells = targets.astype(np.int64) * classes + outputs.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, higher_is_better=True, unit="fraction"),
    "f1": Metric(f1, higher_is_better=True, unit="fraction"),
}
