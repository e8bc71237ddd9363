"""Draws training curves: loss, accuracy and learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from trimtab.report.parts import Curve
from trimtab.report.plain import clip, columns
from trimtab.report.standalone import sheet
from trimtab.report.svg import (
    Point,
    Scale,
    drawing,
    element,
    line,
    padded,
    path,
    text,
    thinned,
)

CURVE_POINTS = 160
COLOURS = 8
WIDTH, HEIGHT = 340.0, 230.0
SHEET_WIDTH, GAP, MARGIN = 1100.0, 26.0, 24.0
KEY_HEIGHT, KEY_COLUMNS, COLUMN_WIDTH = 22.0, 48, 6.8


class Series(NamedTuple):
    """One training's line in a chart; all points are (epoch, value).

    `raw` is drawn faintly behind `points`, `best` is marked on the line, and `resumed` are the
    epochs at which the training went on after a break.
    """

    name: str
    points: Sequence[Point]
    raw: Sequence[Point] = ()
    best: Point | None = None
    resumed: Sequence[float] = ()


class Chart(NamedTuple):
    """What one chart shows of every training."""

    title: str
    tick: Callable[[float], str]
    series: list[Series]


def chart_list(curves: Sequence[Curve]) -> list[Chart]:
    """Return the charts of some trainings: loss, accuracy, learning rate.

    The loss is the mean of each epoch in front of that of single steps, where two epochs or more
    logged it, else that of single steps.
    """
    losses = [loss_series(curve) for curve in curves]
    scores = [Series(c.name, c.accuracy, best=best_of(c.accuracy), resumed=c.resumed)
              for c in curves]  # fmt: skip
    rates = [Series(curve.name, curve.rate, resumed=curve.resumed) for curve in curves]
    return [Chart("train loss", "{:g}".format, losses),
            Chart("accuracy on valid", percent_tick, scores),
            Chart("learning rate", "{:g}".format, rates)]  # fmt: skip


def loss_series(curve: Curve) -> Series:
    """Return the loss of a training, its epochs' means in front where there are any to join."""
    if len(curve.mean_loss) > 1:
        return Series(curve.name, curve.mean_loss, raw=curve.loss, resumed=curve.resumed)
    return Series(curve.name, curve.loss, resumed=curve.resumed)


def best_of(points: Sequence[Point]) -> Point | None:
    """Return the best epoch, the later of equals; its weights are kept if `restore_best` is."""
    return max(points, key=lambda point: (point[1], point[0]), default=None)


def charts(curves: Sequence[Curve]) -> list[Markup]:
    """Draw the charts of some trainings; one where nothing was logged is left out."""
    drawn = (curve_chart(chart.series, chart.title, chart.tick) for chart in chart_list(curves))
    return [picture for picture in drawn if picture is not None]


def curve_chart(
    series: Sequence[Series], title: str, tick: Callable[[float], str],
    width: float = WIDTH, height: float = HEIGHT,
) -> Markup | None:  # fmt: skip
    """Draw one line per training over its epochs; None where nothing was logged."""
    inside = list(chart_inside(series, title, tick, width, height))
    return drawing(width, height, f"{title} by epoch", *inside) if inside else None


def chart_inside(
    series: Sequence[Series], title: str, tick: Callable[[float], str], width: float,
    height: float,
) -> Iterator[Markup]:  # fmt: skip
    """Draw what stands inside a chart's frame; nothing where nothing was logged."""
    points = [point for each in series for point in (*each.points, *each.raw)]
    if not points:
        return
    x = Scale(0.0, max(1e-6, *(at for at, _ in points)), 52, width - 14)
    y = Scale(*padded(value for _, value in points), height - 38, 30)
    yield from chart_axes(x, y, title, tick)
    for number, each in enumerate(series):
        yield from traces(each, x, y, colour_of(number))
    for number, each in enumerate(series):
        if each.best is not None:
            yield from star(each, x, y, tick, colour_of(number), named=len(series) == 1)


