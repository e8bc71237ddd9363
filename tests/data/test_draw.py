"""Draws depend on seed, epoch, sample and name alone, and are as random as they should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.data.draw import Draw

COUNT = 20_000
FLOATS = ("uniform", "normal", "signs")


def draw(epoch: int = 0, *, seed: int = 0, count: int = COUNT) -> Draw:
    return Draw(seed, epoch, torch.arange(count))


def correlation(one: Tensor, two: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])


@pytest.mark.parametrize(
    ("kind", "mean", "variance"), [("uniform", 0.5, 1 / 12), ("normal", 0, 1), ("signs", 0, 1)]
)
def test_numbers_have_the_mean_and_variance_of_their_kind(
    kind: str, mean: float, variance: float
) -> None:
    found = getattr(draw(), kind)("x", 5)
    assert found.shape == (COUNT, 5)
    assert found.dtype == torch.float32
    assert float(found.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / found.numel()))
    assert float(found.var()) == pytest.approx(variance, rel=0.03)


def test_uniform_is_even_and_within_its_range() -> None:
    found = draw(count=100_000).uniform("x")
    assert 0 <= float(found.min()) < 1e-4
    assert 1 - 1e-4 < float(found.max()) < 1
    counts = torch.histc(found, 50, 0, 1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 90  # chi-square, 49 degrees, p < 0.001


def test_normal_has_normal_tails() -> None:
    found = draw().normal("x", 10)
    assert float((found.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.003)
    assert float((found**4).mean()) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize(("low", "high"), [(0, 2), (-3, 4), (5, 6), (0, 1000)])
def test_integers_are_even_and_reach_both_ends(low: int, high: int) -> None:
    found = draw(count=100_000).integers("x", low, high)
    counts = torch.bincount(found - low, minlength=high - low)
    assert (int(found.min()), int(found.max()), len(counts)) == (low, high - 1, high - low)
    expected = 100_000 / (high - low)
    assert float((counts - expected).abs().max()) < 6 * math.sqrt(expected)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 1.0, 2.5, 10.0])
def test_beta_has_the_moments_of_its_alpha(alpha: float) -> None:
    found = draw(count=100_000).beta("x", alpha).double()
    assert bool(((found >= 0) & (found <= 1)).all())
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.var()) == pytest.approx(variance, rel=0.03)
    assert float(((found - 0.5) ** 4).mean()) == pytest.approx(fourth, rel=0.05)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_beta_follows_its_distribution(alpha: float) -> None:
    from scipy.stats import beta, kstest

    found = draw().beta("x", alpha).double()
    lower = found[found < 0.5].clamp(min=1e-15)  # float32 has no steps that fine below 1
    assert kstest(lower.numpy(), lambda x: 2 * beta(alpha, alpha).cdf(x)).pvalue > 1e-3


@pytest.mark.parametrize("kind", FLOATS)
def test_other_names_epochs_seeds_branches_and_ids_give_other_numbers(kind: str) -> None:
    first = getattr(draw(), kind)("x", 3)
    others = [
        getattr(draw(), kind)("y", 3),
        getattr(draw(1), kind)("x", 3),
        getattr(draw(seed=1), kind)("x", 3),
        getattr(draw().branched("again"), kind)("x", 3),
        first.roll(1, 0),
        first.roll(1, 1),
    ]
    assert all(abs(correlation(first, other)) < 0.02 for other in others)


def test_no_two_streams_share_a_number() -> None:
    found = torch.cat([
        Draw(seed, epoch, torch.arange(500)).branched(branch).bits(name, 8).flatten()
        for seed in range(3) for epoch in range(4) for branch in "ab" for name in ("x", "y", "z")
    ])  # fmt: skip
    assert len(found.unique()) == len(found) == 500 * 8 * 72


def test_every_bit_is_a_fair_coin() -> None:
    bits = draw().bits("x")
    share = torch.stack([(bits >> place) & 1 for place in range(64)]).double().mean(1)
    assert float((share - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(COUNT)


@pytest.mark.parametrize("kind", [*FLOATS, "beta", "integers"])
def test_a_sample_has_the_same_numbers_in_every_batch(kind: str) -> None:
    settings = {"beta": (0.3,), "integers": (0, 100)}.get(kind, ())
    whole = getattr(draw(count=301), kind)("x", *settings)
    rows = torch.randperm(301)[:37]
    part = Draw(0, 0, rows)
    assert torch.equal(getattr(part, kind)("x", *settings), whole[rows])
    assert torch.equal(getattr(draw(count=301).take(rows), kind)("x", *settings), whole[rows])


def test_the_same_draw_is_the_same_again_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one = draw(3, seed=7, count=10)
    assert torch.equal(one.uniform("x", 4), one.uniform("x", 4))
    assert torch.equal(one.uniform("x", 4), draw(3, seed=7, count=10).uniform("x", 4))
    assert torch.equal(one.ids, torch.arange(10))
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_those_of_earlier_versions() -> None:
    """A resumed training must see the same augmentation: this fails where the hash changes."""
    found = Draw(1, 2, torch.tensor([3, 4])).integers("x", 0, 1000).tolist()
    assert found == [853, 301]
