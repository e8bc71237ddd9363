"""Reads run and artifact folders into one typed record; what is missing is noted, never guessed."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from trimtab.errors import UsageError
from trimtab.records.files import read_json, read_jsonl
from trimtab.records.finding import Finding
from trimtab.records.run import Run, open_run
from trimtab.report.parts import (
    Candidate,
    Confusion,
    Curve,
    Evidence,
    Interval,
    Mistake,
    Notes,
    Screened,
    Verdict,
)
from trimtab.report.plain import LIMIT, clean, plain

TABLED = ("fit", "compare")  # kinds of runs that hold a table of several models
NAME_LIMIT = 120
RECIPE_LIMIT = 60_000
IMAGE_LIMIT = 200_000
IMAGES_LIMIT = 1_000_000
PNG = b"\x89PNG\r\n\x1a\n"
Wanted = TypeVar("Wanted")


def gather(source: Any) -> Evidence:
    """Read one run (Run, path) or artifact (object with `path`, or its folder).

    Raises UsageError where there is neither. Everything else that is missing or damaged ends up
    in `notes`.
    """
    folder = source if isinstance(source, str | Path) else getattr(source, "path", None)
    if not isinstance(folder, str | Path):
        raise UsageError(f"cannot report on {type(source).__name__}", "give a run, or its folder")
    folder = Path(folder)
    if not (folder / "run.json").is_file() and (folder / "card.json").is_file():
        return gather_artifact(folder)
    return gather_run(open_run(folder))


def gather_run(run: Run) -> Evidence:
    """Read a run folder."""
    folder, notes = run.path, Notes()
    facts = mapping(folder / "run.json", notes)
    kind = str(facts.get("kind", "run"))
    table = parse(folder / "table.json", list[Candidate], notes)
    if table is None and kind not in TABLED:
        table = [row_of_run(run, facts, notes)]
    return Evidence(
        name=plain(folder.resolve().name), kind=kind, facts=facts,
        verdict=parse(folder / "verdict.json", Verdict, notes),
        rows=table or [],
        screened=parse(folder / "screen.json", list[Screened], notes) or [],
        mistakes=mistakes(folder / "errors.json", notes),
        confusion=parse(folder / "confusion.json", Confusion, notes, NAME_LIMIT),
        curves=[curve(each, notes) for each in trainings(folder)],
        data=mapping(folder / "data.json", notes),
        findings=parse(folder / "findings.json", list[Finding], notes) or [],
        ledgers={plain(each.resolve().name): rows(each / "ledger.jsonl", notes)
                 for each in trainings(folder)},
        environment=mapping(folder / "environment.json", notes),
        recipe=text(folder / "recipe.yaml", notes),
        card=mapping(folder / "artifact" / "card.json", notes), notes=notes,
    )  # fmt: skip


def gather_artifact(folder: Path) -> Evidence:
    """Read an exported folder on its own."""
    notes = Notes()
    card = mapping(folder / "card.json", notes)
    name = plain(folder.resolve().name)
    if name == "artifact":
        name = plain(f"{folder.resolve().parent.name}/artifact")
    latency = card.get("latency")
    latency = latency if isinstance(latency, dict) else {}
    model = folder / "model.onnx"
    row = Candidate(
        name=name, accuracy=interval(card.get("accuracy")), p50_ms=number(latency, "p50_ms"),
        p95_ms=number(latency, "p95_ms"), p99_ms=number(latency, "p99_ms"),
        size_bytes=model.stat().st_size if model.is_file() else None,
    )  # fmt: skip
    return Evidence(name=name, kind="artifact", rows=[row], card=card, notes=notes)


def trainings(folder: Path) -> list[Path]:
    """Return the run folder itself and the candidates inside it."""
    return [folder, *sorted(p.parent for p in folder.glob("candidates/*/run.json"))]


def load(path: Path, notes: Notes, read: Callable[[Path], Wanted]) -> Wanted | None:
    """Return `read(path)`, or None with a note where the file is missing or damaged."""
    if not path.is_file():
        notes.missing.add(path.name)
        return None
    try:
        return read(path)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in fault["loc"])
        notes.unreadable[path.name] = plain(f"{where}: {fault['msg']}".lstrip(": "), NAME_LIMIT)
    except (OSError, ValueError, RecursionError) as error:
        notes.unreadable[path.name] = plain(str(error), NAME_LIMIT)
    return None


def parse(path: Path, shape: type[Wanted], notes: Notes, limit: int = LIMIT) -> Wanted | None:
    """Read a JSON file as `shape`, its text made plain and cut to `limit` characters."""
    adapter = TypeAdapter(shape)
    return load(path, notes, lambda p: adapter.validate_python(clean(read_json(p), limit)))


def mapping(path: Path, notes: Notes) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none."""
    return parse(path, dict[str, Any], notes) or {}


def rows(path: Path, notes: Notes) -> list[dict[str, Any]]:
    """Read the objects of an append-only log."""
    found = load(path, notes, read_jsonl) or []
    return [clean(row, NAME_LIMIT) for row in found if isinstance(row, dict)]


