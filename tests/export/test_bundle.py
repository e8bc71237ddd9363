"""Export: proven or nothing, never over something else, and whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.compress.quantize import quantize
from trimtab.data.dataset import Dataset
from trimtab.errors import ExportError, UsageError
from trimtab.export import bundle
from trimtab.export.bundle import Artifact, export, staged
from trimtab.export.onnx import open_onnx, write_onnx
from trimtab.measure.quality import logits_of, network_call
from trimtab.models.build import load, load_weights, save_weights
from trimtab.records.files import read_json, sha256_file
from trimtab.records.run import Run

FILES = {"model.onnx", "card.json", "preprocess.json", "labels.txt", "decode.py", "predict.py",
         "bench.py", "README.md"}  # fmt: skip


@pytest.fixture
def own_run(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the trained run that a test may change."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return Run(tmp_path / "run")


def test_an_artifact_is_whole(artifact: Artifact) -> None:
    assert {path.name for path in artifact.path.iterdir()} == FILES
    hashes = artifact.card["files"]
    assert set(hashes) == FILES - {"card.json"}
    assert all(sha256_file(artifact.path / name) == value for name, value in hashes.items())


def test_the_card_says_what_a_user_needs(artifact: Artifact, tiny_dataset: Dataset) -> None:
    card, schema = artifact.card, tiny_dataset.schema
    assert card["classes"] == list(schema.classes)
    assert card["precision"] == "fp32"
    assert card["size_bytes"] == artifact.size_bytes == artifact.model.stat().st_size
    assert card["parity"]["n"] == len(tiny_dataset.splits["valid"])
    assert card["parity"]["flips"] == 0
    assert card["input"]["height"], card["input"]["width"] == (schema.height, schema.width)
    assert card["params"] > 0
    assert card["macs"] > 0


def test_an_artifact_holds_no_absolute_path(artifact: Artifact, exported: Run) -> None:
    for path in artifact.path.iterdir():
        assert str(exported.path.parent).encode() not in path.read_bytes()


def test_the_file_decides_as_the_run_does(artifact: Artifact, exported: Run,
                                          tiny_dataset: Dataset) -> None:  # fmt: skip
    valid = tiny_dataset.splits["valid"]
    wanted = logits_of(network_call(load(exported)), valid)
    found = logits_of(open_onnx(artifact.model), valid)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_parity_is_written_into_the_ledger(exported: Run, tiny_dataset: Dataset) -> None:
    row = exported.measured("parity")
    assert row is not None
    assert (row["flips"], row["n"], row["split"]) == (0, len(tiny_dataset.splits["valid"]), "valid")


def test_an_existing_folder_is_never_overwritten(artifact: Artifact, exported: Run,
                                                 tiny_dataset: Dataset) -> None:  # fmt: skip
    before = artifact.card
    with pytest.raises(UsageError, match="exists already"):
        export(exported, data=tiny_dataset)
    assert artifact.card == before


def test_an_unknown_format_is_refused_with_the_closest_name(exported: Run) -> None:
    with pytest.raises(UsageError, match="did you mean 'onnx'"):
        export(exported, "onxx")


def spoil(how: str) -> Any:
    """Return a writer that writes another network than the one it is given."""

    def write(network: Any, schema: Any, path: Path) -> None:
        import torch

        with torch.no_grad():
            if how == "a channel transposed":
                weight = next(p for p in network.body.parameters() if p.ndim == 4)
                weight.copy_(weight.flip(0))
            elif how == "no normalisation":
                network.normalize.mean.zero_()
            elif how == "biases zeroed":
                for name, value in network.body.named_parameters():
                    if name.endswith("bias"):
                        value.zero_()
            else:
                next(network.body.parameters()).fill_(float("nan"))
        write_onnx(network, schema, path)

    return write


@pytest.mark.parametrize(
    "how", ["a channel transposed", "no normalisation", "biases zeroed", "not a number"]
)
def test_a_broken_export_leaves_nothing_under_its_name(
    own_run: Run, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    sound = load(own_run)
    monkeypatch.setattr(bundle, "write_onnx", spoil(how))
    monkeypatch.setattr(bundle, "network_call", lambda _: network_call(sound))
    before = sorted(path.name for path in own_run.path.iterdir())
    with pytest.raises(ExportError, match="does not agree"):
        export(own_run, data=tiny_dataset)
    assert sorted(path.name for path in own_run.path.iterdir()) == before


def test_a_crash_halfway_leaves_nothing(tmp_path: Path) -> None:
    def crash() -> None:
        with staged(tmp_path / "artifact") as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert list(tmp_path.iterdir()) == []


def test_an_int8_run_ships_its_graph(own_run: Run, tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = quantize(own_run, data=tiny_dataset, out=tmp_path / "int8")
    artifact = export(run, data=tiny_dataset)
    assert artifact.card["precision"] == "int8"
    assert artifact.model.read_bytes() == (run.path / "model.int8.onnx").read_bytes()


def test_an_int8_file_that_flips_too_much_is_refused(
    own_run: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = quantize(own_run, data=tiny_dataset, out=tmp_path / "int8")
    other = load(run)
    load_weights(other, run.weights)
    for value in other.body.parameters():
        value.data.neg_()
    run.weights.unlink()
    save_weights(other, run.weights)
    with pytest.raises(ExportError, match=r"int8 file changes .* % of"):
        export(run, data=tiny_dataset)
    assert not (run.path / "artifact").exists()


def test_class_names_of_any_kind_stand_one_per_line(
    own_run: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    names = ["猫", "<script>alert(1)</script>", "two\nlines", "🦊", "\x1b[31mred", *"56789"]
    facts = read_json(own_run.path / "data.json")
    facts["schema"]["classes"] = names
    (own_run.path / "data.json").write_text(json.dumps(facts), encoding="utf-8")
    schema = tiny_dataset.schema.model_copy(update={"classes": tuple(names)})
    renamed = Dataset(**{**tiny_dataset.__dict__, "schema": schema})
    artifact = export(own_run, data=renamed, out=tmp_path / "文件夹 🦊")
    lines = (artifact.path / "labels.txt").read_text("utf-8").split("\n")
    assert len(lines) == len(names) + 1
    assert artifact.card["classes"] == names
