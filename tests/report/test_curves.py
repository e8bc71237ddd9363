"""Training curves show what metrics.jsonl holds, and what it means."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.report.conftest import TRAININGS, build_train, build_training, rewrite
from tests.report.reading import Node, read
from trimtab.errors import UsageError
from trimtab.report.curves import CURVE_POINTS, Series, curve_chart
from trimtab.report.page import report

Point = tuple[float, float]
STEPS = 39


def chart(*series: Series, title: str = "train loss") -> Node:
    picture = curve_chart(series, title, "{:g}".format)
    assert picture is not None
    return read(picture)


def pixels(line: Node) -> list[Point]:
    found = line.attributes["d"].removeprefix("M").split("L")
    return [(float(x), float(y)) for x, y in (each.split() for each in found)]


def number(words: str) -> float:
    """Return the value of a tick's label."""
    return float(words.removesuffix(" %")) / (100 if words.endswith("%") else 1)


def values_of(drawn: Node, line: Node) -> list[Point]:
    """Read a line's numbers off its chart, by the labels of the axes."""
    ticks = drawn.all("text", "tick")
    across = [(float(t.attributes["x"]), number(t.text)) for t in ticks if "mid" in t.classes]
    up = [(float(t.attributes["y"]) - 4, number(t.text)) for t in ticks if "end" in t.classes]
    return [(at(x, across), at(y, up)) for x, y in pixels(line)]


def at(pixel: float, known: list[Point]) -> float:
    """Return the value at a pixel of an axis with two labelled places or more."""
    (p, a), (q, b) = known[0], known[-1]
    return a + (pixel - p) * (b - a) / (q - p)


def log_of(folder: Path, key: str) -> list[Point]:
    """Return (epoch, value) of every row of metrics.jsonl that holds `key`."""
    text = (folder / "metrics.jsonl").read_text("utf-8")
    rows = [json.loads(each) for each in text.splitlines()]
    return [(row["step"] / STEPS, row[key]) for row in rows if key in row]


def drawn_in(page: Node, title: str) -> Node:
    return next(
        svg for svg in page.all("svg") if svg.attributes.get("aria-label", "").startswith(title)
    )


def line_of(drawn: Node, name: str) -> Node:
    return next(one for one in drawn.all("path") if one.text == name)


def page_of(*runs: Any, **settings: Any) -> Node:
    return read(report(*runs, **settings).read_text("utf-8"))


@pytest.mark.parametrize(
    ("title", "key", "suffix"),
    [
        ("train loss", "train_loss", ""),
        ("train loss", "loss", ", single steps"),
        ("accuracy on valid", "valid_accuracy", ""),
        ("learning rate", "lr", ""),
    ],
)
def test_numbers_of_a_curve_are_those_of_the_log(
    tmp_path: Path, title: str, key: str, suffix: str
) -> None:
    build_training(tmp_path / "run", 8, 0.97)
    drawn = drawn_in(page_of(tmp_path / "run"), title)
    logged = log_of(tmp_path / "run", key)
    read_off = values_of(drawn, line_of(drawn, f"run{suffix}"))
    assert len(read_off) == len(logged)
    height = max(v for _, v in logged) - min(v for _, v in logged)
    for (x, y), (epoch, value) in zip(read_off, logged, strict=True):
        assert x == pytest.approx(epoch, abs=0.01)
        assert y == pytest.approx(value, abs=0.003 * height)


def test_best_epoch_is_marked_where_the_log_has_it_and_the_later_of_equals_wins(
    tmp_path: Path,
) -> None:
    build_training(tmp_path / "run", 8, 0.97)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        for epoch, value in ((9, 0.98), (10, 0.5), (11, 0.98), (12, 0.7)):
            row = {"step": epoch * STEPS, "epoch": epoch, "valid_accuracy": value}
            log.write(json.dumps(row) + "\n")
    drawn = drawn_in(page_of(tmp_path / "run"), "accuracy on valid")
    (mark,) = drawn.all("circle", "best")
    assert mark.text == "run, best: 98 % at epoch 11"
    place = (float(mark.attributes["cx"]), float(mark.attributes["cy"]))
    assert place == pixels(line_of(drawn, "run"))[10]
    assert "best 98 %" in [label.text for label in drawn.all("text", "label")]


