"""Memory is kept inside the block and given back after it."""

from __future__ import annotations

import ctypes
import resource
from typing import Any

import numpy as np
import pytest

from trimtab.machine import memory
from trimtab.machine.memory import kept_memory

BYTES = 64 << 20  # more than glibc keeps by itself


def faults_of_reuse() -> int:
    """Return the page faults of filling freed memory again."""
    np.ones(BYTES, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)


@needs_glibc
def test_freed_memory_is_used_again_without_asking_the_kernel() -> None:
    usual = faults_of_reuse()
    with kept_memory():
        kept = faults_of_reuse()
    assert kept < usual / 10


@needs_glibc
def test_memory_is_given_back_after_the_block() -> None:
    before = resident_bytes()
    with kept_memory():
        faults_of_reuse()
        assert resident_bytes() > before + BYTES / 2
    assert resident_bytes() < before + BYTES / 2
    assert faults_of_reuse() > 10


def test_another_c_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    entered: list[Any] = []
    with kept_memory():
        entered.append(True)
    assert entered
