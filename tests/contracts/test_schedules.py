"""Every registered schedule maps progress to a fraction of the peak."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.train.schedules import SCHEDULES, one_cycle


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(progress=st.floats(0, 1))
def test_schedule_stays_between_zero_and_the_peak(name: str, progress: float) -> None:
    fraction = SCHEDULES[name](progress)
    assert math.isfinite(fraction)
    assert 0 <= fraction <= 1


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedule_reaches_the_peak_and_is_documented(name: str) -> None:
    assert max(SCHEDULES[name](i / 1000) for i in range(1001)) == pytest.approx(1, abs=1e-3)
    assert SCHEDULES[name].__doc__


def test_one_cycle_warms_up_peaks_and_ends_at_zero() -> None:
    assert one_cycle(0) == pytest.approx(0.04)
    assert one_cycle(0.1) == pytest.approx(0.52)
    assert one_cycle(0.2) == pytest.approx(1)
    assert one_cycle(0.6) == pytest.approx(0.5)
    assert one_cycle(1) == pytest.approx(0)