def colour_of(number: int) -> str:
    """Return the classes of the line of training `number`; the second eight are dashed."""
    return f"c{number % COLOURS}" + (" again" if number // COLOURS % 2 else "")


def traces(each: Series, x: Scale, y: Scale, colour: str) -> Iterator[Markup]:
    """Draw one training: its breaks, its single steps, its line."""
    for epoch in each.resumed:
        at = x(epoch)
        yield path([(at, y.start), (at, y.end)], f"resumed {colour}",
                   f"{each.name} went on at epoch {epoch:.3g}")  # fmt: skip
    if each.raw:
        yield trace(each.raw, x, y, f"line raw {colour}", f"{each.name}, single steps")
    if each.points:
        yield trace(each.points, x, y, f"line {colour}", each.name)


def trace(points: Sequence[Point], x: Scale, y: Scale, class_: str, name: str) -> Markup:
    """Draw one line, thinned to what can be seen; a single point becomes a dot."""
    return path_of([(x(at), y(v)) for at, v in thinned(list(points), CURVE_POINTS)], class_, name)


def path_of(seen: Sequence[Point], class_: str, name: str) -> Markup:
    """Draw a line through pixels; a single one becomes a dot."""
    return path(seen if len(seen) > 1 else [*seen, *seen], class_, name)


def star(
    each: Series, x: Scale, y: Scale, tick: Callable[[float], str], colour: str, *, named: bool
) -> Iterator[Markup]:
    """Mark the best epoch of a training, in words where it stands alone."""
    assert each.best is not None
    epoch, value = each.best
    at, level = x(epoch), y(value)
    title = element("title", f"{each.name}, best: {tick(round(value, 4))} at epoch {epoch:g}")
    yield element("circle", title, cx=at, cy=level, r=4.0, class_=f"best {colour}")
    if named:
        words = f"best {tick(round(value, 4))}"
        right = at > (x.start + x.end) / 2
        yield text(at + (-4 if right else 4), level + 20, words,
                   class_="label end" if right else "label")  # fmt: skip


def chart_axes(
    x: Scale, y: Scale, title: str, tick: Callable[[float], str], *, across: str = "epoch"
) -> Iterator[Markup]:
    """Draw grid, ticks and names of a curve chart."""
    for value in y.ticks(4):
        yield line((x.start, y(value)), (x.end, y(value)), "grid")
        yield text(x.start - 8, y(value) + 4, tick(value), class_="tick end")
    for value in x.ticks(5):
        yield text(x(value), y.start + 18, f"{value:g}", class_="tick mid")
    yield line((x.start, y.start), (x.end, y.start), "axis")
    yield text(8, y.end - 16, title, class_="name")
    yield text(x.end, y.start + 34, across, class_="name end")


def percent_tick(value: float) -> str:
    """Label a fraction on an axis."""
    return f"{100 * value:g} %"


def curve_marks(curves: Sequence[Curve]) -> list[str]:
    """Return what the marks in the charts mean, as far as there are such."""
    found = {
        "faint: single steps": any(len(curve.mean_loss) > 1 and curve.loss for curve in curves),
        "dot: best epoch": any(curve.accuracy for curve in curves),
        "dashed: went on after a break": any(curve.resumed for curve in curves),
    }
    return [words for words, there in found.items() if there]


def curve_sheet(curves: Sequence[Curve], *, left_out: int = 0) -> str:
    """Return an SVG file of the charts side by side, with the trainings' names below them."""
    shown = [chart for chart in chart_list(curves) if any(one.points for one in chart.series)]
    width = (SHEET_WIDTH - 2 * MARGIN - GAP * (len(shown) - 1)) / len(shown)
    drawn = [element("g", *chart_inside(chart.series, chart.title, chart.tick, width, HEIGHT),
                     transform=f"translate({MARGIN + at * (width + GAP):.1f} {MARGIN:.1f})")
             for at, chart in enumerate(shown)]  # fmt: skip
    more = [f"{left_out} more are not drawn"] if left_out else []
    keys, below = key_rows([curve.name for curve in curves], [*curve_marks(curves), *more])
    names = ", ".join(curve.name for curve in curves)
    return sheet(SHEET_WIDTH, below + MARGIN, f"training curves of {names}", *drawn, *keys)


def key_rows(names: Sequence[str], notes: Sequence[str]) -> tuple[list[Markup], float]:
    """Write the legend in rows below the charts; return it and where it ends."""
    x, y, found = MARGIN, HEIGHT + 2 * MARGIN, []
    for number, name in [*enumerate(names), *((None, note) for note in notes)]:
        words = clip(name, KEY_COLUMNS)
        wide = 40 + COLUMN_WIDTH * columns(words)
        if x > MARGIN and x + wide > SHEET_WIDTH - MARGIN:
            x, y = MARGIN, y + KEY_HEIGHT
        if number is not None:
            found.append(path([(x, y - 4), (x + 18, y - 4)], f"line {colour_of(number)}"))
        found.append(text(x + (24 if number is not None else 0), y, words))
        x += wide
    return found, y
