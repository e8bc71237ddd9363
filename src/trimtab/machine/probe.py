"""Resolve precision and memory layout before training: the fastest on this machine, by trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

SECONDS = 2.0
MARGIN = 1.05
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

Autocast = Callable[[], AbstractContextManager[object]]


class Way(NamedTuple):
    """A way to compute: `fp32` or `bf16`, `contiguous` or `channels_last`."""

    precision: str
    layout: str

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}"


PLAIN = Way("fp32", "contiguous")
WAYS = (PLAIN, Way("fp32", "channels_last"), Way("bf16", "channels_last"))


def autocast_for(precision: str, device: torch.device) -> Autocast:
    """Return a context-manager factory for `fp32` or `bf16`."""
    if precision == "bf16":
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext


def probe(
    network: nn.Module, inputs: torch.Tensor, ways: Sequence[Way] = WAYS, seconds: float = SECONDS
) -> tuple[Way, dict[Way, float]]:
    """Time forward and backward of one batch in each of `ways`, in turns, for about `seconds`.

    Returns the fastest and the seconds per step of each. The first of `ways` stays unless another
    is at least 5 % faster. The first round warms up and counts only where time allows no second.
    Gradients and buffers of `network` are left as they were; its layout is the chosen one.
    """
    state = {name: value.clone() for name, value in network.named_buffers()}
    found = dict.fromkeys(ways, float("inf"))
    started = time.perf_counter()
    warm = round_of(network, inputs, ways)
    while time.perf_counter() - started < seconds:
        for way, value in round_of(network, inputs, ways).items():
            found[way] = min(found[way], value)
    found = {way: min(value, warm[way]) for way, value in found.items()}
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(state[name])
    fastest = min(ways, key=lambda way: found[way])
    chosen = fastest if found[fastest] * MARGIN < found[ways[0]] else ways[0]
    network.to(memory_format=LAYOUTS[chosen.layout])
    return chosen, found


def round_of(network: nn.Module, inputs: torch.Tensor, ways: Sequence[Way]) -> dict[Way, float]:
    """Return the seconds of one step in each way."""
    return {way: step_seconds(network, inputs, way) for way in ways}


def step_seconds(network: nn.Module, inputs: torch.Tensor, way: Way) -> float:
    """Return the seconds of one forward and backward of `inputs`."""
    autocast = autocast_for(way.precision, inputs.device)
    layout = LAYOUTS[way.layout]
    network.to(memory_format=layout)
    inputs = inputs.contiguous(memory_format=layout) if inputs.ndim == 4 else inputs
    started = time.perf_counter()
    with autocast():
        outputs = network(inputs)
    outputs.float().square().mean().backward()
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