def text(path: Path, notes: Notes) -> str:
    """Read a text file, at most RECIPE_LIMIT characters of it."""
    return plain(load(path, notes, lambda p: p.read_text("utf-8")) or "", RECIPE_LIMIT)


def mistakes(path: Path, notes: Notes) -> list[Mistake]:
    """Read errors.json; pictures beyond the page's allowance are left out, their rows are not."""
    found = load(
        path, notes, lambda p: TypeAdapter(list[dict[str, Any]]).validate_python(read_json(p))
    )
    left, read = IMAGES_LIMIT, []
    for row in found or []:
        image = png_text(row.get("image"))
        if image is not None and len(image) > left:
            image = None
        left -= len(image or "")
        facts = clean({key: value for key, value in row.items() if key != "image"}, NAME_LIMIT)
        read.append({**facts, "image": image})
    adapter = TypeAdapter(list[Mistake])
    return load(path, notes, lambda _: adapter.validate_python(read)) or []


def png_text(image: Any) -> str | None:
    """Return `image` where it is the base64 text of a PNG file of bounded size, else None."""
    if not isinstance(image, str) or len(image) > IMAGE_LIMIT:
        return None
    try:
        content = base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        return None
    return base64.b64encode(content).decode("ascii") if content.startswith(PNG) else None


def curve(folder: Path, notes: Notes) -> Curve:
    """Read what a training logged, by epoch: steps are scaled with the last epoch row."""
    log = rows(folder / "metrics.jsonl", notes)
    last: dict[str, Any] = next((row for row in reversed(log) if number(row, "epoch")), {})
    steps, epochs = number(last, "step"), number(last, "epoch")
    scale = epochs / steps if steps and epochs else None
    name = plain(folder.resolve().name)
    if scale is None:
        return Curve(name)
    keys = ("loss", "train_loss", "valid_accuracy", "lr")
    loss, mean_loss, accuracy, rate = (list(points(log, key, scale)) for key in keys)
    breaks = mapping(folder / "run.json", notes).get("resumed")
    known = [step for step in breaks if type(step) is int] if isinstance(breaks, list) else []
    return Curve(name, loss, mean_loss, accuracy, rate, [step * scale for step in known])


def points(log: list[dict[str, Any]], key: str, scale: float) -> Iterator[tuple[float, float]]:
    """Yield (epoch, value) of every row that holds `key`."""
    for row in log:
        step, value = number(row, "step"), number(row, key)
        if step is not None and value is not None:
            yield (step * scale, value)


def number(row: dict[str, Any], key: str) -> float | None:
    """Return a number of a row, or None where there is none."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def row_of_run(run: Run, facts: dict[str, Any], notes: Notes) -> Candidate:
    """Return a run made by one verb as a table row, from the newest measurements of its ledger."""
    family = list(lineage(run.path.resolve()))
    own = newest(run.path, notes)
    latency = own.get("latency", {})
    model = run.path / "artifact" / "model.onnx"
    return Candidate(
        name=plain(run.path.resolve().name),
        steps=tuple(str(member.get("kind", "run")) for _, member in reversed(family)),
        accuracy=interval(own.get("artifact_accuracy") or own.get("accuracy")),
        f1=number(own.get("f1", {}), "value"), speedup=interval(own.get("speedup_over_parent")),
        p50_ms=number(latency, "p50_ms"), p95_ms=number(latency, "p95_ms"),
        p99_ms=number(latency, "p99_ms"), threads=whole(latency, "threads"),
        size_bytes=model.stat().st_size if model.is_file() else None,
        params=inherited(family, "params"), macs=inherited(family, "macs"),
        parent=plain(Path(str(facts["parent"])).name) if facts.get("parent") else None,
        flip_fraction=number(own.get("flips_against_parent", {}), "value"),
    )  # fmt: skip


def lineage(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the folder and facts of a run, of its parent, and so on, as far as they are there."""
    seen: set[Path] = set()
    while (folder / "run.json").is_file() and folder not in seen:
        seen.add(folder)
        facts = mapping(folder / "run.json", Notes())
        yield folder, facts
        if not facts.get("parent"):
            return
        folder = (folder / str(facts["parent"])).resolve()


def newest(folder: Path, notes: Notes) -> dict[str, dict[str, Any]]:
    """Return the last ledger row of every kind of measurement."""
    ledger = rows(folder / "ledger.jsonl", notes)
    return {row["what"]: row for row in ledger if isinstance(row.get("what"), str)}


def inherited(family: list[tuple[Path, dict[str, Any]]], what: str) -> float | None:
    """Return the number that the run, or else its nearest ancestor, measured."""
    found = (newest(folder, Notes()).get(what, {}) for folder, _ in family)
    return next((value for row in found if (value := number(row, "value")) is not None), None)


def interval(row: Any) -> Interval | None:
    """Return a measurement as a value with its interval; None where it is none."""
    if not isinstance(row, dict) or number(row, "value") is None:
        return None
    return Interval(value=number(row, "value"), low=number(row, "low"), high=number(row, "high"),
                    n=whole(row, "n"), split=str(row.get("split", "")))  # fmt: skip


def whole(row: dict[str, Any], key: str) -> int | None:
    """Return a whole number of a row, or None where there is none."""
    value = number(row, key)
    return int(value) if value is not None else None
