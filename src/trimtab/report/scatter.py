"""Draws accuracy against latency and size: one bubble per candidate, the target as lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from trimtab.records.target import show
from trimtab.report.parts import Candidate, Clause
from trimtab.report.plain import clip, columns
from trimtab.report.svg import Scale, drawing, element, line, padded, padded_log, text

Box = tuple[float, float, float, float]
LATENCIES = ("p95", "p50", "p99")
LEFT, RIGHT, TOP, BOTTOM = 58.0, 20.0, 34.0, 46.0
LARGEST_RADIUS, SMALLEST_RADIUS = 26.0, 3.5
LETTER, LINE = 7.0, 15.0
FAR_BELOW, FAR_RIGHT = 0.25, 3.0


@dataclass(frozen=True)
class Spot:
    """A candidate that can be drawn: number in the table, latency, accuracy, radius in pixels."""

    number: int
    row: Candidate
    x: float
    y: float
    radius: float

    @property
    def kind(self) -> str:
        """The class that colours it: ships (or stands on the front), kept or dropped."""
        if self.row.chosen or self.row.front:
            return "ships"
        return "kept" if self.row.kept is not False else "dropped"


@dataclass(frozen=True)
class Frame:
    """The plotting area with its two scales."""

    width: float
    height: float
    x: Scale
    y: Scale

    @property
    def box(self) -> Box:
        """Left, top, right, bottom."""
        return (LEFT, TOP, self.width - RIGHT, self.height - BOTTOM)


def latency_metric(clauses: Sequence[Clause]) -> str:
    """Return the latency on the x axis: the one that the target names, else p95."""
    named = {clause.metric for clause in clauses}
    return next((metric for metric in LATENCIES if metric in named), "p95")


def drawable(
    rows: Sequence[Candidate], metric: str
) -> Iterator[tuple[int, Candidate, float, float]]:
    """Yield (number in the table, row, latency in ms, accuracy) of rows that hold both."""
    for number, row in enumerate(rows, 1):
        latency: float | None = getattr(row, f"{metric}_ms")
        accuracy = row.accuracy.value if row.accuracy else None
        if latency is not None and latency > 0 and accuracy is not None:
            yield number, row, latency, accuracy


def radius_of(size_bytes: float | None, largest: float) -> float:
    """Return a radius whose circle's area is in proportion to the file size."""
    share = (size_bytes or 0.0) / largest if largest > 0 else 0.0
    return max(SMALLEST_RADIUS, LARGEST_RADIUS * math.sqrt(share))


def scatter(
    rows: Sequence[Candidate], clauses: Sequence[Clause], width: float = 1000, height: float = 460
) -> Markup | None:
    """Draw the candidates that have an accuracy and a latency; None without two or a target."""
    metric = latency_metric(clauses)
    found = list(drawable(rows, metric))
    if len(found) < (1 if clauses else 2):
        return None
    largest = max(row.size_bytes or 0.0 for _, row, _, _ in found)
    spots = [Spot(n, row, x, y, radius_of(row.size_bytes, largest)) for n, row, x, y in found]
    spots.sort(key=lambda spot: (spot.row.chosen, -spot.radius))
    wanted = {clause.metric: clause.wanted for clause in clauses}
    frame = frame_of(spots, wanted.get(metric), wanted.get("accuracy"), width, height)
    split = next((s.row.accuracy.split for s in spots if s.row.accuracy), "") or "?"
    label = f"accuracy on {split} against {metric} latency of {len(spots)} candidates"
    return drawing(
        width, height, label, *target_zone(frame, wanted.get(metric), wanted.get("accuracy")),
        *axes(frame, metric, split), *target_lines(frame, metric, wanted), *kinship(frame, spots),
        *(error_bar(frame, spot) for spot in spots), *(bubble(frame, spot) for spot in spots),
        *labels(frame, spots, wanted.get("accuracy")),
    )  # fmt: skip


