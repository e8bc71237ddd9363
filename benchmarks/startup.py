"""How long it takes to start and to end, beside Python and torch alone, in turns."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kill_and_resume import write_digits
from record import write

STEP = """import torch
weight = torch.ones(2, requires_grad=True)
optimizer = torch.optim.AdamW([weight])
weight.sum().backward()
optimizer.step()"""
END = """import torch, timm
from trimtab.console import end_at_once
end_at_once(SystemExit(0))"""
CHOSEN = ("train.epochs=1", "augment.flip=false", "model.name=cnn_small")
NOTES = """`one step of AdamW` is a script of five lines that imports torch and steps once, `trimtab
train` one epoch of 1,500 handwritten digits, in the cache, with all that it writes. The last
two rows import torch and timm and end, as Python does or as trimtab's commands do.
The help imports torch: {}."""


def commands(work: Path) -> dict[str, list[str]]:
    """Return what is timed."""
    python, data = sys.executable, work / "startup-digits"
    trimtab = [python, "-m", "trimtab"]
    chosen = [word for one in CHOSEN for word in ("--set", one)]
    if not data.exists():
        write_digits(data, 150)
    return {
        "python -c pass": [python, "-c", "pass"],
        "trimtab --help": [*trimtab, "--help"],
        "trimtab fit --help": [*trimtab, "fit", "--help"],
        "one step of AdamW": [python, "-c", STEP],
        "trimtab train": [*trimtab, "train", str(data), *chosen, "--json"],
        "import torch, timm": [python, "-c", "import torch, timm"],
        "import torch, timm, end at once": [python, "-c", END],
    }


def seconds(command: list[str], work: Path) -> float:
    """Return the wall seconds of one command."""
    if "train" in command:
        command = [*command, "--out", str(work / f"startup-{time.time():.3f}")]
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def loads_torch() -> bool:
    """Return whether the help imports torch."""
    command = [sys.executable, "-X", "importtime", "-m", "trimtab", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return any(line.split("|")[-1].strip() == "torch" for line in done.stderr.splitlines())


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path("build"))
    options = parser.parse_args()
    timed = commands(options.work)
    times: dict[str, list[float]] = {name: [] for name in timed}
    for command in timed.values():
        seconds(command, options.work)  # files into the system's cache; not counted
    for _ in range(options.runs):
        for name, command in timed.items():
            times[name].append(seconds(command, options.work))
    rows: list[dict[str, Any]] = [
        {"command": name, "median s": statistics.median(found), "min s": min(found),
         "max s": max(found), "runs": len(found)} for name, found in times.items()
    ]  # fmt: skip
    write("startup", rows, notes=NOTES.format("yes" if loads_torch() else "no"))


if __name__ == "__main__":
    main()
