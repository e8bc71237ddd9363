"""The table of models as text for a terminal."""

from __future__ import annotations

import shutil
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trimtab.records.target import show

NARROWEST, WIDEST = 100, 160
WRAPPED = {"applied", "why", "against the most accurate"}

Row = dict[str, Any]


def render(
    rows: list[Row], width: int | None = None, *, columns: tuple[str, ...] | None = None
) -> str:
    """Return `rows` of table.json as a text table, with the `columns` of a fit where None.

    In a fit `*` marks the model that ships, in a comparison those on the Pareto front; `-` marks
    what was not kept or not measured. `width` None takes the terminal's, 100 to 160 characters.
    """
    shown = columns or layout("fit")
    table = Table(box=None, pad_edge=False)
    for column in shown:
        table.add_column(column, no_wrap=column not in WRAPPED)
    for row in rows:
        found = cells(row)
        table.add_row(*(found[column] for column in shown))
    wide = shutil.get_terminal_size((WIDEST, 1)).columns
    console = Console(width=width or min(max(wide, NARROWEST), WIDEST), color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def layout(kind: str) -> tuple[str, ...]:
    """Return the columns of the table that a run of this kind holds."""
    if kind == "compare":
        return ("", "model", "accuracy (95 %)", "p50 / p95 ms", "size", "params", "MACs", "epochs",
                "against the most accurate")  # fmt: skip
    return ("", "model", "applied", "accuracy (95 %)", "p50 / p95 ms", "size", "params", "why")


def cells(row: Row) -> dict[str, str]:
    """Return the cells of a row by column."""
    why = escape(row["why"])
    return {
        "": mark(row), "model": escape(row["name"]), "applied": escape(", ".join(row["steps"])),
        "accuracy (95 %)": interval(row["accuracy"]), "p50 / p95 ms": latency(row),
        "size": show("size", row["size_bytes"]), "params": show("params", row["params"]),
        "MACs": show("macs", row["macs"]), "epochs": epochs(row), "why": why,
        "against the most accurate": why,
    }  # fmt: skip


def mark(row: Row) -> str:
    """Return `*` for what ships or stands on the front, `-` for what was not kept."""
    if row.get("chosen") or row.get("front"):
        return "*"
    return "" if row["kept"] else "-"


def latency(row: Row) -> str:
    """Return `0.0148 / 0.0201`."""
    return " / ".join("?" if ms is None else f"{ms:.3g}" for ms in (row["p50_ms"], row["p95_ms"]))


def epochs(row: Row) -> str:
    """Return how many epochs were trained; of several seeds, their range."""
    found = sorted({f"{value:.3g}" for value in row.get("epochs") or []}, key=float)
    return "?" if not found else f"{found[0]}-{found[-1]}" if len(found) > 1 else found[0]


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
