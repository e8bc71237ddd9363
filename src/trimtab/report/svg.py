"""Draws SVG from Python: escaped elements, scales and ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

Value = str | float | None
Point = tuple[float, float]
LOG_STEPS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0))


def element(tag: str, *children: str, **attributes: Value) -> Markup:
    """Return one element; text and attribute values are escaped unless they are Markup.

    `class_` becomes `class`, `stroke_width` becomes `stroke-width`; None leaves an attribute out.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), shown(value))
        for name, value in attributes.items() if value is not None
    )  # fmt: skip
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, inner)


def shown(value: str | float) -> str:
    """Return an attribute's text; numbers with one decimal, which is a tenth of a pixel."""
    if isinstance(value, str):
        return value
    return f"{value:.1f}".removesuffix(".0")


def drawing(width: float, height: float, label: str, *children: str) -> Markup:
    """Return a whole picture that scales with its frame and is read out as `label`."""
    return element(
        "svg", *children, width=width, viewBox=f"0 0 {shown(width)} {shown(height)}", role="img",
        aria_label=label, class_="picture",
    )  # fmt: skip


def text(x: float, y: float, content: str, **attributes: Value) -> Markup:
    """Return a line of text at (x, y)."""
    return element("text", content, x=x, y=y, **attributes)


def line(start: Point, end: Point, class_: str) -> Markup:
    """Return a straight line."""
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def path(points: Iterable[Point], class_: str, title: str = "") -> Markup:
    """Return a line through `points`, named by a tooltip."""
    steps = "L".join(f"{shown(x)} {shown(y)}" for x, y in points)
    children = [element("title", title)] if title else []
    return element("path", *children, d=f"M{steps}", class_=class_)


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`, perhaps by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        low, high, at = (self.bend(v) for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def bend(self, value: float) -> float:
        """Return the value on the axis: its logarithm where the axis is logarithmic."""
        return math.log10(max(value, 1e-12)) if self.log else value

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values on the axis, about `wanted` of them."""
        found = log_ticks(self.low, self.high, wanted) if self.log else []
        return found if len(found) > 1 else linear_ticks(self.low, self.high, wanted)


def padded(values: Iterable[float], share: float = 0.08) -> tuple[float, float]:
    """Return a range that holds all `values` with `share` of air on both sides."""
    found = list(values)
    low, high = min(found), max(found)
    air = share * (high - low) or max(abs(high) * share, 1e-6)
    return low - air, high + air


def padded_log(values: Iterable[float], share: float = 0.12) -> tuple[float, float]:
    """Return a range as `padded`, for a logarithmic axis."""
    low, high = padded((math.log10(max(value, 1e-12)) for value in values), share)
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    return 10**low, 10**high


def linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten inside the range."""
    rough = (high - low) / max(1, wanted)
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Return round values inside the range: decades, or 1, 2, 5, or finer, about `wanted`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in LOG_STEPS:
        inside = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if 2 * len(inside) >= wanted:
            break
    return inside


def thinned(points: list[Point], most: int) -> list[Point]:
    """Return about `most` of `points` at the most: both ends, and every stretch's extremes."""
    if len(points) <= most:
        return points
    edges = [round(2 * i * len(points) / most) for i in range(most // 2)] + [len(points)]
    kept = {0, len(points) - 1}
    for start, end in pairwise(edges):
        rows = range(start, end)
        kept |= {min(rows, key=lambda i: points[i][1]), max(rows, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]
