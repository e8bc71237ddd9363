"""Every registered metric scores decisions, perfect ones best."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.measure.metrics import METRICS


@pytest.mark.parametrize("name", sorted(METRICS))
def test_perfect_decisions_score_better_than_wrong_ones(name: str) -> None:
    metric = METRICS[name]
    targets = np.array([0, 1, 2, 2])
    perfect = metric.compute(np.eye(3)[targets], targets)
    wrong = metric.compute(np.eye(3)[(targets + 1) % 3], targets)
    assert perfect == 1
    assert wrong == 0
    assert metric.higher_is_better
    assert metric.unit == "fraction"
    assert metric.compute.__doc__
