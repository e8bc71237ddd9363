"""What a command prints: one JSON object, lines without control characters, one error."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from typing import Any, NoReturn

from trimtab.errors import TrimtabError
from trimtab.machine.interrupt import stopped
from trimtab.machine.progress import OUTPUT, harmless, say


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def harmless_lines(text: str) -> str:
    """Return text without control characters, line by line."""
    return "\n".join(harmless(line) for line in text.split("\n"))


def show_run(run: Any) -> None:
    """Print a run's path and its accuracy; raise Interrupted where a signal ended it."""
    if run.facts.get("status") == "interrupted":
        raise stopped(f"what was reached is in {run.path}")
    accuracy = run.measured("accuracy") or {}
    if OUTPUT.json:
        return emit({"run": str(run.path), "accuracy": accuracy.get("value"), "facts": run.facts})
    if accuracy:
        print(
            f"accuracy on {accuracy['split']}: {100 * accuracy['value']:.1f} % "
            f"({100 * accuracy['low']:.1f}-{100 * accuracy['high']:.1f}, n={accuracy['n']})"
        )
    print(f"run: {run.path}")
    return None


def show_comparison(run: Any) -> None:
    """Print the table of a comparison, how to read it, and the report's path."""
    from trimtab.plan.compare import comparison

    found = comparison(run.path)
    if OUTPUT.json:
        return emit(found)
    print(harmless_lines(run.table()))
    print("* not beaten in accuracy, p95 and size at once; measured on valid, which the trainings "
          "chose their weights on")  # fmt: skip
    print(f"took {found['seconds']:.0f} s\nreport: {run.path / 'report.html'}")
    return None


def verdict_lines(verdict: dict[str, Any]) -> str:
    """Return the verdict for a terminal."""
    from trimtab.records.target import show

    head = "target met" if verdict["target_met"] else f"target missed: {verdict['binding']} binds"
    lines = [f"{head} (judged on {verdict['split']}, {verdict['seconds']:.0f} s)"]
    for clause in verdict["clauses"]:
        mark = "ok    " if clause["met"] else "missed"
        lines.append(f"  {mark} {clause['metric']} {show(clause['metric'], clause['got'])} "
                     f"({clause['op']} {show(clause['metric'], clause['wanted'])})")  # fmt: skip
    return "\n".join(lines)


def show_plan(planned: dict[str, Any]) -> None:
    """Print what a fit would do."""
    from trimtab.records.table import screen_line

    if OUTPUT.json:
        return emit(planned)
    print(f"target: {planned['target']}\nsplits: {planned['splits']}\ninput:  {planned['input']}")
    for row in planned["screen"]:
        print("  " + harmless(screen_line(row)))
    shares = ", ".join(f"{k} {v}" for k, v in planned["at_most_seconds"].items())
    print(f"seconds at the most: {shares}")
    return None


def leave(error: TrimtabError, code: int) -> NoReturn:
    """Print an error for people on stderr, or as JSON on stdout, and exit."""
    if OUTPUT.json or "--json" in sys.argv:
        emit({"error": error.message, "hint": error.hint, "exit_code": code})
    OUTPUT.quiet = False
    say(f"error: {error}")
    sys.exit(code)


def end_at_once(end: SystemExit) -> NoReturn:
    """End the process as `end` says, after all threads, exit handlers and output, and no more.

    Python would take every module apart first, for a second where torch and timm are loaded
    (`benchmarks/startup.py`). A Ctrl-C now does not wait for a save on its way, and is no error.
    What cannot be written, and a code that is a text, are left to Python to tell, and everything
    where a debugger, a profiler or an interactive Python runs the command.
    """
    watched = sys.gettrace() or sys.getprofile() or hasattr(sys, "ps1") or sys.flags.interactive
    code = 0 if end.code is None else end.code
    if watched or not isinstance(code, int):
        raise end
    try:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
        sys.stdout.flush()
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its own
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        raise end from None
    os._exit(code)
