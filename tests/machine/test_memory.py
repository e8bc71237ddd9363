"""Memory is kept inside the block and given back after it."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from typing import Any

import pytest

from trimtab.machine import memory
from trimtab.machine.memory import kept_memory

# In a process of its own: in one that has done other work, freed memory may lie ready anyway.
SCRIPT = """
import json, resource
import numpy as np
from trimtab.machine.memory import kept_memory

BYTES = 64 << 20  # more than glibc keeps by itself

def faults_of_reuse():
    np.ones(BYTES, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(BYTES, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def share():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / BYTES

usual, before = faults_of_reuse(), share()
with kept_memory():
    kept, inside = faults_of_reuse(), share() - before
print(json.dumps({"usual": usual, "kept": kept, "inside": inside, "after": share() - before,
                  "again": faults_of_reuse()}))
"""


@pytest.fixture(scope="module")
def seen() -> dict[str, float]:
    """Page faults of filling freed memory again, and resident memory in shares of its size."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


needs_glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)


@needs_glibc
def test_freed_memory_is_used_again_without_asking_the_kernel(seen: dict[str, float]) -> None:
    assert seen["usual"] > 10
    assert seen["kept"] < seen["usual"] / 10


@needs_glibc
def test_memory_is_given_back_after_the_block(seen: dict[str, float]) -> None:
    assert seen["inside"] > 0.5
    assert seen["after"] < 0.5
    assert seen["again"] > 10


def test_another_c_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    entered: list[Any] = []
    with kept_memory():
        entered.append(True)
    assert entered
