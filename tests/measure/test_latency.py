"""Latency: quantiles in order, intervals that hold, and a fair comparison in turns."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.measure import latency
from trimtab.measure.latency import (
    compare_latency,
    in_turns,
    measure_latency,
    median_interval,
    ratio,
    summary,
)
from trimtab.measure.size import file_bytes


class Clock:
    """A clock that only `wait` moves, so that no test depends on the machine."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-9
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "time", CLOCK)


def wait(seconds: float) -> None:
    CLOCK.now += seconds


def test_quantiles_are_in_order_and_hold_the_true_duration() -> None:
    found = measure_latency(lambda: wait(0.001), seconds=0.2, threads=1)
    assert 1.0 <= found.p50_ms <= found.p95_ms <= found.p99_ms
    assert found.low_ms <= found.p50_ms <= found.high_ms
    assert found.p99_ms == pytest.approx(1.0, rel=1e-3)
    assert found.threads == 1


def test_a_slow_call_is_still_made_often_enough() -> None:
    found = measure_latency(lambda: wait(0.002), seconds=0.001, threads=1)
    assert found.n >= 20


def test_the_first_calls_are_not_counted() -> None:
    calls: list[None] = []

    def slow_at_first() -> None:
        calls.append(None)
        wait(0.05 if len(calls) <= 2 else 0.0005)

    assert measure_latency(slow_at_first, seconds=0.05, threads=1).p99_ms < 1


def test_a_call_that_takes_twice_as_long_gives_a_ratio_of_two() -> None:
    found = compare_latency(lambda: wait(0.0008), lambda: wait(0.0004), seconds=0.4)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(2.0, rel=0.01)


def test_equal_calls_give_a_ratio_of_one() -> None:
    found = compare_latency(lambda: wait(0.0005), lambda: wait(0.0005), seconds=0.4)
    assert found.value == pytest.approx(1.0, rel=0.01)
    assert found.n >= 8


def test_a_machine_that_slows_down_halfway_widens_the_interval() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 2000)
    low, high = median_interval(np.where(np.arange(2000) < 1000, 1.0, 2.0) + noise)
    steady_low, steady_high = median_interval(1.0 + noise)
    assert low < 1.1
    assert high > 1.9
    assert steady_high - steady_low < 0.01


def test_the_size_of_a_file_is_its_bytes(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert file_bytes(tmp_path / "a") == 5


def test_several_calls_are_timed_in_turns_and_a_slow_one_often_enough() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        wait(seconds)

    calls = [lambda: call("a", 0.03), lambda: call("b", 0.06), lambda: call("c", 0.09)]
    blocks = in_turns(calls, seconds=0.01, fewest=20)
    turns = "".join(order)
    assert turns.endswith("aabbccccbbaa" * 9)  # the first of each pair is not counted
    assert [summary(np.concatenate(each), 1).p95_ms for each in blocks] == pytest.approx(
        [30, 60, 90], rel=1e-3
    )
    assert all(len(each) >= 20 for each in blocks)
    assert ratio(blocks[2], blocks[0]).value == pytest.approx(3, rel=1e-3)


def test_a_machine_that_slows_down_meanwhile_does_not_change_a_ratio() -> None:
    pace = [1.0]

    def call(seconds: float) -> None:
        pace[0] *= 1.001
        wait(seconds * pace[0])

    blocks = in_turns([lambda: call(0.03), lambda: call(0.06)], seconds=0.01, fewest=40)
    assert ratio(blocks[1], blocks[0]).value == pytest.approx(2, rel=0.01)
    assert np.median(blocks[0][-1]) > 1.1 * np.median(blocks[0][0])
