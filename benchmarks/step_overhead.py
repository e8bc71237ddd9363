"""What a training step costs beside its arithmetic: trimtab ÷ a hand-written loop, in turns."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import step_overhead_peers as peers
import torch
from record import write
from torch import Tensor, nn
from torch.nn import functional

import trimtab as tt
from trimtab.data.dataset import Batch, Dataset, open_dataset
from trimtab.data.feed import Feed
from trimtab.measure.stats import paired_ratio
from trimtab.models.build import build
from trimtab.train import loop

BATCH, SIDE, CLASSES = 32, 8, 10
RATE, DECAY, SMOOTHING, WARMUP, START = 3e-3, 0.05, 0.1, 0.2, 0.04
SETTINGS = {"train.batch_size": BATCH, "train.epochs": 1, "augment.shift": 0.0,
            "augment.flip": False, "data.valid_fraction": 0.01, "data.test_fraction": 0.0,
            "train.precision": "fp32", "train.layout": "contiguous"}  # fmt: skip
Seconds = tuple[float, float]  # on the wall, of the processor


class Mlp(nn.Module):
    """Three layers, 64-128-128-10."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
            nn.Linear(128, CLASSES),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, 1, 8, 8) to logits (N, 10)."""
        return self.body(pixels)  # type: ignore[no-any-return]


def recipe() -> tt.Recipe:
    """Return the recipe: everything on that is on by default, but random changes of pictures."""
    return tt.Recipe().override(**{k.replace(".", "__"): v for k, v in SETTINGS.items()})


def pictures(steps: int) -> Dataset:
    """Return random 8x8 pictures, enough for `steps` batches in one epoch."""
    random = np.random.default_rng(0)
    count = math.ceil(steps * BATCH / (1 - SETTINGS["data.valid_fraction"]))
    inputs = random.integers(0, 256, (count, SIDE, SIDE, 1), dtype=np.uint8)
    return open_dataset((inputs, random.integers(0, CLASSES, count)), recipe())


def now() -> Seconds:
    """Return the clocks."""
    return time.perf_counter(), time.process_time()


def since(before: Seconds) -> Seconds:
    """Return what went by."""
    wall, busy = now()
    return wall - before[0], busy - before[1]


def ours(dataset: Dataset, seed: int) -> Seconds:
    """Train by `tt.train`; time from before its first batch to the end of the epoch's last step.

    Metrics, progress and checkpoints are on. Of the checkpoint at the end of the training the copy
    in memory is inside; its files are written beside what comes after.
    """
    with tempfile.TemporaryDirectory() as folder, marked() as marks:
        tt.train(dataset, recipe=recipe(), model=Mlp(), out=Path(folder) / "run", seed=seed)
    (first, idle), (last, busy) = marks["first"], marks["last"]
    return last - first, busy - idle


@contextmanager
def marked() -> Iterator[dict[str, Seconds]]:
    """Note when the loop asks for its epoch's batches and when it first evaluates."""
    marks: dict[str, Seconds] = {}
    real_epoch, real_evaluate = Feed.epoch, loop.evaluate

    def epoch(*given: Any) -> Iterator[Batch]:
        marks.setdefault("first", now())  # none is prepared yet
        return real_epoch(*given)

    def evaluate(*given: Any) -> Any:
        marks.setdefault("last", now())
        return real_evaluate(*given)

    Feed.epoch, loop.evaluate = epoch, evaluate
    try:
        yield marks
    finally:
        Feed.epoch, loop.evaluate = real_epoch, real_evaluate


def network_and_groups(dataset: Dataset, seed: int) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return the network that trimtab trains, normalisation inside, and the same groups."""
    torch.manual_seed(seed)
    network = build(dataset.schema, recipe(), Mlp()).train()
    parameters = list(network.parameters())
    groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
              {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    return network, groups


def tensors(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return the whole train split in memory: pixels (N, 1, 8, 8) float32, classes (N,)."""
    train = dataset.splits["train"]
    pixels = torch.from_numpy(np.array(train.inputs)).permute(0, 3, 1, 2).float().contiguous()
    return pixels, torch.from_numpy(np.array(train.targets))


