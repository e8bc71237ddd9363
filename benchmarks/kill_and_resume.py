"""Kill `trimtab train` a hundred times and resume until done: the result is that of the whole run.

A server imports torch once and forks a child per command, so that a kill costs a second. Kills
come at random moments, at named failpoints (see `trimtab.machine.failpoints`) and in evaluations.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked child has no pool of threads

import torch

import trimtab.train.run  # noqa: F401 - before the forks, for their sake
from trimtab import cli
from trimtab.machine import failpoints
from trimtab.records.files import read_json, read_jsonl
from trimtab.records.run import Run
from trimtab.train import loop
from trimtab.train.checkpoint import Checkpoint
from trimtab.train.steps import faults, step_folders

SETTINGS = ("model.name=cnn_small", "train.epochs=4", "train.average=ema", "model.dropout=0.1",
            "train.precision=fp32", "train.layout=contiguous", "train.checkpoint_seconds=0.02",
            "augment.rotate=10")  # fmt: skip
TIMED = {"seconds", "time", "train_seconds", "images_per_second", "eta", "eta_error",
         "step_seconds", "compile_seconds", "compiled"}  # fmt: skip
TOLD = {"ledger_bytes", "resumed"}  # what a run says of its breaks
COUNTED = ("kills", "runs", "resumed", "equal", "leftovers")
MOST_KILLS_OF_A_CHAIN = 5
NOTES = """`trimtab train` on 200 handwritten digits, killed, then repeated or resumed in turns
until done, the last time always from the newest whole checkpoint; `resumed` are the runs that had
one. `equal` compares each tensor of the last checkpoint (weights, optimizer, average, best, random
numbers), the weights file, the facts, the recipe, the log and the ledger, all but durations;
`leftovers` are temporary files."""
Kill = Callable[[int], None]


@dataclass(frozen=True)
class Place:
    """Where one case keeps its data and its run."""

    data: Path
    run: Path

    def train(self) -> list[str]:
        """Return the words of the command."""
        chosen = [word for one in SETTINGS for word in ("--set", one)]
        return ["train", str(self.data), *chosen, "--out", str(self.run)]

    def finished(self) -> bool:
        """Return whether the run says of itself that it is done."""
        path = self.run / "run.json"
        return path.exists() and read_json(path).get("status") == "finished"

    def again(self, attempt: int) -> list[str]:
        """Return the command of an attempt: the same one, or `resume` every other time."""
        begun = (self.run / "run.json").exists()
        return ["resume", str(self.run)] if begun and attempt % 2 else self.train()

    def newest_step(self) -> list[int]:
        """Return the step of the newest whole checkpoint, if there is one."""
        folder = self.run / "checkpoints"
        folders = step_folders(folder) if folder.is_dir() else []
        return [Checkpoint(path).step for path in folders if not faults(path)][:1]

    def resumed(self) -> list[int]:
        """Return the steps from which the run says it went on."""
        return list(Run(self.run).facts.get("resumed", []))


def fork(words: list[str], place: Place, prepare: Callable[[], None]) -> int:
    """Start a command in a forked child and return its process id."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            log = os.open(place.run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["trimtab", *words]
            prepare()
            cli.main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Return the exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def chain(place: Place, kills: Iterator[tuple[Callable[[], None], Kill]]) -> int:
    """Run a command, killed and begun again, until it is done; return how often it was killed.

    The attempt that comes to the end must have gone on from the newest whole checkpoint: a training
    from the beginning would end as the whole one, too.
    """
    for attempt in range(1000):
        if attempt and place.finished():
            return attempt  # killed after its last word
        prepare, kill = next(kills, (nothing, nothing_to))
        newest = place.newest_step()
        child = fork(place.again(attempt), place, prepare)
        kill(child)
        status = ended(child)
        if status == 0:
            if place.resumed()[-1:] != newest:
                raise SystemExit(f"it went on from steps {place.resumed()}, the last was {newest}")
            return attempt
        if status != -signal.SIGKILL:
            text = place.run.with_suffix(".log").read_text("utf-8")
            raise SystemExit(f"the command ended with {status}:\n{text}")
    raise SystemExit("the command never came to its end")


