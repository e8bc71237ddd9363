"""Stop a training at every kind of place, resume it, and compare with the whole one to the bit."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # for a test, which imports this file from elsewhere

import torch
from kill_and_resume import differences, write_digits

from trimtab.data.dataset import open_dataset
from trimtab.errors import Interrupted
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train import loop
from trimtab.train.run import resume, train

SETTLED = {"model__name": "cnn_small", "model__dropout": 0.1, "train__epochs": 3,
           "augment__flip": True, "train__layout": "contiguous", "train__batch_size": 32,
           "train__micro_batch": 12}  # fmt: skip
AXES: dict[str, tuple[Any, ...]] = {
    "stopped": ("epoch end", "mid-epoch", "before evaluation"),
    "precision": ("fp32", "bf16"),
    "average": ("none", "ema"),
    "threads": (1, 2),
    "with": ("nothing more", "head first", "flip by trial", "sharpness", "hard samples"),
}
MORE: dict[str, dict[str, Any]] = {
    "nothing more": {}, "head first": {"train__head_only": 0.5},
    "flip by trial": {"augment__flip": "auto"}, "sharpness": {"regularize__sharpness": 0.05},
    "hard samples": {"train__hard_fraction": 0.5},
}  # fmt: skip
NOTES = """Ctrl-C at that place, then `resume`; two breaks per run, in the first and in the second
epoch; where a trial decides about mirroring, in the trial and in the training behind it. A step has
three forward passes, or two from the harder half of its samples. What the training is done `with`
is crossed with the place alone, in fp32, without an average, on one thread. Random numbers come
from counters, so there are no workers whose number could matter; threads of torch are the same
before and after the break."""


@contextmanager
def signal_at(place: str, epoch: int, steps: int, trial: int) -> Iterator[None]:
    """Send this process a Ctrl-C at one kind of place in one epoch (from 0) of `steps`.

    The epochs of a `trial`, which are done before, are passed over.
    """
    name, pass_wanted = PLACES[place](epoch, steps)
    pass_wanted += trial * steps if name == "train_step" else trial + (trial > 0)
    real, passes = getattr(loop, name), [0]

    def watched(*given: Any, **named: Any) -> Any:
        passes[0] += 1
        if passes[0] == pass_wanted:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given, **named)

    setattr(loop, name, watched)
    try:
        yield
    finally:
        setattr(loop, name, real)


PLACES: dict[str, Callable[[int, int], tuple[str, int]]] = {
    "epoch end": lambda epoch, steps: ("train_step", steps),
    "mid-epoch": lambda epoch, steps: ("train_step", 2 + epoch * (steps - 1)),
    "before evaluation": lambda epoch, steps: ("evaluate", 1),
}


def one_cell(data: Any, folder: Path, cell: dict[str, Any]) -> list[str]:
    """Return what differs after two breaks from the training without any."""
    torch.set_num_threads(cell["threads"])
    chosen = {**SETTLED, **MORE[cell["with"]], "train__precision": cell["precision"],
              "train__average": cell["average"]}  # fmt: skip
    recipe = Recipe().override(**chosen)
    whole, parts = folder / "whole", folder / "parts"
    run = train(data, recipe=recipe, out=whole)
    steps = next(row["step"] for row in run.metrics if "epoch" in row)
    for number in range(2):
        trial = recipe.train.epochs if number and cell["with"] == "flip by trial" else 0
        with signal_at(cell["stopped"], number, steps, trial):
            stopped(data, recipe, parts, number)
    resume(parts, data=data)
    found = [name for name in differences(whole, parts) if name != "ledger.jsonl"]
    return found + not_resumed(Run(parts), cell)  # a break has rows of its own in the ledger


def not_resumed(run: Run, cell: dict[str, Any]) -> list[str]:
    """Return what is missing where a training began anew after a break: its end is the same.

    A break in the trial of mirroring comes before there is a checkpoint.
    """
    steps = run.facts.get("resumed", [])
    wanted = 1 if cell["with"] == "flip by trial" else 2
    return [] if len(steps) == wanted else [f"resumed from {steps}, wanted {wanted} of them"]


def stopped(data: Any, recipe: Recipe, out: Path, number: int) -> None:
    """Begin or go on with a training that a Ctrl-C is about to stop."""
    try:
        train(data, recipe=recipe, out=out) if number == 0 else resume(out, data=data)
    except (Interrupted, KeyboardInterrupt):  # the latter where nothing was reached yet
        return
    raise SystemExit("the training was not stopped")


def cells(chosen: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yield each combination of the axes."""
    for values in itertools.product(*chosen.values()):
        yield dict(zip(chosen, values, strict=True))


def matrix() -> Iterator[dict[str, Any]]:
    """Yield every combination of the first axes, then what is done more, at each place."""
    plain = {axis: values[:1] for axis, values in AXES.items()}
    yield from cells({**AXES, "with": plain["with"]})
    yield from cells({**plain, "stopped": AXES["stopped"], "with": AXES["with"][1:]})


def main() -> None:
    """Run all cells and record; exit with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print-only", action="store_true", help="write no JSON")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        data = open_dataset(write_digits(Path(place) / "digits"), Recipe())
        for index, cell in enumerate(matrix()):
            wrong = one_cell(data, Path(place) / str(index), cell)
            rows.append({**cell, "equal": "no: " + ", ".join(wrong[:3]) if wrong else "yes"})
            print(rows[-1], flush=True)
    if not options.print_only:
        from record import write

        write("resume_matrix", rows, notes=NOTES)
    if any(row["equal"] != "yes" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
