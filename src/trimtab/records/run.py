"""A run: the folder of one execution, as plain data, with its parent."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError
from trimtab.machine.processor import core_count, processor_name
from trimtab.records.files import (
    LEFTOVER,
    LOCK,
    append_jsonl,
    explained,
    locked,
    make_folder,
    read_json,
    read_jsonl,
    sync_logs,
    write_json,
    write_text,
)
from trimtab.records.finding import Finding
from trimtab.records.recipe import Recipe, read_recipe
from trimtab.records.schema import Schema

LARGEST_SEED = 2**63 - 1
# What sums depend on.
FOR_BITS = ("torch", "numpy", "processor", "machine", "threads", "native layers")
LEDGER, METRICS = "ledger.jsonl", "metrics.jsonl"
FIRST = {"recipe.yaml", "environment.json", "edits.json", "data.json", "findings.json"}
PACKAGES = ("trimtab", "torch", "torchvision", "timm", "numpy", "pillow", "onnx", "onnxruntime",
            "torch-pruning", "scikit-learn")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder. Everything is read from its files; nothing is kept in memory."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def recipe(self) -> Recipe:
        """Every choice this run was made with."""
        return read_recipe(self.path / "recipe.yaml")

    @property
    def data(self) -> dict[str, Any]:
        """`data.json`: fingerprint, source, schema, counts, split ids, quarantined samples."""
        return dict(read_part(self.path / "data.json", dict))

    @property
    def schema(self) -> Schema:
        """What the data look like."""
        return Schema.model_validate(self.data["schema"])

    @property
    def edits(self) -> list[dict[str, Any]]:
        """The edits made to the network since it was built, in order."""
        path = self.path / "edits.json"
        return list(read_part(path, list)) if path.exists() else []

    @property
    def facts(self) -> dict[str, Any]:
        """`run.json`: kind, seed, parent (relative), steps, status."""
        return dict(read_part(self.path / "run.json", dict))

    @property
    def parent(self) -> Run | None:
        """The run this one was made from."""
        parent = self.facts.get("parent")
        return Run((self.path / parent).resolve()) if parent else None

    @property
    def findings(self) -> list[Finding]:
        """Named faults of data and training."""
        path = self.path / "findings.json"
        rows = read_json(path) if path.exists() else []
        return [Finding.model_validate(row) for row in rows]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every measurement, in the order it was made."""
        path = self.path / LEDGER
        try:
            return read_jsonl(path)
        except ValueError as error:
            raise UsageError(f"{path} cannot be read: {error}", "make the run again") from error

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The step and epoch log of the training."""
        return read_jsonl(self.path / METRICS)

    @property
    def logs(self) -> list[Path]:
        """The files that rows are appended to."""
        return [self.path / LEDGER, self.path / METRICS]

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / "weights.safetensors"

    def measured(self, what: str) -> dict[str, Any] | None:
        """Return the newest ledger row of `what`, or None."""
        return next((row for row in reversed(self.ledger) if row["what"] == what), None)

    def record(self, what: str, value: Any, unit: str = "", **more: Any) -> None:
        """Append one measurement: what, value, unit, and e.g. low, high, n, seed, device."""
        row = {"what": what, "value": value, "unit": unit, **more, "time": round(time.time(), 3)}
        append_jsonl(self.path / LEDGER, row)

    def log(self, **row: Any) -> None:
        """Append one row to the step and epoch log."""
        append_jsonl(self.path / METRICS, row)

    def table(self) -> str:
        """Return the table of a fit or comparison as text: accuracy ± interval, p50/p95, size."""
        from trimtab.records.table import layout, render  # here, since rich is slow to import

        path = self.path / "table.json"
        if not path.exists():
            raise UsageError(f"{self.path} holds no table", "a finished fit or compare has one")
        return render(read_json(path), columns=layout(self.facts["kind"]))


def read_part(path: Path, kind: type) -> Any:
    """Return what a JSON file of a run holds; raises UsageError where that is no whole `kind`."""
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", "make the run again") from error
    if not isinstance(found, kind):
        raise UsageError(f"{path} holds a {type(found).__name__}, wanted a {kind.__name__}",
                         "make the run again")  # fmt: skip
    return found


def open_run(path: str | Path | Run) -> Run:
    """Open an existing run folder; raises UsageError where there is none."""
    if isinstance(path, Run):
        return path
    path = Path(path)
    if not (path / "run.json").is_file():
        raise UsageError(f"{path} is no run folder (it has no run.json)",
                         "`trimtab runs` lists the runs of this folder")  # fmt: skip
    return Run(path)


def start_run(
    out: str | Path | None, *, kind: str, label: str, recipe: Recipe, seed: int,
    parent: Run | None = None, edits: list[dict[str, Any]] | None = None, **more: Any,
) -> Run:  # fmt: skip
    """Create a run folder with its recipe, environment and facts; never overwrite one.

    `out` is the folder itself; None makes `runs/<date>-<label>-<hex>`. `more` are facts of the
    kind. The facts come last: a folder without them is none, whatever killed its process.
    """
    path = folder_for(out, label)
    require_seed(seed)
    require_own_folder(path)
    require_no_run(path)
    run = Run(make_folder(path))
    facts = {"version": 1, "kind": kind, "label": label, "seed": seed,
             "parent": relative(parent.path, path) if parent else None, **more}  # fmt: skip
    with whole_or_gone(path):
        write_text(path / "recipe.yaml", recipe.to_yaml())
        write_json(path / "environment.json", environment(seed))
        if edits:
            write_json(path / "edits.json", edits)
        write_json(path / "run.json", facts)
    return run


def require_seed(seed: int) -> None:
    """Raise UsageError for a seed that torch cannot take."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"the seed is {seed}, wanted 0 to {LARGEST_SEED}", "0 is as good as any")


