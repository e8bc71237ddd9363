"""Files are old or new, logs survive a torn line, a busy folder names its holder."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import BusyError, MachineError, UsageError
from trimtab.records.files import (
    append_jsonl,
    locked,
    read_json,
    read_jsonl,
    sync_logs,
    write_bytes,
    write_json,
)
from trimtab.records.recipe import Recipe
from trimtab.records.run import (
    hide_home,
    list_runs,
    open_run,
    start_run,
    update_facts,
    whole_or_gone,
)


def test_failed_write_leaves_the_old_file_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left") as caught:
        write_bytes(path, b"new")
    assert "free some space" in caught.value.hint
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_rows_of_a_log_are_made_durable_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_jsonl(tmp_path / "a.jsonl", {"n": 1})
    seen: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda one: seen.append(os.readlink(f"/proc/self/fd/{one}")))
    sync_logs([tmp_path / "a.jsonl", tmp_path / "none.jsonl"])
    assert seen == [str(tmp_path / "a.jsonl"), str(tmp_path)]


def test_torn_last_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"n": 1})
    with open(path, "ab") as file:
        file.write(b'{"n": 2')
    assert read_jsonl(path) == [{"n": 1}]


def test_nan_is_never_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))


def test_busy_folder_names_the_holders_pid_and_is_free_after_its_death(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from trimtab.records.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BusyError, match=f"pid {holder.pid} ") as caught, locked(tmp_path):
        pass
    assert caught.value.exit_code == 9
    holder.kill()
    holder.wait()
    holder.stdout.close()
    holder.stdin.close()
    with locked(tmp_path):
        pass


def test_run_is_never_overwritten(tmp_path: Path) -> None:
    start_run(tmp_path / "r", kind="train", label="x", recipe=Recipe(), seed=0)
    with pytest.raises(UsageError, match="already holds a run"):
        start_run(tmp_path / "r", kind="train", label="x", recipe=Recipe(), seed=0)


def test_run_reads_back_what_was_written_and_names_its_parent_relatively(tmp_path: Path) -> None:
    recipe = Recipe().override(train__epochs=7)
    parent = start_run(tmp_path / "a" / "p", kind="train", label="p", recipe=recipe, seed=3)
    child = start_run(tmp_path / "b" / "c", kind="prune", label="c", recipe=recipe, seed=3,
                      parent=parent, edits=[{"kind": "prune"}])  # fmt: skip
    parent.record("accuracy", 0.5, n=10)
    parent.record("accuracy", 0.6, n=10)
    assert open_run(child.path).recipe == recipe
    assert child.facts["parent"] == "../../a/p"
    found = child.parent
    assert found is not None
    assert (found.measured("accuracy") or {})["value"] == 0.6
    (tmp_path / "moved").mkdir()
    os.rename(tmp_path / "a", tmp_path / "moved" / "a")
    os.rename(tmp_path / "b", tmp_path / "moved" / "b")
    moved = open_run(tmp_path / "moved" / "b" / "c").parent
    assert moved is not None
    assert moved.recipe == recipe


def test_run_never_lands_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="other files"):
        start_run(tmp_path, kind="train", label="x", recipe=Recipe(), seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_that_torch_cannot_take_is_refused_before_a_folder_is_made(
    tmp_path: Path, seed: int
) -> None:
    with pytest.raises(UsageError, match="seed"):
        start_run(tmp_path / "r", kind="train", label="x", recipe=Recipe(), seed=seed)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("done", "stays"), [(False, False), (True, True)])
def test_failed_run_vanishes_unless_a_run_in_it_is_whole(
    tmp_path: Path, done: bool, stays: bool
) -> None:
    outer = start_run(tmp_path / "r", kind="fit", label="x", recipe=Recipe(), seed=0)
    inner = start_run(outer.path / "candidates" / "a", kind="train", label="a",
                      recipe=Recipe(), seed=0)  # fmt: skip
    if done:
        update_facts(inner, status="finished")
    with pytest.raises(MachineError), whole_or_gone(outer.path):
        raise MachineError("the disk is full")
    assert outer.path.exists() is stays


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", None), ("run.json", "{"), ("run.json", "[]"), ("data.json", None),
     ("edits.json", "{}"), ("recipe.yaml", None)],
)  # fmt: skip
def test_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    run = start_run(tmp_path / "r", kind="train", label="x", recipe=Recipe(), seed=0)
    (run.path / name).unlink(missing_ok=True)
    if content is not None:
        (run.path / name).write_text(content)
    part = {"run.json": "facts"}.get(name, name.partition(".")[0])
    with pytest.raises(UsageError, match=name):
        getattr(run, part)


def test_opening_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        open_run(tmp_path)


def test_environment_holds_no_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [str(tmp_path / "trimtab"), "fit", str(tmp_path / "photos"), f"--out={tmp_path / 'r'}"]
    monkeypatch.setattr(sys, "argv", [*argv, "--target", "accuracy>=0.9"])
    run = start_run(tmp_path / "r", kind="fit", label="x", recipe=Recipe(), seed=0)
    assert str(tmp_path) not in (run.path / "environment.json").read_text("utf-8")
    command = ["trimtab", "fit", "photos", "--out=r", "--target", "accuracy>=0.9"]
    assert read_json(run.path / "environment.json")["command"] == command


def test_runs_begun_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = itertools.cycle(["00aa", "00ab", "00aa", *(f"{number:04x}" for number in range(20))])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(drawn))
    for _ in range(20):
        start_run(None, kind="train", label="猫/<dog>", recipe=Recipe(), seed=0)
    runs = list_runs("runs")
    assert len(runs) == 20
    assert all("<" not in run.name for run in runs)


@pytest.mark.parametrize(
    ("argument", "kept"),
    [
        ("/home/me/x", "x"), ("--out=/home/me/x", "--out=x"), ("runs/x", "runs/x"),
        ("model.pretrained=/home/me/w.npz", "model.pretrained=w.npz"),
        ("--set=model.pretrained=/home/me/w.npz", "--set=model.pretrained=w.npz"),
        ("accuracy>=0.9, p95<=1ms", "accuracy>=0.9, p95<=1ms"),
    ],
)  # fmt: skip
def test_words_of_a_command_keep_no_folder_of_this_machine(argument: str, kept: str) -> None:
    assert hide_home(argument) == kept