def test_breaks_are_drawn_where_the_training_went_on(tmp_path: Path) -> None:
    build_training(tmp_path / "run", 8, 0.97)
    rewrite(tmp_path / "run" / "run.json", lambda facts: facts | {"resumed": [STEPS * 3, "x"]})
    page = page_of(tmp_path / "run")
    for title in ("train loss", "accuracy on valid", "learning rate"):
        drawn = drawn_in(page, title)
        (line,) = drawn.all("path", "resumed")
        assert line.text == "run went on at epoch 3"
        assert values_of(drawn, line)[0][0] == pytest.approx(3, abs=0.01)
    assert "dashed: went on after a break" in page.text
    rewrite(tmp_path / "run" / "run.json", lambda facts: facts | {"resumed": {"a": 1}})
    page = page_of(tmp_path / "run")
    assert not [mark for svg in page.all("svg") for mark in svg.all("path", "resumed")]
    assert "went on after a break" not in page.text


def test_several_runs_share_each_chart_in_colours_of_their_own(tmp_path: Path) -> None:
    runs = [tmp_path / f"run{i}" for i in range(10)]
    for i, run in enumerate(runs):
        build_training(run, 4 + i, 0.9)
    drawn = drawn_in(page_of(*runs, out=tmp_path / "all.html"), "accuracy on valid")
    lines = drawn.all("path", "line")
    assert [line.text for line in lines] == [run.name for run in runs]
    assert len({line.attributes["class"] for line in lines}) == 10
    assert len(drawn.all("circle", "best")) == 10
    assert not drawn.all("text", "label")


def test_line_of_many_points_is_thinned_and_named() -> None:
    points = [(float(i), 1 / (i + 1)) for i in range(2000)]
    (line,) = chart(Series("<a>", points), Series("b", [])).all("path")
    assert line.text == "<a>"
    assert line.attributes["d"].count("L") <= CURVE_POINTS + 4


def test_single_epoch_becomes_a_dot_and_nothing_no_picture() -> None:
    start, end = pixels(chart(Series("a", [(1.0, 0.5)])).all("path")[0])
    assert start == end
    assert curve_chart([Series("a", [])], "accuracy", "{:g}".format) is None


def test_log_without_means_of_epochs_shows_its_single_steps(tmp_path: Path) -> None:
    build_training(tmp_path / "run", 8, 0.97)
    log = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    bare = [{k: v for k, v in row.items() if k != "train_loss"} for row in rows]
    log.write_text("".join(json.dumps(row) + "\n" for row in bare), "utf-8")
    drawn = drawn_in(page_of(tmp_path / "run"), "train loss")
    (line,) = drawn.all("path", "line")
    assert line.text == "run"
    assert not drawn.all("path", "raw")


# A file of its own


def test_out_that_ends_in_svg_is_the_curves_alone_and_the_same_numbers(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in TRAININGS]
    for run, (epochs, best) in zip(runs, TRAININGS.values(), strict=True):
        build_training(run, epochs, best)
    path = report(*runs, out=tmp_path / "curves.svg")
    root = read(path.read_text("utf-8"))
    (file,) = root.all("svg")
    assert file.attributes["xmlns"] == "http://www.w3.org/2000/svg"
    groups = [group for group in file.all("g") if group.all("path", "line")]
    assert len(groups) == 3
    for run in runs:
        read_off = values_of(groups[1], line_of(groups[1], run.name))
        logged = log_of(run, "valid_accuracy")
        assert [round(y, 2) for _, y in read_off] == pytest.approx(
            [value for _, value in logged], abs=0.012
        )
        assert run.name in [words.text for words in file.all("text")]


def test_picture_of_its_own_asks_for_nothing_and_needs_no_variables(tmp_path: Path) -> None:
    build_training(tmp_path / "run", 8, 0.97)
    text = report(tmp_path / "run", out=tmp_path / "curves.svg").read_text("utf-8")
    assert not re.search(r"url\(|@import|script|href|var\(|\{\{", text)
    assert "prefers-color-scheme: dark" in text
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]


def test_runs_without_curves_make_no_picture(tmp_path: Path) -> None:
    build_train(tmp_path / "run")
    with pytest.raises(UsageError, match="no whole epoch"):
        report(tmp_path / "run", out=tmp_path / "curves.svg")
    assert not (tmp_path / "curves.svg").exists()
