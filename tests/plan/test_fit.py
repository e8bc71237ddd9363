"""The main job on tiny real data, end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab as tt
from trimtab.errors import BusyError, DataError, UsageError
from trimtab.plan.finish import summary
from trimtab.records.files import locked, read_json

TARGET = "accuracy>=0.6, p95<=50ms, size<=500KB"
ROW = {
    "name",
    "steps",
    "accuracy",
    "p50_ms",
    "p95_ms",
    "size_bytes",
    "params",
    "macs",
    "kept",
    "why",
}


@pytest.fixture(scope="module")
def quick(tiny_recipe: Any) -> Any:
    return tiny_recipe.override(train__epochs=20, compress__prune_keep=[0.5])


@pytest.fixture(scope="module")
def fitted(digits_folder: Path, quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("fits") / "fit"
    return tt.fit(digits_folder, TARGET, budget=60, recipe=quick, out=out)


def test_fit_meets_a_modest_target_and_says_so_per_clause(fitted: Any) -> None:
    verdict = read_json(fitted.path / "verdict.json")
    assert verdict["target_met"]
    assert [c["metric"] for c in verdict["clauses"]] == ["accuracy", "p95", "size"]
    assert verdict["split"] == "test"
    assert verdict["seconds"] < 1.1 * verdict["budget_seconds"]
    size = (fitted.path / "artifact" / "model.onnx").stat().st_size
    assert verdict["clauses"][2]["got"] == size


def test_table_names_every_candidate_with_interval_and_one_that_ships(fitted: Any) -> None:
    rows = read_json(fitted.path / "table.json")
    assert all(row.keys() >= ROW for row in rows)
    assert sum(row["chosen"] for row in rows) == 1
    assert [row["steps"] for row in rows] == [
        ["train"], ["train", "prune 50 %"], ["train", "int8"], ["train", "prune 50 %", "int8"]
    ]  # fmt: skip
    for row in rows:
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
        assert row["accuracy"]["split"] == "valid"
    assert rows[1]["params"] < rows[0]["params"]
    assert rows[2]["size_bytes"] < rows[0]["size_bytes"]
    assert "cnn_small" in fitted.table()


def test_verdict_is_what_the_shipped_file_does_on_the_test_split(
    fitted: Any, digits_folder: Path, quick: Any
) -> None:
    from trimtab.data.dataset import open_dataset

    split = open_dataset(digits_folder, quick).splits["test"]
    paths = [digits_folder / name for name in split.ids]
    rows = tt.predict(fitted, *paths)
    classes = fitted.schema.classes
    right = [row["label"] == classes[t] for row, t in zip(rows, split.targets, strict=True)]
    assert np.mean(right) == read_json(fitted.path / "verdict.json")["clauses"][0]["got"]


def test_summary_is_the_promised_object(fitted: Any) -> None:
    found = json.loads(json.dumps(summary(fitted.path)))
    assert found.keys() == {
        "run",
        "artifact",
        "report",
        "target_met",
        "clauses",
        "table",
        "seconds",
    }
    assert Path(found["report"]).is_file()
    assert Path(found["artifact"]).is_dir()


def test_report_is_one_small_offline_page(fitted: Any) -> None:
    text = (fitted.path / "report.html").read_text("utf-8")
    assert len(text.encode()) < 2_000_000
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "Target met" in text


def test_fitted_run_loads_and_can_be_worked_on(fitted: Any, tmp_path: Path) -> None:
    network = tt.load(fitted)
    assert not network.training
    base = tt.open_run(fitted.path / "candidates" / "cnn_small")
    tiny = tt.quantize(base, out=tmp_path / "tiny")
    assert tt.verify(tt.export(tiny).path)["against_parent"]["size_ratio"] > 1.5


def test_artifact_predicts_the_same_without_trimtab(fitted: Any, digits_folder: Path) -> None:
    pictures = [str(p) for p in sorted((digits_folder / "7").iterdir())[:5]]
    here = [row["label"] for row in tt.predict(fitted, *pictures)]
    code = (
        "import runpy, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'trimtab', 'torch', 'timm', 'sklearn', 'pydantic'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    script = fitted.path / "artifact" / "predict.py"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), *pictures, "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=script.parent,
    )
    assert done.returncode == 0, done.stderr
    assert [row["label"] for row in json.loads(done.stdout)["predictions"]] == here


def test_missed_target_ships_the_nearest_and_names_the_clause(
    digits_folder: Path, quick: Any, tmp_path: Path
) -> None:
    recipe = quick.override(compress__prune_keep=[], compress__quantize="none", train__epochs=2)
    run = tt.fit(
        digits_folder, "accuracy>=0.9999, size<=1GB", budget=30, recipe=recipe, out=tmp_path / "r"
    )
    verdict = read_json(run.path / "verdict.json")
    assert not verdict["target_met"]
    assert verdict["binding"] == "accuracy"
    assert (run.path / "artifact" / "model.onnx").is_file()


def test_target_that_nothing_can_meet_still_ends_with_a_model(
    digits_folder: Path, quick: Any, tmp_path: Path
) -> None:
    recipe = quick.override(compress__prune_keep=[], train__epochs=2)
    run = tt.fit(digits_folder, "size<=1KB", budget=30, recipe=recipe, out=tmp_path / "r")
    assert read_json(run.path / "screen.json")[0]["fits"] is False
    assert read_json(run.path / "verdict.json")["binding"] == "size"
    assert (run.path / "artifact" / "model.onnx").is_file()


def test_without_a_test_split_valid_judges_and_the_verdict_says_so(
    quick: Any, tmp_path: Path
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    data = {
        "train": (pixels[:300], digits.target[:300]),
        "valid": (pixels[300:420], digits.target[300:420]),
    }
    recipe = quick.override(compress__prune_keep=[], compress__quantize="none", train__epochs=4)
    run = tt.fit(data, "size<=1MB", budget=30, recipe=recipe, out=tmp_path / "r")
    verdict = read_json(run.path / "verdict.json")
    assert verdict["split"] == "valid"
    assert verdict["accuracy"]["n"] == 120


def test_busy_folder_is_refused_and_a_finished_one_is_never_overwritten(
    fitted: Any, digits_folder: Path, quick: Any
) -> None:
    with locked(fitted.path), pytest.raises(BusyError, match="pid"):
        tt.fit(digits_folder, TARGET, recipe=quick, out=fitted.path)
    with pytest.raises(UsageError, match="already holds a run"):
        tt.fit(digits_folder, TARGET, recipe=quick, out=fitted.path)
    assert (fitted.path / "report.html").is_file()


def test_bad_data_leave_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError):
        tt.fit(tmp_path / "photos", TARGET, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_folder_with_other_files_is_refused_and_left_as_it_is(
    digits_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="other files"):
        tt.fit(digits_folder, TARGET, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("key", ["train__loss", "train__optimizer", "train__schedule",
                                 "compress__importance", "compress__ranges"])  # fmt: skip
def test_unknown_part_is_refused_before_anything_is_made(
    digits_folder: Path, tmp_path: Path, key: str
) -> None:
    with pytest.raises(UsageError, match="'nosuch'"):
        tt.fit(digits_folder, TARGET, recipe=tt.Recipe().override(**{key: "nosuch"}),
               out=tmp_path / "r")  # fmt: skip
    assert not (tmp_path / "r").exists()


def test_model_that_cannot_be_built_leaves_no_folder(digits_folder: Path, tmp_path: Path) -> None:
    recipe = tt.Recipe().override(model__name="resnet19")
    with pytest.raises(UsageError, match="resnet19"):
        tt.fit(digits_folder, TARGET, recipe=recipe, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_budget_that_ends_at_once_still_ships_something(
    digits_folder: Path, quick: Any, tmp_path: Path
) -> None:
    recipe = quick.override(augment__flip="auto")
    run = tt.fit(digits_folder, TARGET, budget=0.001, recipe=recipe, out=tmp_path / "r")
    assert read_json(run.path / "verdict.json")["starved"]
    assert (run.path / "artifact" / "card.json").is_file()


def test_plan_screens_at_least_five_and_trains_nothing(tiny_dataset: Any, tmp_path: Path) -> None:
    found = tt.plan(tiny_dataset, "accuracy>=0.9, size<=30KB", budget="1m")
    timed = [row for row in found["screen"] if row["p95_ms"] is not None]
    assert len(timed) >= 5
    assert {"mobilenetv3_small_100", "resnet18", "resnet50"} <= set(found["candidates"])
    assert any(not row["fits"] and "size" in row["why"] for row in found["screen"])
    assert sum(found["at_most_seconds"].values()) == pytest.approx(60)
