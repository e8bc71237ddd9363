"""Kill it, fill the disk, break the disk: the old checkpoint or the new one is whole."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trimtab.errors import MachineError, UsageError
from trimtab.machine import failpoints
from trimtab.records import files
from trimtab.train import checkpoint as module
from trimtab.train import steps
from trimtab.train.checkpoint import Checkpoint, Checkpoints

BEFORE = ["before_file", "before_sync", "before_manifest", "before_rename"]
OF_FILES = ["file.before_sync", "file.before_rename", "file.after_rename", "log.before_row"]
AFTER = ["after_rename", "before_delete", "between_deletes"]
SCRIPT = """
import sys, torch
from pathlib import Path
from trimtab.machine import failpoints
from trimtab.machine.progress import OUTPUT
from trimtab.train.checkpoint import Checkpoints

OUTPUT.quiet = False
folder = Path(sys.argv[1]) / "c"
def save(step, count=50, wait=True):
    checkpoints.save(step, {"weights": {"w": torch.full((count,), float(step))}}, {"step": step})
    if wait:
        checkpoints.wait()
"""


def state_at(step: int) -> dict[str, dict[str, Tensor]]:
    return {"weights": {"w": torch.full((50,), float(step))}, "best": {"w": torch.tensor(step)}}


def save(checkpoints: Checkpoints, *numbers: int) -> None:
    for step in numbers:
        checkpoints.save(step, state_at(step), {"step": step})
        checkpoints.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def step_of(found: Checkpoint | None) -> int:
    """The step of a checkpoint whose every value was seen to be that step's."""
    assert found is not None
    assert found.facts == {"step": found.step}
    for group, tensors in state_at(found.step).items():
        if group in found.groups:
            kept = found.tensors(group)["w"]
            assert torch.equal(kept, tensors["w"].expand_as(kept))
    return found.step


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; return its exit status, negative for a signal."""
    return ended(forked(work))


def forked(work: Callable[[], None]) -> int:
    """Start `work` in a forked child; return its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork of a process with threads
        child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_script(
    folder: Path, body: str, *prefix: str, failpoint: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run SCRIPT and `body` in a fresh interpreter, behind `prefix`."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", SCRIPT + body, str(folder)], text=True, check=False,
        capture_output=True, env={**os.environ, "TRIMTAB_FAILPOINT": failpoint}, timeout=120,
    )  # fmt: skip


# Kills


@pytest.mark.parametrize("name", BEFORE + AFTER)
def test_a_kill_at_any_pass_of_a_failpoint_leaves_the_old_state_or_the_new(
    tmp_path: Path, name: str
) -> None:
    status, count = -signal.SIGKILL, 0
    while status == -signal.SIGKILL:
        count += 1
        folder = tmp_path / str(count)
        with Checkpoints(folder) as checkpoints:
            save(checkpoints, 1, 2)

        def third(folder: Path = folder, count: int = count) -> None:
            failpoints.arm(f"checkpoint.{name}:{count}:kill")
            with Checkpoints(folder) as checkpoints:
                save(checkpoints, 3)

        status = in_child(third)
        killed = status == -signal.SIGKILL
        assert any(one.endswith(".tmp") for one in names(folder)) is (
            killed and name not in {"after_rename", "before_delete"}
        )
        after = Checkpoints(folder)
        assert step_of(after.newest()) == (2 if killed and name in BEFORE else 3)
        assert after.warnings == []
        assert len(steps.step_folders(folder)) >= 2
        save(after, 4)
        assert step_of(after.newest()) == 4
        assert not any(one.endswith(".tmp") for one in names(folder))
    assert status == 0
    assert count >= 2  # the failpoint was passed at least once


def test_kills_at_any_moment_never_leave_less_than_was_there(tmp_path: Path) -> None:
    folder, reached = tmp_path / "c", 1
    save(Checkpoints(folder), 1)

    def train() -> None:
        with Checkpoints(folder) as checkpoints:
            for step in range(reached + 1, 100_000):
                save(checkpoints, step)

    for moment in range(10):
        child = forked(train)
        try:
            wait_for(lambda old=reached: newest_step(folder) > old)
            time.sleep(0.0037 * moment)
        finally:
            os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        after = Checkpoints(folder)
        now = step_of(after.newest())
        assert now > reached
        assert after.warnings == []
        assert not any(one.endswith(".tmp") for one in names(folder))
        reached = now


def newest_step(folder: Path) -> int:
    return steps.order_of(steps.step_folders(folder)[0])[0]


def wait_for(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.002)


def test_what_a_living_process_writes_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    failpoints.arm("checkpoint.before_manifest:sleep")
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state_at(1), {"step": 1})
        time.sleep(0.3)
        in_child(lambda: steps.remove_leftovers(tmp_path / "c"))
        assert step_of(checkpoints.newest()) == 1


