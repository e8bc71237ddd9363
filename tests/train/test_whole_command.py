"""Whole commands, killed or on broken disks: nothing is lost, and the same words go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.resume_matrix import AXES, cells, differences, matrix, one_cell
from trimtab.errors import BusyError, MachineError, UsageError
from trimtab.machine import failpoints
from trimtab.machine.progress import OUTPUT
from trimtab.records.files import append_jsonl, locked, read_jsonl, write_json
from trimtab.records.run import Run, changed_environment
from trimtab.train import keep
from trimtab.train.run import resume, train

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("model.name=cnn_small", "train.epochs=2", "augment.flip=false", "train.precision=fp32",
         "train.layout=contiguous", "train.checkpoint_seconds=0.05")  # fmt: skip


def command(data: Path, out: Path, *more: str) -> list[str]:
    chosen = [word for one in (*QUICK, *more) for word in ("--set", one)]
    return [sys.executable, "-m", "trimtab", "train", str(data), *chosen, "--out", str(out)]


def run_command(
    words: list[str], *prefix: str, failpoint: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, *words], text=True, check=False, capture_output=True, timeout=200,
        env=surroundings(TRIMTAB_FAILPOINT=failpoint),
    )  # fmt: skip


def surroundings(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def kills(*options: str) -> list[dict[str, Any]]:
    """Run the benchmark of kills in a process of its own, which has started no threads."""
    words = [sys.executable, str(ROOT / "benchmarks" / "kill_and_resume.py"), "--print-only"]
    done = run_command([*words, *options])
    assert done.returncode == 0, done.stderr + done.stdout
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def test_killed_commands_that_are_repeated_or_resumed_end_as_the_whole_one() -> None:
    total = kills("--kills", "4", "--last", "1", "--failpoints", "file.before_rename")[-1]
    assert total["kills"] >= 10
    assert total["equal"] == total["runs"]
    assert total["resumed"] > 0
    assert total["leftovers"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills_at_any_moment_and_every_failpoint_end_as_the_whole_one() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "kill_and_resume.py"), "--print-only"]
    done = subprocess.run(words, text=True, check=False, capture_output=True, timeout=1800)
    assert done.returncode == 0, done.stderr + done.stdout
    total = json.loads(done.stdout.splitlines()[-1])[-1]
    assert total["kills"] >= 100


FIRST = {axis: values[:1] for axis, values in AXES.items()}
SOME = [*cells({**FIRST, "stopped": AXES["stopped"]}),
        *cells({**FIRST, "stopped": ("mid-epoch",), "with": AXES["with"][1:]})]  # fmt: skip


@pytest.mark.parametrize("cell", SOME, ids=lambda cell: f"{cell['stopped']}-{cell['with']}")
def test_a_break_at_every_kind_of_place_changes_no_bit(
    cell: dict[str, Any], tiny_dataset: Any, tmp_path: Path
) -> None:
    assert one_cell(tiny_dataset, tmp_path, cell) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cell", list(matrix()), ids=lambda cell: "-".join(map(str, cell.values())))
def test_a_break_in_every_cell_of_the_matrix_changes_no_bit(
    cell: dict[str, Any], tiny_dataset: Any, tmp_path: Path
) -> None:
    import torch

    try:
        assert one_cell(tiny_dataset, tmp_path, cell) == []
    finally:
        torch.set_num_threads(1)


# Signals from outside


LONG = ("train.epochs=25", "train.patience=25")  # so that a signal meets a living process


@pytest.fixture(scope="module")
def whole_run(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a long command that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "r"
    done = run_command(command(digits_folder, out, *LONG))
    assert done.returncode == 0, done.stderr
    return out


def processes_of(session: int) -> list[int]:
    """Return the processes of a session, zombies included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(path.parent.name))
    return found


def signalled(
    words: list[str], out: Path, signals: list[int], pause: float
) -> subprocess.CompletedProcess[str]:
    """Run a training in a session of its own; signal it after two epochs, till it is gone."""
    log = out.with_suffix(".log")
    with open(log, "w") as file:
        process = subprocess.Popen(words, stderr=file, stdout=file, start_new_session=True,
                                   env=surroundings(PYTHONHASHSEED="1"))  # fmt: skip
    try:
        wait_for_epochs(out / "metrics.jsonl", process)
        assert process.pid in processes_of(process.pid)
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        process.wait(timeout=60)
        assert processes_of(process.pid) == []
    finally:
        process.kill()
        process.wait()
    return subprocess.CompletedProcess(words, process.returncode, "", log.read_text("utf-8"))


