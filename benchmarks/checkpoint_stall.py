"""How long a checkpoint holds up the training, beside `torch.save` and fsync, in turns."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import write
from torch import nn
from torchvision.models import resnet18

from trimtab.measure.stats import paired_ratio
from trimtab.train.checkpoint import Checkpoints
from trimtab.train.snapshot import total_bytes
from trimtab.train.state import training_state

NOTES = """ResNet-18 with Adam on the processor, in turns; medians, and the ratio as a geometric
mean with its 95 % interval. `save()` copies, then writes beside the training; `durable after`
counts until the checkpoint has its name. The first save gets its memory and is not counted.
`of it computing` leaves out what other processes took of the processor meanwhile."""


def training() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a ResNet-18 and its Adam after one update, so that all state is there."""
    network = resnet18(weights=None)
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return network, optimizer


def synchronous(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save as most training scripts do, and make it durable."""
    with open(path, "wb") as file:
        state = {"weights": network.state_dict(), "optimizer": optimizer.state_dict(),
                 "random": torch.get_rng_state()}  # fmt: skip
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def seconds(call: Callable[[], None]) -> float:
    """Return the wall seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    options = parser.parse_args()
    network, optimizer = training()
    size = total_bytes(training_state(network, optimizer, facts={})[0])
    stalls, busy, durable, plain = [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        checkpoints = Checkpoints(Path(place) / "checkpoints")

        def save() -> None:
            checkpoints.save(len(stalls), *training_state(network, optimizer, facts={}))

        def both() -> None:
            started = time.thread_time()
            stalls.append(seconds(save))
            busy.append(time.thread_time() - started)
            checkpoints.wait()

        for _ in range(options.rounds + 1):
            durable.append(seconds(both))
            plain.append(seconds(lambda: synchronous(Path(place) / "plain.pt", network, optimizer)))
            (Path(place) / "plain.pt").unlink()
    ratio, low, high = paired_ratio(stalls[1:], plain[1:])
    row = {
        "state MB": size / 1e6,
        "stall of save() ms": 1000 * statistics.median(stalls[1:]),
        "of it computing ms": 1000 * statistics.median(busy[1:]),
        "torch.save + fsync ms": 1000 * statistics.median(plain[1:]),
        "stall / synchronous %": f"{100 * ratio:.2f} ({100 * low:.2f}-{100 * high:.2f})",
        "first stall ms": 1000 * stalls[0],
        "durable after ms": 1000 * statistics.median(durable[1:]),
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
    }
    write("checkpoint_stall", [row], notes=NOTES)


if __name__ == "__main__":
    main()
