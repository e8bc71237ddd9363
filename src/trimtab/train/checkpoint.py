"""Checkpoints that lose nothing: copied at once, written beside the training, proven when read.

The loop needs a block and two lines in it, with `trimtab.train.state`:

    with Checkpoints(run.path / "checkpoints", every_seconds=seconds) as checkpoints:
        if found := checkpoints.newest():
            restore_training(found, network, optimizer)
        ...
            if checkpoints.due() or stop.requested:
                checkpoints.save(step, *training_state(network, optimizer, facts=facts))
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load as load_tensors
from torch import Tensor

from trimtab.errors import DivergedError, MachineError, TrimtabError, UsageError
from trimtab.machine.folders import free_bytes
from trimtab.machine.progress import say
from trimtab.records.files import (
    explained,
    make_folder,
    read_json,
    sync_logs,
    sync_path,
    way_out,
)
from trimtab.train.snapshot import Copy, Groups, safetensors_of, take, total_bytes, with_nan
from trimtab.train.steps import discard, faults, order_of, publish, remove_leftovers, step_folders

STATE = "state.json"
SUFFIX = ".safetensors"
WEIGHTS, FEW = "weights", 3
MISSES = 3
ROOM = 2  # free space wanted before the first save, in checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint whose manifest was found to hold."""

    path: Path

    @property
    def step(self) -> int:
        """The step it was taken after."""
        return order_of(self.path)[0]

    @property
    def facts(self) -> dict[str, Any]:
        """The plain facts it was saved with; raises MachineError where they cannot be read."""
        with readable(self.path / STATE) as path:
            facts: dict[str, Any] = read_json(path)
        return facts

    @property
    def groups(self) -> list[str]:
        """The names of its groups of tensors."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self.path.glob("*" + SUFFIX))

    def tensors(self, group: str) -> dict[str, Tensor]:
        """Return the tensors of `group` in host memory.

        Raises UsageError where there is none, MachineError where it cannot be read.
        """
        if group not in self.groups:
            raise UsageError(f"{self.path.name} holds no '{group}', only {self.groups}",
                             "resume with the recipe of the run")  # fmt: skip
        with readable(self.path / (group + SUFFIX)) as path:
            return load_tensors(path.read_bytes())


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Turn an OSError on a file of a checkpoint into a MachineError that says what to do."""
    try:
        yield path
    except OSError as error:
        raise MachineError(
            f"cannot read {path}: {error.strerror or error}",
            "try again, or delete this checkpoint to go on from the one before it",
        ) from error


