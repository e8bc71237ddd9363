"""The verb `train`: data and a recipe to a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.data.dataset import Dataset, open_dataset
from trimtab.errors import Interrupted, UsageError
from trimtab.machine.device import device_name, seed_everything
from trimtab.models.build import adopt_module, build, macs_and_params, save_weights
from trimtab.records.files import locked, write_json, write_text
from trimtab.records.recipe import ModelSection, Recipe, as_recipe
from trimtab.records.run import Run, start_run, update_facts, whole_or_gone
from trimtab.records.schema import Schema
from trimtab.records.target import parse_duration
from trimtab.train.flip import settle_flip
from trimtab.train.loop import TrainResult, train_network

SMALL_SIDE = 64
FLIP_SHARE = 0.15


def train(
    data: Any, *, recipe: Recipe | str | Path | None = None, model: nn.Module | None = None,
    budget: str | float | None = None, out: str | Path | None = None, seed: int = 0,
) -> Run:  # fmt: skip
    """Train one network on `data` and return its run.

    `data` is what `check` takes; `model` a user's own module that takes float pixels normalised
    per channel (N, C, H, W) and returns logits (N, K); `budget` a duration such as "10m", which
    ends the training within 10 % even where epochs are left. Raises TrimtabError; after Ctrl-C the
    run is complete on disk and Interrupted is raised.
    """
    recipe = as_recipe(recipe)
    seconds = parse_duration(budget) if budget is not None else None
    dataset = open_dataset(data, recipe, seed=seed)
    recipe = with_model(recipe, dataset.schema, model)
    run = start_run(out, kind="train", label=recipe.model.name, recipe=recipe, seed=seed)
    with locked(run.path), whole_or_gone(run.path):
        train_into(run, dataset, recipe, model=model, budget_seconds=seconds, seed=seed)
    if run.facts["status"] == "interrupted":
        raise Interrupted(f"stopped by Ctrl-C; the best weights so far are in {run.path}",
                          "prune, quantize and export take this folder")  # fmt: skip
    return run


def with_model(recipe: Recipe, schema: Schema, model: nn.Module | None) -> Recipe:
    """Return the recipe with a network's name: the user's own, the named one, or the usual one."""
    if model is not None:
        if recipe.model != ModelSection():
            raise UsageError("the recipe describes a model, and model= gives another",
                             "leave out the recipe's model section, or model=")  # fmt: skip
        return recipe.override(model__name=adopt_module(model))
    if recipe.model.name != "auto":
        return recipe
    small = min(schema.height, schema.width) <= SMALL_SIDE
    return recipe.override(model__name="cnn_medium" if small else "mobilenetv3_small_100")


def train_into(
    run: Run, dataset: Dataset, recipe: Recipe, *, model: nn.Module | None = None,
    budget_seconds: float | None = None, seed: int = 0,
) -> TrainResult:  # fmt: skip
    """Train the recipe's network and fill the started `run` with weights and measurements."""
    write_json(run.path / "data.json", dataset.describe(run.path))
    write_json(run.path / "findings.json", [f.model_dump() for f in dataset.findings])
    seed_everything(seed)
    network = build(dataset.schema, recipe, model)
    started = time.monotonic()
    trial = FLIP_SHARE * budget_seconds if budget_seconds is not None else None
    recipe = settle_flip(network, dataset, recipe, run, seed=seed, budget_seconds=trial)
    write_text(run.path / "recipe.yaml", recipe.to_yaml())
    left = None
    if budget_seconds is not None:
        left = max(0.0, budget_seconds - (time.monotonic() - started))
    result = train_network(network, dataset, recipe, run, seed=seed, budget_seconds=left)
    finish(run, network, result, dataset)
    return result


def finish(run: Run, network: nn.Module, result: TrainResult, dataset: Dataset) -> None:
    """Write the weights and what was measured."""
    save_weights(network, run.weights)
    macs, params = macs_and_params(network, dataset.schema)
    device = device_name(result.settings.device)
    seed = run.facts["seed"]
    run.record("accuracy", result.scores.accuracy, low=result.scores.low, high=result.scores.high,
               n=result.scores.n, split="valid", seed=seed, device=device)  # fmt: skip
    run.record("f1", result.scores.f1, n=result.scores.n, split="valid", seed=seed)
    run.record("train_seconds", result.seconds, "s", device=device, epochs=result.epochs)
    run.record(
        "images_per_second",
        result.images_per_second,
        "1/s",
        device=device,
        precision=result.settings.precision,
        batch_size=result.settings.batch_size,
    )
    run.record("params", params)
    run.record("macs", macs)
    update_facts(run, status="interrupted" if result.interrupted else "finished",
                 epochs=result.epochs, stopped_early=result.stopped_early)  # fmt: skip
