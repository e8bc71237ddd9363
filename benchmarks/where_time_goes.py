"""Where the time of a training goes: steps by kind of operation, a streamed JPEG, a snapshot."""

from __future__ import annotations

import trimtab  # noqa: F401  # isort: skip - before torch, as the command does: idle threads sleep

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_stall import training
from cnn_throughput import MODELS, Steps, pictures, plain, recipe, resolved
from jpeg_stream import AUGMENT, SIDE, split_of, write_photos
from record import write
from torch.profiler import ProfilerActivity, profile

from trimtab.data import crop, scaled
from trimtab.data.draw import Draw
from trimtab.data.pictures import Pictures
from trimtab.machine.memory import kept_memory
from trimtab.models.build import build
from trimtab.models.quick import quick_layers
from trimtab.records.recipe import read_recipe
from trimtab.train.initial import set_first_weights
from trimtab.train.snapshot import take, total_bytes
from trimtab.train.state import training_state

SMALL = "cifar10_94.yaml"
RECIPES = Path(__file__).parents[1] / "recipes"
WARM, STEPS, PHOTOS, COPIES = 3, 5, 400, 20
KINDS = {  # kind: what names of torch's operations hold; the first that fits counts
    "convolutions": ("conv", "depthwise"),
    "norms": ("norm",),
    "products": ("mm", "linear", "dot"),
    "activations and pooling": ("elu", "silu", "hard", "sigmoid", "threshold", "pool",
                                "mean", "clamp", "activated", "gated"),
    "copies and casts": ("copy", "clone", "_to_", "cat", "pad", "col", "contiguous", "fill",
                         "zero"),
}  # fmt: skip
NOTES = """Shares of torch's profiler by kind of operation, of its own time on the thread that
trains, over 5 steps. Steps are not compiled here. `products` are of matrices, the convolutions that
trimtab computes so among them; `optimizer` is all of its step. A JPEG of 500x375 is read by one
thread. A snapshot copies the state of ResNet-18 with Adam; `copy of one block` is the share that
moving as many bytes in one piece takes: the rest is what a better snapshot could save."""


def kind_of(event: Any) -> str:
    """Return the kind of operation of a profiler's event."""
    above = event
    while above is not None:
        if above.name.startswith("Optimizer.step"):
            return "optimizer"
        above = above.cpu_parent
    name = event.name.lower()
    return next(
        (kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "the rest"
    )


def row_of(what: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Return a row of the table: milliseconds, and shares from the largest down."""
    total = sum(seconds.values())
    shares = sorted(seconds.items(), key=lambda pair: -pair[1])
    text = ", ".join(f"{kind} {100 * took / total:.0f} %" for kind, took in shares if took)
    row = {"what": what, "ms": round(1000 * total, 2), "where it goes": text}
    print(row, flush=True)
    return row


def profiled(what: str, steps: Steps) -> dict[str, Any]:
    """Return the row of a usual step."""
    steps(WARM)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        steps(STEPS)
    seconds: Counter[str] = Counter()
    for event in found.events():
        seconds[kind_of(event)] += event.self_cpu_time_total / 1e6 / STEPS
    return row_of(what, seconds)


def steps_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a network's steps, by hand and as `train` takes them."""
    if name == SMALL:
        chosen = read_recipe(RECIPES / SMALL).override(
            data__image_size=32, data__valid_fraction=0.01, data__test_fraction=0.0,
            train__resolution=(),
        )  # fmt: skip
    else:
        chosen = recipe(name, *MODELS[name])
    chosen = chosen.override(train__compile=False)
    dataset = pictures(chosen)
    yield profiled(f"{name}, by hand", plain(build(dataset.schema, chosen), dataset,
                                             int(chosen.train.batch_size)))  # fmt: skip
    network = build(dataset.schema, chosen)
    set_first_weights(network, dataset.splits["train"], chosen)
    with kept_memory(), quick_layers(network):
        steps, (way, _) = resolved(network, dataset, chosen)
        yield profiled(f"{name}, trimtab, {way}", steps)


@contextmanager
def timed(seconds: Counter[str], kind: str) -> Iterator[None]:
    """Add what the block takes to one kind."""
    started = time.perf_counter()
    yield
    seconds[kind] += time.perf_counter() - started


def photo_row() -> dict[str, Any]:
    """Return the row of one streamed JPEG, a mean of some."""
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        write_photos(Path(place), PHOTOS)
        split = split_of(Path(place), "stream")
        assert isinstance(split.inputs, Pictures)
        ids = torch.arange(len(split.inputs))
        heights, widths = torch.from_numpy(split.inputs.sides).T
        found = crop.boxes(Draw(0, 0, ids), AUGMENT.crop, heights, widths).tolist()
        for row, box in enumerate(found):
            with timed(seconds, "reading the file"):
                content = split.inputs.content(row)
            with timed(seconds, "decoding"):
                by = scaled.reduction(box, (SIDE, SIDE))
                pixels, scale = scaled.upright_pixels(content, 3, by, box[0] + box[2])
            with timed(seconds, "cutting"):
                part = scaled.cut(pixels, box, scale)
            with timed(seconds, "resizing"):
                part = scaled.resized(part, (SIDE, SIDE))
            with timed(seconds, "floats"):
                torch.from_numpy(part).permute(2, 0, 1).float()
    return row_of("a streamed JPEG", {kind: took / len(found) for kind, took in seconds.items()})


def best(call: Callable[[], object]) -> float:
    """Return the least wall seconds of some calls."""
    found = []
    for _ in range(COPIES):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def snapshot_row() -> dict[str, Any]:
    """Return the row of a snapshot."""
    groups = training_state(*training(), facts={})[0]
    copies = take(groups, {})
    block = torch.from_numpy(np.ones(total_bytes(groups), np.uint8))
    target = torch.empty_like(block)
    one = best(lambda: target.copy_(block))
    whole = best(lambda: take(groups, copies))
    return row_of("a snapshot", {"copy of one block": one, "the rest": max(0.0, whole - one)})


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=(SMALL, *MODELS))
    options = parser.parse_args()
    rows = [row for name in options.models for row in steps_rows(name)]
    write("where_time_goes", [*rows, photo_row(), snapshot_row()], notes=NOTES)


if __name__ == "__main__":
    main()
