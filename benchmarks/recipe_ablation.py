"""The recipe for small pictures with each of its tricks off in turn: what each is worth."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import unpack
from record import shared_data, write
from scipy import stats

import trimtab as tt
from trimtab.data.dataset import Dataset, open_dataset
from trimtab.records.recipe import Recipe, read_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10.yaml"
SGD = {"train__optimizer": "sgd", "train__learning_rate": 0.2, "train__momentum": 0.9,
       "regularize__weight_decay": 5e-4}  # fmt: skip
WHOLE = "whole recipe"
TRICKS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without whitening": {"model__whiten": False},
    "without identity starts": {"model__identity": False},
    "without fast biases": {"train__bias_rate": 1},
    "SGD for Muon": {**SGD, "train__bias_rate": 64},
    "without label smoothing": {"regularize__label_smoothing": 0},
    "random for alternating flip": {"augment__flip": True},
    "without flip": {"augment__flip": False},
    "without shift": {"augment__shift": 0},
    "full size throughout": {"train__resolution": []},
    "norm momentum 0.1 for the recipe's": {"model__norm_momentum": 0.1},
    "with ema": {"train__average": "ema", "train__average_decay": 0.98},
    "with lookahead": {"train__average": "lookahead"},
    "learning from the harder half": {"train__hard_fraction": 0.5},
}


def trained(data: Dataset, recipe: Recipe, seed: int) -> float:
    """Return the valid accuracy of one training."""
    with tempfile.TemporaryDirectory() as folder:
        run = tt.train(data, recipe=recipe, seed=seed, out=Path(folder) / "run")
        accuracy = run.measured("accuracy")
    assert accuracy is not None
    return float(accuracy["value"])


def row_of(name: str, found: list[float], whole: list[float]) -> Any:
    """Return one row: accuracy, and its paired difference to the whole recipe in points."""
    difference = 100 * (np.array(found) - whole)
    row = {"recipe": name, "valid accuracy %": round(100 * float(np.mean(found)), 2),
           "difference": "", "95 %": "", "seeds": len(found)}  # fmt: skip
    if name != WHOLE:
        spread = stats.t.ppf(0.975, len(found) - 1) * stats.sem(difference)
        row["difference"] = f"{difference.mean():+.2f}"
        row["95 %"] = f"{difference.mean() - spread:+.2f} to {difference.mean() + spread:+.2f}"
    return row


def record(found: dict[str, list[float]], model: str, epochs: int) -> None:
    """Write the table of the valid accuracies of every variant, by seed."""
    pixels = 1 / np.mean(np.square(read_recipe(RECIPE).train.resolution))
    write(
        "recipe_ablation",
        [row_of(name, values, found[WHOLE]) for name, values in found.items()],
        notes=f"`recipes/cifar10.yaml` with {model} and {epochs} epochs of 45,000 pictures, "
        "accuracy on 5,000 held out; the test split is not opened. Differences are paired by seed, "
        "in points, with the 95 % interval of Student's t. Every variant has the learning rate of "
        "the whole recipe but SGD, which has its own. All see as many pictures, not as many "
        f"pixels: at full size throughout they are {pixels:.2f} times as many.",
    )


def main() -> None:
    """Train every variant with every seed, in turns, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--model", default="wcnn_small")
    parser.add_argument("--only", nargs="*", default=list(TRICKS), help="names of variants")
    parser.add_argument("--work", type=Path, default=Path("build"))
    options = parser.parse_args()
    unpack(shared_data() / "cifar10_train.zip", options.work / "cifar10" / "train")
    recipe = read_recipe(RECIPE).override(
        model__name=options.model, train__epochs=options.epochs, data__valid_fraction=0.1,
        data__test_fraction=0, train__precision="bf16", train__layout="channels_last",
    )  # fmt: skip
    data = open_dataset(options.work / "cifar10" / "train", recipe)
    names = [WHOLE, *(name for name in options.only if name != WHOLE)]
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(options.seeds):
        for name in names:
            found[name].append(trained(data, recipe.override(**TRICKS[name]), seed))
            print(f"seed {seed}: {name}: {found[name][-1]:.4f}", flush=True)
    record(found, options.model, options.epochs)


if __name__ == "__main__":
    main()