def nothing() -> None:
    """Prepare nothing."""


def nothing_to(child: int) -> None:
    """Let the child live."""


def at_random(dice: random.Random, longest: float) -> Iterator[tuple[Callable[[], None], Kill]]:
    """Kill at moments drawn evenly from the length of the whole run."""
    for _ in range(MOST_KILLS_OF_A_CHAIN):
        moment = dice.uniform(0, longest)

        def kill(child: int, moment: float = moment) -> None:
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)

        yield nothing, kill


def at_failpoint(name: str, count: int) -> Iterator[tuple[Callable[[], None], Kill]]:
    """Kill at one pass of a failpoint."""
    yield lambda: failpoints.arm(f"{name}:{count}:kill"), nothing_to


def in_evaluation(number: int, after: bool) -> Iterator[tuple[Callable[[], None], Kill]]:
    """Kill before or after an evaluation is done, and before it is written down."""
    yield lambda: watch_evaluations(number, after), nothing_to


def watch_evaluations(number: int, after: bool) -> list[int]:
    """Die before or after this evaluation of the process; return where they are counted."""
    real, seen = loop.evaluate, [0]

    def evaluate(*given: Any, **named: Any) -> Any:
        seen[0] += 1
        found = real(*given, **named) if after or seen[0] != number else None
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    loop.evaluate = evaluate
    return seen


def evaluations_of(place: Place) -> int:
    """Run a command; return how many evaluations it did, those of a trial of mirroring first."""
    told = place.run.with_suffix(".evaluations")

    def prepare() -> None:
        seen = watch_evaluations(0, after=False)
        at_end(lambda: told.write_text(str(seen[0])))

    chain(place, iter([(prepare, nothing_to)]))
    return int(told.read_text())


def warm_up(place: Place) -> None:
    """Run a command, which decodes the pictures, and import what it did on the way."""
    told = place.run.with_suffix(".modules")

    def prepare() -> None:
        at_end(lambda: told.write_text("\n".join(sys.modules)))

    chain(place, iter([(prepare, nothing_to)]))
    for name in told.read_text().splitlines():
        with suppress(Exception):  # what cannot be imported alone is imported by the children
            importlib.import_module(name)


def at_end(work: Callable[[], Any]) -> None:
    """Do `work` before this process leaves by `os._exit`."""
    leave = os._exit

    def first(code: int) -> None:
        work()
        leave(code)

    os._exit = first  # type: ignore[assignment]


def passes_of(name: str, place: Place) -> int:
    """Return how often a whole run passes a failpoint."""
    told = place.run.with_suffix(".passes")

    def prepare() -> None:
        failpoints.arm(f"{name}:{10**9}:kill")
        at_end(lambda: told.write_text(str(failpoints._STATE[0].passes)))  # type: ignore[union-attr]

    if ended(fork(place.train(), place, prepare)):
        raise SystemExit(place.run.with_suffix(".log").read_text("utf-8"))
    return int(told.read_text())


def chosen_passes(count: int, dice: random.Random, most: int) -> list[int]:
    """Return passes of a failpoint to kill at: the first, the last and some between."""
    ends = {1, 2, *range(max(1, count - most + 1), count + 1)}
    inner = dice.sample(range(1, count + 1), min(2, count))
    return sorted(one for one in {*ends, *inner} if one <= count)


# What is compared


def differences(one: Path, two: Path) -> list[str]:
    """Return the names of what differs between two finished runs."""
    states = [state_of(Run(path)) for path in (one, two)]
    names = sorted(states[0].keys() | states[1].keys())
    return [name for name in names if not same(states[0].get(name), states[1].get(name))]


