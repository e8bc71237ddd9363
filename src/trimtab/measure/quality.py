"""How good a model is on a split: decisions, accuracy with interval, confusion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trimtab.data.dataset import Split
from trimtab.machine.probe import Autocast
from trimtab.machine.progress import progress
from trimtab.measure.metrics import METRICS, confusion
from trimtab.measure.stats import wilson

Array = NDArray[Any]
Call = Callable[[Array], Array]
BATCH = 256


@dataclass(frozen=True)
class Scores:
    """Scores of one model on one split; `logits` (N, K) and `targets` (N,) stay in memory."""

    accuracy: float
    low: float
    high: float
    f1: float
    n: int
    split: str
    logits: Array
    targets: Array

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which samples were decided right (N,)."""
        return np.asarray(self.logits.argmax(axis=1) == self.targets)

    @property
    def confusion(self) -> list[list[int]]:
        """Counts (K, K): row the true class, column the decided one."""
        return [[int(n) for n in row] for row in confusion(self.logits, self.targets)]

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into a table row."""
        return {"value": self.accuracy, "low": self.low, "high": self.high, "n": self.n,
                "split": self.split}  # fmt: skip


def score(logits: Array, targets: Array, *, split: str) -> Scores:
    """Score logits (N, K) against targets (N,)."""
    hits = int((logits.argmax(axis=1) == targets).sum())
    low, high = wilson(hits, len(targets))
    values = {name: metric.compute(logits, targets) for name, metric in METRICS.items()}
    return Scores(values["accuracy"], low, high, values["f1"], len(targets), split,
                  logits, np.asarray(targets))  # fmt: skip


def logits_of(call: Call, split: Split, batch_size: int = BATCH) -> Array:
    """Return the logits (N, K) of `call` for every sample of `split`, in order."""
    parts = []
    with progress(len(split), "evaluate") as bar:
        for start in range(0, len(split), batch_size):
            parts.append(call(np.asarray(split.inputs[start : start + batch_size])))
            bar.update(start + batch_size)
    return np.concatenate(parts).astype(np.float32)


def network_call(network: nn.Module, autocast: Autocast = nullcontext) -> Call:
    """Return `network` as a function of uint8 pixels (N, H, W, C) to logits (N, K).

    `autocast` may lower the precision, for looks on the way.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def call(pixels: Array) -> Array:
        inputs = torch.tensor(pixels, device=device)
        network.eval()
        with torch.inference_mode(), autocast():
            outputs = network(inputs.permute(0, 3, 1, 2).float())
        return outputs.float().cpu().numpy()  # type: ignore[no-any-return]

    return call
