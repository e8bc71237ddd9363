"""A SIGTERM in a training or a fit saves what was reached and says to run it again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import Preempted
from trimtab.models.build import load
from trimtab.plan import fit as module
from trimtab.plan.fit import fit
from trimtab.records.run import open_run
from trimtab.train.loop import evaluate
from trimtab.train.run import train


def terminate_when(ready: Callable[[], bool]) -> None:
    """Send this process a SIGTERM as soon as `ready` is true, from another thread."""

    def watch() -> None:
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def has_epochs(path: Path) -> bool:
    return path.exists() and path.read_text("utf-8").count("valid_accuracy") > 2


def test_a_terminated_training_keeps_its_best_weights_and_asks_to_be_run_again(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(train__epochs=100_000, train__patience=100_000)
    out = tmp_path / "r"
    terminate_when(lambda: has_epochs(out / "metrics.jsonl"))
    with pytest.raises(Preempted, match="SIGTERM") as caught:
        train(tiny_dataset, recipe=recipe, budget=90, out=out)
    run = open_run(out)
    assert caught.value.exit_code == 75
    assert str(run.path) in caught.value.message
    assert run.facts["status"] == "interrupted"
    assert evaluate(load(run), tiny_dataset).accuracy == (run.measured("accuracy") or {})["value"]


def test_a_terminated_fit_ships_what_it_reached(
    digits_folder: Path, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(train__epochs=100_000, train__patience=100_000)
    out = tmp_path / "r"
    terminate_when(lambda: has_epochs(out / "candidates" / "cnn_small" / "metrics.jsonl"))
    with pytest.raises(Preempted) as caught:
        fit(digits_folder, "accuracy>=0.999", budget="5m", recipe=recipe, out=out)
    assert "report.html" in caught.value.hint
    assert (out / "report.html").is_file()
    assert (out / "artifact" / "model.onnx").is_file()
    assert json.loads((out / "verdict.json").read_text("utf-8"))["interrupted"]


def test_a_fit_terminated_where_no_loop_listens_is_written_down_too(
    digits_folder: Path, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []
    monkeypatch.setattr(module, "work", lambda job: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(module, "finish", finished.append)
    with pytest.raises(Preempted):
        fit(digits_folder, "accuracy>=0.9", recipe=tiny_recipe, out=tmp_path / "r")
    assert [job.interrupted for job in finished] == [True]
