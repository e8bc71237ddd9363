"""A training that was stopped goes on to the same bits; nothing that was reached is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.data import reader
from trimtab.errors import DivergedError, Interrupted, MachineError, Preempted, UsageError
from trimtab.machine import compiled, failpoints
from trimtab.machine.progress import OUTPUT
from trimtab.records.finding import Finding
from trimtab.records.run import Run, open_run, update_facts
from trimtab.train import keep, loop
from trimtab.train import speed as speeds
from trimtab.train.checkpoint import Checkpoints
from trimtab.train.keep import possible
from trimtab.train.run import resume, train

EPOCHS = 3
Stop = Callable[[int], None]


def recipe_of(tiny_recipe: Any, **changes: Any) -> Any:
    settled = {"augment__flip": True, "train__precision": "fp32", "train__layout": "contiguous"}
    return tiny_recipe.override(train__epochs=EPOCHS, **{**settled, **changes})


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """Return all tensors of the newest checkpoint and of the final weights."""
    from safetensors.torch import load_file

    with Checkpoints(run.path / "checkpoints") as kept:
        found = kept.newest()
    assert found is not None
    tensors = {f"{g}.{k}": v for g in found.groups for k, v in found.tensors(g).items()}
    return tensors | load_file(run.weights)


def log_of(run: Run) -> list[tuple[Any, ...]]:
    """Return what the epochs reached, without the time they took."""
    kept = ("step", "epoch", "valid_accuracy", "train_loss", "lr")
    return [tuple(row[key] for key in kept) for row in run.metrics if "epoch" in row]


def assert_same(first: Run, second: Run) -> None:
    one, two = state_of(first), state_of(second)
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
    assert log_of(first) == log_of(second)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__average": "ema", "model__dropout": 0.2, "augment__rotate": 10},
        {"train__optimizer": "sgd", "train__micro_batch": 10, "train__average": "lookahead"},
        {"train__precision": "bf16", "train__optimizer": "muon", "augment__flip": "alternating"},
        {"train__schedule": "plateau", "train__plateau_patience": 1, "train__average": "swa"},
        {"regularize__sharpness": 0.1, "regularize__sharpness_start": 0.4},
    ],
    ids=["plain", "ema-dropout", "accumulated-lookahead", "bf16-muon", "plateau-swa", "late-sharp"],
)
@pytest.mark.parametrize("updates", [3, "epoch"])
def test_stopped_and_resumed_training_equals_the_uninterrupted_one(
    changes: dict[str, Any], updates: int | str, tiny_dataset: Any, tiny_recipe: Any,
    tmp_path: Path, stop_at: Stop,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, **changes)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole", seed=3)
    steps = next(row["step"] for row in whole.metrics if "epoch" in row)
    stop_at(steps if updates == "epoch" else int(updates))
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "parts", seed=3)
    parts = resume(tmp_path / "parts", data=tiny_dataset)
    assert_same(whole, parts)
    assert "resumed" not in whole.facts
    assert parts.facts["resumed"] == [steps if updates == "epoch" else updates]


def test_a_training_stopped_in_its_last_look_after_patience_was_over_is_not_trained_on(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_recipe, train__patience=1, train__min_delta=0.9)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole", seed=3)
    assert whole.facts["stopped_early"]
    looks, real = [], loop.evaluate

    def evaluate(*words: Any) -> Any:
        looks.append(words)
        if len(looks) == 3:  # of two epochs, and the last one
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*words)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    with pytest.raises(Preempted):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "parts", seed=3)
    parts = resume(tmp_path / "parts", data=tiny_dataset)
    assert_same(whole, parts)
    assert parts.facts["stopped_early"]
    longer = resume(parts, data=tiny_dataset, epochs=6)
    assert len(log_of(longer)) == 3, "more epochs come with patience anew"


def test_a_stop_between_the_last_step_of_an_epoch_and_its_look_changes_no_bit(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    stop_at: Stop,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, train__precision="bf16")
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole", seed=3)
    with monkeypatch.context() as patch:
        stop_at(next(row["step"] for row in whole.metrics if "epoch" in row))
        with pytest.raises(Interrupted):
            train(tiny_dataset, recipe=recipe, out=tmp_path / "parts", seed=3)
        looks, real = [], loop.evaluate
        patch.setattr(loop, "evaluate", lambda *words: looks.append(words[2:]) or real(*words))
        patch.setattr(keep, "tell_changes", lambda _: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            resume(tmp_path / "parts", data=tiny_dataset)
        assert looks[0] != (nullcontext,), "what is kept of this look is not to be in fp32"
        assert len(looks) == 2
    parts = resume(tmp_path / "parts", data=tiny_dataset)
    assert_same(whole, parts)


def test_a_budget_that_is_over_at_the_end_of_an_epoch_leaves_a_checkpoint_of_it(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.evaluate

    def slow(*words: Any) -> Any:
        time.sleep(4.0)
        return real(*words)

    monkeypatch.setattr(loop, "evaluate", slow)
    monkeypatch.setattr(loop, "evaluation_seconds", lambda *_: 0.01)
    recipe = recipe_of(tiny_recipe).override(train__epochs=1000)
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r", budget=4.0)
    steps = next(row["step"] for row in run.metrics if "epoch" in row)
    with Checkpoints(run.path / "checkpoints") as kept:
        found = kept.newest()
    assert found is not None
    assert found.step == steps


def test_a_streamed_training_stopped_in_an_epoch_resumes_to_the_same_bits(
    digits_folder: Path, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    recipe = recipe_of(tiny_recipe, data__storage="stream", augment__crop=0.5)
    whole = train(digits_folder, recipe=recipe, out=tmp_path / "whole", seed=3)
    stop_at(3)
    with pytest.raises(Interrupted):
        train(digits_folder, recipe=recipe, out=tmp_path / "parts", seed=3)
    parts = resume(tmp_path / "parts")
    assert parts.data["settings"]["storage"] == "stream"
    assert_same(whole, parts)


def test_sigterm_saves_and_says_so_with_its_own_exit_code(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    recipe = recipe_of(tiny_recipe)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole")
    stop_at(2, signal.SIGTERM)
    with pytest.raises(Preempted, match="resume") as caught:
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert caught.value.exit_code == 75
    run = resume(tmp_path / "r", data=tiny_dataset)
    assert run.facts["resumed"] == [2]
    assert_same(whole, run)


def test_five_breaks_with_other_threads_and_intervals_change_no_bit_and_skip_no_sample(
    digits_folder: Path, tiny_recipe: Any, tmp_path: Path, stop_at: Stop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, data__storage="stream", augment__crop=0.5)
    whole = train(digits_folder, recipe=recipe, out=tmp_path / "whole", seed=3)
    seen, real = [], loop.train_step

    def watched(network: Any, batch: Any, *others: Any) -> Any:
        seen.extend(batch.ids.tolist())
        return real(network, batch, *others)

    monkeypatch.setattr(loop, "train_step", watched)
    often = recipe.override(train__checkpoint_seconds=1e-6)
    for threads in (1, 4, 2, 3, 1):
        monkeypatch.setattr(reader, "core_count", lambda count=threads: count)
        stop_at(4)
        with pytest.raises(Interrupted):
            train(digits_folder, recipe=often, out=tmp_path / "parts", seed=3)
    parts = resume(tmp_path / "parts")
    assert parts.facts["resumed"] == [4, 8, 12, 16, 20]
    count = sum(parts.data["counts"]["train"].values())
    assert [sorted(seen[at : at + count]) for at in range(0, len(seen), count)] == EPOCHS * [
        list(range(count))
    ]
    assert_same(whole, parts)


def test_the_same_command_again_resumes_and_another_one_is_refused(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    recipe, out = recipe_of(tiny_recipe), tmp_path / "r"
    stop_at(4)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe, out=out)
    other = recipe.override(train__learning_rate=0.5)
    with pytest.raises(UsageError, match=r"train.learning_rate is .*, got 0.5"):
        train(tiny_dataset, recipe=other, out=out)
    with pytest.raises(UsageError, match="seed is 0, got 1"):
        train(tiny_dataset, recipe=recipe, out=out, seed=1)
    with pytest.raises(UsageError, match=r"budget is None, got 600\.0"):
        train(tiny_dataset, recipe=recipe, out=out, budget="10m")
    with pytest.raises(UsageError, match=r"train.precision is 'fp32', got 'auto'"):
        train(tiny_dataset, recipe=recipe.override(train__precision="auto"), out=out)
    with pytest.raises(UsageError, match=r"model.name is 'cnn_small', got 'cnn_medium'"):
        train(tiny_dataset, recipe=recipe.override(model__name="cnn_medium"), out=out)
    pixels = np.array(tiny_dataset.splits["train"].inputs)
    with pytest.raises(UsageError, match=r"data is '\w+', got '\w+'"):
        train((pixels, tiny_dataset.splits["train"].targets), recipe=recipe, out=out)
    assert train(tiny_dataset, recipe=recipe, out=out).facts["status"] == "finished"
    with pytest.raises(UsageError, match="already holds a run"):
        train(tiny_dataset, recipe=recipe, out=out)


def test_finished_training_resumes_only_with_more_epochs(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    run = train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    with pytest.raises(UsageError, match="is finished after 3 epochs"):
        resume(run, data=tiny_dataset)
    longer = resume(run, data=tiny_dataset, epochs=EPOCHS + 2)
    assert longer.recipe.train.epochs == EPOCHS + 2
    assert [epoch for _, epoch, *_ in log_of(longer)] == [1, 2, 3, 4, 5]


def test_a_finished_run_without_checkpoints_is_not_begun_anew(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    run = train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    weights = run.weights.read_bytes()
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        resume(run, data=tiny_dataset, epochs=9)
    assert run.weights.read_bytes() == weights
    assert run.facts["status"] == "finished"


def test_resuming_with_another_module_changes_nothing(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    stop_at(4)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    before = (tmp_path / "r" / "run.json").read_text("utf-8")
    with pytest.raises(UsageError, match="holds model 'cnn_small'"):
        resume(tmp_path / "r", data=tiny_dataset, model=torch.nn.Flatten())
    assert (tmp_path / "r" / "run.json").read_text("utf-8") == before


def test_what_was_found_in_the_data_survives_a_resumption(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    finding = Finding(name="duplicates", severity="warning", message="two are the same")
    dataset = replace(tiny_dataset, findings=(finding,))
    stop_at(4)
    with pytest.raises(Interrupted):
        train(dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    assert resume(tmp_path / "r").findings == [finding]


def test_extension_that_fails_leaves_the_finished_run_finished(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    weights, facts, recipe = run.weights.read_bytes(), run.facts, run.recipe

    def diverges(*given: Any) -> Any:
        raise DivergedError("step 99: the loss is nan, not finite")

    monkeypatch.setattr(loop, "train_step", diverges)
    with pytest.raises(DivergedError):
        resume(run, data=tiny_dataset, epochs=9)
    assert run.facts["status"] == "finished"
    assert run.weights.read_bytes() == weights
    assert run.measured("accuracy")
    assert run.facts == facts
    assert run.recipe == recipe


def test_broken_off_extension_leaves_the_finished_run_finished(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")

    def broken_off(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "resolve", broken_off)
    with pytest.raises(KeyboardInterrupt):
        resume(run, data=tiny_dataset, epochs=9)
    assert run.facts["status"] == "finished"


def test_a_resumption_goes_on_without_what_only_the_first_machine_had(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(speeds, "SECONDS", 0.1)
    monkeypatch.setattr(OUTPUT, "quiet", False)
    stop_at(4)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe_of(tiny_recipe, train__precision="auto"),
              out=tmp_path / "r")  # fmt: skip
    run = open_run(tmp_path / "r")
    there = {**run.facts["resolved"], "train__precision": "fp16", "train__compile": True}
    update_facts(run, resolved=there)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert resume(run, data=tiny_dataset).facts["status"] == "finished"
    told = capsys.readouterr().err
    assert "not to the bit" in told
    assert "fp16 needs a CUDA device, got cpu; the precision is chosen anew" in told
    assert "no C++ compiler (no-such-compiler); it goes on without compiling" in told
    assert run.facts["resolved"] == there, "where it is there again, it is used again"


def test_a_compiler_that_is_there_and_fails_is_told_and_done_without(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("cc1plus: not found")

    monkeypatch.setattr(OUTPUT, "quiet", False)
    monkeypatch.setattr(compiled, "missing_compiler", lambda _: "")
    monkeypatch.setattr(torch, "compile", lambda _: fail)
    assert possible(tiny_recipe, {"train__compile": True}) == {"train__compile": False}
    assert "the compiler does not work (RuntimeError)" in capsys.readouterr().err
    monkeypatch.setattr(torch, "compile", lambda call: call)
    assert possible(tiny_recipe, {"train__compile": True}) == {"train__compile": True}


def test_what_the_recipe_demands_and_what_is_here_is_kept(
    tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = {"train__precision": "bf16", "train__compile": False, "train__batch_size": 32}
    assert possible(tiny_recipe.override(train__precision="auto"), settled) == settled
    monkeypatch.setenv("CXX", "no-such-compiler")
    demanded = {"train__precision": "fp16", "train__compile": True}
    assert possible(tiny_recipe.override(**demanded), demanded) == demanded


def test_a_moved_and_a_copied_run_resume_to_the_same_bits(
    digits_folder: Path, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    whole = train(digits_folder, recipe=recipe_of(tiny_recipe), out=tmp_path / "whole")
    stop_at(4)
    with pytest.raises(Interrupted):
        train(digits_folder, recipe=recipe_of(tiny_recipe), out=tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "far" / "copied")
    shutil.move(tmp_path / "here", tmp_path / "moved")
    for run in (resume(tmp_path / "moved"), resume(tmp_path / "far" / "copied")):
        assert run.facts["resumed"] == [4]
        assert_same(whole, run)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_bits(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    recipe = recipe_of(tiny_recipe, train__checkpoint_seconds=1e-6)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole")
    stop_at(5)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    older, newest = sorted((tmp_path / "r" / "checkpoints").iterdir())
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    run = resume(tmp_path / "r", data=tiny_dataset)
    assert run.facts["resumed"] == [int(older.name[-8:])]
    assert_same(whole, run)


def test_a_save_for_which_there_is_no_room_is_told_and_costs_the_training_nothing(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = recipe_of(tiny_recipe, train__checkpoint_seconds=1e-6)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole")
    monkeypatch.setattr(OUTPUT, "quiet", False)
    failpoints.arm("checkpoint.before_manifest:2:enospc")
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert "No space left on device" in capsys.readouterr().err
    assert_same(whole, run)


def test_a_log_for_which_there_is_no_room_ends_the_training_which_goes_on_to_the_same_bits(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_recipe, train__checkpoint_seconds=1e-6)
    whole = train(tiny_dataset, recipe=recipe, out=tmp_path / "whole")
    failpoints.arm("log.before_row:9:enospc")
    with pytest.raises(MachineError, match="No space left") as caught:
        train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert caught.value.exit_code == 6
    run = train(tiny_dataset, recipe=recipe, out=tmp_path / "r")
    assert run.facts["resumed"]
    assert_same(whole, run)


def test_a_broken_off_run_that_lost_its_checkpoints_is_not_begun_anew_in_silence(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    stop_at(4)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    weights = (tmp_path / "r" / "weights.safetensors").read_bytes()
    with pytest.raises(UsageError, match="holds no checkpoint"):
        train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    assert (tmp_path / "r" / "weights.safetensors").read_bytes() == weights


def test_damaged_checkpoints_are_never_passed_over_in_silence(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path, stop_at: Stop
) -> None:
    stop_at(4)
    with pytest.raises(Interrupted):
        train(tiny_dataset, recipe=recipe_of(tiny_recipe), out=tmp_path / "r")
    for file in (tmp_path / "r" / "checkpoints").glob("*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MachineError, match="damaged"):
        resume(tmp_path / "r", data=tiny_dataset)
    assert open_run(tmp_path / "r").metrics
