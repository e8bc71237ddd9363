"""Compile C++ that comes with the package for this very processor, once, and load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from trimtab.machine.folders import cache_folder
from trimtab.machine.processor import flags, processor_name
from trimtab.machine.progress import say

VARIABLE = "TRIMTAB_NATIVE"  # 0: do without
LONGEST = 120.0  # seconds that compiling may take; usually it takes about three
OPTIONS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared",
           "-fPIC")  # fmt: skip


class NoNative(Exception):
    """There is no native library; the text says why."""


@cache
def load(sources: Path) -> ctypes.CDLL | str:
    """Return the library of the C++ files in a folder, or why there is none.

    It is compiled for this processor and kept in the cache, under a name that tells sources,
    compiler and processor apart. Never raises: what it does can also be done without it.
    """
    try:
        place = compiled(sources)
        try:
            return ctypes.CDLL(str(place))
        except OSError:  # it was damaged
            place.unlink()
            return ctypes.CDLL(str(compiled(sources)))
    except NoNative as reason:
        return str(reason)
    except OSError as error:
        return f"the library cannot be loaded ({error.strerror or error})"


def compiled(sources: Path) -> Path:
    """Return the compiled library of a folder; raises NoNative where that cannot be."""
    if os.environ.get(VARIABLE) == "0":
        raise NoNative(f"{VARIABLE} is 0")
    compiler = shutil.which(compiler_name())
    if compiler is None:
        raise NoNative(f"there is no C++ compiler ({compiler_name()})")
    options, files = [*OPTIONS, *for_processor()], sorted(sources.iterdir())
    name = fingerprint(options, Path(compiler), files)
    place = own_folder(cache_folder() / "native") / f"{name}.so"
    if not place.exists():
        build([compiler, *options, *(str(file) for file in files if file.suffix == ".cpp")], place)
    return place


def own_folder(folder: Path) -> Path:
    """Make a folder that only this user can write; raises NoNative for one that others can.

    What lies there is run.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise NoNative(f"{folder} cannot be made ({error.strerror})") from error
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise NoNative(f"{folder} can be written by others")
    return folder


def build(command: list[str], place: Path) -> None:
    """Run the compiler, so that `place` is there whole or not at all; raises NoNative."""
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / place.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True,  # noqa: S603 - the user's own compiler
                           timeout=LONGEST)  # fmt: skip
            with made.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(made, place)
    except subprocess.TimeoutExpired as error:
        raise NoNative(f"the C++ compiler took longer than {LONGEST:g} s") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.splitlines()
        first = next((line for line in lines if "error" in line), f"exit {error.returncode}")
        raise NoNative(f"the C++ compiler failed: {first}") from error
    except OSError as error:
        raise NoNative(f"{place.parent} cannot be written ({error.strerror})") from error
    say(f"compiled native layers for this processor in {time.perf_counter() - started:.1f} s, once")


def compiler_name() -> str:
    """Return the C++ compiler that torch takes, too: CXX, or the system's usual one."""
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def for_processor() -> tuple[str, ...]:
    """Return the compiler's options for this processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ("-mcpu=native",)
    wide = ("-mprefer-vector-width=512",) if "avx512f" in flags() else ()
    return ("-march=native", *wide)


def fingerprint(options: list[str], compiler: Path, files: list[Path]) -> str:
    """Return a name for what the compiler makes of the files on this processor."""
    stamp = compiler.resolve().stat().st_mtime_ns
    facts = [*options, str(compiler.resolve()), str(stamp), processor_name(), *sorted(flags())]
    mark = hashlib.sha256("\n".join(facts).encode())
    for file in files:
        mark.update(file.name.encode() + file.read_bytes())
    return mark.hexdigest()[:24]