class Checkpoints:
    """The checkpoints of one training in `folder`; as a block, it ends with all saves done.

    One process writes at a time (the lock of the run folder sees to that). `keep` (2 or more) are
    kept. `logs` are made durable before a checkpoint that tells of their length. The copy in host
    memory is as large as what is saved, and stays for the next save. `warnings` lists what was
    said: damaged checkpoints, saves that failed.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, every_seconds: float = 60.0,
        logs: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        assert keep >= 2, "the older one must stay until the newer one is proven"
        self.folder = make_folder(folder)
        self.keep, self.every_seconds, self.logs = keep, every_seconds, logs
        self.warnings: list[str] = []
        with explained(folder):
            sync_path(folder.parent)
            remove_leftovers(folder)
        self._copies: dict[str, Copy] = {}
        # A thread that waits is handed work at once; starting one would wait for its first steps.
        # The interpreter lets it finish what it has before it ends.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._flight: Future[None] | None = None
        self._misses, self._damaged = 0, set[str]()
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self.wait()
        except TrimtabError as late:
            if error is None:
                raise
            self._warn(late.message)  # the error of the block matters more
        finally:
            self._writer.shutdown(wait=False)

    def due(self) -> bool:
        """Return whether `every_seconds` have passed and no save is on its way."""
        busy = self._flight is not None and not self._flight.done()
        return not busy and time.monotonic() - self._last >= self.every_seconds

    def save(self, step: int, tensors: Groups, facts: Mapping[str, Any]) -> None:
        """Copy groups of tensors and plain facts, and write them beside the training.

        Both may change as soon as this returns. An earlier save is waited for. A save that failed
        for the disk is told once, here or in `wait`; after three in a row MachineError is raised,
        as it is before the first one where there is no room. One whose `weights` hold NaN is not
        kept, and DivergedError raised, here at the next save or in `wait`. Raises UsageError for
        tensors and ValueError or TypeError for facts (NaN is none) that cannot be stored.
        """
        assert all(group.isidentifier() for group in tensors), list(tensors)
        self._land()
        content = json.dumps(facts, allow_nan=False).encode()
        if not self._copies:
            self.require_space(tensors)
        self._copies = take(tensors, self._copies)
        self._last = time.monotonic()
        self._flight = self._writer.submit(self._persist, step, content)

    def wait(self) -> None:
        """Return when the last save is durable.

        Raises MachineError where it failed and there is no other checkpoint to go on from.
        """
        self._land()
        if self._misses and all(faults(path) for path in step_folders(self.folder)):
            raise MachineError(f"no checkpoint in {self.folder}: {self.warnings[-1]}",
                               "free some space, or choose another folder with --out")  # fmt: skip

    def newest(self) -> Checkpoint | None:
        """Return the highest step whose files are all as they were written; None for none at all.

        Damaged ones above it are named in a warning. Raises MachineError with the list where all
        are damaged.
        """
        self._land()
        damaged: dict[str, list[str]] = {}
        for path in step_folders(self.folder):
            found = faults(path)
            if not found:
                if damaged:
                    self._warn(f"going on from {path.name}; damaged: {listed(damaged)}")
                self._sweep(path)  # a process that was killed may not have come to it
                return Checkpoint(path)
            damaged[path.name] = found
            self._damaged.add(path.name)
        if damaged:
            raise MachineError(
                f"all checkpoints in {self.folder} are damaged: {listed(damaged)}",
                "copy one back from elsewhere, or delete them to start from the beginning",
            )
        return None

    def require_space(self, tensors: Groups) -> None:
        """Raise MachineError where there is no checkpoint and no room for two of `tensors`."""
        needed, free = ROOM * total_bytes(tensors), free_bytes(self.folder)
        if free < needed and not step_folders(self.folder):
            raise MachineError(
                f"checkpoints need {megabytes(needed)} in {self.folder}, {megabytes(free)} free",
                "free some space, or choose a folder on another disk with --out",
            )

    def _persist(self, step: int, content: bytes) -> None:
        """Write the copies; runs beside the training."""
        spoiled = with_nan(self._copies[WEIGHTS].tensors) if WEIGHTS in self._copies else []
        if spoiled:
            raise DivergedError(f"step {step}: NaN in {', '.join(spoiled[:FEW])}; not kept",
                                "resume goes on from an earlier one, if there is one")  # fmt: skip
        sync_logs(self.logs)
        files = {group + SUFFIX: safetensors_of(one) for group, one in self._copies.items()}
        self._sweep(publish(self.folder, step, {**files, STATE: [content]}))

    def _sweep(self, newest: Path) -> None:
        """Delete older checkpoints, oldest first, once enough whole ones are there."""
        folders = step_folders(self.folder)
        sound = [path for path in folders if path.name not in self._damaged]
        whole = [path for path in sound if not faults(path, contents=False)]
        kept = {newest, *whole[: self.keep]}
        doomed = [path for path in reversed(folders) if path not in kept]
        try:
            for path in doomed if len(whole) >= self.keep else []:
                discard(path)
        except OSError as error:
            self._warn(f"cannot delete an older checkpoint: {error.strerror or error}")

    def _land(self) -> None:
        """Wait for the save on its way and judge how it went."""
        if self._flight is None:
            return
        error = self._flight.exception()
        self._flight = None
        if error is None:
            self._misses = 0
        elif isinstance(error, OSError):
            self._miss(error)
        else:
            raise error

    def _miss(self, error: OSError) -> None:
        """Warn at the first failed save of a row, raise MachineError at the third."""
        self._misses += 1
        needed = total_bytes({group: copy.tensors for group, copy in self._copies.items()})
        message = (
            f"a checkpoint could not be written to {self.folder}: {error.strerror or error} "
            f"({megabytes(needed)} needed, {megabytes(free_bytes(self.folder))} free)"
        )
        if self._misses >= MISSES:
            raise MachineError(f"{MISSES} times in a row {message}", way_out(error)) from error
        if self._misses == 1:
            self._warn(f"{message}; training goes on")

    def _warn(self, message: str) -> None:
        """Tell people, and keep what was told."""
        self.warnings.append(message)
        say(f"warning: {message}")


def listed(damaged: Mapping[str, list[str]]) -> str:
    """Return checkpoints and their faults as one text."""
    return ", ".join(f"{name} ({'; '.join(found)})" for name, found in damaged.items())


def megabytes(count: int) -> str:
    """Return bytes for people."""
    return f"{count / 1e6:,.1f} MB"
