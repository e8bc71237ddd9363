"""C++ of the package is compiled once, and where it cannot be, that is said and nothing breaks."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.machine import native, progress
from trimtab.machine.native import load, plan

SOUND = 'extern "C" long twice(long value, long) { return 2 * value; }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources, and a cache of its own."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "twice.cpp").write_text(SOUND)
    (folder / "nothing.h").write_text("// empty\n")
    return folder


def made(sources: Path) -> Path:
    """Compile, and return what came of it."""
    load.cache_clear()
    assert isinstance(load(sources), ctypes.CDLL)
    return plan(sources)[0]


def built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "native").iterdir())


def test_it_is_compiled_once_and_told(
    sources: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress.OUTPUT.quiet = False
    library = load(sources)
    assert isinstance(library, ctypes.CDLL)
    assert library.twice(21, 1) == 42
    assert "native layers are compiled" in capfd.readouterr().err
    (place,) = built(tmp_path)
    stamp = place.stat().st_mtime_ns
    load.cache_clear()
    assert isinstance(load(sources), ctypes.CDLL)
    assert place.stat().st_mtime_ns == stamp
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["twice.cpp", "nothing.h", "more.cpp"])
def test_changed_sources_are_compiled_anew(sources: Path, tmp_path: Path, name: str) -> None:
    first = made(sources)
    with (sources / name).open("a") as file:
        file.write("// changed\n")
    assert made(sources) != first
    assert len(built(tmp_path)) == 2


@pytest.mark.parametrize("what", ["processor_name", "flags", "compiler_words"])
def test_another_processor_or_compiler_gets_its_own(
    sources: Path, monkeypatch: pytest.MonkeyPatch, what: str, tmp_path: Path
) -> None:
    first, known = made(sources), native.flags()
    wrapper = tmp_path / "g++-other"
    wrapper.write_text('#!/bin/sh\nexec g++ "$@"\n')
    wrapper.chmod(0o755)
    others: dict[str, Callable[[], object]] = {
        "processor_name": lambda: "another", "flags": lambda: {*known, "new"},
        "compiler_words": lambda: [str(wrapper)],
    }  # fmt: skip
    monkeypatch.setattr(native, what, others[what])
    assert made(sources) != first


def no_compiler(sources: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "no-such-compiler")


def refused(sources: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("TRIMTAB_NATIVE", "Off")


def faulty(sources: Path, patch: pytest.MonkeyPatch) -> None:
    (sources / "faulty.cpp").write_text("int there_is_no(;\n")


def unreadable(sources: Path, patch: pytest.MonkeyPatch) -> None:
    script = sources.parent / "unreadable"
    script.write_bytes(b"#!/bin/sh\nprintf 'error: \\377' >&2\nexit 1\n")
    script.chmod(0o755)
    patch.setenv("CXX", str(script))


def silent(sources: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CXX", "false")


def slow(sources: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(native, "LONGEST", 0.001)


def open_to_all(sources: Path, patch: pytest.MonkeyPatch) -> None:
    folder = sources.parent / "cache" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def no_folder(sources: Path, patch: pytest.MonkeyPatch) -> None:
    taken = sources.parent / "taken"
    taken.write_text("a file")
    patch.setenv("TRIMTAB_CACHE", str(taken))


@pytest.mark.parametrize(
    ("fault", "words"),
    [(no_compiler, "no C++ compiler (no-such-compiler)"), (refused, "TRIMTAB_NATIVE is Off"),
     (faulty, "error: "), (silent, "the C++ compiler failed"), (unreadable, "error: "),
     (slow, "longer than"),
     (open_to_all, "can be written by others"), (no_folder, "cannot be made")],
)  # fmt: skip
def test_whatever_is_missing_is_the_reason(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path, pytest.MonkeyPatch], None], words: str,
) -> None:  # fmt: skip
    fault(sources, monkeypatch)
    reason = load(sources)
    assert isinstance(reason, str)
    assert words in reason
    leftovers = tmp_path / "cache" / "native"
    assert not leftovers.exists() or not any(leftovers.iterdir())


def test_a_library_that_was_cut_short_is_made_again(sources: Path) -> None:
    place = made(sources)
    content = place.read_bytes()
    place.unlink()  # the one that is loaded here must stay as it is
    place.write_bytes(content[:100])
    load.cache_clear()
    library = load(sources)
    assert isinstance(library, ctypes.CDLL)
    assert library.twice(3, 1) == 6


def test_a_compiler_with_words_of_its_own_is_run_with_them(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ -DTWICE=3")
    (sources / "twice.cpp").write_text(SOUND.replace("2 *", "TWICE *"))
    library = load(sources)
    assert isinstance(library, ctypes.CDLL)
    assert library.twice(2, 1) == 6


def test_what_a_compiler_started_ends_with_it(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "slow"
    script.write_text(f"#!/bin/sh\n(sleep 2; touch {tmp_path}/late) &\nwait\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(native, "LONGEST", 0.5)
    assert "longer than 0.5 s" in str(load(sources))
    time.sleep(2.5)
    assert not (tmp_path / "late").exists()


def test_two_at_once_both_get_it(sources: Path, tmp_path: Path) -> None:
    code = ("import pathlib\nfrom trimtab.machine.native import load\n"
            f"print(load(pathlib.Path({str(sources)!r})).twice(4, 1))")  # fmt: skip
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    assert [one.communicate()[0].strip() for one in both] == ["8", "8"]
    assert len(built(tmp_path)) == 1