def by_hand(dataset: Dataset, seed: int) -> Seconds:
    """Train by the shortest loop that does the same maths on the same number of batches."""
    network, groups = network_and_groups(dataset, seed)
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), fused=True)
    pixels, targets = tensors(dataset)
    steps = math.ceil(len(targets) / BATCH)
    before = now()
    order = torch.randperm(len(targets))
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        for group in optimizer.param_groups:
            group["lr"] = RATE * one_cycle(step / steps)
        optimizer.zero_grad(set_to_none=True)
        outputs = network(pixels[rows])
        functional.cross_entropy(outputs, targets[rows], label_smoothing=SMOOTHING).backward()
        optimizer.step()
    return since(before)


def one_cycle(progress: float) -> float:
    """Return the fraction of the peak rate: the schedule of the recipe, written out."""
    if progress < WARMUP:
        return START + (1 - START) * progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def lightning(dataset: Dataset, seed: int) -> Seconds:
    """Train by Lightning's Trainer."""
    network, groups = network_and_groups(dataset, seed)
    return peers.lightning(network, groups, *tensors(dataset), RATE, SMOOTHING, BATCH)


def hugging_face(dataset: Dataset, seed: int) -> Seconds:
    """Train by Hugging Face's Trainer."""
    network, groups = network_and_groups(dataset, seed)
    return peers.hugging_face(network, groups, *tensors(dataset), RATE, SMOOTHING, BATCH)


def row_of(name: str, found: list[Seconds], plain: list[Seconds], steps: int) -> dict[str, Any]:
    """Return a row of the table: per step, and the ratio with its interval on both clocks."""
    row: dict[str, Any] = {"loop": name}
    for index, clock in enumerate(("wall", "processor")):
        taken = [one[index] for one in found]
        ratio, low, high = paired_ratio(taken, [one[index] for one in plain])
        row[f"{clock} µs/step"] = round(1e6 * median(taken) / steps, 1)
        row[f"÷ by hand ({clock})"] = f"{ratio:.3f} ({low:.3f}-{high:.3f})"
    return {**row, "rounds": len(found)}


def main() -> None:
    """Measure in turns and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    dataset = pictures(options.steps)
    loops: dict[str, Callable[[Dataset, int], Seconds]] = {"by hand": by_hand, "trimtab": ours}
    loops |= {"Lightning": lightning} if peers.has("lightning") else {}
    loops |= {"Hugging Face": hugging_face} if peers.has("transformers", "accelerate") else {}
    found: dict[str, list[Seconds]] = {name: [] for name in loops}
    for seed in range(options.seeds + 1):
        for name in list(loops)[:: 1 if seed % 2 else -1]:
            taken = loops[name](dataset, seed)
            if seed:  # the first round prepares kernels and is not counted
                found[name].append(taken)
    steps = math.ceil(len(dataset.splits["train"]) / BATCH)
    left_out = [one for one in ("Lightning", "Hugging Face") if one not in loops]
    write(
        "step_overhead",
        [row_of(name, found[name], found["by hand"], steps) for name in loops],
        notes=f"MLP 64-128-128-10, batch {BATCH}, {steps:,} steps of one epoch, AdamW (fused), one-"
        "cycle, label smoothing, pictures in memory, no augmentation, evaluation not counted; "
        "metrics, progress and checkpoints on, but for the loop by hand, which has none. "
        "trimtab is timed from before its first batch is prepared, the other packages from their "
        "first step on; of trimtab's checkpoint at the end of the training the copy in memory "
        "counts, its files are written beside the evaluation. Hugging Face's Trainer saves every "
        "500 steps, which is its default, the others at the end. In turns, "
        "the order reversed each round; medians, and geometric means of the ratios with 95 % "
        f"intervals. {torch.get_num_threads()} threads."
        + (f" Not installed and left out: {', '.join(left_out)}." if left_out else ""),
    )


if __name__ == "__main__":
    main()
