"""Failpoints: named places where a test can kill, stall or starve the process; else no-ops."""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

from trimtab.errors import UsageError

VARIABLE = "TRIMTAB_FAILPOINT"
SLEEP_SECONDS = 0.5
ACTIONS = ("kill", "enospc", "eio", "sleep")
NAMES = {
    "checkpoint.before_file": "before a file of tensors or facts is written, once per file",
    "checkpoint.before_sync": "a file is written but not yet synced, once per file and manifest",
    "checkpoint.before_manifest": "all files are durable, the manifest is not written",
    "checkpoint.before_rename": "the folder is whole, but has its temporary name",
    "checkpoint.after_rename": "the folder has its name, which is not durable yet",
    "checkpoint.before_delete": "the new checkpoint is durable, the older one is whole",
    "checkpoint.between_deletes": "the older one has its temporary name, once per file deleted",
    "file.before_sync": "a file of a run is written beside its place, but not yet synced",
    "file.before_rename": "it is durable, but has its temporary name",
    "file.after_rename": "it has its name, which is not durable yet",
    "log.before_row": "before a row is appended to the ledger or the log",
}


@dataclass
class Armed:
    """A failpoint that is set: what happens at which pass."""

    name: str
    count: int
    action: str
    passes: int = 0


def failpoint(name: str) -> None:
    """Do what TRIMTAB_FAILPOINT asks for at the pass it names; nothing where it is unset.

    Raises OSError for `enospc` and `eio`; `kill` is SIGKILL to this process; `sleep` waits
    half a second. `name` is one of NAMES.
    """
    armed = _STATE[0]
    if armed is None or armed.name != name:
        return
    armed.passes += 1
    if armed.passes == armed.count:
        act(armed.action)


def arm(text: str | None) -> None:
    """Set the failpoint `name[:count]:action`, e.g. `checkpoint.before_file:2:kill`; None unsets.

    `count` (1 by itself) is the pass that triggers; only that one does. Raises UsageError for a
    name or an action that does not exist.
    """
    _STATE[0] = parse(text) if text else None


def parse(text: str) -> Armed:
    """Read `name[:count]:action`; raises UsageError where it cannot be read."""
    name, *middle, action = text.split(":") if ":" in text else (text, "")
    count = "".join(middle) or "1"
    if name not in NAMES or action not in ACTIONS or not count.isdecimal() or int(count) < 1:
        raise UsageError(f"{VARIABLE}={text!r}, wanted name[:count]:action",
                         f"names: {', '.join(NAMES)}; actions: {', '.join(ACTIONS)}")  # fmt: skip
    return Armed(name, int(count), action)


def act(action: str) -> None:
    """Die at once as by a power cut, wait, or pretend that the disk is full or broken."""
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "sleep":
        time.sleep(SLEEP_SECONDS)
    else:
        code = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(code, os.strerror(code))


_STATE: list[Armed | None] = [None]
arm(os.environ.get(VARIABLE))