def frame_of(
    spots: Sequence[Spot],
    latency: float | None,
    accuracy: float | None,
    width: float,
    height: float,
) -> Frame:
    """Choose scales that hold every spot, its interval and the target.

    Spots far below the others, and a bound far to the right of them, stay outside.
    """
    floor = max(spot.y for spot in spots) - FAR_BELOW
    heights = [v for spot in spots for v in interval(spot) if spot.y >= floor]
    heights += [accuracy] if accuracy is not None else []
    low, high = padded([max(v, floor - 0.05) for v in heights], 0.1)
    widths = [spot.x for spot in spots]
    if latency is not None and latency <= FAR_RIGHT * max(widths):
        widths.append(latency)
    x = Scale(*padded_log(widths), LEFT + 14, width - RIGHT - 14, log=True)
    return Frame(width, height, x, Scale(low, min(high, 1.004), height - BOTTOM, TOP))


def interval(spot: Spot) -> tuple[float, float]:
    """Return the ends of the accuracy interval, or the value twice where there is none."""
    measured = spot.row.accuracy
    if measured is None or measured.low is None or measured.high is None:
        return spot.y, spot.y
    return measured.low, measured.high


def center(frame: Frame, spot: Spot) -> tuple[float, float]:
    """Return where a spot is drawn: at the lower edge if it lies below the picture."""
    return frame.x(spot.x), min(frame.y(spot.y), frame.box[3])


def target_zone(frame: Frame, latency: float | None, accuracy: float | None) -> Iterator[Markup]:
    """Shade the area that meets both lines of the target."""
    if latency is None and accuracy is None:
        return
    left, top, right, bottom = frame.box
    right = min(right, frame.x(latency)) if latency is not None else right
    bottom = frame.y(accuracy) if accuracy is not None else bottom
    yield element("rect", x=left, y=top, width=right - left, height=bottom - top, class_="zone")


def axes(frame: Frame, metric: str, split: str) -> Iterator[Markup]:
    """Draw grid lines, tick labels and what the axes mean."""
    left, _, right, bottom = frame.box
    for value in frame.y.ticks(6):
        if value <= 1:
            yield line((left, frame.y(value)), (right, frame.y(value)), "grid")
            yield text(left - 8, frame.y(value) + 4, f"{100 * value:g} %", class_="tick end")
    for value in frame.x.ticks(6 if frame.width > 500 else 4):
        yield line((frame.x(value), bottom), (frame.x(value), bottom + 5), "axis")
        yield text(frame.x(value), bottom + 19, f"{value:g}", class_="tick mid")
    yield line((left, bottom), (right, bottom), "axis")
    yield text(right, bottom + 38, f"{metric} latency in ms, logarithmic", class_="name end")
    yield text(8, 14, f"accuracy on {split}", class_="name")


def target_lines(frame: Frame, metric: str, wanted: dict[str, float]) -> Iterator[Markup]:
    """Draw the target's bounds on both axes."""
    left, top, right, bottom = frame.box
    if metric in wanted:
        x, words = frame.x(wanted[metric]), f"{metric} ≤ {show(metric, wanted[metric])}"
        if x <= right:
            yield line((x, top), (x, bottom), "bound")
        side = "goal" if x < left + 130 else "goal end"
        near = min(x, right) + (6 if side == "goal" else -6)
        yield text(
            near, bottom - 8, words if x <= right else f"{words} lies further right →", class_=side
        )
    if "accuracy" in wanted:
        y = frame.y(wanted["accuracy"])
        yield line((left, y), (right, y), "bound")
        yield text(
            right - 4, y + 14, f"accuracy ≥ {100 * wanted['accuracy']:g} %", class_="goal end"
        )


def kinship(frame: Frame, spots: Iterable[Spot]) -> Iterator[Markup]:
    """Join every candidate with the one it was made from."""
    by_name = {spot.row.name: spot for spot in spots}
    for spot in by_name.values():
        parent = by_name.get(spot.row.parent or "")
        if parent is not None:
            yield line(center(frame, parent), center(frame, spot), "kin")


def error_bar(frame: Frame, spot: Spot) -> Markup:
    """Draw the 95 % interval of the accuracy, with caps."""
    x, _ = center(frame, spot)
    ends = [max(frame.box[1], min(frame.y(v), frame.box[3])) for v in interval(spot)]
    caps = [line((x - 4, y), (x + 4, y), "whisker") for y in ends]
    return element("g", line((x, ends[0]), (x, ends[1]), "whisker"), *caps)


