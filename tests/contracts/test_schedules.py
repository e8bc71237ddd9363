"""Every registered schedule maps progress to a fraction of the peak."""

from __future__ import annotations

import inspect
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.records.sections import TrainSection
from trimtab.train.schedules import (
    SCHEDULES,
    Plateau,
    Schedule,
    exp_range,
    inverse_sqrt,
    multi_step,
    one_cycle,
    polynomial,
    step,
    triangular,
    triangular2,
    with_floor,
    with_settings,
    with_warmup,
)  # fmt: skip

GRID = [i / 6000 for i in range(6001)]
SHARES = st.floats(0, 1)


def schedule_of(name: str, **settings: object) -> Schedule:
    return with_settings(SCHEDULES[name], settings)


# What holds for every schedule


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(progress=SHARES, gamma=st.floats(0.01, 0.99), cycles=st.integers(1, 20),
       power=st.floats(0.1, 10))  # fmt: skip
def test_schedule_stays_between_zero_and_the_peak(
    name: str, progress: float, gamma: float, cycles: int, power: float
) -> None:
    fraction = schedule_of(name, gamma=gamma, cycles=cycles, power=power)(progress)
    assert math.isfinite(fraction)
    assert 0 <= fraction <= 1


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedule_reaches_the_peak_and_is_documented(name: str) -> None:
    schedule = schedule_of(name)
    assert max(schedule(one) for one in GRID) == pytest.approx(1, abs=1e-3)
    assert SCHEDULES[name].__doc__


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_settings_are_the_recipes_fields_and_have_its_defaults(name: str) -> None:
    fields = TrainSection.model_fields
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    for one in parameters:
        if one.name != "progress":
            assert one.kind is one.KEYWORD_ONLY
            assert one.default == fields[one.name].default


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(progress=SHARES, floor=SHARES)
def test_floor_lifts_the_lowest_rate_and_keeps_the_peak(
    name: str, progress: float, floor: float
) -> None:
    schedule = schedule_of(name)
    lifted = with_floor(schedule, floor)(progress)
    assert max(floor, schedule(progress)) - 1e-12 <= lifted <= 1
    assert with_floor(lambda _: 1.0, floor)(progress) == 1
    assert with_floor(lambda _: 0.0, floor)(progress) == floor


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(progress=SHARES)
def test_floor_and_warmup_of_zero_change_no_bit(name: str, progress: float) -> None:
    schedule = schedule_of(name)
    assert with_floor(with_warmup(schedule, 0.0), 0.0)(progress) == schedule(progress)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@given(progress=SHARES, warmup=st.floats(0.01, 0.9))
def test_warmup_rises_to_the_start_and_leaves_the_rest_to_the_schedule(
    name: str, progress: float, warmup: float
) -> None:
    schedule = schedule_of(name)
    warmed = with_warmup(schedule, warmup)
    assert 0 <= warmed(progress) <= 1
    assert warmed(0) == 0
    assert warmed(warmup / 2) == pytest.approx(schedule(0) / 2)
    assert warmed(warmup) == schedule(0)
    assert warmed(1) == schedule(1)
    middle = warmup + (1 - warmup) * 0.4
    assert warmed(middle) == pytest.approx(schedule((middle - warmup) / (1 - warmup)))


# What holds for some


def test_one_cycle_warms_up_peaks_and_ends_at_zero() -> None:
    assert one_cycle(0) == pytest.approx(0.04)
    assert one_cycle(0.1) == pytest.approx(0.52)
    assert one_cycle(0.2) == pytest.approx(1)
    assert one_cycle(0.6) == pytest.approx(0.5)
    assert one_cycle(1) == pytest.approx(0)


@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine", "cosine_restarts"])
def test_schedule_starts_at_the_peak_and_ends_at_zero(name: str) -> None:
    assert schedule_of(name)(0) == 1
    assert schedule_of(name)(1) == pytest.approx(0, abs=1e-12)
    assert schedule_of(name, cycles=1)(0.5) == pytest.approx(0.5)


def test_step_drops_after_each_third_and_multi_step_at_its_milestones() -> None:
    assert [round(step(one), 9) for one in (0, 0.33, 1 / 3, 0.66, 0.67, 1)] == [
        1, 1, 0.1, 0.1, 0.01, 0.01]  # fmt: skip
    assert [multi_step(one, gamma=0.5) for one in (0.49, 0.5, 0.74, 0.75, 1)] == [
        1, 0.5, 0.5, 0.25, 0.25]  # fmt: skip
    assert multi_step(0.15, milestones=(0.2, 0.1)) == pytest.approx(0.1)


def test_exponential_and_polynomial_follow_their_settings() -> None:
    assert schedule_of("exponential", gamma=0.04)(0.5) == pytest.approx(0.2)
    assert schedule_of("exponential", gamma=0.04)(1) == pytest.approx(0.04)
    assert polynomial(0.5, power=2) == pytest.approx(0.25)
    assert inverse_sqrt(1) == pytest.approx(0.1, abs=1e-3)


def test_restarts_and_triangles_come_back_each_cycle() -> None:
    restarts = schedule_of("cosine_restarts", cycles=4)
    assert [restarts(one) for one in (0, 0.25, 0.5, 0.75)] == [1, 1, 1, 1]
    assert restarts(0.2499) == pytest.approx(0, abs=1e-4)
    tops = [(2 * i + 1) / 6 for i in range(3)]
    assert [triangular(one) for one in tops] == pytest.approx([1, 1, 1])
    assert [triangular2(one) for one in tops] == pytest.approx([1, 0.5, 0.25])
    assert [triangular(i / 3) for i in range(4)] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    heights = [exp_range(one, gamma=0.2) for one in tops]
    assert heights == pytest.approx([1, 0.2**0.4, 0.2**0.8])


# Plateau


def test_plateau_drops_after_its_patience_and_not_while_scores_rise() -> None:
    plateau = Plateau(gamma=0.5, plateau_patience=2)
    seen = []
    for score in (math.nan, 0.2, 0.3, 0.3, 0.2, 0.1, 0.4, 0.4, math.nan, 0.5):
        plateau.observe(score)
        seen.append(plateau(0.5))
    assert seen == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


@given(scores=st.lists(st.floats(0, 1), max_size=20), more=st.lists(st.floats(0, 1), max_size=20))
def test_plateau_goes_on_from_its_state(scores: list[float], more: list[float]) -> None:
    whole, first, second = (Plateau(gamma=0.3, plateau_patience=2) for _ in range(3))
    for score in scores:
        whole.observe(score)
        first.observe(score)
    second.restore(json.loads(json.dumps(first.state())))
    for score in more:
        whole.observe(score)
        second.observe(score)
        assert second(0.0) == whole(0.0)
    assert second.state() == whole.state()


def test_settings_that_a_schedule_does_not_name_are_left_out() -> None:
    settings = {"gamma": 0.5, "plateau_patience": 1, "power": 3.0}
    plateau = with_settings(Plateau, settings)
    assert isinstance(plateau, Plateau)
    assert (plateau.gamma, plateau.patience) == (0.5, 1)
    assert with_settings(polynomial, settings)(0.5) == pytest.approx(0.125)
