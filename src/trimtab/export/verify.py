"""The verb `verify`: measure an artifact again, beside the run and the parent it came from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.data.dataset import Dataset, dataset_of
from trimtab.errors import UnsafeError
from trimtab.export.bundle import Artifact
from trimtab.export.onnx import open_onnx
from trimtab.export.parity import parity
from trimtab.export.predict import artifact_folder
from trimtab.measure.latency import compare_latency, measure_latency
from trimtab.measure.quality import logits_of, network_call, score
from trimtab.models.build import load
from trimtab.records.files import sha256_file
from trimtab.records.run import Run, open_run


def verify(model: Run | Artifact | str | Path, *, data: Any = None) -> dict[str, Any]:
    """Return what is measured now: agreement with the run, accuracy on valid, latency, size.

    `model` is a run with an artifact, or the artifact inside a run. Where the run's parent (for a
    fit: that of the candidate it chose) has an artifact too, both files are timed in turns and
    their decisions compared. The numbers go into the run's ledger as well. Raises UnsafeError where
    a file is not the one the card describes.
    """
    artifact = Artifact(artifact_folder(model))
    require_whole(artifact)
    run = open_run(artifact.path.parent)
    dataset = dataset_of(run, data)
    threads = int(artifact.card["threads"])
    valid = dataset.splits["valid"]
    call = open_onnx(artifact.model, threads=threads)
    logits = logits_of(call, valid)
    agreement = parity(logits_of(network_call(load(run)), valid), logits)
    scores = score(logits, valid.targets, split="valid")
    once = partial(call, np.array(valid.inputs[:1]))
    latency = measure_latency(once, threads=threads)
    found: dict[str, Any] = {
        "artifact": str(artifact.path), "precision": artifact.card["precision"],
        "size_bytes": artifact.size_bytes, "parity": agreement.to_dict(),
        "accuracy": scores.to_dict(), "latency": latency.to_dict(),
        "against_parent": against_parent(run, dataset, logits, once, threads),
    }  # fmt: skip
    run.record("parity", agreement.relative_difference, n=agreement.n, split="valid",
               flips=agreement.flips)  # fmt: skip
    run.record("artifact_accuracy", scores.accuracy, low=scores.low, high=scores.high, n=scores.n,
               split="valid")  # fmt: skip
    run.record("artifact_size", artifact.size_bytes, "B")
    run.record("latency", latency.p50_ms, "ms", **latency.to_dict())
    return found


def require_whole(artifact: Artifact) -> None:
    """Raise UnsafeError where a file of the artifact is missing, changed, or outside its folder."""
    for name, digest in artifact.card["files"].items():
        path = artifact.path / name
        inside = Path(name).name == name and path.is_file() and not path.is_symlink()
        if not inside or sha256_file(path) != digest:
            raise UnsafeError(f"{path} is not the file its card describes", "export the run again")


def against_parent(
    run: Run, dataset: Dataset, logits: Any, once: Any, threads: int
) -> dict[str, Any] | None:
    """Return speed-up, size and changed decisions against the nearest ancestor with a file."""
    chosen = run.facts.get("chosen")
    parent = (Run(run.path / chosen) if chosen else run).parent
    while parent is not None and not (parent.path / "artifact" / "card.json").is_file():
        parent = parent.parent
    if parent is None:
        return None
    other = Artifact(parent.path / "artifact")
    call = open_onnx(other.model, threads=threads)
    valid = dataset.splits["valid"]
    changed = parity(logits_of(call, valid), logits)
    ratio = compare_latency(partial(call, np.array(valid.inputs[:1])), once)
    run.record("speedup_over_parent", ratio.value, low=ratio.low, high=ratio.high, n=ratio.n)
    run.record("flips_against_parent", changed.flip_fraction, "fraction", n=changed.n,
               split="valid")  # fmt: skip
    return {
        "parent": parent.name, "speedup": ratio.to_dict(), "flips": changed.flips,
        "flip_fraction": changed.flip_fraction, "n": changed.n,
        "size_ratio": other.size_bytes / Artifact(run.path / "artifact").size_bytes,
    }  # fmt: skip
