"""How threads behave; imported before torch is."""

from __future__ import annotations

import os

from trimtab.machine.processor import thread_count


def calm_threads() -> None:
    """Let idle OpenMP threads sleep instead of spin, and have no more of them than cores to use.

    Spinning pools on busy cores can make a network many times slower, and torch knows nothing of a
    container's quota. A value the user set is kept. Has an effect only before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    threads = thread_count()
    if threads < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
