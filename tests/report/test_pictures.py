"""The pictures: true to the numbers, and drawn for any of them."""

from __future__ import annotations

import base64
import io
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.report.conftest import confusion, files
from tests.report.reading import Node, read
from trimtab.report.parts import Candidate, Clause, Confusion
from trimtab.report.pictures import confusion_picture
from trimtab.report.scatter import overlap, scatter, size_key
from trimtab.report.svg import Scale, element, padded, padded_log, thinned

NUMBERS = st.floats(-1e9, 1e9)
POSITIVE = st.floats(1e-6, 1e9)


def rows() -> list[Candidate]:
    return [Candidate.model_validate(row) for row in files()["table.json"]]


def clauses(**changes: float) -> list[Clause]:
    wanted = {"accuracy": 0.97, "p95": 0.1, "size": 100_000.0} | changes
    return [Clause(metric=metric, op=">=" if metric == "accuracy" else "<=", wanted=value, met=True)
            for metric, value in wanted.items()]  # fmt: skip


def drawn(*args: Any) -> Node:
    picture = scatter(*args)
    assert picture is not None
    return read(picture)


# Scales


@given(st.lists(NUMBERS, min_size=1, max_size=9))
def test_padded_range_holds_all_values_and_is_never_empty(values: list[float]) -> None:
    low, high = padded(values)
    assert low < min(values)
    assert max(values) < high


@given(st.lists(POSITIVE, min_size=1, max_size=9), st.booleans())
def test_scale_maps_the_ends_and_its_ticks_lie_inside(values: list[float], log: bool) -> None:
    low, high = padded_log(values) if log else padded(values)
    scale = Scale(low, high, 10, 110, log)
    assert scale(low) == pytest.approx(10)
    assert scale(high) == pytest.approx(110)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert 2 <= len(ticks) <= 40
    assert all(9.99 <= scale(tick) <= 110.01 for tick in ticks)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=700), st.integers(8, 200))
def test_thinned_line_keeps_ends_and_extremes(points: list[Any], most: int) -> None:
    kept = thinned(points, most)
    assert len(kept) <= max(most + 4, min(len(points), most))
    if points:
        assert [kept[0], kept[-1]] == [points[0], points[-1]]
        assert {min(p[1] for p in points), max(p[1] for p in points)} <= {p[1] for p in kept}


@given(st.text(max_size=30))
def test_element_escapes_text_and_attributes(words: str) -> None:
    drawn = element("text", words, aria_label=words, class_=None)
    assert drawn.count("<") == 2
    assert drawn.count('"') == 2


# Accuracy against latency and size


def test_bubble_area_is_in_proportion_to_the_file() -> None:
    picture = drawn(rows(), clauses())
    radii = {}
    for circle in picture.all("circle"):
        name = re.match(r"#\d+ (.+?):", circle.text)
        assert name
        radii[name[1]] = float(circle.attributes["r"])
    big, small = radii["cnn_medium"], radii["cnn_medium-keep70-int8"]
    assert (big / small) ** 2 == pytest.approx(391_214 / 61_204, rel=0.03)


def test_untrained_and_unmeasured_rows_are_not_drawn_and_numbers_stay_those_of_the_table() -> None:
    titles = [circle.text for circle in drawn(rows(), clauses()).all("circle")]
    assert len(titles) == 7
    assert any(
        title.startswith("#7 cnn_medium-keep70-int8: 98.52 %, 0.0662 ms") for title in titles
    )


def test_shipped_candidate_is_drawn_last_and_named() -> None:
    picture = drawn(rows(), clauses())
    assert picture.all("circle")[-1].classes == ["bubble", "ships"]
    (label,) = picture.all("text", "ships")
    assert label.text == "#7 cnn_medium-keep70-int8"


def test_faster_is_left_and_better_is_higher() -> None:
    places = {c.text.split()[1].rstrip(":"): c.attributes for c in drawn(rows(), []).all("circle")}
    fast, slow = places["heat-cnn_small"], places["heat-resnet8"]
    assert float(fast["cx"]) < float(slow["cx"])
    assert float(fast["cy"]) > float(slow["cy"])


def test_target_is_drawn_on_both_axes_and_a_bound_far_away_is_told() -> None:
    near = drawn(rows(), clauses())
    assert len(near.all("line", "bound")) == 2
    assert len(near.all("rect", "zone")) == 1
    far = drawn(rows(), clauses(p95=50.0))
    assert len(far.all("line", "bound")) == 1
    assert "p95 ≤ 50 ms lies further right" in far.text
    assert not drawn(rows(), []).all("rect", "zone")


def test_axis_follows_the_latency_that_the_target_names() -> None:
    wanted = [Clause(metric="p50", op="<=", wanted=0.1, met=True)]
    assert "p50 latency in ms" in drawn(rows(), wanted).text