def wait_for_epochs(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when a training has logged two epochs."""
    while not path.exists() or path.read_text("utf-8").count("valid_accuracy") < 2:
        assert process.poll() is None, "it ended before its second epoch"
        time.sleep(0.005)


@pytest.mark.parametrize(("signals", "pause", "code"), [
    pytest.param([signal.SIGINT], 0, 130, id="ctrl-c"),
    pytest.param([signal.SIGINT] * 2, 0.1, 130, id="twice"),
    pytest.param([signal.SIGINT] * 10, 0.1, 130, id="ten-times"),
    pytest.param([signal.SIGINT] * 10, 0.01, 130, id="held-down"),
    pytest.param([signal.SIGTERM], 0, 75, id="sigterm"),
])  # fmt: skip
def test_a_command_that_is_sent_signals_ends_at_once_and_goes_on_as_the_whole_one(
    signals: list[int], pause: float, code: int, digits_folder: Path, whole_run: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "r"
    done = signalled(command(digits_folder, out, *LONG), out, signals, pause)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    words = [sys.executable, "-m", "trimtab", "resume", str(out)]
    again = subprocess.run(words, text=True, check=False, capture_output=True, timeout=200,
                           env=surroundings(PYTHONHASHSEED="2"))  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert Run(out).facts["resumed"]
    found = differences(whole_run, out)
    assert [name for name in found if name != "ledger.jsonl"] == []  # a stop has rows of its own


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "explanation" / "what-is-tested-to-break.md").read_text("utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    tests = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    found = set(re.findall(r"^def (test_\w+)", "\n".join(tests), re.MULTILINE))
    assert len(named) > 30
    assert named - found == set()


# Files of a run


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    dead = tmp_path / ".a.json.0123abcd.tmp"
    dead.write_text("{")
    (tmp_path / ".mine.tmp").write_text("x")
    code = (
        "import sys, fcntl; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    living = tmp_path / ".b.json.89abcdef.tmp"
    with subprocess.Popen([sys.executable, "-c", code, str(living)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with locked(tmp_path):
            assert not dead.exists()
            assert living.exists()
        holder.kill()
    with locked(tmp_path):
        assert sorted(one.name for one in tmp_path.iterdir()) == [".mine.tmp", "run.lock"]


def test_a_torn_row_is_gone_before_the_next_one_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2')
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 3}]


def test_a_row_for_which_there_is_no_room_is_an_error_and_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"n": 1})
    failpoints.arm("log.before_row:enospc")
    with pytest.raises(MachineError, match="No space left"):
        append_jsonl(path, {"n": 2})
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, {"n": 3}]


@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, action: str) -> None:
    write_json(tmp_path / "a.json", 1)
    failpoints.arm(f"file.before_sync:{action}")
    with pytest.raises(MachineError) as caught:
        write_json(tmp_path / "a.json", 2)
    assert caught.value.exit_code == 6
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_folder_with_a_lock_and_the_users_own_files_is_no_begun_run(
    tmp_path: Path, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    for names in (["recipe.yaml"], ["run.lock", "thesis.txt"]):
        folder = tmp_path / names[-1]
        folder.mkdir()
        for name in names:
            (folder / name).write_text("mine")
        with pytest.raises(UsageError, match="other files"):
            train(tiny_dataset, recipe=tiny_recipe, out=folder)
        assert sorted(one.name for one in folder.iterdir()) == sorted(names)
        assert (folder / names[-1]).read_text() == "mine"


def test_a_second_command_in_the_folder_is_refused_before_it_reads_data(
    tmp_path: Path, tiny_recipe: Any
) -> None:
    (tmp_path / "r").mkdir()
    with locked(tmp_path / "r"), pytest.raises(BusyError, match=f"pid {os.getpid()}"):
        train(tmp_path / "no-data", recipe=tiny_recipe, out=tmp_path / "r")


def test_data_that_cannot_be_read_leave_no_folder(tmp_path: Path, tiny_recipe: Any) -> None:
    with pytest.raises(Exception, match="no-data"):
        train(tmp_path / "no-data", recipe=tiny_recipe, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


# Resumed elsewhere


def test_other_versions_processors_and_threads_are_named() -> None:
    before = {"processor": "A", "threads": 2, "versions": {"torch": "2.1"}, "cores": 2}
    assert changed_environment(before, before) == []
    now = {"processor": "B", "threads": 4, "versions": {"torch": "2.2"}, "cores": 8}
    assert changed_environment(before, now) == [
        "torch was 2.1, is 2.2", "processor was A, is B", "threads was 2, is 4",
    ]  # fmt: skip


def test_native_layers_that_are_missing_now_are_told(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    OUTPUT.quiet = False
    monkeypatch.setattr(keep, "why_not", lambda: "")
    facts = {**tiny_run.facts, **keep.means_to_compute()}
    run: Any = SimpleNamespace(path=tiny_run.path, facts=facts)
    keep.tell_changes(run)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(keep, "why_not", lambda: "TRIMTAB_NATIVE is 0")
    keep.tell_changes(run)
    told = capsys.readouterr().err
    assert "native layers was compiled, is missing" in told


# Broken disks below a whole command


def small_disk(options: str) -> list[str]:
    """The command before a training that gives its output, the last word, a disk of its own."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no user namespaces with mounts here")
    script = f'for last; do :; done; d=$(dirname "$last"); mount -t tmpfs -o {options} tmpfs "$d" '
    return ["unshare", "-rm", "sh", "-c", script + '&& "$@"; code=$?; ls -AR "$d"; exit $code', "x"]


