"""The verb `export`: the artifact folder of a run, its agreement with the run proven first."""

from __future__ import annotations

import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.data import decode
from trimtab.data.dataset import Dataset, dataset_of
from trimtab.errors import ExportError, UsageError
from trimtab.export import bench, predictor
from trimtab.export.onnx import open_onnx, write_onnx
from trimtab.export.parity import Parity, parity
from trimtab.machine.processor import core_count
from trimtab.measure.quality import logits_of, network_call
from trimtab.measure.size import file_bytes
from trimtab.models.build import load, macs_and_params
from trimtab.records.files import (
    explained,
    make_folder,
    read_json,
    sha256_file,
    sync_path,
    write_bytes,
    write_json,
    write_text,
)
from trimtab.records.run import Run, open_run
from trimtab.registry import did_you_mean

MODEL, CARD = "model.onnx", "card.json"
INT8_FACTS = ("ranges", "calibration_samples", "calibration_split", "reduce_range")
SCRIPTS = {"predict.py": predictor, "bench.py": bench, "decode.py": decode}


@dataclass(frozen=True)
class Artifact:
    """An exported folder; everything is read from its files."""

    path: Path

    @property
    def model(self) -> Path:
        """The model file."""
        return self.path / MODEL

    @property
    def card(self) -> dict[str, Any]:
        """The artifact's facts."""
        return dict(read_json(self.path / CARD))

    @property
    def size_bytes(self) -> int:
        """Bytes of the model file."""
        return file_bytes(self.model)


def export(
    run: Run | str | Path, format: str = "onnx", *, data: Any = None,
    out: str | Path | None = None, threads: int = 0,
) -> Artifact:  # fmt: skip
    """Write the artifact of `run` (to `<run>/artifact`, or `out`) and return it.

    First the file is compared with the run's network over the whole valid split: a float file
    must agree to `export.max_logit_difference` without a changed decision, an int8 file may change
    `export.max_flip_fraction` of the decisions. Raises ExportError otherwise, and UsageError for an
    unknown format or an existing folder; then nothing is written. `threads` (0: all cores) is what
    the artifact's predictor uses.
    """
    run = open_run(run)
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}'", did_you_mean(format, FORMATS))
    final = Path(out) if out is not None else run.path / "artifact"
    if final.exists():
        raise UsageError(f"{final} exists already", "choose another folder with --out")
    dataset = dataset_of(run, data)
    with staged(final) as folder:
        found = prove(run, dataset, folder / MODEL)
        fill(run, folder, found, threads or core_count(), dataset)
    run.record("parity", found.relative_difference, n=found.n, split="valid",
               flips=found.flips, max_difference=found.max_difference)  # fmt: skip
    return Artifact(final)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `final` where the block ends well, else vanishes."""
    make_folder(final.parent)
    folder = make_folder(final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"))
    try:
        yield folder
        with explained(final):
            sync_path(folder)
            os.rename(folder, final)
            sync_path(final.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def quantize_edit(run: Run) -> dict[str, Any] | None:
    """Return the edit that made the run's int8 graph, or None for a float run."""
    return next((edit for edit in run.edits if edit["kind"] == "quantize"), None)


def quantized_graph(run: Run) -> Path | None:
    """Return the run's int8 graph, or None for a float run."""
    edit = quantize_edit(run)
    return run.path / Path(edit["graph"]).name if edit else None


def prove(run: Run, dataset: Dataset, path: Path) -> Parity:
    """Write the model file to `path` and compare it with the run; raises ExportError."""
    network, graph = load(run), quantized_graph(run)
    if graph is None:
        write_onnx(network, dataset.schema, path)
    else:
        write_bytes(path, graph.read_bytes())
    valid, limits = dataset.splits["valid"], run.recipe.export
    found = parity(logits_of(network_call(network), valid), logits_of(open_onnx(path), valid))
    if graph is None and (found.relative_difference > limits.max_logit_difference or found.flips):
        raise ExportError(
            f"the exported file does not agree with {run.name}: logits differ by "
            f"{found.relative_difference:.2g} of the largest, wanted at most "
            f"{limits.max_logit_difference:g}; {found.flips} of {found.n} decisions change",
            "a layer may export wrongly; compare model.eval() with your forward",
        )
    if found.flip_fraction > limits.max_flip_fraction or not math.isfinite(found.max_difference):
        raise ExportError(
            f"the int8 file changes {100 * found.flip_fraction:.1f} % of {found.n} decisions, "
            f"at most {100 * limits.max_flip_fraction:g} % wanted",
            "quantize again with --ranges minmax, or train with more compress.calibration_samples",
        )
    return found


def fill(run: Run, folder: Path, found: Parity, threads: int, dataset: Dataset) -> None:
    """Write everything beside the model file, the card last."""
    schema = dataset.schema
    macs, params = macs_and_params(load(run), schema)
    shape = {"height": schema.height, "width": schema.width, "channels": schema.channels}
    write_text(folder / "labels.txt", "".join(f"{one_line(c)}\n" for c in schema.classes))
    write_json(folder / "preprocess.json", {
        **shape, "layout": "NHWC", "type": "uint8", "resize": "short side, then centre crop",
        "orientation": "EXIF", "transparency": "on white", "normalisation": "inside the model",
    })  # fmt: skip
    for name, module in SCRIPTS.items():
        write_bytes(folder / name, Path(str(module.__file__)).read_bytes())
    write_text(folder / "README.md", README)
    edit = quantize_edit(run)
    write_json(
        folder / CARD,
        {
            "version": 1,
            "task": "image classification",
            "run": run.name,
            "classes": list(schema.classes),
            "input": {"name": "image", "type": "uint8", "layout": "NHWC", **shape},
            "output": {"name": "logits", "shape": ["N", len(schema.classes)]},
            "precision": "int8" if edit else "fp32",
            "int8": {key: edit[key] for key in INT8_FACTS} if edit else None,
            "size_bytes": file_bytes(folder / MODEL),
            "params": params,
            "macs": macs,
            "threads": threads,
            "parity": found.to_dict(),
            "edits": [edit["kind"] for edit in run.edits],
            "accuracy": run_accuracy(run),
            "data_fingerprint": dataset.fingerprint,
            "versions": read_json(run.path / "environment.json")["versions"],
            "files": hashes(folder),
        },
    )


def run_accuracy(run: Run) -> dict[str, Any] | None:
    """Return the run's own accuracy row without bookkeeping."""
    row = run.measured("accuracy")
    return {key: row[key] for key in ("value", "low", "high", "n", "split")} if row else None


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the card."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != CARD}


def seal(artifact: Artifact, **facts: Any) -> None:
    """Add facts measured later (verdict, latency, accuracy) to the card."""
    write_json(artifact.path / CARD, {**artifact.card, **facts})


def one_line(name: str) -> str:
    """Return a class name without line breaks."""
    return " ".join(name.splitlines()) or name


README = """# An image classifier

`model.onnx` takes raw pixels, uint8 (N, H, W, C), and returns logits (N, K); normalisation is
inside. `labels.txt` names the K classes, `card.json` holds every fact and measurement.

    pip install onnxruntime numpy pillow
    python predict.py picture.jpg
    python bench.py

`bench.py` times the model on the machine it runs on.
"""

FORMATS = {"onnx": write_onnx}
