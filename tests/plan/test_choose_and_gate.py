"""The choice and the does-it-pay gate, on made-up measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from trimtab.measure.latency import Latency, Ratio
from trimtab.measure.quality import score
from trimtab.plan.candidates import Candidate, gate
from trimtab.plan.choose import binding, choose
from trimtab.records.recipe import Recipe
from trimtab.records.target import parse_target

N = 1000


@dataclass
class FakeRun:
    rows: list[Any] = field(default_factory=list)
    parent: None = None

    def measured(self, what: str) -> dict[str, float]:
        return {"value": 1000.0}

    def record(self, what: str, value: Any, **more: Any) -> None:
        self.rows.append((what, value, more))


@dataclass
class FakeArtifact:
    size_bytes: int


def made(
    name: str, accuracy: float, size: int, p95: float, parent: Candidate | None = None,
    speed: tuple[float, float, float] = (1.0, 0.9, 1.1),
) -> Candidate:  # fmt: skip
    right = round(accuracy * N)
    targets = np.zeros(N, np.int64)
    logits = np.where(np.arange(N)[:, None] < right, [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
    latency = Latency(
        p50_ms=p95 / 2, p95_ms=p95, p99_ms=p95, low_ms=0.0, high_ms=p95, n=10, threads=1
    )
    ratio = Ratio(*speed, 10) if parent else None
    return Candidate(name, ("train",), FakeRun(), FakeArtifact(size),  # type: ignore[arg-type]
                     score(logits, targets, split="valid"), latency, parent, ratio)  # fmt: skip


TARGET = parse_target("accuracy>=0.9, p95<=10ms, size<=100KB")


def test_smallest_that_meets_every_clause_ships() -> None:
    found = [
        made("big", 0.97, 90_000, 5),
        made("small", 0.95, 40_000, 6),
        made("slow", 0.99, 10_000, 20),
    ]
    assert choose(found, TARGET).name == "small"


def test_fastest_ships_where_only_a_latency_is_wanted() -> None:
    found = [made("big", 0.97, 90_000, 2), made("small", 0.95, 40_000, 6)]
    assert choose(found, parse_target("accuracy>=0.9, p95<=10ms")).name == "big"


def test_one_that_barely_meets_accuracy_yields_to_one_with_margin() -> None:
    found = [made("sure", 0.95, 90_000, 5), made("lucky", 0.901, 40_000, 5)]
    assert choose(found, TARGET).name == "sure"
    assert choose(found[1:], TARGET).name == "lucky"


def test_nearest_ships_and_the_binding_clause_is_named_where_none_meets() -> None:
    found = [made("far", 0.5, 10_000, 1), made("near", 0.89, 10_000, 1)]
    chosen = choose(found, TARGET)
    assert chosen.name == "near"
    assert binding(chosen.got, TARGET) == "accuracy"
    assert binding(made("met", 0.95, 10_000, 1).got, TARGET) is None


def test_edit_that_was_not_kept_never_ships() -> None:
    cut = made("cut", 0.99, 10, 0.1)
    cut.kept = False
    assert choose([made("base", 0.95, 90_000, 5), cut], TARGET).name == "base"


@pytest.mark.parametrize(
    ("accuracy", "size", "speed", "kept", "says"),
    [
        (0.95, 25_000, (2.0, 1.9, 2.1), True, "4.0x smaller"),
        (0.95, 25_000, (0.8, 0.7, 0.9), True, "0.80x speed"),
        (0.95, 99_500, (1.0, 0.9, 1.1), False, "does not pay"),
        (0.95, 120_000, (1.5, 1.4, 1.6), True, "1.50x speed"),
        (0.80, 25_000, (2.0, 1.9, 2.1), False, "costs too much"),
    ],
)
def test_gate_keeps_only_what_pays(
    accuracy: float, size: int, speed: tuple[float, float, float], kept: bool, says: str
) -> None:
    parent = made("base", 0.95, 100_000, 5)
    child = made("child", accuracy, size, 5, parent, speed)
    gate(child, parse_target("size<=1MB"), Recipe())
    assert child.kept is kept
    assert says in child.why
    assert child.run.rows[0][:2] == ("gate", kept)  # type: ignore[attr-defined]


def test_smaller_file_that_is_slower_does_not_pay_where_only_speed_is_wanted() -> None:
    parent = made("base", 0.95, 100_000, 5)
    child = made("child", 0.95, 25_000, 5, parent, (0.8, 0.7, 0.9))
    gate(child, parse_target("p95<=10ms"), Recipe())
    assert not child.kept
    gate(child, parse_target("p95<=10ms, size<=1MB"), Recipe())
    assert child.kept


def test_accuracy_left_above_the_target_may_be_spent() -> None:
    parent = made("base", 0.95, 100_000, 5)
    child = made("child", 0.92, 25_000, 5, parent, (2.0, 1.9, 2.1))
    gate(child, TARGET, Recipe())
    assert child.kept
    gate(child, parse_target("size<=1MB"), Recipe())
    assert not child.kept
