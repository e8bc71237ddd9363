"""How a training computes is decided before it starts, by what was measured, and written down."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.data.dataset import Batch
from trimtab.errors import Interrupted, MachineError
from trimtab.machine import compiled as compiling
from trimtab.machine import probe as probing
from trimtab.machine.compiled import Compiled, can_amortise, missing_compiler
from trimtab.machine.probe import PLAIN, WAYS, Way
from trimtab.train import loop
from trimtab.train import speed as speeds
from trimtab.train.run import resume, train
from trimtab.train.settings import resolve
from trimtab.train.speed import open_ways, passes_of_step, resolve_speed, rows_of_pass
from trimtab.train.update import accumulate

CPU = torch.device("cpu")
LONG = 10**9  # steps


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, WAYS),
        ({"train__layout": "contiguous"}, (PLAIN,)),
        ({"train__precision": "fp32"}, (PLAIN, Way("fp32", "channels_last"))),
        ({"train__precision": "bf16"}, (Way("bf16", "channels_last"),)),
        ({"train__precision": "bf16", "train__layout": "contiguous"}, (Way("bf16", "contiguous"),)),
    ],
)
def test_only_what_the_recipe_leaves_open_is_tried(
    changes: dict[str, Any], ways: tuple[Way, ...], tiny_recipe: Any
) -> None:
    recipe = tiny_recipe.override(**{"train__precision": "auto", **changes})
    assert open_ways(recipe, CPU) == ways


def test_fp16_on_a_processor_is_refused(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    with pytest.raises(MachineError, match="fp16, which needs a CUDA device, got cpu") as caught:
        train(tiny_dataset, recipe=tiny_recipe.override(train__precision="fp16"), out=tmp_path)
    assert "bf16" in caught.value.hint


def test_what_was_measured_is_in_the_ledger(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "SECONDS", 0.2)
    recipe = tiny_recipe.override(train__precision="auto", train__epochs=1)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    rows = [row for row in run.ledger if row["what"] == "step_seconds"]
    assert {row["way"] for row in rows} <= {str(way) for way in WAYS}
    assert str(PLAIN) in {row["way"] for row in rows}
    used = [row for row in rows if row["used"]]
    assert len(used) == 1
    assert all(used[0]["value"] <= row["value"] for row in rows if row["way"] == str(PLAIN))
    assert all(row["rows"] >= 2 and row["unit"] == "s" for row in rows)
    reason = (run.measured("compiled") or {})["reason"]
    assert "too short" in reason
    resolved = run.facts["resolved"]
    assert f"{resolved['train__precision']} {resolved['train__layout']}" == used[0]["way"]
    assert resolved["train__compile"] is False


def test_a_budget_bounds_the_trial(tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def fastest(network: nn.Module, inputs: Tensor, ways: Any, seconds: float) -> Any:
        given.append(seconds)
        return speeds.Speed(PLAIN)

    monkeypatch.setattr(speeds, "fastest", fastest)
    recipe = tiny_recipe.override(train__precision="auto", train__compile=False)
    for budget in (None, 10.0, 1e6, 0.0):
        resolve_speed(network(), pixels(), recipe, steps=1, budget_seconds=budget)
    assert given == [2.0, pytest.approx(0.2), 2.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "rows", "passes"),
    [({}, 64, 1), ({"train__hard_fraction": 0.5}, 32, 1), ({"train__micro_batch": 32}, 32, 2),
     ({"train__micro_batch": 30}, 21, 3), ({"train__micro_batch": 1}, 2, 32),
     ({"train__micro_batch": 32, "train__hard_fraction": 0.5}, 32, 1)],
)  # fmt: skip
def test_the_usual_pass_is_the_one_that_is_compiled(
    changes: dict[str, Any], rows: int, passes: int, tiny_recipe: Any
) -> None:
    recipe = tiny_recipe.override(**changes)
    assert (rows_of_pass(recipe, 64), passes_of_step(recipe, 64)) == (rows, passes)


# Compiling


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))  # fmt: skip


def pixels(rows: int = 8, side: int = 8) -> Tensor:
    return torch.rand(rows, 1, side, side) * 255


def resolved(recipe: Any, steps: int = LONG, **more: Any) -> speeds.Speed:
    return resolve_speed(network(), pixels(), recipe.override(train__layout="contiguous"),
                         steps=steps, **more)  # fmt: skip


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let compiling be a matter of course, and the trial after it give the numbers in the dict."""
    found = {"eager": 0.010, "compiled": 0.005}

    def probe(network: nn.Module, inputs: Tensor, ways: Any, seconds: float, **more: Any) -> Any:
        numbers = {way: found.get(str(way), found["compiled" if way.compiled else "eager"])
                   for way in ways}  # fmt: skip
        return min(ways, key=lambda way: numbers[way]), numbers

    def compile_for(
        speed: speeds.Speed, network: nn.Module, inputs: Tensor, ways: tuple[Way, ...]
    ) -> float:
        speed.compiled = Compiled(network, len(inputs), CPU)
        return 33.0 * len(ways)

    monkeypatch.setattr(compiling.torch, "compile", lambda network, **settings: network)
    monkeypatch.setattr(speeds, "compile_for", compile_for)
    monkeypatch.setattr(speeds, "probe", probe)
    return found


