"""Decide by trial whether random mirroring helps."""

from __future__ import annotations

import copy

import numpy as np
from torch import nn

from trimtab.data.dataset import Dataset, Split
from trimtab.machine.progress import say
from trimtab.measure.quality import logits_of, network_call, score
from trimtab.measure.stats import paired_difference
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train.loop import train_network

TRIAL_EPOCHS = 5
RECOGNISED = 0.9


def settle_flip(
    network: nn.Module, dataset: Dataset, recipe: Recipe, run: Run, *, seed: int,
    budget_seconds: float | None,
) -> Recipe:  # fmt: skip
    """Return the recipe with `data.flip: auto` settled to true or false by a trial.

    Trains two copies of `network` shortly, without and with mirroring. It is used where the copy
    that never saw a mirrored picture still recognises mirrored valid pictures (at least 90 % of
    its accuracy) and mirroring did not lose accuracy beyond the paired 95 % interval. Both numbers
    go into the ledger of `run`. Raises KeyboardInterrupt where the user stopped the trial.
    """
    if recipe.data.flip != "auto":
        return recipe
    half = budget_seconds / 2 if budget_seconds is not None else None
    scores, networks = [], []
    for flip in (False, True):
        epochs = min(TRIAL_EPOCHS, recipe.train.epochs)
        short = recipe.override(train__epochs=epochs, data__flip=flip)
        networks.append(copy.deepcopy(network))
        result = train_network(networks[-1], dataset, short, None, seed=seed, budget_seconds=half)
        scores.append(result.scores)
        if result.interrupted:
            raise KeyboardInterrupt
    valid = dataset.splits["valid"]
    mirrored = Split(np.ascontiguousarray(valid.inputs[:, :, ::-1]), valid.targets, valid.ids)
    plain = networks[0]
    seen = score(logits_of(network_call(plain), mirrored), valid.targets, split="valid").accuracy
    change, low, high = paired_difference(scores[0].correct, scores[1].correct)
    helps = seen >= RECOGNISED * scores[0].accuracy and high >= 0
    run.record(
        "flip_trial",
        change,
        "accuracy",
        low=low,
        high=high,
        n=len(valid),
        split="valid",
        seed=seed,
        mirrored_accuracy=seen,
        plain_accuracy=scores[0].accuracy,
        used=helps,
    )
    say(f"random flip: {'on' if helps else 'off'}, by trial")
    return recipe.override(data__flip=helps)
