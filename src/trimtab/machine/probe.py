"""Resolve how to compute before training: the fastest way on this machine, by trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor, nn

SECONDS = 2.0
MARGIN = 1.05
STEPS = 9  # of all ways together: so many should fit into the time
GROWTH = 4  # of the samples, while steps are short
FEWEST_ROWS = 2  # batch norm needs two samples
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Autocast = Callable[[], AbstractContextManager[object]]
Forward = Callable[[Tensor], Tensor]


class Way(NamedTuple):
    """A way to compute: `fp32`, `bf16` or `fp16`; `contiguous` or `channels_last`; compiled."""

    precision: str
    layout: str
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}{' compiled' if self.compiled else ''}"


PLAIN = Way("fp32", "contiguous")
WAYS = (PLAIN, Way("bf16", "channels_last"), Way("fp32", "channels_last"))
FP16 = Way("fp16", "channels_last")


def ways_on(device: torch.device) -> tuple[Way, ...]:
    """Return the ways that `device` offers, the plain one first: fp16 where bf16 is emulated."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return (PLAIN, FP16, Way("fp32", "channels_last"))
    return WAYS


def autocast_for(precision: str, device: torch.device) -> Autocast:
    """Return a context-manager factory for `fp32`, `bf16` or `fp16`."""
    if precision in HALVES:
        return partial(torch.autocast, device.type, dtype=HALVES[precision])
    return nullcontext


def probe(
    network: nn.Module, inputs: Tensor, ways: Sequence[Way] = WAYS, seconds: float = SECONDS, *,
    compiled: Forward | None = None,
) -> tuple[Way, dict[Way, float]]:  # fmt: skip
    """Time forward and backward of one batch in each of `ways`, in turns, for about `seconds`.

    Returns the fastest and the seconds per step of each; a compiled way calls `compiled`. The first
    of `ways` stays unless another is at least 5 % faster. But for the very first, no step is begun
    that would probably end late: a way that was not reached has inf. The first way is timed at
    least as often as any other, so that a short trial speaks for it. Gradients and buffers of
    `network` are left as they were; its layout is the chosen one.
    """
    times: dict[Way, list[float]] = {way: [] for way in ways}
    started, longest = time.perf_counter(), 0.0
    with unchanged(network):
        for way in cycle(ways):
            expected = times[way][-1] if times[way] else longest
            if times[ways[0]] and time.perf_counter() - started + expected > seconds:
                break
            call = compiled if way.compiled and compiled is not None else network
            times[way].append(step_seconds(network, inputs, way, call))
            longest = max(longest, times[way][-1])
    found = {way: min(taken, default=float("inf")) for way, taken in times.items()}
    fastest = min(ways, key=lambda way: found[way])
    chosen = fastest if found[fastest] * MARGIN < found[ways[0]] else ways[0]
    network.to(memory_format=LAYOUTS[chosen.layout])
    return chosen, found


def rows_in_time(network: nn.Module, inputs: Tensor, seconds: float = SECONDS) -> int:
    """Return how many of `inputs` to probe with, so that some steps of each way fit into `seconds`.

    It is judged by steps of more and more samples, each size timed at its second step: what a step
    costs whatever its size must not be taken for the cost of its samples.
    """
    rows, wanted = min(FEWEST_ROWS, len(inputs)), seconds / STEPS
    with unchanged(network):
        while True:
            part = inputs[:rows]
            taken = [step_seconds(network, part, PLAIN, network) for _ in range(2)][-1]
            if GROWTH * taken > wanted or rows == len(inputs):
                break
            rows = min(GROWTH * rows, len(inputs))
    fitting = int(rows * wanted / max(taken, 1e-9))
    return max(min(FEWEST_ROWS, len(inputs)), min(fitting, len(inputs)))


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Put the buffers of `network` back at the end, and drop its gradients."""
    state = {name: value.clone() for name, value in network.named_buffers()}
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(state[name])


def step_seconds(network: nn.Module, inputs: Tensor, way: Way, call: Forward) -> float:
    """Return the seconds of one forward, by `call`, and backward of `inputs`."""
    autocast = autocast_for(way.precision, inputs.device)
    layout = LAYOUTS[way.layout]
    network.to(memory_format=layout)
    inputs = inputs.contiguous(memory_format=layout) if inputs.ndim == 4 else inputs
    started = time.perf_counter()
    with autocast():
        outputs = call(inputs)
    outputs.float().square().mean().backward()
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
