"""How threads behave; imported before torch is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from trimtab.machine.processor import thread_count

# How often GNU's OpenMP looks for work before its thread sleeps: some 30 microseconds by its own
# estimate, about the gap between two operations of a step. By itself it does so 300,000 times.
SPINS = 3000


def calm_threads() -> None:
    """Let idle OpenMP threads sleep soon, and have no more of them than cores to use.

    Pools that spin on busy cores can make a network many times slower; ones that sleep at once
    slow down one of many small operations, since each has to wake them. And torch knows nothing
    of a container's quota. What the user set is kept. Has an effect only before torch is
    imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # for other kinds of OpenMP
    threads = thread_count()
    if threads < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch compute on the calling thread alone, where the other cores have work of their own.

    There the threads of one operation would wait for the last of them to get a core.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
