"""What the processor is: its name, the cores this process may use, its int8 instructions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
INSTRUCTIONS = {
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "amx": ("amx_int8",),
    "dot": ("asimddp",),
    "i8mm": ("i8mm",),
}


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's name as the system gives it."""
    names = fields(cpuinfo, "model name")
    return names[0] if names else platform.processor() or platform.machine()


def processor_flags(cpuinfo: Path = CPUINFO) -> dict[str, bool]:
    """Return which instructions that speed up int8 or bf16 the processor has.

    `vnni`, `amx` (x86) and `dot`, `i8mm` (ARM) multiply int8 directly; without one of them int8 is
    seldom faster than float. All are False where the system does not tell.
    """
    known = flags(cpuinfo)
    return {name: not known.isdisjoint(spellings) for name, spellings in INSTRUCTIONS.items()}


def flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """Return the processor's flags as the system spells them; none where it does not tell."""
    lines = fields(cpuinfo, "flags") or fields(cpuinfo, "Features")
    return set(lines[0].split()) if lines else set()


def fields(cpuinfo: Path, key: str) -> list[str]:
    """Return the values of `key`, one per core; none where there is no such file."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]
