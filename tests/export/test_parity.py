"""Parity: equal is zero, a flip is a flip, a tie is none, and NaN never passes."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trimtab.export.parity import parity


def test_equal_logits_agree_entirely() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5))
    found = parity(logits, logits.copy())
    assert (found.max_difference, found.flips, found.flip_fraction, found.n) == (0.0, 0, 0.0, 20)


def test_a_changed_decision_is_a_flip() -> None:
    found = parity(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert (found.flips, found.flip_fraction) == (1, 0.5)


def test_a_tie_that_falls_the_other_way_is_no_flip() -> None:
    found = parity(np.array([[1.0, 1.0 - 1e-7]]), np.array([[1.0 - 1e-7, 1.0]]))
    assert found.flips == 0


def test_a_logit_that_is_not_a_number_makes_the_difference_infinite() -> None:
    sound, broken = np.zeros((2, 3)), np.full((2, 3), np.nan)
    for pair in ((sound, broken), (broken, sound), (broken, broken)):
        assert math.isinf(parity(*pair).relative_difference)


@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_the_relative_difference_does_not_depend_on_the_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(8, 4)), rng.normal(size=(8, 4))
    one, other = parity(a, b), parity(scale * a, scale * b)
    assert math.isclose(one.relative_difference, other.relative_difference, rel_tol=1e-9)
    assert one.flips == other.flips
