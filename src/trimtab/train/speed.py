"""Resolve how a training computes: precision, memory layout, compiled or not, all by trial."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trimtab.errors import MachineError
from trimtab.machine.compiled import Compiled, can_amortise, missing_compiler
from trimtab.machine.device import device_name
from trimtab.machine.probe import (
    FP16,
    LAYOUTS,
    SECONDS,
    WAYS,
    Way,
    probe,
    rows_in_time,
    step_seconds,
    unchanged,
    ways_on,
)
from trimtab.machine.progress import say
from trimtab.models.quick import quick_layers
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run
from trimtab.train.norms import train_mode

BUDGET_SHARE = 0.02  # of a budget: more of it no trial takes
COMPARED_STEPS = 3  # of each way, eager and compiled: so many should fit into their trial
NEAR = 1.5  # times the step of the fastest way: compiled, such a way may be the faster one


class Timing(NamedTuple):
    """What a step of `rows` samples took in one way: inf where it was not reached."""

    way: Way
    rows: int
    seconds: float


@dataclass
class Speed:
    """How a training computes, and what was measured to choose it.

    `reason` says why a training that could have been compiled is not; `passes` are those of a usual
    step.
    """

    way: Way
    timings: list[Timing] = field(default_factory=list)
    compiled: Compiled | None = None
    compile_seconds: float = 0.0
    reason: str = ""
    passes: int = 1

    def record(self, run: Run | None, device: torch.device) -> None:
        """Put what was measured into the ledger of `run`, where there is one."""
        if run is None:
            return
        name = device_name(device)
        for way, rows, seconds in self.timings:
            if math.isfinite(seconds):
                run.record("step_seconds", round(seconds, 6), "s", way=str(way), rows=rows,
                           used=way == self.way, device=name)  # fmt: skip
        if self.compile_seconds:
            run.record("compile_seconds", round(self.compile_seconds, 3), "s",
                       used=self.way.compiled, device=name)  # fmt: skip
        if self.reason:
            run.record("compiled", self.way.compiled, reason=self.reason, device=name)


def resolve_speed(
    network: nn.Module, inputs: Tensor, recipe: Recipe, *, steps: int, passes: int = 1,
    budget_seconds: float | None = None,
) -> Speed:  # fmt: skip
    """Return the fastest of the ways that the recipe leaves open; the network gets its layout.

    `inputs` are random pixels of a whole pass, `passes` those of a step, `steps` those of the whole
    training. Nothing is slower than plain fp32, as far as the trial can tell. Raises MachineError
    for what the recipe asks and the machine has not.
    """
    budget = math.inf if budget_seconds is None else budget_seconds  # 0: all of it is spent
    ways = open_ways(recipe, inputs.device)
    train_mode(network, freeze_norms=recipe.model.freeze_norms)
    with quick_layers(network):
        speed = Speed(ways[0])
        network.to(memory_format=LAYOUTS[speed.way.layout])
        if len(ways) > 1:
            speed = fastest(network, inputs, ways, min(SECONDS, BUDGET_SHARE * budget))
        speed.passes = passes
        if recipe.train.compile is True:
            speed.compile_seconds = compile_for(speed, network, inputs, (speed.way,))
            speed.way = speed.way._replace(compiled=True)
        elif recipe.train.compile == "auto" and can_amortise(budget, inputs.device):
            worth, graphs = compiled_work(recipe)
            consider_compiling(speed, network, inputs, worth * steps * passes, budget,
                               graphs=graphs)  # fmt: skip
    return speed


def compiled_work(recipe: Recipe) -> tuple[float, int]:
    """Return the cost of a step's compiled passes, in passes of full size, and their graphs.

    The second pass of sharpness-aware steps holds the norms, which is a graph of its own; a first
    one of a share of the batch is not compiled.
    """
    sides, regularize = recipe.train.resolution or (1.0,), recipe.regularize
    worth, graphs = fmean(side**2 for side in sides), len(set(sides))
    if regularize.sharpness == 0:
        return worth, graphs
    again = 1 - regularize.sharpness_start if regularize.sharpness_share == 1 else 0
    return worth * (1 + again), 2 * graphs


def open_ways(recipe: Recipe, device: torch.device) -> tuple[Way, ...]:
    """Return the ways that fit the recipe; raises MachineError for fp16 on a processor."""
    precision, layout = recipe.train.precision, recipe.train.layout
    if precision == "fp16" and device.type != "cuda":
        raise MachineError(f"train.precision is fp16, which needs a CUDA device, got {device.type}",
                           "choose bf16, or auto for what is fastest here")  # fmt: skip
    offered = ways_on(device) if precision == "auto" else (*WAYS, FP16)
    fitting = tuple(way for way in offered if precision in ("auto", way.precision)
                    and layout in ("auto", way.layout))  # fmt: skip
    return fitting or (Way(precision, layout),)


def fastest(network: nn.Module, inputs: Tensor, ways: tuple[Way, ...], seconds: float) -> Speed:
    """Return the fastest of `ways` by a trial of `seconds` with as many inputs as fit into it."""
    started = time.perf_counter()
    rows = rows_in_time(network, inputs, seconds)
    left = seconds - (time.perf_counter() - started)
    way, found = probe(network, inputs[:rows], ways, left)
    return Speed(way, [Timing(one, rows, found[one]) for one in ways])


def consider_compiling(
    speed: Speed, network: nn.Module, inputs: Tensor, passes: float, budget: float, *, graphs: int
) -> None:
    """Compile where a training of so many `passes` can win that back and the result is faster.

    Whatever goes wrong, the training is not compiled and `speed.reason` says why.
    """
    taken = seconds_of_step(speed, network, inputs)
    expected = min(budget, passes * taken)
    ways = near_ways(speed)
    while ways and not can_amortise(expected, inputs.device, graphs + len(ways) - 1):
        ways = ways[:-1]
    if not ways:
        speed.reason = f"about {expected:.0f} s of training are too short to win compiling back"
        return
    try:
        speed.compile_seconds = compile_for(speed, network, inputs, ways)
    except MachineError as error:
        network.to(memory_format=LAYOUTS[speed.way.layout])
        speed.reason = error.message
        say(f"not compiled: {error.message}")
        return
    tried = (*ways, *(way._replace(compiled=True) for way in ways))
    longest = max(SECONDS, COMPARED_STEPS * len(tried) * taken)
    chosen, found = probe(network, inputs, tried, longest, compiled=speed.compiled)
    speed.way = chosen
    speed.timings += [Timing(way, len(inputs), found[way]) for way in tried]
    if not chosen.compiled:
        speed.compiled = None
        timed = any(math.isfinite(found[way]) for way in tried if way.compiled)
        speed.reason = ("compiled steps are not faster by 5 %" if timed else
                        "no compiled step could be timed within the trial")  # fmt: skip


def near_ways(speed: Speed) -> tuple[Way, ...]:
    """Return the way chosen and the best one of another precision, if it is nearly as fast.

    Compiled, the order of the two may be another: casts become part of what stands beside them.
    """
    taken = {way: seconds for way, _, seconds in speed.timings}
    others = [way for way in taken if way.precision != speed.way.precision]
    best = min(others, key=lambda way: taken[way], default=None)
    if best is None or taken[best] > NEAR * taken[speed.way]:
        return (speed.way,)
    return (speed.way, best)


def seconds_of_step(speed: Speed, network: nn.Module, inputs: Tensor) -> float:
    """Return the seconds of a step of all `inputs`, from the trial or from two steps."""
    for way, rows, seconds in speed.timings:
        if way == speed.way:
            return seconds * len(inputs) / rows
    with unchanged(network):
        return min(step_seconds(network, inputs, speed.way, network) for _ in range(2))


def compile_for(speed: Speed, network: nn.Module, inputs: Tensor, ways: tuple[Way, ...]) -> float:
    """Compile `network` for passes as `inputs` in each of `ways`; return how long it took.

    Raises MachineError where it does not work here.
    """
    if missing := missing_compiler(inputs.device):
        raise MachineError(f"train.compile cannot work: {missing}",
                           "install one, or leave out train.compile")  # fmt: skip
    compiled = Compiled(network, len(inputs), inputs.device, passes=speed.passes)
    started = time.perf_counter()
    try:
        with unchanged(network):
            for way in ways:
                step_seconds(network, inputs, way, compiled)
    except Exception as error:  # torch has no one class for what can go wrong in compiling
        lines = str(error).strip().splitlines() or [""]
        raise MachineError(f"train.compile does not work with this network: {lines[0]}",
                           "leave out train.compile") from error  # fmt: skip
    speed.compiled = compiled
    return time.perf_counter() - started


def rows_of_pass(recipe: Recipe, size: int) -> int:
    """Return how many samples a usual forward pass has in steps of `size` samples."""
    return round(learnt_samples(recipe, size) / passes_of_step(recipe, size))


def passes_of_step(recipe: Recipe, size: int) -> int:
    """Return in how many forward passes a usual step of `size` samples learns."""
    learnt, micro = learnt_samples(recipe, size), recipe.train.micro_batch
    if micro == "auto" or micro >= learnt:
        return 1
    return max(1, min(-(-learnt // micro), learnt // 2))


def learnt_samples(recipe: Recipe, size: int) -> int:
    """Return from how many of `size` samples a step learns."""
    return max(2, round(recipe.train.hard_fraction * size))
