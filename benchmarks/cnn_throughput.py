"""Training pictures per second: what `train` resolves ÷ a plain fp32 loop, in ABBA blocks.

Each loop has a process of its own, with the settings of threads and memory that it has in life.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import torch
from record import write
from torch import nn
from torch.nn import functional

import trimtab as tt
from trimtab.data.dataset import Batch, Dataset, open_dataset
from trimtab.data.feed import Feed
from trimtab.machine.memory import kept_memory
from trimtab.machine.threads import calm_threads
from trimtab.measure.stats import paired_ratio
from trimtab.models.build import build
from trimtab.models.quick import quick_layers
from trimtab.train.initial import set_first_weights
from trimtab.train.log import Clock
from trimtab.train.loop import set_rate
from trimtab.train.norms import train_mode
from trimtab.train.settings import resolve
from trimtab.train.update import train_step

MODELS = {  # name: side of the pictures, batch
    "cnn_large": (32, 128), "resnet20": (32, 128), "dwconv_small": (32, 128),
    "wcnn_medium": (32, 128), "resnet18": (96, 32), "mobilenetv3_small_100": (128, 64),
    "efficientnet_b0": (96, 32), "convnext_atto": (96, 32),
}  # fmt: skip
CLASSES, BATCHES = 10, 8
RATE, DECAY, SMOOTHING = 1e-4, 0.05, 0.1
EPOCHS = 100_000  # hours, so that `train` tries whether compiled steps are faster
NOTHING: Mapping[str, str] = {}
Steps = Callable[[int], None]


def recipe(name: str, side: int, batch: int, epochs: int = EPOCHS) -> tt.Recipe:
    """Return the recipe: defaults, without random changes of pictures."""
    return tt.Recipe().override(
        model__name=name, data__image_size=side, train__batch_size=batch, augment__shift=0.0,
        augment__flip=False, train__learning_rate=RATE, train__epochs=epochs,
        data__valid_fraction=0.01, data__test_fraction=0.0,
    )  # fmt: skip


def pictures(chosen: tt.Recipe) -> Dataset:
    """Return random pictures, some whole batches of them."""
    side, batch = int(chosen.data.image_size), int(chosen.train.batch_size)
    random = np.random.default_rng(0)
    size = BATCHES * batch + math.ceil(0.02 * BATCHES * batch)
    inputs = random.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    return open_dataset((inputs, np.arange(size) % CLASSES), chosen)


def plain(network: nn.Module, dataset: Dataset, batch: int) -> Steps:
    """Return a loop by hand: fp32, contiguous, eager, fused AdamW, pictures in memory."""
    network.train()
    split = dataset.splits["train"]
    pixels = torch.from_numpy(np.array(split.inputs)).permute(0, 3, 1, 2).float().contiguous()
    targets = torch.from_numpy(np.array(split.targets))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    order = torch.randperm(len(targets))
    place = count()

    def steps(number: int) -> None:
        for _ in range(number):
            first = next(place) % BATCHES * batch
            rows = order[first : first + batch]
            optimizer.zero_grad(set_to_none=True)
            outputs = network(pixels[rows])
            functional.cross_entropy(outputs, targets[rows], label_smoothing=SMOOTHING).backward()
            optimizer.step()

    return steps


def resolved(
    network: nn.Module, dataset: Dataset, chosen: tt.Recipe
) -> tuple[Steps, tuple[str, float]]:
    """Return the steps of `train` with its own data path; the way chosen, seconds of compiling."""
    settings = resolve(network, dataset, chosen, None)
    feed = Feed(dataset.splits["train"], chosen.augment, batch_size=settings.batch_size, seed=0,
                classes=CLASSES, device=settings.device)  # fmt: skip
    train_mode(network, freeze_norms=False)
    clock, batches = Clock(None, total_steps=10**6), endless(feed, settings.batch_size)

    def steps(number: int) -> None:
        for _ in range(number):
            set_rate(settings, clock.progress)
            train_step(network, next(batches), settings, clock)
            clock.step += 1

    return steps, (str(settings.way), settings.speed.compile_seconds)


def endless(feed: Feed, batch: int) -> Iterator[Batch]:
    """Yield whole batches, epoch after epoch."""
    for epoch in count():
        yield from (one for one in feed.epoch(epoch) if len(one.ids) == batch)


def seconds(steps: Steps, number: int) -> float:
    """Return the seconds of some steps."""
    started = time.perf_counter()
    steps(number)
    return time.perf_counter() - started


def serve(pipe: Connection, name: str, ours: bool, epochs: int) -> None:
    """Run as many steps of one of the loops as the other end asks for, and say what they took."""
    side, batch = MODELS[name]
    chosen = recipe(name, side, batch, epochs)
    dataset = pictures(chosen)
    torch.manual_seed(0)
    network = build(dataset.schema, chosen)
    set_first_weights(network, dataset.splits["train"], chosen)
    if ours:
        with kept_memory(), quick_layers(network):
            steps, way = resolved(network, dataset, chosen)
            answer(pipe, steps, way)
    else:
        answer(pipe, plain(network, dataset, batch), ("fp32", 0.0))


def answer(pipe: Connection, steps: Steps, way: tuple[str, float]) -> None:
    """Say what was chosen, and then the seconds of each number of steps asked for."""
    pipe.send(way)
    while number := pipe.recv():
        pipe.send(seconds(steps, number))


class Loop:
    """One of the loops, in a process of its own; `variables` are added to its environment."""

    def __init__(
        self, name: str, *, ours: bool, epochs: int = EPOCHS, variables: Mapping[str, str] = NOTHING
    ) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TRIMTAB_NATIVE"):
            os.environ.pop(variable, None)  # what torch does by itself
        os.environ.update(variables)
        if ours:
            calm_threads()  # as `import trimtab` does before torch
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=serve, args=(theirs, name, ours, epochs))
        self.process.start()
        theirs.close()  # so that a process that fails is noticed here
        self.way, self.compile_seconds = self.pipe.recv()

    def seconds(self, number: int) -> float:
        """Return the seconds of some steps."""
        self.pipe.send(number)
        found: float = self.pipe.recv()
        return found

    def end(self) -> None:
        """Let the process end."""
        self.pipe.send(0)
        self.process.join()


def in_turns(
    first: Loop, second: Loop, *, blocks: int, block_seconds: float
) -> tuple[list[float], list[float], int]:
    """Return the seconds of blocks of both loops, and how many steps a block has."""
    for loop in (first, second):
        loop.seconds(3)
    number = max(1, round(block_seconds / first.seconds(1)))
    one: list[float] = []
    two: list[float] = []
    for index in range(blocks):
        for loop, found in [(first, one), (second, two)][:: 1 if index % 2 else -1]:
            found.append(loop.seconds(number))
    for loop in (first, second):
        loop.end()
    return one, two, number


def compare(name: str, *, blocks: int, block_seconds: float) -> Any:
    """Return a row of the table, and the seconds of both in each pair of blocks."""
    by_hand, ours = Loop(name, ours=False), Loop(name, ours=True)
    slow, fast, number = in_turns(by_hand, ours, blocks=blocks, block_seconds=block_seconds)
    ratio, low, high = paired_ratio(slow, fast)
    side, batch = MODELS[name]
    row = {
        "model": name, "side": side, "batch": batch, "chosen": ours.way,
        "compiling s": round(ours.compile_seconds, 1),
        "plain img/s": round(number * batch / median(slow), 1),
        "trimtab img/s": round(number * batch / median(fast), 1),
        "ratio": f"{ratio:.2f} ({low:.2f}-{high:.2f})", "blocks": blocks,
    }  # fmt: skip
    return row, slow, fast


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--blocks", type=int, default=12, help="of each loop, in turns")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a block of the plain loop")
    options = parser.parse_args()
    rows, slow, fast = [], [], []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # empty: nothing is compiled already
        for name in options.models.split(","):
            row, plain_seconds, our_seconds = compare(
                name, blocks=options.blocks, block_seconds=options.seconds
            )
            print(row, flush=True)
            rows.append(row)
            slow.append(math.exp(np.log(plain_seconds).mean()))
            fast.append(math.exp(np.log(our_seconds).mean()))
    ratio, low, high = paired_ratio(slow, fast)
    write(
        "cnn_throughput",
        rows,
        notes=f"Forward, backward and AdamW (fused in both) on random pictures: what `train` "
        "resolves for hours of training, with its data path, ÷ a loop by hand in fp32, contiguous "
        "and eager. Each in a process of its own, in ABBA blocks; medians, and "
        f"geometric means of the ratios with 95 % intervals. Over all models **{ratio:.2f}** "
        f"({low:.2f}-{high:.2f}), the least {min(map(float, np.divide(slow, fast))):.2f}. "
        f"{torch.get_num_threads()} threads.",
    )


if __name__ == "__main__":
    main()