def require_own_folder(path: Path) -> None:
    """Raise UsageError where a run would land among files that are not its own.

    Its own are those of a run that was killed before it had its facts; the lock came first.
    """
    with explained(path):
        names = {inner.name for inner in path.iterdir()} if path.is_dir() else set()
    own = {LOCK, *(n for n in names if LOCK in names and (n in FIRST or LEFTOVER.fullmatch(n)))}
    if names - own and "run.json" not in names:
        raise UsageError(f"{path} holds other files, wanted a new or empty folder",
                         "choose another folder with --out")  # fmt: skip


def require_no_run(path: Path) -> None:
    """Raise UsageError where a run would be overwritten."""
    if (path / "run.json").exists():
        raise UsageError(f"{path} already holds a run", "choose another folder with --out")


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Hold the folder of a run, new or begun; where no run starts in a new one, it goes.

    Raises UsageError where it holds other files, BusyError where another process has it.
    """
    require_own_folder(path)
    make_folder(path)
    with locked(path):
        if (path / "run.json").exists():
            yield
            return
        with whole_or_gone(path):
            yield


@contextmanager
def whole_or_gone(path: Path) -> Iterator[None]:
    """Remove the run folder `path` where an error ends the block before any run in it is whole.

    A training with a checkpoint stays: it can be resumed. Else all of `path` goes: call it only
    where the run found nothing but a lock. Ctrl-C leaves what has begun.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not (path / "run.json").exists():
            shutil.rmtree(path, ignore_errors=True)
        raise
    except Exception:
        kept = any(path.rglob("checkpoints/step-*/manifest.json"))
        if not kept and not any("status" in Run(f.parent).facts for f in path.rglob("run.json")):
            shutil.rmtree(path, ignore_errors=True)
        raise


def update_facts(run: Run, **facts: Any) -> None:
    """Add facts to `run.json` of a run that is still being made; its logs are durable before."""
    with explained(run.path):
        sync_logs(run.logs)
    write_json(run.path / "run.json", {**run.facts, **facts})


def relative(target: Path, start: Path) -> str:
    """Return `target` relative to the folder `start`, with forward slashes."""
    return Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()


def folder_for(out: str | Path | None, label: str) -> Path:
    """Return the folder of a run: `out`, or one in `runs` that is not there yet."""
    if out is not None:
        return Path(out)
    while (path := Path("runs") / new_name(label)).exists():
        continue  # two of one minute may be given the same name
    return path


def new_name(label: str) -> str:
    """Return `<date>_<time>-<label>-<hex>`, safe as a folder name."""
    clean = re.sub(r"[^\w-]+", "-", label).strip("-")[:40] or "run"
    return f"{datetime.now():%Y-%m-%d_%H%M}-{clean}-{secrets.token_hex(2)}"


def label_of(data: Any) -> str:
    """Return a name for a run: the data's file or folder name."""
    if isinstance(data, str | os.PathLike):
        return Path(data).resolve().stem
    return type(data).__name__.lower() if not isinstance(data, tuple | dict) else "arrays"


def list_runs(root: str | Path = "runs") -> list[Run]:
    """Return the runs directly below `root`, oldest first."""
    return [Run(path.parent) for path in sorted(Path(root).glob("*/run.json"))]


def environment(seed: int) -> dict[str, Any]:
    """Return versions, processor, threads and seed; no absolute paths, no user or host names."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": core_count(),
        "seed": seed,
        "versions": versions,
        "date": f"{datetime.now().astimezone():%Y-%m-%dT%H:%M:%S%z}",
        "command": [Path(sys.argv[0]).name, *(hide_home(a) for a in sys.argv[1:])],
    }


def changed_environment(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two environments and may change the last bits of a sum."""
    one, two = ({**env, **env.get("versions", {})} for env in (before, now))
    return [f"{name} was {one[name]}, is {two.get(name)}" for name in FOR_BITS
            if name in one and one[name] != two.get(name)]  # fmt: skip


def hide_home(argument: str) -> str:
    """Return an absolute path as its last part, so that nothing of this machine is written down.

    Also where it follows the name of an option or a field: `--out=/home/me/x` becomes `--out=x`.
    """
    if os.path.isabs(argument):
        return Path(argument).name
    option, equals, value = argument.partition("=")
    return f"{option}={hide_home(value)}" if equals else argument
