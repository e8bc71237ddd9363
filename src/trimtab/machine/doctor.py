"""Say what trimtab finds on this machine, and what would be better; asks no network."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from trimtab.machine.folders import cache_folder, free_bytes, nearest_folder, size_bytes
from trimtab.machine.native import compiler_words
from trimtab.machine.processor import core_count, processor_flags, processor_name

PACKAGES = ("trimtab", "torch", "torchvision", "timm", "numpy", "pillow", "onnx", "onnxscript",
            "onnxruntime", "torch-pruning", "scikit-learn", "pyarrow")  # fmt: skip
EXTRAS = {"openvino": ("openvino", "nncf")}
INT8_INSTRUCTIONS = ("vnni", "amx", "dot", "i8mm")
LOW_DISK_BYTES = 2_000_000_000


def doctor() -> dict[str, Any]:
    """Return versions, processor, disk, cache and extras as plain data, with advice.

    `advice` is a list of sentences, empty where nothing is to be done. Sizes are bytes.
    """
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": core_count(),
        "instructions": processor_flags(),
        "compiler": shutil.which(compiler_words()[0]) is not None,
        "versions": {name: version_of(name) for name in PACKAGES},
        "extras": {name: extra_state(name) for name in EXTRAS},
        "free_bytes": free_bytes(Path.cwd()),
        "cache": cache_facts(cache_folder()),
    }
    return {**facts, "advice": list(advice(facts))}


def version_of(package: str) -> str | None:
    """Return the installed version of `package`, or None; imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extra_state(extra: str) -> str:
    """Return `installed`, or the line that installs the extra."""
    if all(version_of(package) for package in EXTRAS[extra]):
        return "installed"
    return f'pip install "trimtab[{extra}]"'


def cache_facts(folder: Path) -> dict[str, Any]:
    """Return the cache's folder, its size, the free space there and whether it can be written."""
    return {
        "folder": str(folder),
        "size_bytes": size_bytes(folder),
        "free_bytes": free_bytes(folder),
        "writable": os.access(nearest_folder(folder), os.W_OK | os.X_OK),
    }


def advice(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what would be better, each with the next action."""
    missing = [name for name, version in facts["versions"].items() if version is None]
    if missing:
        yield f"not installed: {', '.join(missing)}; run pip install trimtab"
    if facts["free_bytes"] < LOW_DISK_BYTES:
        yield f"only {facts['free_bytes'] / 1e6:,.0f} MB free here; choose another disk with --out"
    if not facts["cache"]["writable"]:
        yield (f"{facts['cache']['folder']} cannot be written: pictures are decoded again for each "
               "run; set TRIMTAB_CACHE to a folder of yours")  # fmt: skip
    if not facts["compiler"]:
        yield (f"there is no C++ compiler ({compiler_words()[0]}): most networks train slower "
               "on the processor; install one, or name yours in CXX")  # fmt: skip
    if not any(facts["instructions"][name] for name in INT8_INSTRUCTIONS):
        yield "no int8 instructions found: int8 files will be smaller here, but hardly faster"


def as_text(facts: dict[str, Any]) -> str:
    """Return what `doctor` found as lines for people."""
    cache = facts["cache"]
    known = ", ".join(name for name, has in facts["instructions"].items() if has)
    versions = ", ".join(
        f"{name} {version or 'missing'}" for name, version in facts["versions"].items()
    )
    lines = {
        "machine": f"{facts['processor']}, {facts['cores']} cores ({known or 'plain'})",
        "system": f"{facts['system']}, Python {facts['python']}",
        "packages": versions,
        "extras": ", ".join(f"{name}: {state}" for name, state in facts["extras"].items()),
        "disk": f"{facts['free_bytes'] / 1e9:.1f} GB free here",
        "cache": f"{cache['folder']}, {cache['size_bytes'] / 1e6:.1f} MB",
    }
    texts = [f"{name + ':':10}{text}" for name, text in lines.items()]
    return "\n".join([*texts, *(f"advice:   {one}" for one in facts["advice"])])
