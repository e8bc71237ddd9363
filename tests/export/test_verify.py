"""Verify measures again: agreement, accuracy, latency, and the way from the parent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trimtab.compress.quantize import quantize
from trimtab.data.dataset import Dataset
from trimtab.errors import UnsafeError, UsageError
from trimtab.export import verify as room
from trimtab.export.bundle import Artifact, export
from trimtab.export.verify import verify
from trimtab.measure import latency
from trimtab.records.files import sha256_file
from trimtab.records.run import Run, update_facts


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for a tenth of a second."""
    monkeypatch.setattr(
        room, "measure_latency", lambda c, *, threads: latency.measure_latency(
            c, seconds=0.1, threads=threads))  # fmt: skip
    monkeypatch.setattr(
        room, "compare_latency", lambda a, b: latency.compare_latency(a, b, seconds=0.1)
    )


@pytest.fixture
def own_run(exported: Run, tmp_path: Path) -> Run:
    """A copy of the exported run whose ledger a test may add to."""
    shutil.copytree(exported.path, tmp_path / "run")
    return Run(tmp_path / "run")


def test_a_float_artifact_agrees_with_its_run(own_run: Run, tiny_dataset: Dataset) -> None:
    found = verify(own_run, data=tiny_dataset)
    assert found["parity"]["flips"] == 0
    assert found["against_parent"] is None
    assert found["accuracy"]["n"] == len(tiny_dataset.splits["valid"])
    assert found["latency"]["p50_ms"] <= found["latency"]["p95_ms"]
    json.dumps(found, allow_nan=False)


def test_the_ledger_gets_every_number(own_run: Run, tiny_dataset: Dataset) -> None:
    before = len(own_run.ledger)
    verify(Artifact(own_run.path / "artifact"), data=tiny_dataset)
    rows = {row["what"]: row for row in own_run.ledger[before:]}
    assert set(rows) == {"parity", "latency", "artifact_accuracy", "artifact_size"}
    assert rows["latency"]["unit"] == "ms"
    assert rows["artifact_size"]["value"] == (own_run.path / "artifact/model.onnx").stat().st_size


def test_an_int8_artifact_is_compared_with_its_float_parent(
    own_run: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = quantize(own_run, data=tiny_dataset, out=tmp_path / "int8")
    export(run, data=tiny_dataset)
    against: dict[str, Any] = verify(run, data=tiny_dataset)["against_parent"]
    assert against["parent"] == own_run.name
    assert against["speedup"]["low"] <= against["speedup"]["value"] <= against["speedup"]["high"]
    assert against["size_ratio"] > 1.5
    assert against["n"] == len(tiny_dataset.splits["valid"])
    assert run.measured("speedup_over_parent") is not None
    flips = run.measured("flips_against_parent")
    assert flips is not None
    assert flips["value"] == against["flip_fraction"]


def test_the_run_of_a_fit_is_compared_with_the_parent_of_what_it_chose(
    own_run: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    candidate = quantize(own_run, data=tiny_dataset, out=tmp_path / "fit" / "candidates" / "int8")
    export(candidate, data=tiny_dataset)
    fitted = Run(tmp_path / "fit")
    for path in candidate.path.iterdir():
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, fitted.path / path.name)
    update_facts(fitted, parent=None, chosen="candidates/int8")
    against: dict[str, Any] = verify(fitted, data=tiny_dataset)["against_parent"]
    assert against["parent"] == own_run.name


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "predict.py"])
def test_an_artifact_that_was_changed_is_refused(
    own_run: Run, tiny_dataset: Dataset, name: str
) -> None:
    path = own_run.path / "artifact" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UnsafeError, match="not the file its card describes"):
        verify(own_run, data=tiny_dataset)


@pytest.mark.parametrize("name", ["../run.json", "/etc/hostname", "linked"])
def test_a_card_that_points_out_of_its_folder_is_refused(
    own_run: Run, tiny_dataset: Dataset, name: str
) -> None:
    artifact = Artifact(own_run.path / "artifact")
    (artifact.path / "linked").symlink_to(own_run.path / "run.json")
    digest = sha256_file(artifact.path / name)
    card = {**artifact.card, "files": {**artifact.card["files"], name: digest}}
    (artifact.path / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(UnsafeError, match="not the file its card describes"):
        verify(own_run, data=tiny_dataset)


def test_a_run_without_an_artifact_is_told_to_export(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.path, tmp_path / "bare")
    with pytest.raises(UsageError, match="trimtab export"):
        verify(tmp_path / "bare")
