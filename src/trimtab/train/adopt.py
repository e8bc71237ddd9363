"""The verb `adopt`: a network trained elsewhere becomes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from trimtab.data.dataset import Dataset, open_dataset
from trimtab.errors import UsageError
from trimtab.models.build import Network, build, macs_and_params, save_weights
from trimtab.records.files import locked, write_json
from trimtab.records.recipe import Recipe, as_recipe
from trimtab.records.run import Run, start_run, update_facts, whole_or_gone
from trimtab.records.sections import FRESH
from trimtab.train.loop import evaluate
from trimtab.train.run import with_model


def adopt(
    model: nn.Module, data: Any, *, recipe: Recipe | str | Path | None = None,
    out: str | Path | None = None, seed: int = 0,
) -> Run:  # fmt: skip
    """Return a run that holds `model` with its weights as they are, scored on valid.

    `model` takes float pixels (N, C, H, W), normalised with the mean and deviation of the train
    split or with the recipe's `model.mean` and `model.std`, and returns logits (N, K) in the order
    of the data's classes. A trimtab network (from `load`) brings its own normalisation. Raises
    UsageError for a recipe that describes a network.
    """
    recipe = as_recipe(recipe)
    if recipe.model.pretrained != FRESH:
        raise UsageError(
            f"adopt keeps the weights it is given; the recipe says {recipe.model.pretrained}",
            "leave out model.pretrained",
        )
    dataset = open_dataset(data, recipe, seed=seed)
    body = model.body if isinstance(model, Network) else model
    recipe = described(recipe, dataset, model)
    run = start_run(out, kind="adopt", label=type(body).__name__, recipe=recipe, seed=seed)
    with locked(run.path), whole_or_gone(run.path):
        write_json(run.path / "data.json", dataset.describe(run.path))
        network = build(dataset.schema, recipe, body)
        if isinstance(model, Network):
            network.load_state_dict(model.state_dict())
        scores = evaluate(network, dataset)
        save_weights(network, run.weights)
        macs, params = macs_and_params(network, dataset.schema)
        run.record("accuracy", scores.accuracy, low=scores.low, high=scores.high, n=scores.n,
                   split="valid", seed=seed)  # fmt: skip
        run.record("params", params)
        run.record("macs", macs)
        update_facts(run, status="finished", epochs=recipe.train.epochs)
    return run


def described(recipe: Recipe, dataset: Dataset, model: nn.Module) -> Recipe:
    """Return the recipe with the name of an adopted network; raises UsageError for another one's.

    A module that brings no normalisation of its own may be told one.
    """
    if isinstance(model, Network):
        return with_model(recipe, dataset.schema, model.body)
    bare = recipe.override(model__mean=(), model__std=())
    return with_model(bare, dataset.schema, model).override(
        model__mean=recipe.model.mean, model__std=recipe.model.std
    )