def same(one: Any, two: Any) -> bool:
    """Return whether two values agree, tensors to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return bool(one == two)


def state_of(run: Run) -> dict[str, Any]:
    """Return all of a run by name, durations left out."""
    folders = step_folders(run.path / "checkpoints")
    newest = Checkpoint(folders[0])
    assert not faults(newest.path), "the newest checkpoint is damaged"
    tensors = {f"{group}/{name}": value for group in newest.groups
               for name, value in newest.tensors(group).items()}  # fmt: skip
    facts = {key: newest.facts[key] for key in newest.facts.keys() - TIMED - {"logged_bytes"}}
    facts["log"] = untimed(facts["log"])
    rows = {name: [untimed(row) for row in read_jsonl(run.path / name) if kept(row)]
            for name in ("metrics.jsonl", "ledger.jsonl")}  # fmt: skip
    files = {name: (run.path / name).read_bytes() for name in ("weights.safetensors", "recipe.yaml",
             "data.json", "findings.json")}  # fmt: skip
    told = {key: value for key, value in run.facts.items() if key not in TOLD}
    return {**tensors, **rows, **files, "facts": facts, "run.json": told}


def kept(row: dict[str, Any]) -> bool:
    """Return whether a row is of something other than a duration."""
    return row.get("what") not in TIMED


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its durations."""
    return {key: value for key, value in row.items() if key not in TIMED}


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files and folders below a run, and checkpoints beyond two."""
    found = [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    return found + [path.name for path in step_folders(folder / "checkpoints")[2:]]


# Cases


def write_digits(folder: Path, per_class: int = 20) -> Path:
    """Write some scans of each digit as class folders."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for row in np.flatnonzero(digits.target == label)[:per_class]:
            pixels = (digits.images[row] * 255 / 16).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{row:04d}.png")
    return folder


class Judge:
    """Runs cases and counts how many ended as the whole run did."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, write_digits(folder / "digits")
        self.rows: dict[str, dict[str, Any]] = {}
        self.cases, self.bad = 0, list[str]()
        self.whole = self.place("whole")
        warm_up(self.place("first"))
        started = time.monotonic()
        self.evaluations = evaluations_of(self.whole)
        self.seconds = time.monotonic() - started

    def place(self, name: str) -> Place:
        """Return the place of a new case."""
        return Place(self.data, self.folder / name)

    def try_out(self, kind: str, kills: Iterator[tuple[Callable[[], None], Kill]]) -> int:
        """Run one case; return how many kills it had."""
        self.cases += 1
        place = self.place(f"case{self.cases}")
        killed = chain(place, kills)
        wrong = differences(self.whole.run, place.run)
        left = leftovers(place.run)
        row = self.rows.setdefault(kind, {"where": kind, **dict.fromkeys(COUNTED, 0)})
        row["kills"] += killed
        row["runs"] += 1
        row["resumed"] += bool(place.resumed())
        row["equal"] += not wrong
        row["leftovers"] += len(left)
        if wrong or left:
            self.bad.append(f"{kind}, case {self.cases}: {wrong[:5]} {left}")
        return killed


def main() -> None:
    """Kill, resume, compare, record; exit with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="at random moments")
    parser.add_argument("--last", type=int, default=8, help="last passes of each failpoint")
    parser.add_argument("--failpoints", default=",".join(failpoints.NAMES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to keep the runs in")
    parser.add_argument("--print-only", action="store_true", help="write no JSON")
    options = parser.parse_args()
    dice, total = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as place:
        judge = Judge(options.keep or Path(place))
        while total < options.kills:
            total += judge.try_out("random moments", at_random(dice, judge.seconds))
        for name in filter(None, options.failpoints.split(",")):
            count = passes_of(name, judge.place(f"count-{name}"))
            for one in chosen_passes(count, dice, options.last):
                judge.try_out(name, at_failpoint(name, one))
        looks = judge.evaluations  # of the trial, of the epochs and the last one, in fp32
        for number in range(1, looks + 1) if options.last > 1 else (1, looks - 1, looks):
            for after in (False, True):
                judge.try_out("evaluation", in_evaluation(number, after))
    finish(list(judge.rows.values()), judge.bad, print_only=options.print_only)


def finish(rows: list[dict[str, Any]], bad: list[str], *, print_only: bool) -> None:
    """Print or record the table."""
    total = {key: sum(row[key] for row in rows) for key in COUNTED}
    rows.append({"where": "all", **total})
    if print_only:
        print(json.dumps(rows))
    else:
        from record import write

        write("kill_and_resume", rows, notes=NOTES)
    if bad:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    main()
