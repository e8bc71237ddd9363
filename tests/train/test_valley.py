"""The suggestion stands in the valley of a sweep, or there is none."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.train.valley import FEWEST, noise_of, smooth, valley

LOWEST, HIGHEST = 1e-4, 10.0
TOP = 2.3


def rates_of(count: int) -> list[float]:
    return [LOWEST * (HIGHEST / LOWEST) ** (i / (count - 1)) for i in range(count)]


def losses_of(
    rates: list[float], *, middle: float, width: float, noise: float, seed: int, depth: float = 1.5,
    rise: float = 1.2,
) -> list[float]:  # fmt: skip
    """Return a loss that falls by a sigmoid around the exponent `middle`, then explodes."""
    chance = random.Random(seed)
    found = []
    for rate in rates:
        at = math.log10(rate) - middle
        fall = depth / (1 + math.exp(-at / width))
        found.append(TOP - fall + 0.05 * math.exp(min(40, (at - rise) / 0.08)))
        found[-1] += chance.gauss(0, noise)
        if found[-1] > 3 * TOP:
            break
    return found


@settings(max_examples=60, deadline=None)
@given(
    count=st.sampled_from([60, 100, 300]), middle=st.floats(-3, -0.6), width=st.floats(0.1, 0.35),
    noise=st.floats(0, 0.15), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_valley_is_located_within_a_factor_of_three(
    count: int, middle: float, width: float, noise: float, seed: int
) -> None:
    rates = rates_of(count)
    losses = losses_of(rates, middle=middle, width=width, noise=noise, seed=seed)
    found = valley(rates, losses, diverged=len(losses) < count)
    assert found.rate is not None, found.reason
    assert 1 / 3 <= found.rate / 10**middle <= 3
    assert found.span is not None
    assert found.span[0] <= 1.05 * found.rate <= 1.1 * found.span[1]


def test_clear_valley_says_so_and_a_rate_has_two_digits() -> None:
    rates = rates_of(100)
    losses = losses_of(rates, middle=-1.5, width=0.2, noise=0.05, seed=0)
    found = valley(rates, losses, diverged=True)
    assert found.clear
    assert found.rate == float(f"{found.rate:.2g}")
    assert "falls from 2.28 to 0.79" in found.reason


@pytest.mark.parametrize("level", [2.3, 1e-3, 0.0, -4.0])
def test_flat_curve_gives_no_suggestion(level: float) -> None:
    found = valley(rates_of(100), [level] * 100, diverged=False)
    assert found.rate is None
    assert "flat" in found.reason


def test_tiny_fall_without_noise_counts_as_flat() -> None:
    falling = [TOP * (1 - 5e-5 * i) for i in range(100)]
    assert valley(rates_of(100), falling, diverged=False).rate is None


@pytest.mark.parametrize("count", [20, 100, 400])
@pytest.mark.parametrize("kind", ["normal", "uniform", "skewed"])
def test_pure_noise_gives_no_suggestion(kind: str, count: int) -> None:
    for seed in range(15):
        chance = random.Random(seed)
        draw = {"normal": lambda c=chance: c.gauss(0, 0.2),
                "uniform": lambda c=chance: c.uniform(-0.3, 0.3),
                "skewed": lambda c=chance: c.expovariate(4)}[kind]  # fmt: skip
        found = valley(rates_of(count), [TOP + draw() for _ in range(count)], diverged=False)
        assert found.rate is None, (seed, found)


@pytest.mark.parametrize("survived", [0, 1, 5, FEWEST - 1])
def test_immediate_divergence_says_lower(survived: int) -> None:
    losses = [TOP * 3**i for i in range(survived)]
    found = valley(rates_of(100)[:survived], losses, diverged=True)
    assert found.rate is None
    assert "must be lower" in found.reason


def test_loss_that_only_rises_says_lower() -> None:
    losses = [TOP * 1.05**i for i in range(60)]
    for diverged in (True, False):
        found = valley(rates_of(60), losses, diverged=diverged)
        assert found.rate is None
        assert "must be lower" in found.reason


def test_few_steps_give_no_suggestion() -> None:
    found = valley(rates_of(5), [2.3, 2.0, 1.5, 1.0, 0.8], diverged=False)
    assert found.rate is None
    assert "too few" in found.reason


def test_cliff_and_open_end_are_told() -> None:
    cliff = [TOP] * 50 + [0.5] * 50
    steep = valley(rates_of(100), cliff, diverged=False)
    assert not steep.clear
    assert "cliff" in steep.reason
    falling = [TOP - 0.015 * i for i in range(100)]
    still = valley(rates_of(100), falling, diverged=False)
    assert not still.clear
    assert "still falls at the end" in still.reason


def test_small_valley_in_much_noise_is_not_clear() -> None:
    rates = rates_of(100)
    losses = losses_of(rates, middle=-1.5, width=0.2, noise=0.08, seed=1, depth=0.35)
    assert not valley(rates, losses, diverged=True).clear


def test_single_outlier_moves_nothing() -> None:
    rates = rates_of(100)
    losses = losses_of(rates, middle=-1.5, width=0.2, noise=0.02, seed=0)
    before = valley(rates, losses, diverged=True)
    losses[20] = 0.0
    losses[45] = 50.0
    after = valley(rates, losses, diverged=True)
    assert before.rate is not None
    assert after.rate == pytest.approx(before.rate, rel=0.15)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_smoothed_curve_stays_within_the_losses(losses: list[float]) -> None:
    found = smooth(losses)
    assert len(found) == len(losses)
    slack = 1e-6 * max(map(abs, losses))
    assert min(losses) - slack <= min(found)
    assert max(found) <= max(losses) + slack


def test_noise_is_that_of_the_losses_whatever_their_trend() -> None:
    chance = random.Random(0)
    losses = [5 - 0.03 * i + chance.gauss(0, 0.2) for i in range(1000)]
    assert noise_of(losses) == pytest.approx(0.2, rel=0.15)
