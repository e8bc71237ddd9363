"""Resolve precision before training: the faster of fp32 and bf16 on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn

STEPS = 3
ROUNDS = 3
MARGIN = 1.05

Autocast = Callable[[], AbstractContextManager[object]]


def autocast_for(precision: str, device: torch.device) -> Autocast:
    """Return a context-manager factory for `fp32` or `bf16`."""
    if precision == "bf16":
        return partial(torch.autocast, device.type, dtype=torch.bfloat16)
    return nullcontext


def probe_precision(network: nn.Module, inputs: torch.Tensor) -> tuple[str, dict[str, float]]:
    """Time forward and backward of one batch in fp32 and in bf16.

    Returns the precision and the seconds per step of each. bf16 is picked only where it is at
    least 5 % faster; gradients and buffers of `network` are left as they were.
    """
    state = {name: value.clone() for name, value in network.named_buffers()}
    seconds = {"fp32": float("inf"), "bf16": float("inf")}
    for _ in range(ROUNDS):
        for precision in seconds:
            seconds[precision] = min(seconds[precision], step_seconds(network, inputs, precision))
    network.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(state[name])
    faster = seconds["bf16"] * MARGIN < seconds["fp32"]
    return ("bf16" if faster else "fp32"), seconds


def step_seconds(network: nn.Module, inputs: torch.Tensor, precision: str) -> float:
    """Return seconds per forward and backward of `inputs`."""
    autocast = autocast_for(precision, inputs.device)
    started = time.perf_counter()
    for _ in range(STEPS):
        with autocast():
            outputs = network(inputs)
        outputs.float().square().mean().backward()
    if inputs.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / STEPS
