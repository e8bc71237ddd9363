"""The command line: what it prints, its exit codes, and that bad input is one clear error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trimtab.cli import main


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs one command and gives (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trimtab", *arguments])
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def picture_folder(path: Path, classes: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(
                path / name / f"{index}.png"
            )
    return path


@pytest.mark.parametrize(
    "target", ["accuracy>92", "p95<=10", "acuracy>=0.9", "size<=5 parsecs", "x"]
)
def test_unreadable_target_is_one_error_before_anything_is_made(
    run_cli: Any, tmp_path: Path, target: str
) -> None:
    out = tmp_path / "run"
    code, stdout, stderr = run_cli("fit", str(tmp_path), "--target", target, "--out", str(out))
    assert code == 2
    assert "hint:" in stderr
    assert "Traceback" not in stdout + stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("classes", "says"),
    [({}, ""), ({"cat": 9}, ""), ({"cat": 9, "dog": 1}, "dog"), ({"cat": 9, "dog": 0}, "")],
    ids=["empty", "one class", "class of one", "empty class"],
)
def test_data_that_cannot_be_used_is_exit_5_and_leaves_no_folder(
    run_cli: Any, tmp_path: Path, classes: dict[str, int], says: str
) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    picture_folder(data, classes)
    out = tmp_path / "run"
    code, stdout, stderr = run_cli("fit", str(data), "--target", "accuracy>=0.5", "--out", str(out))
    assert code == 5
    assert stderr.startswith("error: ")
    assert "hint:" in stderr
    assert says in stderr
    assert "Traceback" not in stdout + stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [("train.epoch=3", "did you mean 'epochs'"), ("train.epochs=many", "train.epochs"),
     ("model.name=resnet19", "resnet18"), ("augment.flip=maybe", "augment.flip")],
)  # fmt: skip
def test_faulty_setting_is_exit_2_with_a_hint(
    run_cli: Any, digits_folder: Path, tmp_path: Path, setting: str, says: str
) -> None:
    out = tmp_path / "run"
    code, _, stderr = run_cli("train", str(digits_folder), "--set", setting, "--out", str(out))
    assert code == 2
    assert says in stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--models", "cnn_small"], "two models"), (["--models", "cnn_small,resnet88"], "resnet8'"),
     ([], "--models"), (["--models", "cnn_small,resnet8", "--seeds", "0"], "seeds"),
     (["--models", "cnn_small,resnet8", "--budget", "soon"], "budget 'soon'")],
)  # fmt: skip
def test_comparison_that_cannot_be_is_exit_2_before_anything_is_made(
    run_cli: Any, digits_folder: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    out = tmp_path / "run"
    code, _, stderr = run_cli("compare", str(digits_folder), *options, "--out", str(out))
    assert code == 2
    assert says in stderr
    assert not out.exists()


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999999", "many"])
def test_seed_out_of_range_is_exit_2(run_cli: Any, digits_folder: Path, seed: str) -> None:
    code, _, stderr = run_cli("check", str(digits_folder), "--seed", seed)
    assert code == 2
    assert "--seed" in stderr


def test_json_error_is_one_object(run_cli: Any, tmp_path: Path) -> None:
    code, stdout, _ = run_cli("check", str(tmp_path / "none"), "--json")
    found = json.loads(stdout)
    assert (code, found["exit_code"]) == (5, 5)
    assert found["error"]
    assert found["hint"]


def test_unwritable_output_is_exit_6_before_any_training(run_cli: Any, digits_folder: Path) -> None:
    code, _, stderr = run_cli(
        "fit", str(digits_folder), "--target", "accuracy>=0.5", "--out", "/proc/x/run"
    )
    assert code == 6
    assert "--out" in stderr


def test_check_prints_counts_and_json(run_cli: Any, digits_folder: Path) -> None:
    code, stdout, _ = run_cli("check", str(digits_folder))
    assert code == 0
    assert "400" in stdout
    code, stdout, _ = run_cli("check", str(digits_folder), "--json")
    assert code == 0
    assert json.loads(stdout)


@pytest.mark.parametrize("verb", ["train", "compare", "fit", "lr-find"])
def test_pictures_that_are_left_out_are_told_where_work_begins(
    run_cli: Any, tmp_path: Path, verb: str
) -> None:
    data = picture_folder(tmp_path / "data", {"cat": 60, "dog": 60})
    (data / "cat" / "torn.png").write_bytes(b"no picture")
    once = ("--set", "train.epochs=1")
    words = {"train": once, "fit": ("--target", "size<=1MB", "--dry-run"),
             "compare": ("--models", "cnn_small,dwconv_small", *once), "lr-find": (),
             }[verb]  # fmt: skip
    out = () if verb == "fit" else ("--out", str(tmp_path / "run"))
    code, _, stderr = run_cli(verb, str(data), *words, *out)
    assert code == 0
    (line,) = [line for line in stderr.splitlines() if "torn.png" in line]
    assert line.startswith("warning: 1 picture left out")


def test_verbs_one_by_one_from_pictures_to_labels(
    run_cli: Any, digits_folder: Path, tmp_path: Path
) -> None:
    base, slim, tiny = (str(tmp_path / name) for name in ("base", "slim", "tiny"))
    quick = [
        "--set",
        "train.epochs=12",
        "--set",
        "model.name=cnn_small",
        "--set",
        "augment.flip=false",
    ]
    assert run_cli("train", str(digits_folder), *quick, "--out", base)[0] == 0
    assert run_cli("prune", base, "--keep", "0.5", "--out", slim)[0] == 0
    assert run_cli("quantize", slim, "--out", tiny)[0] == 0
    code, stdout, stderr = run_cli("export", tiny, "--json")
    assert code == 0, stderr
    assert Path(json.loads(stdout)["artifact"]).is_dir()
    code, stdout, _ = run_cli("verify", tiny, "--json")
    assert code == 0
    picture = next((digits_folder / "3").iterdir())
    code, stdout, _ = run_cli("predict", tiny, str(picture), "--json")
    row = json.loads(stdout)["predictions"][0]
    assert code == 0
    assert row["label"] in set("0123456789")
    assert 0 <= row["probability"] <= 1
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<html>")
    code, stdout, _ = run_cli("predict", tiny, str(bad), str(picture), "--json")
    rows = json.loads(stdout)["predictions"]
    assert code == 5
    assert rows[0]["error"]
    assert rows[1]["label"] == row["label"]
    assert run_cli("report", base, slim, tiny, "--out", str(tmp_path / "r.html"))[0] == 0
    assert "train" in run_cli("runs", str(tmp_path))[1]


def test_doctor_and_version(run_cli: Any) -> None:
    assert run_cli("version")[1].strip() == "0.1.0"
    assert json.loads(run_cli("doctor", "--json")[1])


@pytest.mark.timeout(600)
def test_ctrl_c_saves_reports_and_exits_130(digits_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "trimtab",
        "fit",
        str(digits_folder),
        "--target",
        "accuracy>=0.999",
        "--budget",
        "10m",
        "--set",
        "train.epochs=100000",
        "--set",
        "train.patience=100000",
        "--set",
        "model.name=cnn_small",
        "--set",
        "augment.flip=false",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "CI": "1"}
    )
    metrics = out / "candidates" / "cnn_small" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text("utf-8").count("valid_accuracy") > 3)
    second = subprocess.run([*command[:-1], str(out)], capture_output=True, text=True, check=False)
    assert second.returncode == 9
    assert f"pid {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert (out / "report.html").is_file()
    assert (out / "artifact" / "model.onnx").is_file()
    assert json.loads((out / "verdict.json").read_text("utf-8"))["interrupted"]


def wait_for(ready: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


def test_rate_finder_prints_the_words_to_train_with_and_keeps_its_files_below_runs(
    run_cli: Any, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--set", "model.name=cnn_small", "--set", "train.precision=fp32", "--set",
             "train.layout=contiguous", "--seed", "1"]  # fmt: skip
    code, stdout, _ = run_cli("lr-find", str(digits_folder), *words, "--json")
    found = json.loads(stdout)
    assert (code, found["seed"]) == (0, 1)
    assert found["setting"] == f"--set train.learning_rate={found['suggestion']:g}"
    (folder,) = (tmp_path / "runs").iterdir()
    assert "-lr-find-" in folder.name
    assert sorted(path.name for path in folder.iterdir()) == ["lr_find.json", "lr_find.svg"]
    _, printed, _ = run_cli("lr-find", str(digits_folder), *words, "--steps", "12", "--out", "few")
    assert "12 steps, from 3e-06 to 0.3" in printed
    assert "picture: few/lr_find.svg" in printed


ENDING = """
import atexit, sys, tempfile, threading, time
from trimtab import cli, console

