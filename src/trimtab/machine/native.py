"""Compile C++ that comes with the package for this very processor, once, and load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from trimtab.machine.folders import cache_folder
from trimtab.machine.processor import flags, processor_name
from trimtab.machine.progress import say

VARIABLE, REFUSALS = "TRIMTAB_NATIVE", ("0", "no", "off", "false")
LONGEST = 120.0  # seconds that compiling may take; on two cores of 2024 it takes six
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
        place, command = plan(sources)
        known = place.exists()
        if not known:
            build(command, place)
        try:
            return ctypes.CDLL(str(place))
        except OSError:
            if not known:
                raise
            place.unlink(missing_ok=True)  # it was damaged
            build(command, place)
            return ctypes.CDLL(str(place))
    except NoNative as reason:
        return str(reason)
    except (OSError, ValueError) as error:
        return f"the library cannot be loaded ({error})"


def plan(sources: Path) -> tuple[Path, list[str]]:
    """Return where the library of a folder belongs, and the command that makes it.

    Raises NoNative where that cannot be.
    """
    if os.environ.get(VARIABLE, "").lower() in REFUSALS:
        raise NoNative(f"{VARIABLE} is {os.environ[VARIABLE]}")
    name, *words = compiler_words()
    compiler = shutil.which(name)
    if compiler is None:
        raise NoNative(f"there is no C++ compiler ({name})")
    options, files = [*words, *OPTIONS, *for_processor()], sorted(sources.iterdir())
    mark = fingerprint(options, Path(compiler), files)
    place = own_folder(cache_folder() / "native") / f"{mark}.so"
    return place, [compiler, *options, *(str(file) for file in files if file.suffix == ".cpp")]


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
    say("native layers are compiled for this processor, once")
    try:
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / place.name
            run([*command, "-o", str(made)])
            with made.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(made, place)
    except OSError as error:
        raise NoNative(f"{place.parent} cannot be written ({error.strerror})") from error


def run(command: list[str]) -> None:
    """Run the compiler; raises NoNative where it fails, or takes too long: then it is killed."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,  # noqa: S603 - the user's own compiler
                          start_new_session=True) as process:  # fmt: skip
        try:
            _, errors = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            raise NoNative(f"the C++ compiler took longer than {LONGEST:g} s") from error
    if process.returncode:
        lines = errors.decode(errors="replace").splitlines()
        first = next((line for line in lines if "error" in line), f"exit {process.returncode}")
        raise NoNative(f"the C++ compiler failed: {first}")


def compiler_words() -> list[str]:
    """Return the command of the C++ compiler that torch takes, too: CXX, or the usual one."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shlex.split(os.environ.get("CXX", "")) or [usual]


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
