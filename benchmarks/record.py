"""Write one benchmark's rows as JSON with machine and date, and draw all of them as one page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from trimtab.records.files import make_folder, write_json, write_text
from trimtab.records.run import environment

RESULTS = Path(__file__).parent / "results"
PAGE_HEAD = """# Measured results

Each table is written by the script named above it; run the script to measure your own machine.

The interval of a ratio is Student's, over the logs of the paired ratios. In tables measured before
2026-11-29 it is that of a percentile bootstrap of the same pairs, which is too narrow where they
are few: with 5 pairs by a factor of 1.6, with 6 of 1.4, with 8 of 1.3.
"""


def shared_data() -> Path:
    """Return the folder of benchmark data, or leave with a reason where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TRIMTAB_BENCH_DATA", default))
    if not folder.is_dir():
        sys.exit(f"skipped: no benchmark data in {folder} (set TRIMTAB_BENCH_DATA)")
    return folder


def write(
    name: str, rows: list[dict[str, Any]], *, notes: str = "", seed: int = 0, script: str = ""
) -> None:
    """Write `rows` to results/<name>.json, print them, and draw results/README.md anew.

    `script` is the one that measured them, where results of several settings are kept apart.
    """
    env = environment(seed)
    machine = {key: env[key] for key in ("processor", "cores", "python", "versions", "date")}
    make_folder(RESULTS)
    source = f"benchmarks/{script or name}.py"
    found = {"benchmark": source, "machine": machine, "notes": notes, "rows": rows}
    write_json(RESULTS / f"{name}.json", found)
    write_text(RESULTS / "README.md", page())
    print(table(rows))


def page() -> str:
    """Return all results as one Markdown page."""
    parts = [PAGE_HEAD]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        machine = found["machine"]
        parts.append(f"## `{found['benchmark']}`\n")
        parts.append(
            f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
            f"torch {machine['versions'].get('torch')}, onnxruntime "
            f"{machine['versions'].get('onnxruntime')}; {machine['date'][:10]}.\n"
        )
        if found["notes"]:
            parts.append(found["notes"] + "\n")
        parts.append(table(found["rows"]) + "\n")
    return "\n".join(parts)


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; the keys of the first row are the columns."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Return one value for a Markdown cell."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