@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=64k", "size=5m,nr_inodes=5"])
def test_a_full_disk_before_the_start_is_exit_6_and_leaves_nothing(
    options: str, digits_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    done = run_command(command(digits_folder, tmp_path / "disk" / "r"), *small_disk(options))
    assert done.returncode == 6, done.stderr
    assert "hint: free some space" in done.stderr
    assert re.search(r"cannot write|checkpoints need", done.stderr)
    assert "metrics.jsonl" not in done.stdout  # of the files there: not a step was logged
    assert ".tmp" not in done.stdout


@pytest.mark.slow
def test_a_read_only_folder_is_exit_6_before_any_data_are_read(tmp_path: Path) -> None:
    script = ('for last; do :; done; d=$(dirname "$last"); mount --bind "$d" "$d" && '
              'mount -o remount,bind,ro "$d" && "$@"')  # fmt: skip
    small_disk("size=1m")  # skips where nothing can be mounted
    (tmp_path / "disk").mkdir()
    words = command(tmp_path / "no-data", tmp_path / "disk" / "r")
    done = run_command(words, "unshare", "-rm", "sh", "-c", script, "x")
    assert done.returncode == 6, done.stderr
    assert "Read-only file system" in done.stderr


# A long training


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_training_keeps_its_memory_files_and_children_flat(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    seen: list[dict[str, int]] = []

    def look(row: dict[str, Any]) -> None:
        if "epoch" in row:
            seen.append(footprint())

    from trimtab.models.build import build
    from trimtab.records.run import start_run
    from trimtab.train.loop import train_network

    epochs = int(os.environ.get("TRIMTAB_SOAK_EPOCHS", "300"))
    recipe = tiny_recipe.override(train__epochs=epochs, train__patience=epochs,
                                  train__batch_size=128, train__checkpoint_seconds=0.5)  # fmt: skip
    run = start_run(tmp_path / "r", kind="train", label="x", recipe=recipe, seed=0, resumable=True)
    network = build(tiny_dataset.schema, recipe)
    train_network(network, tiny_dataset, recipe, run, observe=look)
    early, late = seen[len(seen) // 3], seen[-1]
    assert late["pages"] < 1.05 * early["pages"], "resident memory grew"
    assert late["files"] <= early["files"] + 2, "open files grew"
    assert late["threads"] <= early["threads"] + 1, "threads were left"
    assert late["children"] == early["children"], "children were left"
    assert late["shared"] <= early["shared"], "shared memory was left"


def footprint() -> dict[str, int]:
    """Return what this process holds, and the files of torch in shared memory."""
    shared = Path("/dev/shm")
    return {
        "pages": int(Path("/proc/self/statm").read_text().split()[1]),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "shared": sum(one.stat().st_uid == os.getuid() for one in shared.glob("*torch*")),
    }  # fmt: skip


def test_resume_says_what_is_not_the_same_here(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from trimtab.machine.progress import OUTPUT

    run = train(tiny_dataset, recipe=tiny_recipe.override(train__epochs=1), out=tmp_path / "r")
    path = run.path / "environment.json"
    env = json.loads(path.read_text("utf-8"))
    monkeypatch.setattr(OUTPUT, "quiet", False)
    resume(run, data=tiny_dataset, epochs=2)
    assert "not to the bit" not in capsys.readouterr().err
    env["versions"]["torch"] = "1.0"
    write_json(path, env)
    resume(run, data=tiny_dataset, epochs=3)
    assert "torch was 1.0, is" in capsys.readouterr().err
