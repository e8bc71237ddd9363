"""The trial of ways to compute keeps its time and never picks what is slower than the plain one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.machine import probe as probes
from trimtab.machine.probe import PLAIN, SECONDS, WAYS, Way, probe, rows_in_time

COMPILED = Way("fp32", "contiguous", compiled=True)


class Machine:
    """A machine whose steps take as long as told: the first of a way `warm_up` times that."""

    def __init__(self, costs: dict[Way, float], *, warm_up: float = 1.0) -> None:
        self.costs, self.warm_up = costs, warm_up
        self.now = 0.0
        self.steps: list[Way] = []

    def step(self, network: nn.Module, inputs: Tensor, way: Way, call: Any) -> float:
        first = way not in self.steps
        self.steps.append(way)
        took = self.costs[way] * (self.warm_up if first else 1.0) * len(inputs)
        self.now += took
        return took


def tried(machine: Machine, ways: Any = WAYS, rows: int = 1) -> tuple[Way, dict[Way, float]]:
    patch = pytest.MonkeyPatch()
    patch.setattr(probes, "step_seconds", machine.step)
    patch.setattr(probes, "time", SimpleNamespace(perf_counter=lambda: machine.now))
    try:
        return probe(nn.Linear(1, 1), torch.zeros(rows, 1), ways)
    finally:
        patch.undo()


def costs(*seconds: float) -> dict[Way, float]:
    return dict(zip(WAYS, seconds, strict=True))


def test_the_fastest_way_is_picked_and_its_warm_up_does_not_count() -> None:
    machine = Machine(costs(0.03, 0.01, 0.02), warm_up=9)
    way, found = tried(machine)
    assert way == WAYS[1]
    assert found == pytest.approx(machine.costs)


def test_a_gain_below_five_percent_is_none() -> None:
    assert tried(Machine(costs(0.0100, 0.0097, 0.0098)))[0] == PLAIN
    assert tried(Machine(costs(0.0100, 0.0094, 0.0098)))[0] == WAYS[1]


@given(st.lists(st.floats(1e-4, 5.0), min_size=3, max_size=3), st.floats(1.0, 20.0))
def test_nothing_slower_than_plain_fp32_is_picked_and_time_is_kept(
    seconds: list[float], warm_up: float
) -> None:
    machine = Machine(costs(*seconds), warm_up=warm_up)
    way, found = tried(machine)
    assert found[way] <= found[PLAIN]
    assert machine.steps[0] == PLAIN
    late = machine.now - SECONDS
    assert late <= 0 or late <= warm_up * max(seconds)  # of one step whose length was not known


def test_a_large_network_is_not_tried_beyond_the_time() -> None:
    machine = Machine(costs(1.5, 0.7, 0.9))
    way, found = tried(machine)
    assert (way, machine.steps) == (PLAIN, [PLAIN])
    assert found[WAYS[1]] == float("inf")
    assert tried(Machine(costs(0.8, 0.5, 0.6)))[0] == WAYS[1]  # two ways fit


@pytest.mark.parametrize(("overhead", "each", "rows"), [
    (0.0, 0.01, 22), (0.02, 0.01, 17), (0.02, 1e-5, 128), (0.0, 1e-5, 128), (0.0, 3.0, 2),
])  # fmt: skip
def test_rows_are_as_many_as_some_steps_of_each_way_have_time_for(
    overhead: float, each: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(network: nn.Module, inputs: Tensor, way: Way, call: Any) -> float:
        return overhead + each * len(inputs)

    monkeypatch.setattr(probes, "step_seconds", step)
    assert rows_in_time(nn.Linear(1, 1), torch.zeros(128, 1), 2.0) == rows


def test_a_compiled_way_calls_what_was_compiled() -> None:
    layer = nn.Conv2d(1, 2, 3)
    called: list[str] = []

    def compiled(pixels: Tensor) -> Tensor:
        called.append("compiled")
        return layer(pixels)

    _, found = probe(layer, torch.zeros(2, 1, 8, 8), (PLAIN, COMPILED), 0.5, compiled=compiled)
    assert called
    assert all(seconds < float("inf") for seconds in found.values())
    assert layer.weight.grad is None
