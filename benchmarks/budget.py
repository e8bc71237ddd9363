"""How well `trimtab train --budget` is kept: whole commands, from start to exit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cifar10 import unpack
from kill_and_resume import write_digits
from record import shared_data, write

BUDGETS = (10, 20, 60, 180)
MODELS = ("cnn_small", "cnn_large", "resnet18")
ENDLESS = ("train.epochs=100000", "train.patience=100000", "augment.flip=false")
NOTES = """`trimtab train DATA --budget N`, with epochs and patience beyond reach. `off %` is how
much longer (or, below 0, shorter) than the budget the command took, from its start to its exit,
with imports, opening of the data and the last evaluation in it. Data are in the cache. Below 10 s,
loading torch and timm (7 s on two cores) and one look at valid may leave nothing to train in."""


def one(data: Path, model: str, budget: float, seed: int, work: Path) -> dict[str, Any]:
    """Run one command and return its row."""
    out = work / f"budget-{time.time():.3f}"
    chosen = [word for one in (*ENDLESS, f"model.name={model}") for word in ("--set", one)]
    words = [sys.executable, "-m", "trimtab", "train", str(data), *chosen, "--budget", f"{budget}s",
             "--seed", str(seed), "--out", str(out), "--json"]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - started
    found = json.loads(done.stdout)
    return {
        "data": data.name, "model": model, "budget s": budget, "seed": seed,
        "took s": round(seconds, 2), "off %": round(100 * (seconds / budget - 1), 1),
        "exit": done.returncode, "valid accuracy": found.get("accuracy"),
        "epochs": round(found.get("facts", {}).get("epochs", 0), 2),
    }  # fmt: skip


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--digits-only", action="store_true")
    parser.add_argument("--print-only", action="store_true", help="write no JSON")
    parser.add_argument("--work", type=Path, default=Path("build"))
    options = parser.parse_args()
    sets = [options.work / "budget-digits"]
    if not sets[0].exists():
        write_digits(sets[0], 150)
    if not options.digits_only:
        sets.append(options.work / "cifar10" / "train")
        unpack(shared_data() / "cifar10_train.zip", sets[1])
    rows = []
    for data in sets:
        one(data, "cnn_small", min(options.budgets), 0, options.work)  # fills the cache
        for model in options.models:
            for budget in options.budgets:
                for seed in range(options.seeds):
                    rows.append(one(data, model, budget, seed, options.work))
                    print(rows[-1], flush=True)
    if not options.print_only:
        write("budget", rows, notes=NOTES)


if __name__ == "__main__":
    main()
