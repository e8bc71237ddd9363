"""Augmented pictures per second, beside a DataLoader with torchvision's transforms, in turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import write
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trimtab.data.dataset import Split
from trimtab.data.feed import Feed
from trimtab.measure.stats import paired_ratio
from trimtab.records.sections import AugmentSection

SIDE, BATCH, WORKERS = 32, 128, 2
CUTOUT = 8  # pixels
AUGMENT = AugmentSection(shift=4 / SIDE, flip=True, cutout=CUTOUT / SIDE)


class Pictures(Dataset[Any]):
    """Arrays served one by one through Pillow, as torchvision's CIFAR10 does."""

    def __init__(self, split: Split) -> None:
        self.inputs, self.targets = split.inputs, split.targets.tolist()
        area = (CUTOUT / SIDE) ** 2
        self.transform = transforms.Compose([
            transforms.RandomCrop(SIDE, padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.inputs[row])), self.targets[row]


def synthetic(count: int) -> Split:
    """Return random pictures."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return Split(inputs, np.arange(count) % 10, tuple(map(str, range(count))))


def epochs(feed: Feed, first: int, count: int) -> Iterator[torch.Tensor]:
    """Yield the inputs of some epochs of a feed."""
    for number in range(first, first + count):
        for batch in feed.epoch(number):
            yield batch.inputs


def speed(batches: Iterable[torch.Tensor]) -> float:
    """Return the pictures per second that are delivered."""
    started = time.perf_counter()
    count = sum(len(inputs) for inputs in batches)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure in turns and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of the feed in each round")
    options = parser.parse_args()
    split = synthetic(options.pictures)
    started = time.perf_counter()
    feed = Feed(split, AUGMENT, batch_size=BATCH, seed=0, classes=10)
    prepared = time.perf_counter() - started
    loader = DataLoader(Pictures(split), BATCH, shuffle=True, num_workers=WORKERS,
                        persistent_workers=True)  # fmt: skip
    speed(epochs(feed, 0, 1))
    speed(inputs for inputs, _ in loader)  # its workers start; not counted
    ours, theirs = [], []
    for number in range(options.rounds):
        ours.append(speed(epochs(feed, 1 + number * options.epochs, options.epochs)))
        theirs.append(speed(inputs for inputs, _ in loader))
    ratio, low, high = paired_ratio(ours, theirs)
    rows: list[dict[str, Any]] = [
        {"pipeline": "trimtab Feed", "images/s": round(median(ours)), "min": round(min(ours)),
         "max": round(max(ours)), "rounds": options.rounds,
         "ratio": f"{ratio:.1f} ({low:.1f}-{high:.1f})"},
        {"pipeline": "DataLoader + torchvision", "images/s": round(median(theirs)),
         "min": round(min(theirs)), "max": round(max(theirs)), "rounds": options.rounds,
         "ratio": 1},
    ]  # fmt: skip
    write(
        "data_path",
        rows,
        notes=f"{options.pictures:,} random {SIDE}x{SIDE} colour pictures in float batches of "
        f"{BATCH}: crop from 4 pixels of reflection, flip, cutout of {CUTOUT} pixels. The "
        f"DataLoader has {WORKERS} workers, the Feed runs in the training's own process with "
        f"{torch.get_num_threads()} threads, after {prepared:.2f} s of preparation. Timed in "
        "turns; the ratio is a geometric mean with its 95 % interval.",
    )


if __name__ == "__main__":
    main()
