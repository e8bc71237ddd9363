"""Losses: outputs and a batch to one number."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from trimtab.data.dataset import Batch

Loss = Callable[[Tensor, Batch], Tensor]


def cross_entropy(outputs: Tensor, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean of -sum(q log p) over logits (N, K) and targets (N,).

    q gives the true class 1 - s + s/K and every other class s/K, with s = `label_smoothing`
    (Szegedy et al. 2016, section 7).
    """
    return functional.cross_entropy(outputs, batch.targets, label_smoothing=label_smoothing)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy}