def bubble(frame: Frame, spot: Spot) -> Markup:
    """Draw a candidate with a tooltip that says its figures."""
    x, y = center(frame, spot)
    row = spot.row
    title = f"#{spot.number} {row.name}: {show('accuracy', spot.y)}, {show('p95', spot.x)}"
    if row.size_bytes is not None:
        title += f", {show('size', row.size_bytes)}"
    circle = element("circle", element("title", title), cx=x, cy=y, r=spot.radius,
                     class_=f"bubble {spot.kind}")  # fmt: skip
    if frame.y(spot.y) <= frame.box[3]:
        return circle
    below = text(x + spot.radius + 4, y - 4, f"▾ {100 * spot.y:.0f} %", class_="tick")
    return element("g", circle, below)


def labels(frame: Frame, spots: Sequence[Spot], accuracy: float | None) -> Iterator[Markup]:
    """Name the spots where there is room, with `#number` of the table where there is less."""
    bubbles = [obstacle(frame, spot) for spot in spots]
    whiskers = [whisker_box(frame, spot) for spot in spots]
    if accuracy is not None:
        y, right = frame.y(accuracy), frame.box[2]
        whiskers += [(LEFT, y - 1, right, y + 1), (right - 120, y, right, y + 18)]
    width = 26 if frame.width > 500 else 18
    for spot in sorted(spots, key=lambda s: (not s.row.chosen, s.kind == "dropped", s.number)):
        name, mark = f"#{spot.number} {clip(spot.row.name, width)}", f"#{spot.number}"
        tries = [(name, [*bubbles, *whiskers]), (mark, [*bubbles, *whiskers]), (mark, bubbles)]
        if spot.row.chosen:
            tries.insert(1, (name, bubbles))
        for words, taken in tries:
            box = free_box(frame, spot, LETTER * columns(words), taken)
            if box is not None:
                bubbles.append(box)
                yield text(box[0], box[3] - 4, words, class_=f"label {spot.kind}")
                break


def obstacle(frame: Frame, spot: Spot) -> Box:
    """Return the box of a bubble."""
    x, y = center(frame, spot)
    reach = 0.8 * spot.radius
    return (x - reach, y - reach, x + reach, y + reach)


def whisker_box(frame: Frame, spot: Spot) -> Box:
    """Return the box of an error bar."""
    x, _ = center(frame, spot)
    high, low = sorted(frame.y(v) for v in interval(spot))
    return (x - 4, high, x + 4, low)


def free_box(frame: Frame, spot: Spot, width: float, taken: Iterable[Box]) -> Box | None:
    """Return where a label of `width` fits beside a spot, or None."""
    x, y = center(frame, spot)
    away = spot.radius + 5
    left, top, right, bottom = frame.box
    near = 0.7 * spot.radius + 3
    sides = ((away, -LINE / 2), (-away - width, -LINE / 2), (near, -near - LINE), (near, near),
             (-near - width, -near - LINE), (-near - width, near))  # fmt: skip
    for dx, dy in sides:
        box = (x + dx, y + dy, x + dx + width, y + dy + LINE)
        inside = box[0] >= left and box[1] >= top and box[2] <= right and box[3] <= bottom
        if inside and not any(overlap(box, other) for other in taken):
            return box
    return None


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def size_key(rows: Sequence[Candidate], clauses: Sequence[Clause]) -> list[tuple[str, Markup]]:
    """Return circles with their sizes for the legend: the largest file and the target's bound."""
    found = [
        row.size_bytes for _, row, _, _ in drawable(rows, latency_metric(clauses)) if row.size_bytes
    ]
    if not found:
        return []
    sizes = {"largest file": max(found)}
    wanted = next((clause.wanted for clause in clauses if clause.metric == "size"), None)
    if wanted is not None and wanted <= 2 * max(found):
        sizes["target"] = wanted
    return [(f"{name} {show('size', size)}", key_circle(radius_of(size, max(found))))
            for name, size in sizes.items()]  # fmt: skip


def key_circle(radius: float) -> Markup:
    """Return a small picture of one circle."""
    side = 2 * radius + 2
    circle = element("circle", cx=side / 2, cy=side / 2, r=radius, class_="bubble kept")
    return element("svg", circle, width=side, height=side, aria_hidden="true")