def test_only_leftovers_of_checkpoints_are_removed(tmp_path: Path) -> None:
    for name in ("step-00000001.0123abcd.tmp", "notes.tmp", "step-00000001.mine.tmp"):
        (tmp_path / "c" / name).mkdir(parents=True)
    Checkpoints(tmp_path / "c")
    assert names(tmp_path / "c") == ["notes.tmp", "step-00000001.mine.tmp"]


@pytest.mark.parametrize(
    ("ending", "code", "left"),
    [("", 0, [1, 2]), ("raise ValueError('planted')", 1, [1, 2]),
     ("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, [1])],
    ids=["end", "exception", "sigterm"],
)  # fmt: skip
def test_an_exit_while_a_save_is_on_its_way_completes_it_or_leaves_nothing_of_it(
    tmp_path: Path, ending: str, code: int, left: list[int]
) -> None:
    body = f"""
checkpoints = Checkpoints(folder)
save(1)
failpoints.arm("checkpoint.before_rename:sleep")
save(2, wait=False)
{ending}
"""
    done = run_script(tmp_path, body)
    assert done.returncode == code, done.stderr
    after = Checkpoints(tmp_path / "c")
    assert names(tmp_path / "c") == [f"step-{step:08d}" for step in left]
    assert step_of(after.newest()) == left[-1]


# Failpoints themselves


def test_every_failpoint_is_documented_and_tested_here() -> None:
    assert set(failpoints.NAMES) == {*(f"checkpoint.{name}" for name in BEFORE + AFTER), *OF_FILES}
    source = "".join(Path(str(one.__file__)).read_text("utf-8") for one in (steps, files))
    assert set(re.findall(r'failpoint\("([^"]+)"\)', source)) == set(failpoints.NAMES)
    assert all(failpoints.NAMES.values())


def test_a_failpoint_is_set_by_the_environment(tmp_path: Path) -> None:
    body = "with Checkpoints(folder) as checkpoints:\n    save(1)\n    save(2)\n    save(3)\n"
    done = run_script(tmp_path, body, failpoint="checkpoint.before_rename:2:kill")
    assert done.returncode == -signal.SIGKILL
    assert step_of(Checkpoints(tmp_path / "c").newest()) == 1


@pytest.mark.parametrize(
    "text",
    ["checkpoint.before_rename", "checkpoint.nowhere:kill", "checkpoint.before_file:explode",
     "checkpoint.before_file:0:kill", "checkpoint.before_file:x:kill"],
)  # fmt: skip
def test_a_failpoint_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="wanted name"):
        failpoints.arm(text)


def test_a_failpoint_acts_at_its_pass_and_no_other() -> None:
    failpoints.arm("checkpoint.before_file:2:eio")
    failpoints.failpoint("checkpoint.before_file")
    failpoints.failpoint("checkpoint.before_sync")
    with pytest.raises(OSError, match="Input/output"):
        failpoints.failpoint("checkpoint.before_file")
    failpoints.failpoint("checkpoint.before_file")


# Full and broken disks


@pytest.mark.parametrize("action", ["enospc", "eio"])
@pytest.mark.parametrize("name", BEFORE)
def test_a_save_that_fails_is_told_once_and_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, name: str, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1)
        failpoints.arm(f"checkpoint.{name}:{action}")
        save(checkpoints, 2)
        assert step_of(checkpoints.newest()) == 1
        assert names(tmp_path / "c") == ["step-00000001"]
        assert len(checkpoints.warnings) == 1
        reason = {"enospc": "No space left", "eio": "Input/output error"}[action]
        assert reason in checkpoints.warnings[0]
        assert re.search(r"\d MB needed, [\d,.]+ MB free", checkpoints.warnings[0])
        save(checkpoints, 3)
        assert step_of(checkpoints.newest()) == 3
    assert len(checkpoints.warnings) == 1


def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "publish", broken)


def test_three_misses_in_a_row_end_the_training_with_code_6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "c")
    save(checkpoints, 1)
    failing(monkeypatch)
    save(checkpoints, 2, 3)
    with pytest.raises(MachineError, match="3 times in a row") as caught:
        save(checkpoints, 4)
    assert caught.value.exit_code == 6
    assert "free some space" in caught.value.hint
    assert len(checkpoints.warnings) == 1


def test_an_end_without_any_checkpoint_is_an_error_and_with_an_older_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(tmp_path / "older") as checkpoints:
        save(checkpoints, 1)
        failing(monkeypatch)
        save(checkpoints, 2)
    with pytest.raises(MachineError, match="no checkpoint in"), Checkpoints(tmp_path / "c") as new:
        new.save(1, state_at(1), {"step": 1})


