"""Progress with ETA: a live line on a terminal, one line per ten seconds elsewhere."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
LIVE_SECONDS = 0.1
PLAIN_SECONDS = 10.0
SHOW_AFTER_SECONDS = 2.0


@dataclass
class Output:
    """What the command line prints: `quiet` silences progress, `json` asks for one object.

    `began` is when the command was started; None where there is none. `shown` is when progress was
    last shown, whatever the work.
    """

    quiet: bool = True
    json: bool = False
    began: float | None = None
    shown: float = -math.inf


OUTPUT = Output()


def began() -> float:
    """Return when the command was started, by the monotonic clock; outside of one, now."""
    return time.monotonic() if OUTPUT.began is None else OUTPUT.began


def harmless(text: str) -> str:
    """Return `text` without control and direction-override characters."""
    return CONTROL.sub("\ufffd", text)


def say(text: str) -> None:
    """Write one line for people to stderr, unless quiet."""
    if not OUTPUT.quiet:
        clear_line()
        print("\n".join(harmless(line) for line in text.split("\n")), file=sys.stderr, flush=True)


def is_live() -> bool:
    """Return whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ


def clear_line() -> None:
    """Remove a live progress line."""
    if is_live():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@dataclass
class Bar:
    """One running piece of work of `total` units."""

    total: float
    what: str
    started: float = field(default_factory=time.monotonic)
    shows: int = 0
    before: float = 0.0  # done when `started`

    def begin(self, done: float) -> None:
        """Measure the pace from here on, where `done` units are finished already."""
        self.started, self.before = time.monotonic(), done

    def due(self) -> bool:
        """Return whether `update` would say anything now; cheap enough for every step."""
        now = time.monotonic()
        if OUTPUT.quiet or now - self.started < SHOW_AFTER_SECONDS:
            return False
        silent = now - OUTPUT.shown
        return silent >= LIVE_SECONDS and (silent >= PLAIN_SECONDS or is_live())

    def update(self, done: float, note: str = "") -> None:
        """Say that `done` of `total` units are finished, where it is time to."""
        if not self.due():
            return
        OUTPUT.shown = time.monotonic()
        self.shows += 1
        line = self.line(done, note, OUTPUT.shown - self.started)
        if is_live():
            width = max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
            print(f"\r\x1b[K{line[:width]}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def line(self, done: float, note: str, seconds: float) -> str:
        """Return `train  42 % · 1m03s left · note`."""
        share = min(1.0, done / self.total) if self.total else 1.0
        own = done - self.before
        left = clock(seconds * max(0.0, self.total - done) / own) if own > 0 else "?"
        parts = [f"{self.what}  {100 * share:3.0f} %", f"{left} left", note]
        return harmless(" · ".join(part for part in parts if part))


def clock(seconds: float) -> str:
    """Return seconds as `7s`, `1m03s` or `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@contextmanager
def progress(total: float, what: str) -> Iterator[Bar]:
    """Show the progress of a piece of work that may take over two seconds."""
    bar = Bar(total, what)
    try:
        yield bar
    finally:
        if bar.shows:
            clear_line()
