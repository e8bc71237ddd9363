"""CIFAR-10 with one command: `fit --budget 20m --target "accuracy>=0.88, p95<=3ms, size<=1MB"`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import shared_data, write

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TARGET = "accuracy>=0.88, p95<=3ms, size<=1MB"


def unpack(archive: Path, out: Path) -> None:
    """Write the strips of one archive as class folders of 32x32 PNGs, once."""
    if out.exists():
        return
    temporary = out.with_name(out.name + ".part")
    with zipfile.ZipFile(archive) as z:
        for name in CLASSES:
            (temporary / name).mkdir(parents=True, exist_ok=True)
            members = sorted(
                n for n in z.namelist() if n.startswith(f"{name}_") and n.endswith(".webp")
            )
            strips = [np.asarray(Image.open(z.open(n)).convert("RGB")) for n in members]
            pictures = np.concatenate(strips).reshape(-1, 32, 32, 3)
            for index, pixels in enumerate(pictures):
                Image.fromarray(pixels).save(
                    temporary / name / f"{index:05d}.png", compress_level=1
                )
    temporary.rename(out)


def run_fit(data: Path, budget: str, seed: int) -> tuple[dict[str, Any], int, float]:
    """Run the command and return its JSON, exit code and wall seconds."""
    command = [sys.executable, "-m", "trimtab", "fit", str(data), "--target", TARGET,
               "--budget", budget, "--seed", str(seed), "--json"]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return json.loads(done.stdout), done.returncode, time.monotonic() - started


def rows_of(result: dict[str, Any], code: int, seconds: float, seed: int) -> list[dict[str, Any]]:
    """Return one row per candidate."""
    sizes = {row["name"]: row["size_bytes"] for row in result["table"]}
    test = next(c["got"] for c in result["clauses"] if c["metric"] == "accuracy")
    fixed = {"seed": seed, "exit": code, "command s": round(seconds, 1)}
    return [{**row_of(row, sizes, test), **fixed} for row in result["table"]]


def row_of(row: dict[str, Any], sizes: dict[str, int], test: float) -> dict[str, Any]:
    """Return one candidate as a row; `test` is the accuracy of the one that ships."""
    size, parent = row["size_bytes"] or 0, sizes.get(row.get("parent") or "")
    speed, flips = row.get("speedup"), row.get("flip_fraction")
    ratio = "{value:.2f} ({low:.2f}-{high:.2f})".format(**speed) if speed else ""
    return {
        "model": row["name"],
        "ships": "yes" if row["chosen"] else "",
        "valid accuracy": row["accuracy"]["value"] if row["accuracy"] else "",
        "test accuracy": test if row["chosen"] else "",
        "p95 ms": row["p95_ms"],
        "KB": size / 1000,
        "params": row["params"],
        "smaller than parent": f"{parent / size:.2f}x" if parent and size else "",
        "parent's time / its time": ratio,
        "flips %": "" if flips is None else 100 * flips,
        "kept": row["kept"],
    }


def main() -> None:
    """Unpack, fit, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/cifar10"))
    options = parser.parse_args()
    shared = shared_data()
    unpack(shared / "cifar10_train.zip", options.work / "train")
    unpack(shared / "cifar10_test.zip", options.work / "test")
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        rows += rows_of(*run_fit(options.work, options.budget, seed), seed)
    write(
        "cifar10",
        rows,
        notes=f'`trimtab fit cifar10 --target "{TARGET}" --budget {options.budget}`; '
        "the test split (10,000 pictures) was opened once per fit, for the model that ships.",
    )


if __name__ == "__main__":
    main()
