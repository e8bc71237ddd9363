"""A training that diverges or a file that does not agree never sinks a fit that has another."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trimtab.errors import DivergedError, ExportError
from trimtab.measure.latency import Latency
from trimtab.measure.quality import score
from trimtab.plan import finish, stages
from trimtab.plan.budget import Budget
from trimtab.plan.candidates import Candidate
from trimtab.plan.job import Job
from trimtab.plan.screen import Screened, candidate_names
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema
from trimtab.records.target import parse_target
from trimtab.train.initial import first_network

NAMES = ("small", "middle", "large")
REACHED = {"small": 0.7, "middle": 0.8, "large": 0.9}


class FakeRun:
    def __init__(self, name: str) -> None:
        self.name, self.path, self.facts = name, Path(name), {"epochs": 3}

    def measured(self, what: str) -> dict[str, Any]:
        value = REACHED[self.name.removeprefix("heat-")]
        return {"value": value, "low": value - 0.05, "high": value, "n": 100, "split": "valid"}


class FakeJob(Job):
    diverging: tuple[str, ...] = ()

    def train(self, name: str, label: str, seconds: float) -> tuple[Any, bool]:
        if name in self.diverging:
            raise DivergedError("the loss became nan at step 7")
        return FakeRun(name), False


def made(run: Any, name: str, steps: tuple[str, ...], **rest: Any) -> Candidate:
    logits = np.eye(2, dtype=np.float32)[[0, 1]]
    latency = Latency(p50_ms=1, p95_ms=1, p99_ms=1, low_ms=1, high_ms=1, n=20, threads=2)
    file: Any = SimpleNamespace(size_bytes=1000)
    return Candidate(
        name, steps, run, file, score(logits, np.array([0, 1]), split="valid"), latency
    )


def row(size: int) -> Screened:
    return Screened(NAMES[size], 10**size, 10**size, True, "", True, images_per_second=1000.0)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> FakeJob:
    monkeypatch.setattr(stages, "assess", made)
    monkeypatch.setattr(finish, "assess", made)
    dataset: Any = SimpleNamespace(splits={"train": range(100)})
    return FakeJob(FakeRun("fit"), dataset, Recipe(), parse_target("accuracy>=0.99"),  # type: ignore[arg-type]
                   Budget(600), 0, screened=[row(size) for size in range(3)])  # fmt: skip


def test_heat_that_diverges_is_out_and_the_others_go_on(job: FakeJob) -> None:
    job.diverging = ("heat-large",)
    winner = stages.heat_stage(job, job.screened)
    assert winner is not None
    assert winner.screened.name == "middle"
    assert [(r["name"], r["why"]) for r in job.failed] == [
        ("heat-large", "the loss became nan at step 7")
    ]


def test_training_that_diverges_gives_way_to_the_best_heat(job: FakeJob) -> None:
    winner = stages.heat_stage(job, job.screened)
    assert winner is not None
    job.diverging = ("large",)
    base = stages.train_stage(job, "small", winner)
    assert base.run.name == "heat-large"
    assert job.candidates == [base]
    assert job.threads == 2
    assert [r["name"] for r in job.failed] == ["large-failed"]


def test_training_that_diverges_without_a_heat_is_an_error(job: FakeJob) -> None:
    job.diverging = ("small",)
    with pytest.raises(DivergedError):
        stages.train_stage(job, "small", None)


def test_heat_that_cannot_be_exported_gives_way_to_the_next(
    job: FakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubborn(run: Any, name: str, steps: tuple[str, ...], **rest: Any) -> Candidate:
        if name == "large":
            raise ExportError("the file does not agree")
        return made(run, name, steps)

    monkeypatch.setattr(stages, "assess", stubborn)
    monkeypatch.setattr(finish, "assess", stubborn)
    winner = stages.heat_stage(job, job.screened)
    assert stages.train_stage(job, "small", winner).name == "middle"
    assert [r["name"] for r in job.failed] == ["heat-large", "large-failed"]


def test_interrupt_at_the_end_waits_until_everything_is_written(
    job: FakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def conclude(job: Job) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(job)

    monkeypatch.setattr(finish, "conclude", conclude)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    finish.finish(job)
    assert ended == [job]
    assert job.interrupted
    with pytest.raises(KeyboardInterrupt):
        finish.finish(job)  # it was stopped before: this is the second time


def test_a_stopped_fit_without_any_heat_ships_nothing(job: FakeJob) -> None:
    assert finish.rescue(job) is None


def test_edit_whose_fine_tuning_diverges_is_a_row_that_says_why(job: FakeJob) -> None:
    base = made(FakeRun("large"), "large", ("train",))

    def diverges() -> Any:
        raise DivergedError("the loss became inf at step 1")

    assert stages.attempt(job, "large-keep50", base, ("train", "prune 50 %"), diverges) is None
    assert job.failed[0]["parent"] == "large"
    assert job.failed[0]["kept"] is False


def test_edit_for_which_no_time_is_left_is_not_tried_and_says_so(job: FakeJob) -> None:
    base = made(FakeRun("large"), "large", ("train",))
    job.budget = Budget(0.0)
    assert stages.attempt(job, "large-int8", base, ("train", "int8"), lambda: base.run) is None
    assert "budget" in job.failed[0]["why"]


def test_flip_is_tried_with_the_weights_that_a_training_starts_from(
    job: FakeJob, tiny_dataset: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[dict[str, torch.Tensor]] = []

    def settled(network: Any, dataset: Any, recipe: Recipe, run: Any, **rest: Any) -> Recipe:
        tried.append(network.state_dict())
        return recipe.override(augment__flip=True)

    monkeypatch.setattr(stages, "settle_flip", settled)
    job.dataset = tiny_dataset
    job.recipe = Recipe().override(model__name="cnn_small", model__pretrained=str(tiny_run.path))
    stages.flip_stage(job, [replace(row(0), name="cnn_small")])
    assert job.recipe.augment.flip is True
    wanted = load_file(tiny_run.weights)
    assert torch.equal(tried[0]["body.stem.conv.weight"], wanted["body.stem.conv.weight"])
    job.recipe = Recipe().override(model__name="wcnn_small", model__whiten=True)
    network, _ = first_network(tiny_dataset, job.recipe, seed=job.seed)
    stages.flip_stage(job, [replace(row(0), name="wcnn_small")])
    assert not next(network.body.parameters()).requires_grad
    assert all(torch.equal(tried[1][key], one) for key, one in network.state_dict().items())


def test_only_own_networks_are_screened_at_another_width(job: FakeJob) -> None:
    schema = Schema(classes=("a", "b"), channels=1, height=8, width=8, mean=(0.0,), std=(1.0,))
    wide = Recipe().override(model__width=2.0)
    assert "resnet18" in candidate_names(schema, Recipe())
    assert not {"resnet18", "mobilenetv3_small_100"} & set(candidate_names(schema, wide))
    assert len(candidate_names(schema, wide)) >= 5
    assert candidate_names(schema, wide.override(model__name="resnet18")) == ("resnet18",)
