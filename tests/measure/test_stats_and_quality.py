"""Intervals and scores agree with values worked out elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from trimtab.data.dataset import Split
from trimtab.machine import progress
from trimtab.measure.quality import logits_of, score
from trimtab.measure.stats import mean_share, paired_difference, paired_ratio, t95, wilson


def test_wilson_agrees_with_the_textbook() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 10)[0] == 0
    assert all(wilson(n, n)[1] == 1 for n in range(1, 1000))
    assert wilson(0, 0) == (0, 1)


def test_ratio_interval_covers_the_truth_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.1, (2, 400))
    value, low, high = paired_ratio(2 * noise[0], noise[1])
    assert low < 2 < high
    assert high - low < 0.2 < 10 * (value - 1)
    _, low_few, high_few = paired_ratio(2 * noise[0, :10], noise[1, :10])
    assert high_few - low_few > high - low
    assert paired_ratio([3], [2]) == (pytest.approx(1.5), 0, math.inf)


@pytest.mark.parametrize(("freedom", "quantile"), [(2, 4.3027), (11, 2.2010), (39, 2.0227)])
def test_quantiles_of_student_agree_with_the_tables(freedom: int, quantile: float) -> None:
    assert t95(freedom) == pytest.approx(quantile, abs=1e-3)


@pytest.mark.parametrize("pairs", [3, 5, 8, 30])
def test_ratio_interval_of_few_pairs_covers_the_truth_as_often_as_it_says(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    noise = rng.lognormal(0, 0.1, (1000, 2, pairs))
    found = [paired_ratio(one, other) for one, other in noise]
    assert np.mean([low < 1 < high for _, low, high in found]) == pytest.approx(0.95, abs=0.02)


def test_paired_difference_has_the_sign_of_the_second() -> None:
    a = np.array([1] * 90 + [0] * 10)
    b = np.array([1] * 80 + [0] * 20)
    change, low, high = paired_difference(a, b)
    assert change == pytest.approx(-0.1)
    assert low < change < high < 0
    assert paired_difference(a, a)[0] == 0


def test_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 4, 200)
    scores = score(logits, targets, split="valid")
    decided = logits.argmax(axis=1)
    assert scores.accuracy == pytest.approx(accuracy_score(targets, decided))
    assert scores.f1 == pytest.approx(f1_score(targets, decided, average="macro"))
    assert np.array_equal(scores.confusion, confusion_matrix(targets, decided))
    assert scores.low < scores.accuracy < scores.high


def test_class_that_never_occurs_does_not_lower_f1() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 0, 1]]
    assert score(logits, np.array([0, 1, 0, 1]), split="test").f1 == 1


def test_one_seed_gives_the_interval_of_the_pictures_alone() -> None:
    right = np.arange(200) < 150
    assert mean_share(right) == pytest.approx((0.75, *wilson(150, 200)))
    assert mean_share(np.stack([right, right, right]))[1:] == pytest.approx(wilson(150, 200))


def test_intervals_over_pictures_and_seeds_hold_the_truth_as_often_as_they_say() -> None:
    """Pictures differ in difficulty, seeds in luck; both models are equally good on the whole."""
    rng = np.random.default_rng(0)
    held, alone = [], []
    for _ in range(300):
        ease = rng.normal(1.0, 1.0, 300)
        a, b = (ease + rng.normal(0, 0.3, (3, 1)) + rng.normal(0, 0.5, (3, 300)) > 0
                for _ in range(2))  # fmt: skip
        for found, rows in ((held, slice(None)), (alone, slice(1))):
            _, low, high = paired_difference(a[rows], b[rows])
            found.append(low <= 0 <= high)
    assert np.mean(held) > 0.94
    assert np.mean(alone) < np.mean(held)  # one seed cannot know what another would have given


def test_long_looks_at_a_split_show_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    split = Split(pixels, np.zeros(12, dtype=np.int64), tuple(map(str, range(12))))
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(progress.OUTPUT, "quiet", False)
    logits = logits_of(lambda rows: rows.reshape(-1, 1), split, batch_size=5)
    assert logits[:, 0].tolist() == list(range(12))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("·")[0].strip() for line in lines] == [
        "evaluate   42 %", "evaluate   83 %", "evaluate  100 %",
    ]  # fmt: skip
