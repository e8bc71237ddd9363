"""The table of candidates as text for a terminal."""

from __future__ import annotations

import shutil
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trimtab.records.target import show

COLUMNS = ("", "model", "applied", "accuracy (95 %)", "p50 / p95 ms", "size", "params", "why")
NARROWEST, WIDEST = 100, 160


def render(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """Return `rows` of table.json as a text table; `*` marks the model that ships.

    `width` None takes the terminal's, 100 to 160 characters.
    """
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=column not in ("applied", "why"))
    for row in rows:
        table.add_row(*cells(row))
    wide = shutil.get_terminal_size((WIDEST, 1)).columns
    console = Console(width=width or min(max(wide, NARROWEST), WIDEST), color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row as the cells of COLUMNS."""
    mark = "*" if row.get("chosen") else ("" if row["kept"] else "-")
    steps = ", ".join(row["steps"])
    latency = " / ".join(
        "?" if ms is None else f"{ms:.3g}" for ms in (row["p50_ms"], row["p95_ms"])
    )
    return [
        mark,
        escape(row["name"]),
        escape(steps),
        interval(row["accuracy"]),
        latency,
        show("size", row["size_bytes"]),
        show("params", row["params"]),
        escape(row["why"]),
    ]


def interval(accuracy: dict[str, Any] | None) -> str:
    """Return `97.4 % (95.6-98.5) valid`."""
    if accuracy is None:
        return "not measured"
    low, high = 100 * accuracy["low"], 100 * accuracy["high"]
    return f"{100 * accuracy['value']:.1f} % ({low:.1f}-{high:.1f}) {accuracy['split']}"


def screen_line(row: dict[str, Any]) -> str:
    """Return one row of screen.json: model, p95, file, parameters, what follows."""
    figures = f"{show('p95', row['p95_ms']):>10}{show('size', row['size_bytes']):>10}"
    return f"{row['name']:24}{figures}{show('params', row['params']):>9}  {row['why']}"
