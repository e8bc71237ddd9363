"""Draws the confusion matrix."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator

from markupsafe import Markup
from PIL import Image

from trimtab.report.parts import Confusion
from trimtab.report.plain import clip, columns
from trimtab.report.svg import drawing, element, text

CELL = 34.0
NAME_COLUMNS = 16
LARGEST_GRID = 20
LARGEST_RASTER = 500
LEVELS = 7
HIT, MISS = (13, 148, 136), (224, 90, 30)


def confusion_picture(confusion: Confusion) -> Markup:
    """Draw the confusion matrix: cells with counts, or one pixel per cell for many classes."""
    if len(confusion.classes) <= LARGEST_GRID:
        return confusion_grid(confusion)
    return confusion_raster(confusion)


def confusion_grid(confusion: Confusion) -> Markup:
    """Draw labelled cells; the shade is the share of the true class, its text the count."""
    known = confusion.classes
    names = [clip(name, NAME_COLUMNS) for name in known]
    longest = max(columns(name) for name in names)
    tilted = longest > 4
    left, top = 44 + 7.2 * longest, 30 + (5.2 * longest + 8 if tilted else 12)
    side = CELL * len(names)
    right = 16 + (4.6 * longest if tilted else 0)
    cells = [cell(left + CELL * j, top + CELL * i, n, sum(row), (truth, decided))
             for i, (truth, row) in enumerate(zip(known, confusion.matrix, strict=True))
             for j, (decided, n) in enumerate(zip(known, row, strict=True))]  # fmt: skip
    marks = [
        mark for i, name in enumerate(names) for mark in cell_names(i, name, left, top, tilted)
    ]
    turn = f"rotate(-90 14 {top + side / 2:.1f})"
    axis = [text(left, 14, "decided class", class_="name"),
            text(14, top + side / 2, "true class", class_="name mid", transform=turn)]  # fmt: skip
    label = f"confusion matrix of {len(names)} classes; the numbers also stand in the tables below"
    return drawing(left + side + right, top + side + 8, label, *axis, *marks, *cells)


def cell_names(i: int, name: str, left: float, top: float, tilted: bool) -> Iterator[Markup]:
    """Write the name of class `i` beside its row and above its column."""
    yield text(left - 8, top + CELL * (i + 0.5) + 4, name, class_="tick end")
    x, y = left + CELL * (i + 0.5), top - 8
    turn = f"rotate(-40 {x:.1f} {y:.1f})" if tilted else None
    yield text(x, y, name, class_="tick" if tilted else "tick mid", transform=turn)


def cell(x: float, y: float, count: int, total: int, classes: tuple[str, str]) -> Markup:
    """Draw one cell; `classes` are (true, decided)."""
    truth, decided = classes
    kind = "hit" if truth == decided else "miss"
    box: dict[str, float] = {"x": x + 1, "y": y + 1, "width": CELL - 2, "height": CELL - 2}
    empty = element("rect", **box, rx=4, class_="cell")
    if not count:
        return empty
    title = element(
        "title", f"{clip(truth, 60)} decided as {clip(decided, 60)}: {count:,} of {total:,}"
    )
    opacity = f"{0.14 + 0.5 * math.sqrt(count / max(1, total)):.2f}"
    shade = element("rect", title, **box, rx=4, class_=kind, fill_opacity=opacity)
    small = "count small" if count > 999 else "count"
    return element(
        "g", empty, shade, text(x + CELL / 2, y + CELL / 2 + 4, short(count), class_=small)
    )


def short(count: int) -> str:
    """Write a count in at most four characters."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.0f}M"


def confusion_raster(confusion: Confusion) -> Markup:
    """Draw one pixel per cell as a PNG; beyond LARGEST_RASTER classes neighbours share a pixel."""
    size = len(confusion.classes)
    block = math.ceil(size / LARGEST_RASTER)
    side = math.ceil(size / block)
    pixels = bytearray(side * side)
    for i, row in enumerate(confusion.matrix):
        total = sum(row)
        for j, count in enumerate(row):
            if count > 0:
                at = side * (i // block) + j // block
                pixels[at] = max(pixels[at], level(count / total, hit=i == j))
    label = (
        f"confusion matrix of {size} classes as a heat map: true class down, decided class across"
    )
    source = "data:image/png;base64," + base64.b64encode(png(bytes(pixels), side)).decode("ascii")
    return Markup('<img class="raster" src="{}" alt="{}" width="{}" height="{}">').format(
        source, label, side, side
    )


def level(share: float, *, hit: bool) -> int:
    """Return the palette index of a cell; errors outrank hits where cells share a pixel."""
    step = max(1, math.ceil(LEVELS * math.sqrt(min(1.0, share))))
    return step if hit else LEVELS + step


def png(pixels: bytes, side: int) -> bytes:
    """Return palette indices (side * side,) as a PNG that lets the page's background through."""
    image = Image.frombytes("P", (side, side), pixels)
    image.putpalette([0, 0, 0, *HIT * LEVELS, *MISS * LEVELS])
    strengths = [round(255 * (0.2 + 0.8 * step / LEVELS)) for step in range(1, LEVELS + 1)]
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, *strengths, *strengths]), optimize=True)
    return buffer.getvalue()
