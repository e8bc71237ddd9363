"""Every range covers zero's neighbourhood with finite ends and loses no more than it must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.compress.ranges import RANGES, mse, percentile
from trimtab.registry import lookup

EVERY = pytest.mark.parametrize("part", RANGES.values(), ids=list(RANGES))
LEVELS = 255


def lost(values: np.ndarray[Any, Any], low: float, high: float) -> float:
    """Return the mean squared error of eight bits over [low, high]."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / LEVELS
    zero = np.round(-low / step)
    found = (np.clip(np.round(values / step) + zero, 0, LEVELS) - zero) * step
    return float(np.square(found - values).mean())


@EVERY
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3), offset=st.floats(-3, 3))
def test_a_range_lies_within_the_values(
    part: Callable[..., tuple[float, float]], seed: int, scale: float, offset: float
) -> None:
    values = (scale * (np.random.default_rng(seed).normal(size=500) + offset)).astype(np.float32)
    low, high = part(values)
    assert low <= high
    assert min(float(values.min()), 0.0) - 1e-4 * scale <= low
    assert high <= max(float(values.max()), 0.0) + 1e-4 * scale


@EVERY
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_a_constant_tensor_has_a_finite_range(
    part: Callable[..., tuple[float, float]], value: float
) -> None:
    low, high = part(np.full(100, value, np.float32))
    assert np.isfinite([low, high]).all()
    assert low <= value <= high or np.isclose([low, high], value, rtol=0.02).any()


def test_mse_of_activations_after_a_relu_loses_least() -> None:
    values = np.maximum(np.random.default_rng(0).normal(size=20_000), 0).astype(np.float32)
    best = lost(values, *mse(values))
    assert all(best <= 1.02 * lost(values, *part(values)) for part in RANGES.values())


def test_mse_gives_up_the_ends_of_a_long_tail() -> None:
    values = np.random.default_rng(0).standard_t(3, size=200_000).astype(np.float32)
    low, high = mse(values)
    assert values.min() < low
    assert high < values.max()
    assert lost(values, low, high) < 0.9 * lost(values, float(values.min()), float(values.max()))


def test_percentile_leaves_out_the_tail() -> None:
    values = np.zeros(100_000, np.float32)
    values[:3] = 1000.0
    assert percentile(values)[1] == 0.0


def test_a_range_can_be_the_users_own() -> None:
    assert lookup("range", RANGES, "builtins:sorted") is sorted
