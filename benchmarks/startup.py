"""How long `trimtab --help` takes, beside an empty Python, in turns."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

from record import write

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "trimtab --help": [sys.executable, "-m", "trimtab", "--help"],
    "trimtab fit --help": [sys.executable, "-m", "trimtab", "fit", "--help"],
}


def seconds(command: list[str]) -> float:
    """Return the wall seconds of one command."""
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
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)  # files into the system's cache; not counted
    for _ in range(options.runs):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    rows: list[dict[str, Any]] = [
        {"command": name, "median s": statistics.median(found), "min s": min(found),
         "max s": max(found), "runs": len(found)} for name, found in times.items()
    ]  # fmt: skip
    write("startup", rows, notes=f"The help imports torch: {'yes' if loads_torch() else 'no'}.")


if __name__ == "__main__":
    main()
