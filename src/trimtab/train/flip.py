"""Decide by trial whether random mirroring helps."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trimtab.data.dataset import Dataset
from trimtab.machine.progress import say
from trimtab.measure.quality import logits_of, network_call, score
from trimtab.measure.stats import paired_difference
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train.loop import train_network

TRIAL_EPOCHS = 5
RECOGNISED = 0.9
DOUBT = 0.25  # of the accuracy: what a small trial may leave open


def settle_flip(
    network: nn.Module, dataset: Dataset, recipe: Recipe, run: Run, *, seed: int,
    budget_seconds: float | None,
) -> Recipe:  # fmt: skip
    """Return the recipe with `augment.flip: auto` settled to true or false by a trial.

    A copy of `network` is trained shortly without mirroring, then asked about valid pictures as
    they are and mirrored. Mirroring is used where the mirrored ones are still recognised (see
    `are_recognised`) and adding the logits of both views loses no accuracy beyond the paired 95 %
    interval; never where the copy is no better than always naming the largest class. It is
    not judged by a short training with it, since any augmentation is slower at first. The numbers
    go into the ledger of `run`. Raises KeyboardInterrupt where the user stopped the trial.
    """
    if recipe.augment.flip != "auto":
        return recipe
    epochs = min(TRIAL_EPOCHS, recipe.train.epochs)
    short = recipe.override(train__epochs=epochs, augment__flip=False)
    trial = copy.deepcopy(network)
    result = train_network(trial, dataset, short, None, seed=seed, budget_seconds=budget_seconds)
    if result.interrupted:
        raise KeyboardInterrupt
    valid, call = dataset.splits["valid"], network_call(trial)
    mirrored = logits_of(lambda pixels: call(pixels[:, :, ::-1].copy()), valid)
    seen = score(mirrored, valid.targets, split="valid")
    plain = result.scores
    both = score(plain.logits + seen.logits, valid.targets, split="valid")
    change, low, high = paired_difference(plain.correct, both.correct)
    largest = int(np.bincount(valid.targets).max()) / len(valid)
    learnt = plain.accuracy > largest
    helps = learnt and are_recognised(plain.correct, seen.correct) and high >= 0
    run.record("flip_trial", change, "accuracy", low=low, high=high, n=len(valid), split="valid",
               seed=seed, plain=plain.accuracy, mirrored=seen.accuracy, used=helps)  # fmt: skip
    say(f"random flip {'on' if helps else 'off'}: of {100 * plain.accuracy:.1f} % right, "
        f"{100 * seen.accuracy:.1f} % mirrored, {100 * both.accuracy:.1f} % by both")  # fmt: skip
    return recipe.override(augment__flip=helps)


def are_recognised(plain: NDArray[np.bool_], mirrored: NDArray[np.bool_]) -> bool:
    """Return whether mirrored pictures (N,) are decided right nearly as often as plain ones.

    A small trial must be beyond doubt: its interval may leave open a loss of a quarter at the most.
    """
    _, low, _ = paired_difference(plain, mirrored)
    accuracy = float(plain.mean())
    return float(mirrored.mean()) >= RECOGNISED * accuracy and -low <= DOUBT * accuracy
