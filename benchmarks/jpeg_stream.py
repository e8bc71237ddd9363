"""Photos per second from JPEG files to float batches, beside a DataLoader with torchvision."""

from __future__ import annotations

import trimtab  # noqa: F401  # isort: skip - before torch, as the command does: idle threads sleep

import argparse
import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from record import shared_data, write
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from trimtab.data.dataset import Split, open_dataset
from trimtab.data.feed import Feed
from trimtab.machine.memory import kept_memory
from trimtab.measure.stats import paired_ratio
from trimtab.records.recipe import Recipe
from trimtab.records.sections import AugmentSection

SIDE, BATCH, WORKERS = 224, 64, 2
PHOTO = 500, 375
AUGMENT = AugmentSection(crop=0.92, shift=0.0, flip=True)
SOURCE = "imagenette224_subset.zip"
STREAM, CACHED, THEIRS = "trimtab, streamed", "trimtab, cached", "DataLoader + torchvision"

Epochs = Callable[[range], Iterable[torch.Tensor]]
Contestants = dict[str, Epochs]


class Photos(Dataset[Any]):
    """Files served one by one through Pillow, as torchvision's ImageFolder does."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.paths = [folder / name for name in split.ids]
        self.targets = split.targets.tolist()
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[row], "rb") as file:
            image = Image.open(file).convert("RGB")
        return self.transform(image), self.targets[row]


def write_photos(folder: Path, count: int) -> float:
    """Write class folders of JPEG files at the size of a usual photo; returns their mean KB."""
    sizes = []
    with zipfile.ZipFile(shared_data() / SOURCE) as file:
        names = [name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        for name in names[:: max(1, len(names) // count)][:count]:
            image = Image.open(io.BytesIO(file.read(name))).convert("RGB")
            _, label, own = name.rsplit("/", 2)
            path = folder / label / f"{Path(own).stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.resize(PHOTO, Image.Resampling.BICUBIC).save(path, quality=90)
            sizes.append(path.stat().st_size)
    return sum(sizes) / len(sizes) / 1000


def split_of(folder: Path, storage: str) -> Split:
    """Return the train split, nearly all pictures, streamed or decoded once."""
    recipe = Recipe().override(data__image_size=SIDE, data__storage=storage,
                               data__valid_fraction=0.05, data__test_fraction=0.0)  # fmt: skip
    return open_dataset(folder, recipe).splits["train"]


def epochs_of(split: Split) -> Epochs:
    """Return what yields the inputs of some epochs, memory kept as in a training."""
    feed = Feed(split, AUGMENT, batch_size=BATCH, seed=0, classes=10)

    def epochs(numbers: range) -> Iterator[torch.Tensor]:
        with kept_memory():
            for number in numbers:
                yield from (batch.inputs for batch in feed.epoch(number))

    return epochs


def contestants(folder: Path) -> Contestants:
    """Return what yields the float batches of some epochs, by name."""
    stream = split_of(folder, "stream")
    loader = DataLoader(Photos(folder, stream), BATCH, shuffle=True, num_workers=WORKERS,
                        persistent_workers=True)  # fmt: skip
    return {
        STREAM: epochs_of(stream),
        CACHED: epochs_of(split_of(folder, "memory")),
        THEIRS: lambda numbers: (inputs for _ in numbers for inputs, _ in loader),
    }


def speed(batches: Iterable[torch.Tensor]) -> float:
    """Return the pictures per second that are delivered."""
    started = time.perf_counter()
    count = sum(len(inputs) for inputs in batches)
    return count / (time.perf_counter() - started)


def measured(against: Contestants, rounds: int, epochs: int) -> dict[str, list[float]]:
    """Return the speeds of some rounds, in turns there and back; a first round is not counted.

    A turn lasts some epochs, as a training does.
    """
    found: dict[str, list[float]] = {name: [] for name in against}
    for number in range(rounds + 1):
        for name in list(against) if number % 2 else reversed(list(against)):
            numbers = range(number * epochs, (number + 1) * epochs)
            found[name].append(speed(against[name](numbers)))
    return {name: speeds[1:] for name, speeds in found.items()}


def rows_of(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return a row of the table for each contestant."""
    rows = []
    for name, speeds in found.items():
        ratio, low, high = paired_ratio(speeds, found[THEIRS])
        text = "1" if name == THEIRS else f"{ratio:.2f} ({low:.2f}-{high:.2f})"
        rows.append({"pipeline": name, "images/s": round(median(speeds)), "min": round(min(speeds)),
                     "max": round(max(speeds)), "rounds": len(speeds), "ratio": text})  # fmt: skip
    return rows


def main() -> None:
    """Measure in turns and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="of a turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photos"
        kilobytes = write_photos(folder, options.pictures)
        found = measured(contestants(folder), options.rounds, options.epochs)
    write(
        "jpeg_stream",
        rows_of(found),
        notes=f"{options.pictures:,} Imagenette pictures resized to {PHOTO[0]}x{PHOTO[1]}, JPEG of "
        f"quality 90, {kilobytes:.0f} KB on average, to float batches of {BATCH}: random resized "
        f"crop to {SIDE} and flip. The DataLoader has {WORKERS} workers that stay; trimtab decodes "
        "in the training's own process, a thread per core. `cached` crops the pictures as they "
        f"were decoded once to {SIDE} pixels, as from the second epoch on with `data.storage: "
        f"memory`. Timed in turns of {options.epochs} epochs, there and back; the ratio is a "
        "geometric mean with its 95 % interval.",
    )


if __name__ == "__main__":
    main()
