"""Realistic run folders for the report's tests, made without training anything."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from trimtab.records.files import append_jsonl, write_json, write_text
from trimtab.records.recipe import Recipe

DIGITS = tuple("0123456789")
TRAININGS = {
    "cnn_medium": (24, 0.9889),
    "cnn_medium-keep70": (8, 0.9852),
    "cnn_medium-keep50": (8, 0.9704),
    "heat-resnet8": (4, 0.9259),
    "heat-cnn_small": (6, 0.9074),
}


def files() -> dict[str, Any]:
    """Return the content of a digits fit's files, as it was measured once."""
    content: dict[str, Any] = json.loads(Path(__file__).with_name("fit.json").read_text("utf-8"))
    return content


def picture(words: str, seed: int, side: int = 16) -> str:
    """Return a small noisy picture of a character as base64 PNG."""
    noise = random.Random(seed)
    image = Image.new("L", (side, side), 12)
    letter = words[:1].encode("ascii", "replace").decode()
    ImageDraw.Draw(image).text((side // 3, 2), letter, fill=230)
    pixels = [min(255, max(0, v + noise.randint(-12, 40))) for v in image.tobytes()]
    return png(Image.frombytes("L", image.size, bytes(pixels)).resize((96, 96), 0))


def noise(seed: int, side: int = 96) -> str:
    """Return a colour picture that does not compress, as base64 PNG."""
    pixels = random.Random(seed).randbytes(side * side * 3)
    return png(Image.frombytes("RGB", (side, side), pixels))


def png(image: Image.Image) -> str:
    """Return an image as base64 PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def confusion(classes: Sequence[str], per_class: int = 27) -> dict[str, Any]:
    """Return a mostly diagonal confusion matrix."""
    chance = random.Random(0)
    matrix = [[0] * len(classes) for _ in classes]
    for i, row in enumerate(matrix):
        row[i] = per_class
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            row[i] -= 1
            row[chance.randrange(len(classes))] += 1
    return {"split": "test", "classes": list(classes), "matrix": matrix}


def errors(classes: Sequence[str], n: int) -> list[dict[str, Any]]:
    """Return rows of errors.json."""
    chance = random.Random(1)
    rows = []
    for i in range(n):
        truth, predicted = chance.choice(classes), chance.choice(classes)
        rows.append({"id": f"{truth}/{i:04}.png", "image": picture(truth, i), "truth": truth,
                     "predicted": predicted, "probability": 0.97 - 0.4 * i / n})  # fmt: skip
    return rows


def start(path: Path, **facts: Any) -> Path:
    """Write what every run folder has from its first moment."""
    path.mkdir(parents=True)
    known = {"version": 1, "kind": "fit", "label": "digits", "seed": 0, "parent": None}
    write_json(path / "run.json", {**known, **facts})
    write_text(path / "recipe.yaml", Recipe().to_yaml())
    write_json(path / "environment.json", files()["environment.json"])
    return path


def build_training(path: Path, epochs: int, best: float) -> None:
    """Write a candidate's run folder with its log and ledger."""
    start(path, kind="train", label=path.name, status="finished")
    chance, steps = random.Random(path.name), 39
    rows = []
    for step in range(1, epochs * steps + 1, 13):
        done = step / (epochs * steps)
        loss = 0.52 + 1.8 * math.exp(-7 * done) + chance.uniform(-0.04, 0.04)
        rate = 3e-3 * math.sin(math.pi * (0.9 * done + 0.1))
        rows.append({"step": step, "loss": loss, "lr": rate, "progress": done})
    for epoch in range(1, epochs + 1):
        value = best - 0.85 * math.exp(-9 * epoch / epochs)
        mean = 0.52 + 1.8 * math.exp(-7 * (epoch - 0.5) / epochs)
        rate = 3e-3 * math.sin(math.pi * (0.9 * epoch / epochs + 0.1))
        rows.append({"step": epoch * steps, "epoch": float(epoch), "valid_accuracy": value,
                     "train_loss": mean, "lr": rate})  # fmt: skip
    for row in sorted(rows, key=lambda row: row["step"]):
        append_jsonl(path / "metrics.jsonl", row)
    measured = {"value": best, "low": best - 0.02, "high": best + 0.01, "n": 270, "split": "valid"}
    append_jsonl(path / "ledger.jsonl", {"what": "accuracy", **measured})
    append_jsonl(path / "ledger.jsonl", {"what": "train_seconds", "value": 30.1, "unit": "s"})


def build_fit(path: Path, *, classes: Sequence[str] = DIGITS, mistakes: int = 9) -> Path:
    """Write a finished fit run that met its target."""
    start(path, status="finished")
    content = files()
    data = content.pop("data.json")
    data["schema"]["classes"] = list(classes)
    data["counts"] = {split: {name: n + i % 7 for i, name in enumerate(classes)}
                      for split, n in (("train", 122), ("valid", 24), ("test", 24))}  # fmt: skip
    content |= {"data.json": data, "confusion.json": confusion(classes),
                "errors.json": errors(classes, mistakes)}  # fmt: skip
    for name, value in content.items():
        write_json(path / name, value)
    for name, (epochs, best) in TRAININGS.items():
        build_training(path / "candidates" / name, epochs, best)
    (path / "artifact").mkdir()
    write_json(path / "artifact" / "card.json", {"labels": list(classes)})
    append_jsonl(path / "ledger.jsonl", {"what": "flip_trial", "value": -0.0148, "low": -0.03,
                                         "high": 0.0004, "n": 270, "split": "valid",
                                         "mirrored_accuracy": 0.412, "used": False})  # fmt: skip
    append_jsonl(path / "ledger.jsonl", {"what": "accuracy", **content["verdict.json"]["accuracy"]})
    return path


def build_train(path: Path, **facts: Any) -> Path:
    """Write a run of the verb `train`, exported and timed."""
    start(path, **{"kind": "train", "label": "cnn_small", "status": "finished", **facts})
    around = {"low": 0.91, "high": 0.966, "n": 270, "split": "valid"}
    for what, value in (("accuracy", 0.9444), ("params", 6100), ("macs", 402_000)):
        append_jsonl(path / "ledger.jsonl", {"what": what, "value": value, **around})
    times = {"p50_ms": 0.05, "p95_ms": 0.0612, "p99_ms": 0.07}
    append_jsonl(path / "ledger.jsonl", {"what": "latency", "value": 0.05, "unit": "ms", **times})
    return path


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place; `change` returns the new content."""
    path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))), "utf-8")


def miss(verdict: dict[str, Any]) -> dict[str, Any]:
    """Turn a verdict into one that misses its accuracy."""
    verdict["clauses"][0] |= {"wanted": 0.995, "met": False}
    target = "accuracy>=0.995, p95<=1ms, size<=100KB"
    return verdict | {"target": target, "target_met": False, "binding": "accuracy"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fit run that met its target; not to be changed."""
    return build_fit(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def fit_run(built: Path, tmp_path: Path) -> Path:
    """A copy of a finished fit run that met its target."""
    return Path(shutil.copytree(built, tmp_path / "2026-11-22_1530-digits-3f2a"))
