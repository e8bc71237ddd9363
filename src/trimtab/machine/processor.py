"""What the processor is: its name, the cores this process may use, its int8 instructions."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
PROCESSORS = Path("/sys/devices/system/cpu")
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
    """Return how many cores this process may use: by its affinity and its container's quota."""
    return max(1, math.ceil(min(len(allowed()), quota())))


def thread_count() -> int:
    """Return how many threads should compute: one per physical core that this process may use."""
    cores = {siblings(number) for number in allowed()}
    return max(1, math.ceil(min(len(cores), quota())))


def allowed() -> set[int]:
    """Return the numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def siblings(number: int, processors: Path = PROCESSORS) -> str:
    """Return the logical processors of the core of one of them, e.g. `0,64`; itself if unknown."""
    return first_line(processors / f"cpu{number}/topology/thread_siblings_list") or str(number)


def quota(cgroups: Path | None = None) -> float:
    """Return how many processors' time the container may use: inf where nothing limits it.

    Reads `cpu.max` of control groups version 2, `cpu.cfs_quota_us` of version 1, as they are
    mounted inside a container.
    """
    cgroups = cgroups or CGROUPS
    limit, _, period = first_line(cgroups / "cpu.max").partition(" ")
    if not limit:
        limit = first_line(cgroups / "cpu/cpu.cfs_quota_us")
        period = first_line(cgroups / "cpu/cpu.cfs_period_us")
    known = limit.isdigit() and period.isdigit() and int(period) > 0
    return int(limit) / int(period) if known else math.inf


def first_line(path: Path) -> str:
    """Return the first line of a file of the system; empty where there is none."""
    try:
        return path.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's name as the system gives it.

    A virtual machine may leave the number out of it; family and model then tell generations apart.
    """
    names = fields(cpuinfo, "model name")
    if not names:
        return platform.processor() or platform.machine()
    family, model = fields(cpuinfo, "cpu family"), fields(cpuinfo, "model")
    if family and model and not any(letter.isdigit() for letter in names[0]):
        return f"{names[0]} (family {family[0]}, model {model[0]})"
    return names[0]


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
