"""int8 against fp32: a MobileNetV3-small and a ResNet-18 on photos, per runtime, interleaved."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import shared_data, write

import trimtab as tt
from trimtab.data.dataset import Dataset, dataset_of
from trimtab.export.onnx import open_onnx
from trimtab.machine.processor import core_count
from trimtab.measure.latency import compare_latency
from trimtab.plan.candidates import Candidate, assess, gate
from trimtab.records.recipe import Recipe
from trimtab.records.target import parse_target

MODELS = ("mobilenetv3_small_100", "resnet18")
SIDE = 224
TARGET = "p95<=1s"  # speed is what is wanted here


def photos(work: Path) -> Path:
    """Unpack the photos once; their `val` folder is the valid split."""
    out = work / "imagenette"
    if not out.exists():
        with zipfile.ZipFile(shared_data() / "imagenette224_subset.zip") as z:
            z.extractall(out)
    return out


def openvino_call(path: Path) -> Callable[[Any], Any] | None:
    """Return the file as a call of OpenVINO in fp32/int8, or None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": core_count()}  # fmt: skip
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda pixels: compiled(pixels)[0]


def pair(
    name: str, data: Path, budget: str, work: Path, seed: int
) -> tuple[Candidate, Candidate, Dataset]:
    """Train, quantize and assess one model; a file that export would refuse is measured too."""
    recipe = Recipe().override(model__name=name, data__image_size=SIDE, augment__flip=True,
                               train__epochs=30, train__batch_size=32,
                               export__max_flip_fraction=1.0)  # fmt: skip
    folder = work / f"{name}-{seed}"
    base = tt.train(data, recipe=recipe, budget=budget, out=folder / "fp32", seed=seed)
    dataset = dataset_of(base, data)
    parent = assess(base, name, ("train",), dataset=dataset, threads=core_count())
    tiny = tt.quantize(base, data=dataset, out=folder / "int8")
    child = assess(
        tiny,
        f"{name}-int8",
        ("train", "int8"),
        dataset=dataset,
        threads=core_count(),
        parent=parent,
    )
    gate(child, parse_target(TARGET), recipe)
    return parent, child, dataset


def rows_for(name: str, data: Path, budget: str, work: Path, seed: int) -> list[dict[str, Any]]:
    """Return one row per runtime."""
    parent, child, dataset = pair(name, data, budget, work, seed)
    pixels = np.ascontiguousarray(dataset.splits["valid"].inputs[:1])
    calls = {
        "onnxruntime": [open_onnx(c.artifact.model, threads=core_count()) for c in (parent, child)],
        "openvino": [openvino_call(c.artifact.model) for c in (parent, child)],
    }
    rows = []
    for runtime, (slow, fast) in calls.items():
        if slow is None or fast is None:
            continue
        ratio = compare_latency(lambda c=slow: c(pixels), lambda c=fast: c(pixels), seconds=8.0)
        rows.append(
            {
                "model": name,
                "seed": seed,
                "runtime": runtime,
                "fp32 time / int8 time": f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
                "fp32 KB": parent.artifact.size_bytes / 1000,
                "int8 KB": child.artifact.size_bytes / 1000,
                "valid fp32": parent.scores.accuracy,
                "valid int8": child.scores.accuracy,
                "flips %": 100 * (child.flips or 0.0),
                "gate keeps int8": "yes" if child.kept else "no",
                "why": child.why,
            }
        )
    return rows


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="3m", help="training time per model")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/int8_latency"))
    options = parser.parse_args()
    data = photos(options.work)
    rows = [row for seed in range(options.seeds) for name in MODELS
            for row in rows_for(name, data, options.budget, options.work, seed)]  # fmt: skip
    write(
        "int8_latency",
        rows,
        notes=f"Photos at {SIDE} px, batch 1, {core_count()} threads, timed in turns; "
        "the ratio is a geometric mean with its 95 % interval. Trained "
        f"{options.budget} from scratch on 1,200 photos: the accuracies say what int8 costs, "
        "not what these networks can reach.",
    )


if __name__ == "__main__":
    main()
