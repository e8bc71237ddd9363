"""The verb `quantize`: an int8 graph of a run, its ranges set by train samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.compress.qdq import insert_rounding, observe
from trimtab.compress.ranges import RANGES
from trimtab.data.dataset import Dataset, dataset_of
from trimtab.errors import UsageError
from trimtab.export.onnx import export_graph, open_onnx, slim
from trimtab.machine.processor import processor_flags
from trimtab.measure.quality import logits_of, score
from trimtab.models.build import load
from trimtab.records.files import explained, locked, write_bytes, write_json
from trimtab.records.run import Run, open_run, start_run, update_facts, whole_or_gone
from trimtab.registry import did_you_mean, lookup

GRAPH = "model.int8.onnx"
SCHEMES = ("int8",)
DOT_PRODUCTS = ("vnni", "amx", "dot")


def quantize(
    run: Run | str | Path, scheme: str = "int8", *, data: Any = None, ranges: str | None = None,
    out: str | Path | None = None,
) -> Run:  # fmt: skip
    """Return a run with an int8 graph beside its parent's weights.

    Static: weights signed per output channel and rounded so that their sums stay right,
    activations unsigned, ranges (`ranges`, None for the recipe's) from
    `compress.calibration_samples` train samples, drawn by the run's seed. `load` of such a run
    gives the float network; `export` ships the graph. Raises UsageError for an unknown scheme and a
    run that is quantized already, CompressError where nothing can be quantized.
    """
    parent = open_run(run)
    if scheme not in SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}'", did_you_mean(scheme, SCHEMES))
    if any(edit["kind"] == "quantize" for edit in parent.edits):
        raise UsageError(f"{parent.path} is quantized already", "quantize its parent")
    dataset = dataset_of(parent, data)
    how = ranges or parent.recipe.compress.ranges
    content, edit = int8_graph(parent, dataset, how)
    child = start_run(
        out, kind="quantize", label=f"{parent.facts['label']}-{scheme}", recipe=parent.recipe,
        seed=parent.facts["seed"], parent=parent, edits=[*parent.edits, edit],
    )  # fmt: skip
    with locked(child.path), whole_or_gone(child.path), explained(child.path):
        write_json(child.path / "data.json", dataset.describe(child.path))
        shutil.copy2(parent.weights, child.weights)
        write_bytes(child.path / GRAPH, content)
        valid = dataset.splits["valid"]
        scores = score(logits_of(open_onnx(content), valid), valid.targets, split="valid")
        child.record("accuracy", scores.accuracy, low=scores.low, high=scores.high, n=scores.n,
                     split="valid", seed=parent.facts["seed"])  # fmt: skip
        update_facts(child, status="finished", epochs=parent.facts.get("epochs"))
    return child


def int8_graph(parent: Run, dataset: Dataset, how: str) -> tuple[bytes, dict[str, Any]]:
    """Return the int8 file's content and the edit that says how it was made."""
    part = lookup("range", RANGES, how)
    graph = slim(export_graph(load(parent), dataset.schema))
    pixels = calibration_pixels(parent, dataset)
    found = {name: part(values) for name, values in observe(graph, pixels).items()}
    reduce_range = needs_reduced_range()
    quantized = insert_rounding(graph, found, reduce_range=reduce_range)
    edit = {
        "kind": "quantize",
        "scheme": "int8",
        "graph": GRAPH,
        "ranges": how,
        "tensors": {name: [round(low, 6), round(high, 6)] for name, (low, high) in found.items()},
        "calibration_samples": len(pixels),
        "calibration_split": "train",
        "reduce_range": reduce_range,
    }
    return quantized.SerializeToString(), edit


def needs_reduced_range() -> bool:
    """Return whether this processor adds pairs of int8 products in 16 bits, where they overflow.

    Weights of seven bits do not. Processors with instructions for dot products add in 32 bits.
    """
    have = processor_flags()
    return not any(have[name] for name in DOT_PRODUCTS)


def calibration_pixels(parent: Run, dataset: Dataset) -> NDArray[np.uint8]:
    """Return train samples (N, H, W, C), drawn at random: a split may be sorted by class."""
    inputs = dataset.splits["train"].inputs
    count = min(len(inputs), parent.recipe.compress.calibration_samples)
    rows = np.random.default_rng(parent.facts["seed"]).permutation(len(inputs))[:count]
    return np.asarray(inputs[np.sort(rows)])
