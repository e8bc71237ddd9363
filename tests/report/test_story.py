"""The words around the numbers, and text made harmless."""

from __future__ import annotations

import re
import shlex
import unicodedata
from importlib.resources import files as resources
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.conftest import files
from trimtab.report import story
from trimtab.report.page import exact, seconds
from trimtab.report.parts import Clause, Evidence, Interval, Verdict
from trimtab.report.plain import HIDDEN, KEPT, clean, clip, columns, plain

STYLES = ("colours.css.j2", "page.css.j2")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def clause(metric: str, wanted: float, got: float | None) -> Clause:
    op = ">=" if metric == "accuracy" else "<="
    return Clause(metric=metric, op=op, wanted=wanted, got=got, met=got is not None)


# Plain text


@given(st.text(st.characters(), max_size=300), st.integers(1, 400))
def test_plain_text_hides_nothing_and_can_be_written(words: str, limit: int) -> None:
    shown = plain(words, limit)
    shown.encode("utf-8")
    assert all(c in KEPT or unicodedata.category(c) not in HIDDEN for c in shown)
    if words.isprintable() and len(words) <= limit:
        assert shown == words


def test_a_megabyte_of_text_is_cut_and_says_so() -> None:
    assert plain("a" * 1_000_000, 50) == "a" * 50 + "… (+999,950 characters)"


@given(JSON)
def test_clean_json_keeps_its_shape_and_only_finite_numbers(value: Any) -> None:
    def check(item: Any) -> None:
        if isinstance(item, dict | list):
            for part in item.values() if isinstance(item, dict) else item:
                check(part)
        assert not isinstance(item, float) or abs(item) < 1e300

    found = clean(value)
    check(found)
    if isinstance(value, list):
        assert len(found) == len(value)


@given(st.text(max_size=40), st.integers(3, 20))
def test_clipped_text_is_no_wider_than_asked(words: str, width: int) -> None:
    shown = clip(words, width)
    assert columns(shown) <= width + 1
    assert shown == words or shown.endswith("…")


# Gauges


@pytest.mark.parametrize(
    ("metric", "wanted", "got", "used"),
    [
        ("accuracy", 0.97, 0.985, 0.5),
        ("accuracy", 0.97, 0.94, 2.0),
        ("p95", 10.0, 2.5, 0.25),
        ("size", 100.0, 250.0, 2.5),
        ("accuracy", 1.0, 0.99, None),
        ("p95", 10.0, None, None),
    ],
)
def test_used_share_of_what_a_clause_allows(
    metric: str, wanted: float, got: float | None, used: float | None
) -> None:
    assert clause(metric, wanted, got).used == pytest.approx(used)


@given(st.floats(0, 1), st.floats(0.01, 0.99), st.floats(0, 0.2))
def test_gauge_stays_inside_its_bar(got: float, wanted: float, half: float) -> None:
    measured = Interval(value=got, low=max(0, got - half), high=min(1, got + half))
    bar = story.gauge(clause("accuracy", wanted, got), measured)
    assert bar is not None
    assert bar.interval is not None
    for percent in (bar.fill, bar.limit, *bar.interval):
        assert 0 <= float(percent.removesuffix("%")) <= 100


def test_gauge_of_a_time_names_the_time() -> None:
    bar = story.gauge(clause("p95", 10.0, 2.5), None)
    assert bar is not None
    assert bar.caption == "25 % of the time it allows"
    slow = story.gauge(clause("p95", 10.0, 95.0), None)
    assert slow is not None
    assert slow.caption == "9.5 times the time it allows"


@pytest.mark.parametrize(
    ("metric", "wanted", "got", "words"),
    [
        ("size", 100_000.0, 61_204.0, "61.2 KB"),
        ("size", 100_000.0, 100_112.0, "100,112 B"),
        ("accuracy", 0.97, 0.96998, "96.9980 %"),
        ("p95", 1.0, 1.0004, "1.0004 ms"),
        ("p95", 1.0, 1.0, "1 ms"),
        ("size", 1e6, 999_700.0, "999,700 B"),
        ("size", 2e6, 999_700.0, "1 MB"),
    ],
)
def test_near_miss_is_not_shown_as_what_was_wanted(
    metric: str, wanted: float, got: float, words: str
) -> None:
    assert story.reached(clause(metric, wanted, got)) == words


def test_interval_across_the_bound_is_told_and_one_that_clears_it_is_not() -> None:
    content = files()["verdict.json"]
    assert "includes the bound 97 %" in story.doubt(Verdict.model_validate(content))
    content["accuracy"]["low"] = 0.971
    assert story.doubt(Verdict.model_validate(content)) == ""


# Commands


def test_commands_survive_a_shell() -> None:
    content = files()["verdict.json"]
    command = {"command": ["trimtab", "fit", "a b"]}
    evidence = Evidence(
        name="a run", kind="fit", facts={"seed": 3}, verdict=Verdict.model_validate(content),
        data={"source": "../my photos; rm -rf x"}, environment=command,
    )  # fmt: skip
    (_, called), (_, rebuilt) = story.again(evidence)
    assert shlex.split(called) == ["trimtab", "fit", "a b"]
    words = shlex.split(rebuilt)
    assert words[:5] == ["trimtab", "fit", "../my photos; rm -rf x", "--target", content["target"]]
    assert words[5:9] == ["--budget", "180s", "--seed", "3"]


def test_run_made_from_python_is_told_as_a_command_too() -> None:
    evidence = Evidence(
        name="r", kind="train", facts={"seed": 0}, environment={"command": ["x.py"]}
    )
    assert [shlex.split(command)[:3] for _, command in story.again(evidence)] == [
        ["trimtab", "train", "DATA"]
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.25, "0.25 s"), (59.0, "59 s"), (141.27, "2 min 21 s"), (7260, "2 h 01 min")],
)
def test_seconds_as_people_say_them(value: float, words: str) -> None:
    assert seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "yes"), (None, "–"), (1234567, "1,234,567"), (0.1, "0.1"), ("a", "a")],
)
def test_ledger_values_are_shown_exactly(value: Any, words: str) -> None:
    assert exact(value) == words


# Colours


INKS_ON = {"accent-soft": ("accent", "kept"), "miss-soft": ("miss",)}


def theme(start: str) -> dict[str, tuple[float, ...]]:
    """Return the colours of the first rule after `start`, as fractions."""
    css = "".join((resources("trimtab.report") / file).read_text("utf-8") for file in STYLES)
    block = css[css.index(start) :].split("}")[0]
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", block)
    return {name: tuple(int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, c in found}


def luminance(colour: tuple[float, ...]) -> float:
    """Return the relative luminance (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("start", [":root", "prefers-color-scheme: dark", "@media print"])
@pytest.mark.parametrize("ground", ["paper", "card", "sunk", "accent-soft", "miss-soft"])
def test_text_has_contrast_on_every_ground(start: str, ground: str) -> None:
    colours = theme(start)
    inks = ["ink", "soft", *INKS_ON.get(ground, ("accent", "miss", "kept"))]
    for ink in inks:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
