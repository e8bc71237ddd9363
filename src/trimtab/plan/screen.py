"""Who can meet the target: candidates exported untrained and timed on this machine."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trimtab.export.onnx import open_onnx, write_onnx
from trimtab.machine.device import best_device
from trimtab.machine.probe import probe
from trimtab.machine.processor import core_count
from trimtab.machine.progress import progress
from trimtab.measure.latency import Latency, measure_latency
from trimtab.measure.size import file_bytes
from trimtab.models.build import build, macs_and_params
from trimtab.models.image import OWN_NAMES
from trimtab.models.quick import quick_layers
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema
from trimtab.records.target import Target, show

SMALL_SIDE = 64
SMALL = ("cnn_small", "dwconv_small", "resnet8", "cnn_medium", "resnet20", "cnn_large",
         "mobilenetv3_small_100", "resnet18", "mobilenetv3_large_100", "resnet50")  # fmt: skip
LARGE = ("mobilenetv3_small_100", "resnet18", "cnn_medium", "cnn_large", "mobilenetv3_large_100",
         "resnet50", "resnet20")  # fmt: skip
AT_LEAST = 5
LATENCY_SECONDS = 0.4
INT8_SPEEDUP = 3.6
INT8_BYTES = 0.28
STEP_MACS = 4e9
PROBE_SECONDS = 0.5
SMALLEST_BATCH, LARGEST_BATCH = 8, 128


@dataclass(frozen=True)
class Screened:
    """One untrained candidate with what was measured, and whether it can meet the target.

    `whole` says that it can without losing channels.
    """

    name: str
    params: int
    macs: int
    fits: bool
    why: str
    whole: bool = False
    size_bytes: int | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    threads: int = 1
    images_per_second: float | None = None

    @property
    def capacity(self) -> float:
        """How much a network can hold: the geometric mean of its parameters and its MACs."""
        return math.sqrt(self.params * self.macs)

    def to_dict(self) -> dict[str, Any]:
        """Return a row of screen.json."""
        return asdict(self)


def candidate_names(schema: Schema, recipe: Recipe) -> tuple[str, ...]:
    """Return the models to screen: the recipe's own, or a spread for this input size.

    Only trimtab's own networks take a `model.width` other than 1.
    """
    if recipe.model.name != "auto":
        return (recipe.model.name,)
    names = SMALL if min(schema.height, schema.width) <= SMALL_SIDE else LARGE
    return tuple(name for name in names if recipe.model.width == 1 or name in OWN_NAMES)


def screen(
    schema: Schema, recipe: Recipe, target: Target, *, seconds: float,
    model: nn.Module | None = None,
) -> list[Screened]:  # fmt: skip
    """Export and time every candidate untrained; at least five, more while `seconds` last.

    A candidate whose parameters alone cannot fit the size clause is dropped without timing once
    five were timed.
    """
    names = candidate_names(schema, recipe)
    rows: list[Screened] = []
    started = time.monotonic()
    with progress(len(names), "screen") as bar, tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(names):
            bar.update(index, name)
            late = time.monotonic() - started > seconds
            timed = sum(row.p50_ms is not None for row in rows)
            chosen = recipe.override(model__name=name)
            path = Path(folder) / f"{index}.onnx"
            rows.append(
                screen_one(
                    schema,
                    chosen,
                    target,
                    path,
                    model=model,
                    skip=late and timed >= AT_LEAST,
                    enough=timed >= AT_LEAST,
                )
            )
    return rows


def screen_one(
    schema: Schema, recipe: Recipe, target: Target, path: Path, *, model: nn.Module | None,
    skip: bool, enough: bool,
) -> Screened:  # fmt: skip
    """Measure one candidate."""
    network = build(schema, recipe, model)
    macs, params = macs_and_params(network, schema)
    name, pruned = recipe.model.name, smallest_keep(recipe)
    too_big = size_reason(4 * params, recipe, target, pruned)
    if skip or (enough and too_big):
        return Screened(name, params, macs, False, too_big or "not timed: the screen's time was up")
    write_onnx(network, schema, path)
    latency, size = best_latency(path, schema), file_bytes(path)

    def reason(keep: float) -> str:
        """Return why the candidate cannot meet the target with `keep` of its channels."""
        return size_reason(size, recipe, target, keep) or latency_reason(
            latency, recipe, target, keep
        )

    why, whole = reason(pruned), not reason(1.0)
    speed = None if why else training_speed(network, schema)
    can = "can meet the target" if whole else "can meet the target when pruned"
    return Screened(
        name, params, macs, not why, why or can, whole, size, latency.p50_ms, latency.p95_ms,
        latency.p99_ms, latency.threads, speed,
    )  # fmt: skip


def best_latency(path: Path, schema: Schema) -> Latency:
    """Time a file on one thread and on all cores; return the lower p95."""
    pixels = random_pixels(schema)
    found = []
    for threads in sorted({1, core_count()}):
        once = partial(open_onnx(path, threads=threads), pixels)
        found.append(measure_latency(once, seconds=LATENCY_SECONDS, threads=threads))
    return min(found, key=lambda latency: latency.p95_ms)


def random_pixels(schema: Schema) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return one random picture (1, H, W, C)."""
    shape = (1, schema.height, schema.width, schema.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smallest_keep(recipe: Recipe) -> float:
    """Return the smallest share of channels the recipe may keep."""
    return min((1.0, *recipe.compress.prune_keep))


def size_reason(size_bytes: int, recipe: Recipe, target: Target, keep: float) -> str:
    """Return why a float file of this size is too big even as int8 with `keep` of its channels."""
    int8 = INT8_BYTES if recipe.compress.quantize == "int8" else 1.0
    size, wanted = size_bytes * int8 * keep**2, target.wanted("size")
    if wanted is None or size <= wanted:
        return ""
    return f"size: {show('size', size)} at best, {show('size', wanted)} wanted"


def latency_reason(latency: Latency, recipe: Recipe, target: Target, keep: float) -> str:
    """Return why it is too slow even as int8 with `keep` of its channels, or nothing."""
    gain = INT8_SPEEDUP if recipe.compress.quantize == "int8" else 1.0
    got = {"p50": latency.p50_ms, "p95": latency.p95_ms, "p99": latency.p99_ms}
    for metric, value in got.items():
        best, wanted = value * keep**2 / gain, target.wanted(metric)
        if wanted is not None and best > wanted:
            return f"{metric}: {show(metric, best)} at best, {show(metric, wanted)} wanted"
    return ""


def training_speed(network: nn.Module, schema: Schema) -> float:
    """Return trained images per second on the device that trains, from a few steps on noise.

    The batch is what costs about as much as 128 small pictures, so that large networks take no
    longer to time.
    """
    macs, _ = macs_and_params(network, schema)
    batch = int(min(LARGEST_BATCH, max(SMALLEST_BATCH, STEP_MACS / macs)))
    device = best_device()
    inputs = torch.rand(batch, *schema.input_shape, device=device).mul_(255)
    network.to(device).train()
    with quick_layers(network):
        _, seconds = probe(network, inputs, seconds=PROBE_SECONDS)
    return batch / min(seconds.values())
