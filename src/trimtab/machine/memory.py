"""Keep the memory that a training frees for its next step, rather than give it back each time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

MMAP_MAX, TRIM_THRESHOLD, MMAP_THRESHOLD = -4, -1, -3  # the options of mallopt, in malloc.h
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
USUAL = {MMAP_MAX: 65_536, TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc keep what is freed inside the block, and give it back at the end.

    Activations are larger than what glibc keeps by itself, so that each step would get them from
    the kernel anew, page by page. Afterwards its bounds are those that it reaches by itself.
    Does nothing with another C library.
    """
    if not allow(KEEPING):
        yield
        return
    try:
        yield
    finally:
        allow(USUAL)
        ctypes.CDLL(None).malloc_trim(0)


def allow(options: dict[int, int]) -> bool:
    """Set options of glibc's allocator; False where there is another C library."""
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is None:
        return False
    for option, value in options.items():
        change(option, value)
    return True
