"""Pretrained weights: published accuracies again, and photos learnt with and without them."""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import unpack
from record import shared_data, write

import trimtab as tt
from trimtab.data.dataset import Split, dataset_of, open_dataset
from trimtab.measure.quality import Scores, logits_of, network_call, score
from trimtab.models.build import build
from trimtab.models.pretrained import start_from
from trimtab.records.recipe import Recipe, read_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "transfer.yaml"
PUBLISHED = {20: ("resnet20-12fca82f.th", 0.9173), 32: ("resnet32-d509ac18.th", 0.9263),
             56: ("resnet56-4bfd9763.th", 0.9339)}  # fmt: skip
PHOTOS = "mobilenet_v2_imagenet_int8.npz"
STARTS: dict[str, dict[str, Any]] = {
    PHOTOS: {"model__mean": [0.5], "model__std": [0.5]},  # TensorFlow's, which the file is from
    "none": {"train__head_only": 0.0, "train__layer_decay": 1.0, "train__learning_rate": 3e-3},
}  # fmt: skip


def row_of(model: str, weights: str, scores: Scores, **more: Any) -> dict[str, Any]:
    """Return one row; `more` are the columns that differ."""
    blank = {"seed": "", "epochs": "", "command s": "", "published": ""}
    return {
        "model": model, "weights": weights, "pictures": scores.n,
        "test accuracy": scores.accuracy, "95 %": f"{scores.low:.4f}-{scores.high:.4f}",
        **blank, **more,
    }  # fmt: skip


def published_rows(work: Path, depths: list[int]) -> list[dict[str, Any]]:
    """Score published weights, heads kept, on all of CIFAR-10's test part."""
    folder = work / "cifar10-test-only"
    unpack(shared_data() / "cifar10_test.zip", folder)
    dataset = open_dataset(folder, Recipe())
    parts = list(dataset.splits.values())  # nothing is learnt here: its splits are one again
    whole = Split(np.concatenate([part.inputs for part in parts]),
                  np.concatenate([part.targets for part in parts]),
                  tuple(name for part in parts for name in part.ids))  # fmt: skip
    rows = []
    for depth in depths:
        name, told = PUBLISHED[depth]
        with zipfile.ZipFile(shared_data() / "cifar10_resnets.zip") as archive:
            file = archive.extract(name, work)
        recipe = Recipe().override(model__name=f"cifar_resnet{depth}", model__keep_head=True,
                                   model__pretrained=file)  # fmt: skip
        network = build(dataset.schema, recipe)
        start_from(network, recipe)
        found = score(logits_of(network_call(network), whole), whole.targets, split="test")
        rows.append(row_of(recipe.model.name, name, found, published=told))
    return rows


def photos(work: Path) -> Path:
    """Unpack the photos once; their `val` folder becomes the test split."""
    out = work / "imagenette-test"
    if not out.exists():
        temporary = out.with_name(out.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        with zipfile.ZipFile(shared_data() / "imagenette224_subset.zip") as archive:
            archive.extractall(temporary)
        (temporary / "val").rename(temporary / "test")
        temporary.rename(out)
    return out


def photo_row(data: Path, out: Path, weights: str, seed: int, options: Any) -> dict[str, Any]:
    """Train on the photos for the budget, then open their test split once."""
    source = "none" if weights == "none" else str(shared_data() / weights)
    recipe = read_recipe(RECIPE).override(
        data__image_size=options.side, augment__flip=True, model__pretrained=source,
        train__epochs=options.epochs, **STARTS[weights],
    )  # fmt: skip
    started = time.monotonic()
    run = tt.train(data, recipe=recipe, budget=options.budget, out=out, seed=seed)
    seconds = time.monotonic() - started
    test = dataset_of(run, data).splits["test"]
    found = score(logits_of(network_call(tt.load(run)), test), test.targets, split="test")
    return row_of(recipe.model.name, weights, found, seed=seed, epochs=run.facts["epochs"],
                  **{"command s": round(seconds, 1)})  # fmt: skip


def main() -> None:
    """Measure and record; the two starts take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="3m", help="training time of each start")
    parser.add_argument("--epochs", type=int, default=30, help="at the most")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--depths", type=int, nargs="*", default=[20, 32, 56])
    parser.add_argument("--work", type=Path, default=Path("build"))
    options = parser.parse_args()
    rows = published_rows(options.work, options.depths)
    data, stamp = photos(options.work), f"{time.time():.0f}"
    for seed in range(options.seeds):
        for index, weights in enumerate(STARTS):
            out = options.work / f"transfer-{stamp}-{seed}-{index}"
            rows.append(photo_row(data, out, weights, seed, options))
    found = {name: [r["test accuracy"] for r in rows if r["weights"] == name] for name in STARTS}
    means = [f"{name}: {statistics.mean(values):.4f}" for name, values in found.items()]
    write(
        "transfer",
        rows,
        notes="cifar_resnet rows: published weights as they are, heads kept, on the whole test "
        f"part of CIFAR-10. mobilenet_v2 rows: 1,200 photos of ten classes at {options.side} px, "
        f"at most {options.budget} of training and {options.epochs} epochs each, in turns, with "
        "recipes/transfer.yaml or from fresh weights at the usual rate; the 800 test photos were "
        "opened once per training. The ten classes, Imagenette's, are part of ImageNet's thousand, "
        "which the pretrained weights have learnt; they may have seen some of these very photos. "
        f"Mean test accuracy {', '.join(means)}.",
    )


if __name__ == "__main__":
    main()