def test_the_error_of_the_training_is_not_hidden_by_that_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path / "c") as checkpoints:  # noqa: PT012
        checkpoints.save(1, state_at(1), {"step": 1})
        raise ZeroDivisionError
    assert "no checkpoint" in checkpoints.warnings[-1]


def test_a_bug_while_writing_is_raised_and_no_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "publish", lambda *_: 1 / 0)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state_at(1), {"step": 1})
    with pytest.raises(ZeroDivisionError):
        checkpoints.wait()


@pytest.mark.parametrize("name", ["before_delete", "between_deletes"])
def test_an_older_one_that_cannot_be_deleted_is_told_and_the_new_one_counts(
    tmp_path: Path, name: str
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 2)
        failpoints.arm(f"checkpoint.{name}:eio")
        save(checkpoints, 3)
        assert step_of(checkpoints.newest()) == 3
    assert "cannot delete an older checkpoint: Input/output error" in checkpoints.warnings[0]


def test_no_room_is_told_before_the_first_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda folder: 300)
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(MachineError, match="checkpoints need") as caught:
        save(checkpoints, 1)
    assert caught.value.exit_code == 6
    assert names(tmp_path / "c") == []
    monkeypatch.setattr(module, "free_bytes", lambda folder: 10_000)
    save(checkpoints, 1)
    monkeypatch.setattr(module, "free_bytes", lambda folder: 300)
    save(Checkpoints(tmp_path / "c"), 2)  # there is one to fall back to: it may try


def small_disk(options: str) -> list[str]:
    """The command before a script that gives its folder a disk of its own, or a skip."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no user namespaces with mounts here")
    mount = f'mount -t tmpfs -o {options} tmpfs "$4" && "$@"; code=$?; ls -R "$4"; exit $code'
    return ["unshare", "-rm", "sh", "-c", mount, "sh"]


@pytest.mark.parametrize("options", ["size=2600k", "size=50m,nr_inodes=12"])
def test_a_disk_that_fills_up_keeps_the_older_checkpoint_then_ends_with_code_6(
    tmp_path: Path, options: str
) -> None:
    body = """
from trimtab.errors import MachineError
checkpoints = Checkpoints(folder)
save(1, 262_144)
save(2, 262_144)
for step in (3, 4):
    save(step, 262_144)
    assert checkpoints.newest().step == 2, step
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000002"]
try:
    save(5, 262_144)
except MachineError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    done = run_script(tmp_path, body, *small_disk(options))
    assert done.returncode == 6, done.stderr
    assert "No space left" in done.stdout
    assert ".tmp" not in done.stdout
    assert done.stderr.count("warning:") == 1
    assert "1.0 MB needed" in done.stderr


# Order of syncs

CALL = re.compile(r'(fsync|rename)\((?:\d+<([^>]*)>|"([^"]*)", "([^"]*)")\)')
CONTENT = ["weights.safetensors", "state.json", "manifest.json"]


def order_faults(log: str) -> list[str]:
    """Return which checkpoints got their name before they, or lasted before it, was durable."""
    calls = [(match[2], match[3], match[4]) for match in CALL.finditer(log)]
    found = []
    for place, (_, source, target) in enumerate(calls):
        if target and not target.endswith(".tmp"):
            wanted = [*(f"{source}/{name}" for name in CONTENT), source]
            synced = [path for path, *_ in calls[:place] if path and path.startswith(source)]
            if synced != wanted:
                found.append(f"{target} was synced as {synced}")
            if calls[place + 1 : place + 2] != [(os.path.dirname(target), None, None)]:
                found.append(f"the name {target} is not durable")
    return found


@pytest.mark.slow
def test_nothing_gets_its_name_before_all_of_it_is_durable(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trace = ["strace", "-f", "-y", "-s0", "-e", "trace=fsync,rename", "-o", str(log)]
    probe = [*trace, "true"]
    if shutil.which("strace") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no strace here, or no right to use it")
    body = "with Checkpoints(folder) as checkpoints:\n    save(1)\n    save(2)\n    save(3)\n"
    done = run_script(tmp_path, body, *trace)
    assert done.returncode == 0, done.stderr
    text = log.read_text("utf-8")
    assert order_faults(text) == []
    assert len(re.findall(r"rename\(.*\.tmp\", \".*[0-9]\"\)", text)) == 3
    lines = text.splitlines(keepends=True)
    for place, line in enumerate(lines):  # planted: each sync left out in turn is found
        if "fsync" in line and "/c/" in line:
            assert order_faults("".join(lines[:place] + lines[place + 1 :])), line
