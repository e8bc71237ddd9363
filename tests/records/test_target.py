"""Targets: what people write is read in one way or refused with a hint."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import TargetError
from trimtab.records.target import METRICS, UNITS, parse_duration, parse_target, show


def test_all_units_come_out_in_base_units() -> None:
    target = parse_target(
        "accuracy>=92%, p50<=0.5s, p95<=10ms, p99 <= 900us, size<=1KiB, params<=2M"
    )
    assert [c.wanted for c in target.clauses] == [0.92, 500.0, 10.0, pytest.approx(0.9), 1024, 2e6]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("accuracy>92", "write accuracy>=0.92 or accuracy>=92%"),
        ("accuracy>0.92", "write accuracy>=0.92"),
        ("accuracy>=92", "fraction"),
        ("p95<=10", "no unit"),
        ("p95<=10 parsecs", "unknown unit"),
        ("acuracy>=0.9", "did you mean 'accuracy'"),
        ("p95>=10ms", "takes '<='"),
        ("size<=5mb", "unknown unit 'mb'"),
        ("accuracy", "cannot read"),
        ("", "empty"),
        (",,", "empty"),
        ("size<=0MB", "above zero"),
        ("accuracy>=0.9, accuracy>=0.8", "more than once"),
        ("accuracy>=1.2.3", "no number"),
    ],
)
def test_unreadable_target_says_why_and_gives_a_hint(text: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert says in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@given(
    st.sampled_from(sorted(METRICS)),
    st.floats(0.001, 0.99),
    st.data(),
)
def test_every_written_clause_reads_back(metric: str, value: float, data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from(sorted(UNITS[METRICS[metric]])))
    op = ">=" if metric in {"accuracy", "f1"} else "<="
    clause = parse_target(f"{metric}{op}{value:.6f}{unit}").clauses[0]
    assert math.isclose(clause.wanted, float(f"{value:.6f}") * UNITS[METRICS[metric]][unit])
    assert clause.met(clause.wanted)
    assert not clause.met(clause.wanted * (0.5 if op == ">=" else 2))


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_our_own_error(text: str) -> None:
    with suppress(TargetError):
        assert parse_target(text).clauses


def test_judge_reports_each_clause() -> None:
    rows = parse_target("accuracy>=0.9, size<=1KB").judge({"accuracy": 0.95, "size": 2000.0})
    assert [row["met"] for row in rows] == [True, False]
    assert rows[1] == {"metric": "size", "op": "<=", "wanted": 1000.0, "got": 2000.0, "met": False}


def test_unknown_measurement_never_meets_a_clause() -> None:
    clause = parse_target("p95<=1ms").clauses[0]
    assert not clause.met(None)
    assert not clause.met(math.nan)
    assert clause.shortfall(None) == math.inf


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("7", 7), (12.5, 12.5), ("2 min", 120)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "0s", "3 weeks", float("nan"), True])
def test_unreadable_duration_is_refused(text: object) -> None:
    with pytest.raises(TargetError):
        parse_duration(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [("accuracy", 0.9712, "97.12 %"), ("p95", 0.4212, "0.421 ms"), ("size", 84321.0, "84.3 KB"),
     ("params", 25.6e6, "25.6 M"), ("p50", None, "?"), ("p50", 2500.0, "2.5 s")],
)  # fmt: skip
def test_values_are_shown_with_units(metric: str, value: float | None, text: str) -> None:
    assert show(metric, value) == text
