"""Draws a learning-rate sweep: the loss that each rate met, and where the suggestion stands."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from trimtab.report.curves import chart_axes, path_of
from trimtab.report.standalone import sheet
from trimtab.report.svg import Point, Scale, element, line, padded, text

WIDTH, HEIGHT = 760.0, 440.0
EDGE, LEFT, RIGHT, TOP, BOTTOM = 8.0, 58.0, 24.0, 64.0, 62.0
NOTE_COLUMNS, NOTE_LINE = 112, 17.0
ROOM = 0.6  # of the fall, above it, that a rising loss may take of the picture


def rate_picture(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], *,
    suggestion: float | None, span: tuple[float, float] | None, title: str, note: str,
) -> str:  # fmt: skip
    """Return an SVG file of the losses, single and smoothed, over the rates (logarithmic).

    `span` are the rates between which the loss falls. What rises far above its beginning is drawn
    at the upper edge. Without two rates there are only words.
    """
    notes = textwrap.wrap(note, NOTE_COLUMNS)
    height = HEIGHT + NOTE_LINE * len(notes)
    words = [
        text(EDGE, 26, title, class_="name"),
        *(text(EDGE, HEIGHT + NOTE_LINE * at + 4, each) for at, each in enumerate(notes)),
    ]
    drawn = list(drawn_rates(rates, losses, smoothed, suggestion, span)) if len(rates) > 1 else []
    label = f"loss by learning rate: {note}"
    return sheet(WIDTH, height, label, *words, *drawn)


def drawn_rates(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float],
    suggestion: float | None, span: tuple[float, float] | None,
) -> Iterator[Markup]:  # fmt: skip
    """Draw axes, the stretch of the fall, both curves and the suggestion."""
    x = Scale(rates[0], rates[-1], LEFT, WIDTH - RIGHT, log=True)
    y = Scale(*heights(losses, smoothed), HEIGHT - BOTTOM, TOP)
    if span is not None:
        left, right = x(span[0]), x(span[1])
        yield element("rect", x=left, y=y.end, width=right - left, height=y.start - y.end,
                      class_="valley")  # fmt: skip
    yield from chart_axes(x, y, "loss", "{:g}".format, across="learning rate")
    yield path_of(seen(rates, losses, x, y), "line raw c0", "the loss of each batch")
    yield path_of(seen(rates, smoothed, x, y), "line c0", "the loss, smoothed")
    if suggestion is not None:
        yield from mark(x(suggestion), y, suggestion)


def heights(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Return the range of the axis: all that falls, and little of what rises above it."""
    low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 5)])
    roof = high + ROOM * (high - low)
    return padded(min(value, max(roof, low)) for value in (*losses, *smoothed))


def seen(
    rates: Sequence[float], values: Sequence[float], x: Scale, y: Scale
) -> list[Point]:  # fmt: skip
    """Return the pixels of a curve up to where it leaves the picture for good, at its top."""
    inside = max((at for at, value in enumerate(values) if value <= y.high), default=0)
    pairs = list(zip(rates, values, strict=True))[: inside + 2]
    return [(x(rate), y(min(value, y.high))) for rate, value in pairs]


def mark(at: float, y: Scale, suggestion: float) -> Iterator[Markup]:
    """Draw the suggested rate."""
    yield line((at, y.start), (at, y.end), "bound")
    words, ends = f"suggested: {suggestion:g}", at > WIDTH - 160
    yield text(at - 8 if ends else at + 8, y.end + 14, words,
               class_="label goal end" if ends else "label goal")  # fmt: skip
