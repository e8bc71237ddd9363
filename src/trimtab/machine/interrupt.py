"""Ctrl-C and SIGTERM: the first asks a loop to stop and save, a Ctrl-C after it leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from trimtab.errors import Interrupted, Preempted


@dataclass
class StopRequest:
    """Whether this process was asked to stop, and whether by SIGTERM rather than Ctrl-C."""

    requested: bool = False
    preempted: bool = False

    def note(self, number: int) -> None:
        """Remember that the signal `number` came."""
        self.requested, self.preempted = True, number == signal.SIGTERM


LATEST = StopRequest()


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM inside the block into a request.

    A Ctrl-C after it raises KeyboardInterrupt at once; a SIGTERM after it changes nothing, since
    schedulers repeat it. Outside the main thread, where no handler can be set, the block runs as
    it is.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.requested and number == signal.SIGTERM:
            return
        LATEST.note(number)
        if request.requested:
            raise KeyboardInterrupt
        request.note(number)

    with handled(ask):
        yield request


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, by KeyboardInterrupt, where no loop listens.

    After the first of them a SIGTERM changes nothing: what was reached is being saved. Where the
    block does not catch that KeyboardInterrupt, Preempted is raised after a SIGTERM.
    """
    LATEST.requested = LATEST.preempted = False

    def leave(number: int, frame: FrameType | None) -> None:
        if LATEST.requested and number == signal.SIGTERM:
            return
        LATEST.note(number)
        raise KeyboardInterrupt

    try:
        with handled(leave):
            yield
    except KeyboardInterrupt:
        if LATEST.preempted:
            raise stopped("nothing was reached yet", "run it again") from None
        raise


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by `handler` inside the block, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, old in previous.items():
            signal.signal(one, old)


def stopped(what: str, hint: str = "") -> Interrupted:
    """Return the error of a work that was stopped: Preempted after SIGTERM, else Interrupted.

    `what` says what was reached, e.g. `the best weights so far are in runs/a`.
    """
    if LATEST.preempted:
        return Preempted(f"stopped by SIGTERM; {what}", hint)
    return Interrupted(f"stopped by Ctrl-C; {what}", hint)
