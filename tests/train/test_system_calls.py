"""A save and the last writes of a run, killed or failed at each of their system calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.records.files import locked
from trimtab.records.run import Run
from trimtab.train.checkpoint import Checkpoints

OUTCOMES = {-signal.SIGKILL, 128 + signal.SIGKILL}


def traced(calls: str, what: str) -> list[str]:
    """The command before a training that lets a system call on its output fail or kill."""
    probe = ["strace", "-f", "-qq", "-e", "trace=none", "true"]
    if shutil.which("strace") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no strace here, or no right to use it")
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}",
            "-e", f"inject={calls}:{what}"]  # fmt: skip


SAVER = """
import sys, os, torch
from pathlib import Path
from trimtab.machine.progress import OUTPUT
from trimtab.records.files import write_json
from trimtab.records.run import Run, update_facts
from trimtab.models.build import save_weights
from trimtab.train.checkpoint import Checkpoints

OUTPUT.quiet = False
folder, step, parts = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
folder.mkdir(exist_ok=True)
if "save" in parts:
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(step, {"weights": {"w": torch.full((50,), float(step))}}, {"step": step})
if "end" in parts:
    run = Run(folder)
    save_weights(torch.nn.Linear(1, 1), run.weights)
    run.record("step", step)
    if step == 1:
        write_json(folder / "run.json", {})
    update_facts(run, step=step)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("part", "calls"), [
    ("save", "rename"), ("save", "fsync"), ("save", "unlink,unlinkat"), ("end", "rename"),
    ("end", "fsync"), ("save", "mkdir"), ("save", "write"), ("end", "write"),
])  # fmt: skip
def test_killed_at_every_write_rename_sync_and_deletion_there_is_the_old_or_the_new(
    part: str, calls: str, tmp_path: Path
) -> None:
    """The tracer counts the calls of each thread, so that a save and the end are killed apart."""
    count, status = 0, -signal.SIGKILL
    while status in OUTCOMES:
        count += 1
        folder = tmp_path / str(count)
        for step in (1, 2):
            run_saver(folder, step)
        prefix = traced(calls, f"signal=KILL:when={count}")
        status = run_saver(folder, 3, *prefix, parts=(part,)).returncode
        with Checkpoints(folder / "checkpoints") as checkpoints:
            found = checkpoints.newest()
        assert found is not None
        assert found.step in (2, 3)
        assert checkpoints.warnings == []
        facts, rows = json.loads((folder / "run.json").read_text()), Run(folder).ledger
        assert facts["step"] in (2, 3)
        assert [row["value"] for row in rows] in ([1, 2], [1, 2, 3])
        if facts["step"] == 3:
            assert len(rows) == 3
        assert run_saver(folder, 4).returncode == 0
        with locked(folder):
            assert not any(one.name.endswith(".tmp") for one in folder.rglob("*"))
        if status == 0:
            assert 3 in (found.step, facts["step"])
    assert status == 0
    assert count > 2


def run_saver(
    folder: Path, step: int, *prefix: str, parts: tuple[str, ...] = ("save", "end")
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", SAVER, str(folder), str(step), *parts], text=True,
        check=False, capture_output=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("calls", "error", "reason"),
    [("fsync", "EIO", "Input/output error"), ("fsync", "EDQUOT", "Disk quota exceeded"),
     ("rename", "ENOSPC", "No space left")],
)  # fmt: skip
def test_a_system_call_that_fails_leaves_the_old_state_and_says_so(
    calls: str, error: str, reason: str, tmp_path: Path
) -> None:
    """Each call of the end fails in turn. A sync behind the last rename finds the new state."""
    status, states = 1, list[int]()
    while status:
        folder = tmp_path / str(len(states))
        run_saver(folder, 1)
        prefix = traced(calls, f"error={error}:when={len(states) + 1}")
        done = run_saver(folder, 2, *prefix, parts=("end",))
        status = done.returncode
        states.append(json.loads((folder / "run.json").read_text())["step"])
        assert not any(one.name.endswith(".tmp") for one in folder.rglob("*"))
        if status:
            assert reason in done.stderr
            assert run_saver(folder, 3).returncode == 0
            assert json.loads((folder / "run.json").read_text()) == {"step": 3}
    late = 1 if calls == "fsync" else 0
    assert states == [1] * (len(states) - 1 - late) + [2] * (1 + late)
    assert len(states) > 2


@pytest.mark.slow
@pytest.mark.parametrize("error", ["EIO", "EDQUOT", "ENOSPC"])
def test_a_save_that_fails_at_any_sync_leaves_the_old_checkpoint_and_no_half(
    error: str, tmp_path: Path
) -> None:
    found, count = 0, 0
    while found != 2:
        count += 1
        folder = tmp_path / str(count)
        run_saver(folder, 1)
        prefix = traced("fsync", f"error={error}:when={count}+")
        done = run_saver(folder, 2, *prefix, parts=("save",))
        with Checkpoints(folder / "checkpoints") as checkpoints:
            newest = checkpoints.newest()
        assert newest is not None
        found = newest.step
        assert checkpoints.warnings == []
        assert not any(one.name.endswith(".tmp") for one in folder.rglob("*"))
        assert found == 2 or done.returncode or "could not be written" in done.stderr
    assert count > 2