def test_a_long_training_is_compiled_where_that_was_measured_to_be_faster(
    tiny_recipe: Any, by_hand: dict[str, float]
) -> None:
    speed = resolved(tiny_recipe)
    assert speed.way == Way("fp32", "contiguous", compiled=True)
    assert {str(t.way): t.seconds for t in speed.timings} == {
        "fp32 contiguous": 0.010, "fp32 contiguous compiled": 0.005,
    }  # fmt: skip
    by_hand["compiled"] = 0.02
    speed = resolved(tiny_recipe)
    assert (speed.way, speed.compiled) == (PLAIN, None)
    assert "not faster" in speed.reason
    assert len(speed.timings) == 2
    assert speed.compile_seconds == 33.0, "what was tried is told all the same"


def test_a_nearly_as_fast_precision_is_compiled_too_where_that_can_be_won_back(
    tiny_recipe: Any, by_hand: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand |= {"bf16 channels_last": 0.012, "bf16 channels_last compiled": 0.003}
    recipe = tiny_recipe.override(train__layout="auto", train__precision="auto")

    def speed_of(steps: int) -> speeds.Speed:
        return resolve_speed(network(), pixels(), recipe, steps=steps)

    monkeypatch.setattr(speeds, "seconds_of_step", lambda *given: 0.01)
    speed = speed_of(LONG)
    assert (str(speed.way), speed.compile_seconds) == ("bf16 channels_last compiled", 66.0)
    assert speed.compiled is not None
    speed = speed_of(100_000)  # wins one compilation back, not two
    assert (str(speed.way), speed.compile_seconds) == ("fp32 contiguous compiled", 33.0)
    by_hand["bf16 channels_last"] = 0.016
    assert speed_of(LONG).compile_seconds == 33.0, "it is far slower: not tried"


def test_every_way_of_the_trial_is_compiled_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def step_seconds(network: nn.Module, inputs: Tensor, way: Way, call: Any) -> float:
        done.append((way, type(call)))
        return 0.0

    monkeypatch.setattr(compiling.torch, "compile", lambda network, **settings: network)
    monkeypatch.setattr(speeds, "missing_compiler", lambda device: "")
    monkeypatch.setattr(speeds, "step_seconds", step_seconds)
    speed = speeds.Speed(PLAIN)
    speeds.compile_for(speed, network(), pixels(), WAYS[:2])
    assert done == [(way, Compiled) for way in WAYS[:2]]
    assert speed.compiled is not None


def test_a_second_precision_that_fails_to_compile_leaves_the_layout_of_the_way_chosen(
    tiny_recipe: Any, by_hand: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts = []

    def compile_for(
        speed: speeds.Speed, network: nn.Module, inputs: Tensor, ways: tuple[Way, ...]
    ) -> float:
        network.to(memory_format=torch.channels_last)
        layouts.extend(way.layout for way in ways)
        raise MachineError("bf16 does not compile")

    monkeypatch.setattr(speeds, "compile_for", compile_for)
    recipe = tiny_recipe.override(train__layout="auto", train__precision="auto")
    trained = nn.Sequential(nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    speed = resolve_speed(trained, torch.rand(8, 4, 8, 8), recipe, steps=LONG)
    assert layouts == ["contiguous", "channels_last"]
    assert (speed.way, speed.reason) == (PLAIN, "bf16 does not compile")
    assert trained[0].weight.is_contiguous(), "4 channels, so the two layouts differ"


def test_a_short_training_is_not_compiled(tiny_recipe: Any, by_hand: dict[str, float]) -> None:
    assert "too short" in resolved(tiny_recipe, steps=5).reason
    assert resolved(tiny_recipe, budget_seconds=30.0).compiled is None
    assert resolved(tiny_recipe, budget_seconds=0.0).compiled is None, "the budget is spent"


def test_steps_longer_than_the_usual_trial_are_timed_compiled_too(
    tiny_recipe: Any, by_hand: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def step_seconds(network: nn.Module, inputs: Tensor, way: Way, call: Any) -> float:
        taken = 1.0 if way.compiled else 3.0
        clock[0] += taken
        return taken

    monkeypatch.setattr(speeds, "probe", probing.probe)
    monkeypatch.setattr(probing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    for module in (speeds, probing):
        monkeypatch.setattr(module, "step_seconds", step_seconds)
    speed = resolved(tiny_recipe)
    assert [timing.seconds for timing in speed.timings] == [3.0, 1.0]
    assert speed.way.compiled


def test_what_was_not_timed_is_not_called_slower(
    tiny_recipe: Any, by_hand: dict[str, float]
) -> None:
    by_hand["compiled"] = math.inf
    speed = resolved(tiny_recipe)
    assert (speed.way, speed.compiled) == (PLAIN, None)
    assert "no compiled step could be timed" in speed.reason


def test_passes_of_a_step_count_for_how_long_a_training_is(
    tiny_recipe: Any, by_hand: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "seconds_of_step", lambda *given: 0.01)
    assert resolved(tiny_recipe, steps=50_000).compiled is None
    assert resolved(tiny_recipe, steps=50_000, passes=2).compiled is not None


def test_each_size_of_a_growing_resolution_has_to_pay(
    tiny_recipe: Any, by_hand: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "seconds_of_step", lambda *given: 0.01)
    recipe = tiny_recipe.override(train__resolution=(0.5, 0.75, 1.0))
    assert resolved(recipe, steps=100_000).compiled is None
    assert resolved(tiny_recipe, steps=100_000).compiled is not None


@pytest.mark.parametrize(
    ("seconds", "shapes", "kind", "pays"),
    [(599, 1, "cpu", False), (601, 1, "cpu", True), (601, 2, "cpu", False), (601, 2, "cuda", True),
     (1e9, 1, "mps", False)],
)  # fmt: skip
def test_compiling_must_be_won_back(seconds: float, shapes: int, kind: str, pays: bool) -> None:
    assert can_amortise(seconds, torch.device(kind), shapes) is pays


def test_without_a_compiler_auto_goes_on_and_says_why_and_true_is_an_error(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in missing_compiler(CPU)
    speed = resolved(tiny_recipe)
    assert (speed.way, speed.compiled) == (PLAIN, None)
    assert "no C++ compiler (no-such-compiler)" in speed.reason
    with pytest.raises(MachineError, match="no C\\+\\+ compiler") as caught:
        resolved(tiny_recipe.override(train__compile=True))
    assert "train.compile" in caught.value.hint


def test_a_compilation_that_fails_is_no_failed_training(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise RuntimeError("BackendCompilerFailed: no\nmany lines")

    monkeypatch.setattr(compiling.torch, "compile", lambda *given, **more: broken)
    monkeypatch.setattr(speeds, "missing_compiler", lambda device: "")
    speed = resolved(tiny_recipe)
    assert (speed.way, speed.compiled) == (PLAIN, None)
    assert speed.reason.endswith("BackendCompilerFailed: no")
    with pytest.raises(MachineError, match="BackendCompilerFailed: no"):
        resolved(tiny_recipe.override(train__compile=True))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, (1, 1)),
        ({"train__resolution": (0.5, 0.5, 1.0)}, (0.5, 2)),
        ({"regularize__sharpness": 0.1}, (2, 2)),
        ({"regularize__sharpness": 0.1, "regularize__sharpness_start": 0.75}, (1.25, 2)),
        ({"regularize__sharpness": 0.1, "regularize__sharpness_share": 0.25}, (1, 2)),
        ({"regularize__sharpness": 0.1, "train__resolution": (0.5, 0.5, 1.0)}, (1, 4)),
    ],
)
def test_what_there_is_to_compile_is_passes_and_graphs(
    changes: dict[str, Any], wanted: tuple[float, int], tiny_recipe: Any
) -> None:
    assert speeds.compiled_work(tiny_recipe.override(**changes)) == pytest.approx(wanted)


def test_odd_passes_and_many_sides_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []

    def compile(network: nn.Module, **settings: Any) -> Any:
        assert settings["dynamic"] is False

        def fast(pixels: Tensor) -> Tensor:
            made.append(pixels.shape)
            return network(pixels)

        return fast

    monkeypatch.setattr(compiling.torch, "compile", compile)
    call = Compiled(network(), 8, CPU)
    for rows, side in ((8, 8), (3, 8), (8, 8), (8, 9), (8, 10), (8, 11), (8, 12), (8, 12)):
        call(pixels(rows, side))
    assert [shape[-1] for shape in made] == [8, 8, 9, 10, 11]
    assert {shape[0] for shape in made} == {8}


@pytest.mark.parametrize(
    ("kind", "passes", "mode"),
    [("cuda", 1, "reduce-overhead"), ("cuda", 2, None), ("cpu", 1, None), ("cpu", 2, None)],
)
def test_kernels_become_one_graph_only_where_a_step_is_one_pass(
    kind: str, passes: int, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str | None] = []

    def compile(network: nn.Module, **settings: Any) -> Any:
        chosen.append(settings["mode"])
        return network

    monkeypatch.setattr(compiling.torch, "compile", compile)
    Compiled(network(), 8, torch.device(kind), passes=passes)
    assert chosen == [mode]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({}, (32, 1)), ({"train__micro_batch": 8}, (8, 4)), ({"train__hard_fraction": 0.5}, (16, 1))],
)
def test_what_is_compiled_is_told_how_many_passes_a_step_has(
    changes: dict[str, Any], wanted: tuple[int, int], tiny_dataset: Any, tiny_recipe: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made: list[tuple[int, int]] = []

    def compiled(network: nn.Module, rows: int, device: torch.device, *, passes: int) -> nn.Module:
        made.append((rows, passes))
        return network

    monkeypatch.setattr(speeds, "Compiled", compiled)
    monkeypatch.setattr(speeds, "missing_compiler", lambda device: "")
    recipe = tiny_recipe.override(train__compile=True, train__batch_size=32,
                                  train__layout="contiguous", **changes)  # fmt: skip
    resolve(network(), tiny_dataset, recipe, None)
    assert made == [wanted]


# The real thing


@pytest.mark.slow
def test_compiled_training_resumes_to_the_bit(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe.override(train__compile=True, train__epochs=2, train__layout="contiguous")
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole")
    assert whole.facts["resolved"]["train__compile"] is True
    assert (whole.measured("compile_seconds") or {})["used"]
    real, done = loop.train_step, []

    def step(*given: Any) -> Tensor:
        done.append(1)
        if len(done) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "parts")
    parts = resume(tmp_path / "parts", data=tiny_dataset)
    assert whole.weights.read_bytes() == parts.weights.read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("micro", [32, 8])
def test_compiled_passes_have_the_gradient_of_the_whole_batch_on_a_graphics_processor(
    micro: int, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    recipe = tiny_recipe.override(train__layout="contiguous", train__batch_size=32)
    plain = resolve(network, tiny_dataset, recipe.override(train__compile=False), None)
    changes = {"train__compile": True, "train__micro_batch": micro}
    settings = resolve(network, tiny_dataset, recipe.override(**changes), None)
    assert settings.compiled is not None
    for seed in range(5):  # a graph is recorded after the first passes
        inputs = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 255
        batch = Batch(*(one.cuda() for one in (inputs, torch.arange(32) % 10, torch.arange(32))))
        accumulate(network, batch, plain)
        wanted = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        accumulate(network, batch, settings)
        found = [p.grad for p in network.parameters()]
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compile", [False, True])
def test_half_precision_trains_on_a_graphics_processor(
    precision: str, compile: bool, tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(train__precision=precision, train__compile=compile)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert (run.measured("accuracy") or {})["value"] > 0.5
    assert run.facts["resolved"]["train__layout"] == "channels_last"
    assert (run.measured("skipped_steps") is not None) == (precision == "fp16")
