"""Losses: outputs and a batch to one number per sample.

A loss returns (N,), so that hard samples can be picked; `averaged` makes the one number of it that
a step needs. `batch.targets` is (N,) int64 class numbers, (N, K) float32 soft targets, each row of
which sums to 1 (MixUp, CutMix), or, for mse, l1, huber and quantile, floats of the outputs' shape.
Class numbers become one-hot rows where a formula needs rows. With `class_weights`, (K,) on
the outputs' device, a sample weighs as its class does, and the values are scaled such that their
mean is the weighted one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trimtab.data.dataset import Batch

Loss = Callable[[Tensor, Batch], Tensor]


def averaged(part: Loss) -> Loss:
    """Return `part` averaged over the batch: () instead of (N,).

    A part of a user's own that returns () already is left as it is.
    """

    def loss(outputs: Tensor, batch: Batch) -> Tensor:
        return part(outputs, batch).mean()

    return loss


def balanced_weights(targets: Any, classes: int) -> Tensor:
    """Return class weights (K,) float32 with which each class counts as much as any other.

    `targets` (N,) are class numbers, a tensor on the CPU or an array. Class k weighs N / (K n_k)
    for n_k samples (King & Zeng 2001), with K the number of classes that occur; a
    class that does not occur weighs 0.
    """
    counts = np.bincount(np.asarray(targets), minlength=classes)
    share = counts.sum() / np.count_nonzero(counts) / np.maximum(counts, 1)
    return torch.from_numpy(np.where(counts > 0, share, 0.0)).float()


def rows_of(targets: Tensor, classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return targets as rows (N, K); smoothing s turns q into (1 - s) q + s / K."""
    rows = targets if targets.is_floating_point() else functional.one_hot(targets, classes).float()
    if label_smoothing == 0:
        return rows
    return (1 - label_smoothing) * rows + label_smoothing / classes


def sample_weights(targets: Tensor, class_weights: Tensor) -> Tensor:
    """Return how much each sample weighs (N,): as its class, or the mean of a soft target's."""
    return targets @ class_weights if targets.is_floating_point() else class_weights[targets]


def weighted(values: Tensor, targets: Tensor, class_weights: Tensor | None) -> Tensor:
    """Return values (N,) times the samples' weights, whose mean is made 1."""
    if class_weights is None:
        return values
    weights = sample_weights(targets, class_weights)
    return values * (weights / weights.mean())


def cross_entropy(
    outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return -sum(q log p) of each row of logits (N, K).

    q gives the true class 1 - s + s/K and every other class s/K, with s = `label_smoothing`
    (Szegedy et al. 2016, section 7). A sample weighs as its true class does, also what smoothing
    gives to the others: torch.nn.CrossEntropyLoss weighs each term by its own class there, which
    moves the optimum from q to a rare class.
    """
    values = functional.cross_entropy(outputs, batch.targets, reduction="none",
                                      label_smoothing=label_smoothing)  # fmt: skip
    return weighted(values, batch.targets, class_weights)


def bce(
    outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the binary cross-entropy of each class against the rest, averaged over the classes.

    Logits (N, K); each class is a yes-or-no question of its own (Wightman et al. 2021, "ResNet
    strikes back"). Label smoothing is that of cross_entropy.
    """
    rows = rows_of(batch.targets, outputs.shape[1], label_smoothing)
    values = functional.binary_cross_entropy_with_logits(outputs, rows, reduction="none").mean(1)
    return weighted(values, batch.targets, class_weights)


def focal(
    outputs: Tensor, batch: Batch, *, gamma: float = 2.0, label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return -sum(q (1 - p)^gamma log p) of each row of logits (N, K): hard samples count more.

    Lin et al. 2017, section 3.2, over the classes of a softmax; gamma 0 is cross_entropy.
    """
    log_p = functional.log_softmax(outputs, dim=1)
    rows = rows_of(batch.targets, outputs.shape[1], label_smoothing)
    surprise = -torch.expm1(log_p)  # 1 - p, exact where p is close to 1
    # The floor keeps the gradient of a power below 1 finite at p = 1, where the loss is 0.
    values = -(rows * surprise.clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma * log_p).sum(1)
    return weighted(values, batch.targets, class_weights)


def mse(outputs: Tensor, batch: Batch, *, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean of the squared errors of each row of outputs (N, K)."""
    return of_errors(torch.square, outputs, batch, class_weights)


def l1(outputs: Tensor, batch: Batch, *, class_weights: Tensor | None = None) -> Tensor:
    """Return the mean of the absolute errors of each row of outputs (N, K)."""
    return of_errors(torch.abs, outputs, batch, class_weights)


def huber(
    outputs: Tensor, batch: Batch, *, delta: float = 1.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean over each row of e² / 2, or delta (|e| - delta / 2) where |e| > delta.

    e is the error of outputs (N, K) (Huber 1964).
    """

    def bent(errors: Tensor) -> Tensor:
        size = errors.abs()
        inner = size.clamp(max=delta)
        return inner * (size - 0.5 * inner)

    return of_errors(bent, outputs, batch, class_weights)


def quantile(
    outputs: Tensor, batch: Batch, *, q: float = 0.5, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean over each row of max(q e, (q - 1) e), e = target - output.

    It is least where the outputs (N, K) are the `q` quantile of the targets (Koenker & Bassett
    1978).
    """

    def pinball(errors: Tensor) -> Tensor:
        return torch.maximum(q * errors, (q - 1) * errors)

    return of_errors(pinball, outputs, batch, class_weights)


def of_errors(
    formula: Callable[[Tensor], Tensor], outputs: Tensor, batch: Batch,
    class_weights: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return the mean of `formula(target - output)` over everything but the first dimension."""
    classes = outputs.shape[-1]
    errors = rows_of(batch.targets, classes).view_as(outputs) - outputs
    values = formula(errors).reshape(len(outputs), -1).mean(1)
    return weighted(values, batch.targets, class_weights)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "bce": bce,
    "focal": focal,
    "mse": mse,
    "l1": l1,
    "huber": huber,
    "quantile": quantile,
}
