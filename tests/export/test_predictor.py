"""The predictor: the same labels without torch, harmless output, nothing foreign opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto
from PIL import Image

from trimtab.data.dataset import Dataset
from trimtab.errors import UnsafeError, UsageError
from trimtab.export.bundle import Artifact
from trimtab.export.predict import predict
from trimtab.export.predictor import Predictor, plain
from trimtab.measure.quality import network_call
from trimtab.models.build import load
from trimtab.records.run import Run

WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "trimtab", "onnx", "timm", "sklearn", "pydantic"):
    sys.modules[name] = None
sys.argv = [{script!r}, *{arguments!r}]
sys.path.insert(0, {folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


def script(artifact: Artifact, *arguments: str, name: str = "predict.py", **more: Any) -> Any:
    """Run a script of the artifact with everything but onnxruntime, numpy and Pillow hidden."""
    code = WITHOUT_TORCH.format(script=str(artifact.path / name), folder=str(artifact.path),
                                arguments=list(arguments))  # fmt: skip
    return subprocess.run([sys.executable, "-I", "-B", "-c", code], capture_output=True, text=True,
                          encoding="utf-8", timeout=100, check=False, **more)  # fmt: skip


def change_card(artifact: Artifact, **facts: Any) -> None:
    """Overwrite facts of the card."""
    text = json.dumps({**artifact.card, **facts}, ensure_ascii=False)
    (artifact.path / "card.json").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def scans(digits_folder: Path) -> list[str]:
    """A few pictures of every class."""
    return [str(path) for path in sorted(digits_folder.glob("*/*.png"))[::40]]


def test_files_get_the_labels_of_the_run(
    artifact: Artifact, exported: Run, scans: list[str], tiny_dataset: Dataset
) -> None:
    predictor = Predictor(artifact.path)
    call = network_call(load(exported))
    rows = predictor.predict(scans)
    decided = [int(call(predictor.pixels(path)[None]).argmax()) for path in scans]
    assert [row["label"] for row in rows] == [tiny_dataset.schema.classes[k] for k in decided]
    assert all(0 <= row["probability"] <= 1 for row in rows)


def test_the_script_needs_neither_torch_nor_trimtab(artifact: Artifact, scans: list[str]) -> None:
    done = script(artifact, *scans[:3], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predictions"] == Predictor(artifact.path).predict(scans[:3])


def test_one_bad_picture_does_not_stop_the_others(
    artifact: Artifact, scans: list[str], tmp_path: Path
) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    done = script(
        artifact, scans[0], str(tmp_path / "page.jpg"), str(tmp_path / "no.png"), scans[1]
    )
    assert done.returncode == 5
    assert len(done.stdout.splitlines()) == 2
    assert "page.jpg" in done.stderr
    assert "no.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_labels_and_paths_of_any_script_are_printed_harmlessly(
    own_artifact: Artifact, scans: list[str], tmp_path: Path
) -> None:
    names = [f"猫\x1b[31m\u202e<script>{k}" for k in range(10)]
    change_card(own_artifact, classes=names)
    picture = tmp_path / "圖 👩‍🔬.png"
    shutil.copy(scans[0], picture)
    done = script(own_artifact, str(picture))
    assert done.returncode == 0, done.stderr
    assert "猫" in done.stdout
    assert "👩‍🔬" in done.stdout
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout


def test_a_terminal_without_unicode_gets_escapes_not_a_traceback(
    own_artifact: Artifact, scans: list[str]
) -> None:
    change_card(own_artifact, classes=[f"猫{k}" for k in range(10)])
    done = script(own_artifact, scans[0],
                  env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u732b" in done.stdout or "猫" in done.stdout


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\r", "\u202e", "\u2066", "\x9b", "\ud800"])
def test_characters_a_terminal_acts_on_are_replaced(character: str) -> None:
    assert plain(f"a{character}b") == "a\ufffdb"


def test_a_changed_model_file_is_not_opened(own_artifact: Artifact, scans: list[str]) -> None:
    content = bytearray(own_artifact.model.read_bytes())
    content[-20] ^= 1
    own_artifact.model.write_bytes(content)
    with pytest.raises(UnsafeError, match="not the file its card describes"):
        predict(own_artifact, scans[0])
    done = script(own_artifact, scans[0])
    assert done.returncode == 10
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd"])
def test_weights_outside_the_folder_are_refused_even_with_a_matching_card(
    own_artifact: Artifact, scans: list[str], place: str
) -> None:
    model = ModelProto.FromString(own_artifact.model.read_bytes())
    weight = model.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    own_artifact.model.write_bytes(model.SerializeToString())
    digest = hashlib.sha256(own_artifact.model.read_bytes()).hexdigest()
    change_card(own_artifact, files={**own_artifact.card["files"], "model.onnx": digest})
    with pytest.raises(UnsafeError, match="other files"):
        predict(own_artifact, scans[0])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"classes": 3}', "\xff"])
def test_a_broken_card_is_one_clear_error(own_artifact: Artifact, text: str) -> None:
    (own_artifact.path / "card.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnsafeError, match="no whole artifact"):
        predict(own_artifact, "x.png")


def test_a_folder_without_an_artifact_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trimtab export"):
        predict(tmp_path, "x.png")


def test_a_picture_of_another_kind_is_read_as_the_product_reads_it(
    artifact: Artifact, tmp_path: Path, scans: list[str]
) -> None:
    grey = Image.open(scans[0]).resize((64, 48))
    colour, turned = grey.convert("CMYK"), grey.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    colour.save(tmp_path / "cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    predictor = Predictor(artifact.path)
    one, other = (predictor.pixels(tmp_path / name) for name in ("cmyk.jpg", "turned.jpg"))
    assert np.abs(one.astype(int) - other.astype(int)).mean() < 12


def test_the_bench_script_prints_quantiles(artifact: Artifact) -> None:
    done = script(artifact, "--seconds", "0.2", name="bench.py")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["p99_ms"]
    assert found["model_sha256"] == artifact.card["files"]["model.onnx"]


@pytest.mark.parametrize(
    "facts",
    [
        {"classes": ["a"]},
        {"input": 3},
        {"input": {"channels": 3, "height": 99_999, "width": 99_999}},
        {"input": {"channels": 2, "height": 8, "width": 8}},
        {"threads": -5},
        {"threads": 10**6},
    ],
)
def test_a_card_that_does_not_fit_its_model_is_refused_before_any_picture(
    own_artifact: Artifact, scans: list[str], facts: dict[str, Any]
) -> None:
    change_card(own_artifact, **facts)
    with pytest.raises(UnsafeError):
        predict(own_artifact, scans[0])


def test_a_model_file_of_garbage_is_refused_even_with_a_matching_card(
    own_artifact: Artifact, scans: list[str]
) -> None:
    own_artifact.model.write_bytes(b"garbage")
    digest = hashlib.sha256(b"garbage").hexdigest()
    change_card(own_artifact, files={**own_artifact.card["files"], "model.onnx": digest})
    with pytest.raises(UnsafeError):
        predict(own_artifact, scans[0])


def test_a_pipe_is_no_picture_and_does_not_hang(artifact: Artifact, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    rows = predict(artifact, tmp_path / "x.jpg", "/dev/zero", tmp_path / "none.png")
    assert [row["error"] for row in rows[:2]] == ["is no regular file"] * 2
    assert "No such file" in rows[2]["error"]