class Late:
    def __del__(self):
        print("torn down")

def work():
    time.sleep(0.3)
    print("thread")

kept, console.late = tempfile.TemporaryDirectory(), Late()
print(kept.name)
atexit.register(print, "handler")

def main():
    threading.Thread(target=work).start()
    print("main")
    sys.exit({code})

cli.main = main
cli.command()
"""


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [("", 0, ""), ("0", 0, ""), ("3", 3, ""), ("'why'", 1, "why\n")],
)
def test_a_command_ends_after_threads_handlers_and_output_but_takes_nothing_apart(
    code: str, exit_code: int, told: str
) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING.format(code=code)], text=True,
                          capture_output=True, check=False)  # fmt: skip
    folder, *lines = done.stdout.splitlines()
    assert done.returncode == exit_code
    assert done.stderr == told
    assert lines[:3] == ["main", "thread", "handler"]
    assert ("torn down" in lines) is bool(told), "what Python itself has to tell is left to it"
    assert not Path(folder).exists()


@pytest.mark.parametrize("watch", ["sys.setprofile(lambda *_: None)", "sys.ps1 = '>'"])
def test_a_command_that_is_watched_ends_as_python_does(watch: str) -> None:
    code = ENDING.format(code="3").replace("cli.command()", f"{watch}\ncli.command()")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert done.returncode == 3
    assert "torn down" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_output_that_cannot_be_written_is_no_success() -> None:
    words = [sys.executable, "-c", "from trimtab import cli\ncli.main = lambda: print('x')\n"
             "cli.command()"]  # fmt: skip
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode != 0
    assert b"No space left" in done.stderr
