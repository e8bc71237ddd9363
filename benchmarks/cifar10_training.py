"""CIFAR-10 with `trimtab train` and the recipe for small pictures: whole command, test accuracy."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cifar10 import unpack
from record import shared_data, write

import trimtab as tt
from trimtab.data.dataset import dataset_of
from trimtab.measure.quality import logits_of, network_call, score

RECIPES = Path(__file__).parents[1] / "recipes"
SETTINGS = ("data.valid_fraction=0.02",)  # a thousand pictures watch, the rest are learnt from


def train_once(
    data: Path, out: Path, seed: int, recipe: str, settings: list[str]
) -> dict[str, Any]:
    """Run the command in a process of its own, then open the test split once."""
    chosen = [word for one in (*SETTINGS, *settings) for word in ("--set", one)]
    command = [sys.executable, "-m", "trimtab", "train", str(data),
               "--recipe", str(RECIPES / recipe), *chosen, "--seed", str(seed),
               "--out", str(out), "--json"]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - started
    run = tt.open_run(json.loads(done.stdout)["run"])
    test = dataset_of(run, data).splits["test"]
    scores = score(logits_of(network_call(tt.load(run)), test), test.targets, split="test")
    speed = run.measured("images_per_second") or {}
    row = {
        "seed": seed, "command s": round(seconds, 1), "test accuracy": scores.accuracy,
        "95 %": f"{scores.low:.4f}-{scores.high:.4f}", "img/s": round(speed["value"]),
        "precision": speed["precision"], "epochs": run.facts["epochs"],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="cifar10.yaml", help="its name in the folder recipes")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--result", default="cifar10_training", help="name of the file of results")
    parser.add_argument("--work", type=Path, default=Path("build"))
    options = parser.parse_args()
    data = options.work / "cifar10"
    for split in ("train", "test"):
        unpack(shared_data() / f"cifar10_{split}.zip", data / split)
    stamp = f"{time.time():.0f}"
    rows = [train_once(data, options.work / f"cifar10-{stamp}-{seed}", seed, options.recipe,
                       options.settings)
            for seed in range(options.seeds)]  # fmt: skip
    mean = statistics.mean(row["test accuracy"] for row in rows)
    write(
        options.result,
        rows,
        notes=f"`trimtab train cifar10 --recipe recipes/{options.recipe}`"
        f"{''.join(f' --set {one}' for one in (*SETTINGS, *options.settings))}; mean test accuracy "
        f"{mean:.4f} over {len(rows)} seeds, without test-time augmentation. The first "
        "command decodes the pictures, the others find them in the cache.",
        script="cifar10_training",
    )


if __name__ == "__main__":
    main()
