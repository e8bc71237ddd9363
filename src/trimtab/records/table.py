"""The table of candidates as text for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trimtab.records.target import show

COLUMNS = ("", "model", "steps", "accuracy (95 %)", "p50", "p95", "size", "params", "why")


def render(rows: list[dict[str, Any]], width: int = 120) -> str:
    """Return `rows` of table.json as a text table; `*` marks the model that ships."""
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*cells(row))
    console = Console(width=width, color_system=None, no_color=True)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row as the cells of COLUMNS."""
    mark = "*" if row.get("chosen") else ("" if row["kept"] else "-")
    steps = " + ".join(row["steps"])
    sizes = [show("p50", row["p50_ms"]), show("p95", row["p95_ms"]),
             show("size", row["size_bytes"]), show("params", row["params"])]  # fmt: skip
    return [mark, escape(row["name"]), escape(steps), interval(row["accuracy"]), *sizes,
            escape(row["why"])]  # fmt: skip


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