def test_candidate_far_below_the_others_does_not_squash_them() -> None:
    failed = rows()[0].model_copy(update={"name": "failed"})
    assert failed.accuracy
    failed = failed.model_copy(update={"accuracy": failed.accuracy.model_copy(
        update={"value": 0.1, "low": 0.07, "high": 0.14})})  # fmt: skip
    picture = drawn([*rows(), failed], clauses())
    assert "▾ 10 %" in picture.text
    heights = [float(circle.attributes["cy"]) for circle in picture.all("circle")]
    assert sorted(heights)[-2] - min(heights) > 100


@pytest.mark.parametrize("count", [2, 12, 60])
def test_labels_do_not_cover_each_other(count: int) -> None:
    many = [row.model_copy(update={"name": f"{row.name}-{i}"})
            for i, row in zip(range(count), rows()[:7] * 9, strict=False)]  # fmt: skip
    boxes = []
    for label in drawn(many, clauses()).all("text", "label"):
        x, y = float(label.attributes["x"]), float(label.attributes["y"])
        boxes.append((x, y - 10, x + 6 * len(label.text), y + 2))
    assert boxes
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_one_candidate_or_none_needs_no_picture() -> None:
    assert scatter([], clauses()) is None
    assert scatter(rows()[:1], []) is None
    assert scatter(rows()[:1], clauses()) is not None


@pytest.mark.parametrize(("accuracy", "latency"), [(0.0, 1e-9), (1.0, 1e9), (0.5, 1.0)])
def test_extreme_candidates_are_drawn_inside(accuracy: float, latency: float) -> None:
    measured = {"value": accuracy, "low": accuracy, "high": accuracy, "split": "valid"}
    row = Candidate.model_validate({"name": "a", "accuracy": measured, "p95_ms": latency})
    for circle in drawn([row], clauses()).all("circle"):
        assert 0 <= float(circle.attributes["cx"]) <= 1000
        assert 0 <= float(circle.attributes["cy"]) <= 460


def test_legend_shows_the_largest_file_and_the_target_in_scale() -> None:
    (largest, big), (wanted, small) = size_key(rows(), clauses())
    assert (largest, wanted) == ("largest file 391 KB", "target 100 KB")
    radii = [float(read(p).all("circle")[0].attributes["r"]) for p in (big, small)]
    assert (radii[0] / radii[1]) ** 2 == pytest.approx(3.91, rel=0.02)


# Confusion


def matrix_of(size: int) -> Confusion:
    return Confusion.model_validate(confusion([f"class {i}" for i in range(size)]))


def test_cells_hold_the_counts() -> None:
    known = matrix_of(10)
    shown = [int(node.text) for node in read(confusion_picture(known)).all("text", "count")]
    assert shown == [n for row in known.matrix for n in row if n]


def test_heat_map_colours_hits_and_errors_and_leaves_the_rest_clear() -> None:
    known = matrix_of(43)
    source = read(confusion_picture(known)).all("img")[0].attributes["src"]
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGBA")
    for i, row in enumerate(known.matrix):
        for j, count in enumerate(row):
            red, green, _, alpha = image.getpixel((j, i))
            assert (alpha > 0) == (count > 0)
            assert not count or (green > red) == (i == j)


def test_more_classes_than_pixels_share_pixels_and_errors_show() -> None:
    size = 1001
    cells = [[0] * size for _ in range(size)]
    for i in range(size):
        cells[i][i] = 9
    cells[0][1] = 1
    known = Confusion(classes=tuple(map(str, range(size))), matrix=tuple(map(tuple, cells)))
    image = read(confusion_picture(known)).all("img")[0].attributes
    assert image["width"] == str(math.ceil(size / 3))
    png = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).convert("RGBA")
    first, second = png.getpixel((0, 0)), png.getpixel((1, 1))
    assert first[0] > first[1]
    assert second[0] < second[1]


def test_pairs_and_recall_follow_from_the_matrix() -> None:
    known = Confusion(classes=("a", "b", "c"), matrix=((8, 2, 0), (5, 5, 0), (0, 0, 0)))
    assert known.pairs == [(5, "b", "a"), (2, "a", "b")]
    assert [(row.name, row.recall, row.taken_for) for row in known.rows] == [
        ("b", 0.5, "a"), ("a", 0.8, "b"), ("c", None, ""),
    ]  # fmt: skip


@pytest.mark.parametrize("matrix", [[[1]], [[1, 2]], [[1, -1], [0, 0]], [[1, 0], [0]], []])
def test_matrix_that_does_not_fit_its_classes_is_refused(matrix: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"matrix|greater"):
        Confusion.model_validate({"classes": ["a", "b"], "matrix": matrix})
