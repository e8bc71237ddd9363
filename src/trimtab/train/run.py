"""The verb `train`: data and a recipe to a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.data.dataset import Dataset, dataset_of, open_dataset
from trimtab.errors import UsageError
from trimtab.machine.interrupt import stoppable, stopped
from trimtab.machine.progress import began
from trimtab.models.build import adopt_module, build
from trimtab.models.pretrained import require_named
from trimtab.records.files import (
    length_of,
    locked,
    rewind,
    write_bytes,
    write_json,
    write_text,
)
from trimtab.records.finding import warn
from trimtab.records.recipe import Recipe, as_recipe
from trimtab.records.run import (
    LEDGER,
    Run,
    folder_for,
    label_of,
    open_run,
    require_no_run,
    require_seed,
    reserved,
    start_run,
    update_facts,
)
from trimtab.records.schema import Schema
from trimtab.records.sections import ModelSection
from trimtab.records.target import parse_duration
from trimtab.train.checkpoint import Checkpoint
from trimtab.train.finish import finish
from trimtab.train.flip import settle_flip
from trimtab.train.initial import first_network
from trimtab.train.keep import FOLDER, PROLONGED, possible
from trimtab.train.loop import TrainResult, train_network
from trimtab.train.resolution import tell_unshrunk
from trimtab.train.steps import faults, step_folders

SMALL_SIDE = 64
FLIP_SHARE = 0.15
SETTLED = ("augment.flip", "auto")  # the one choice that a run writes down anew


def train(
    data: Any, *, recipe: Recipe | str | Path | None = None, model: nn.Module | None = None,
    budget: str | float | None = None, out: str | Path | None = None, seed: int = 0,
) -> Run:  # fmt: skip
    """Train one network on `data` and return its run.

    `data` is what `check` takes; `model` a user's own module that takes float pixels normalised
    per channel (N, C, H, W) and returns logits (N, K); `budget` a duration such as "10m", which
    ends the training even where epochs are left; for a command it counts from its start. Raises
    TrimtabError; after Ctrl-C the run is complete on disk and Interrupted is raised, after SIGTERM
    Preempted.
    """
    recipe, started = as_recipe(recipe), began()
    seconds = parse_duration(budget) if budget is not None else None
    path = folder_for(out, label_of(data))
    require_seed(seed)
    with stoppable(), reserved(path):
        require_unfinished(path)
        dataset = open_dataset(data, recipe, seed=seed)
        warn(dataset.findings)
        recipe = with_model(recipe, dataset.schema, model)
        spent = time.monotonic() - started
        if is_run(path):
            again(Run(path), dataset, recipe, model=model, seed=seed, budget=seconds, spent=spent)
        else:
            write_json(path / "data.json", dataset.describe(path))
            run = start_run(path, kind="train", label=recipe.model.name, recipe=recipe, seed=seed,
                            budget=seconds, budget_seconds=seconds)  # fmt: skip
            train_into(run, dataset, recipe, model=model, budget_seconds=without(seconds, spent),
                       seed=seed)  # fmt: skip
    return ended(Run(path))


def resume(
    run: Run | str | Path, *, epochs: int | None = None, data: Any = None,
    model: nn.Module | None = None,
) -> Run:  # fmt: skip
    """Go on with a training from its newest checkpoint, to the same bits as without the break.

    A finished one goes on where `epochs` says more than it had; its schedule then runs over all of
    them. `data` where they have moved, `model` where the run was trained from a user's own module.
    Raises UsageError for a run that `train` did not make and for one that is finished,
    MachineError where all its checkpoints are damaged.
    """
    run = open_run(run)
    if run.facts["kind"] != "train":
        raise UsageError(f"{run.path} was made by {run.facts['kind']}, and only trainings resume",
                         "repeat the command that made it")  # fmt: skip
    require_resumable(run, epochs)
    recipe = run.recipe
    if epochs is not None:
        recipe = recipe.override(train__epochs=epochs)
    if model is not None and (got := adopt_module(model)) != recipe.model.name:
        raise UsageError(f"{run.path} holds model '{recipe.model.name}', got '{got}'",
                         "pass the module the run was trained from")  # fmt: skip
    with stoppable(), locked(run.path):
        dataset = dataset_of(run, data)
        build(dataset.schema, recipe)  # a model that is not here is told before a change
        go_on(run, dataset, recipe, model=model)
    return ended(run)


def require_resumable(run: Run, epochs: int | None) -> None:
    """Raise UsageError for an ended run without more to do or without a checkpoint."""
    state = run.facts.get("status", "broken off")
    if state == "finished" or epochs is not None:
        done, wanted = epochs_done(run), epochs or 0
        if wanted < done or (wanted == done and state == "finished"):
            raise UsageError(f"{run.path} is {state} after {done:.4g} epochs",
                             "resume it with more: --epochs, or epochs= in Python")  # fmt: skip
    if "status" in run.facts and not has_checkpoint(run):
        raise UsageError(f"{run.path} holds no checkpoint to go on from",
                         "inside a fit or compare none is kept, and where there was no room "
                         "there is none: train anew, into another folder (--out)")  # fmt: skip


def epochs_done(run: Run) -> float:
    """Return the epochs behind a run, by how it ended or else by its newest whole checkpoint."""
    if "status" in run.facts:
        return float(run.facts["epochs"])
    folders = step_folders(run.path / FOLDER) if has_checkpoint(run) else []
    newest = next((path for path in folders if not faults(path)), None)
    if newest is None:
        return 0.0
    looked = next((row for row in run.metrics if "epoch" in row), None)
    if looked is None:  # it has not come to the end of its first epoch
        return 0.0
    return float(Checkpoint(newest).facts["step"] * looked["epoch"] / looked["step"])


def has_checkpoint(run: Run) -> bool:
    """Return whether a training can go on from where it was."""
    folder = run.path / FOLDER
    return folder.is_dir() and bool(step_folders(folder))


def again(
    run: Run, dataset: Dataset, recipe: Recipe, *, model: nn.Module | None, seed: int,
    budget: float | None, spent: float,
) -> None:  # fmt: skip
    """Resume an unfinished run by the command that began it, `spent` seconds after it was called.

    Raises UsageError for another command, and where an ended run has lost its checkpoints.
    """
    require_resumable(run, None)
    require_same(run, dataset, recipe, seed=seed, budget=budget)
    found = run.recipe.override(model__pretrained=recipe.model.pretrained)  # with its whole path
    go_on(run, dataset, found, model=model, spent=spent)


def require_same(run: Run, dataset: Dataset, recipe: Recipe, **told: Any) -> None:
    """Raise UsageError where a command tells other facts, data or choices than `run` holds."""
    kept = {**{key: run.facts.get(key) for key in told}, **flat(run.recipe)}
    told = {**told, "data": dataset.fingerprint, **flat(recipe)}
    told["storage"] = dataset.settings.get("storage")
    if (run.path / "data.json").exists():
        kept["data"] = run.data["fingerprint"]
        kept["storage"] = run.data["settings"].get("storage", told["storage"])
    changed = [f"{key} is {kept[key]!r}, got {told[key]!r}" for key in told.keys() & kept.keys()
               if told[key] != kept[key] and (key, told[key]) != SETTLED]  # fmt: skip
    if changed:
        other = "comparison" if run.facts["kind"] == "compare" else "training"
        raise UsageError(f"{run.path} holds another {other}: {'; '.join(sorted(changed)[:3])}",
                         "choose another folder with --out, or resume it as it is")  # fmt: skip


def go_on(
    run: Run, dataset: Dataset, recipe: Recipe, *, model: nn.Module | None, spent: float = 0.0
) -> None:
    """Train on in a run folder, as its first training was told to.

    `spent` seconds count against a budget that no training has begun to use. An ended run that
    does not come to another end stays what it was.
    """
    before = run.facts
    facts = {key: value for key, value in before.items() if key != "status"}
    known = {}
    if "status" in before:
        facts["ledger_bytes"] = length_of(run.path / LEDGER)
        known = {name: (run.path / name).read_bytes() for name in ("recipe.yaml", "run.json")}
    if before.get("status") == "finished":
        facts["budget_seconds"] = None  # more epochs are what is asked for now
        facts[PROLONGED] = before["epochs"]
    write_json(run.path / "run.json", facts)
    rewind(run.path / LEDGER, facts.get("ledger_bytes", 0))  # else each end would stand there twice
    left = without(facts.get("budget_seconds"), 0.0 if "begun" in facts else spent)
    try:
        train_into(run, dataset, recipe, model=model, budget_seconds=left, seed=facts["seed"])
    except BaseException:
        for name, content in known.items():  # the facts last
            write_bytes(run.path / name, content)
        raise


def without(seconds: float | None, spent: float) -> float | None:
    """Return what is left of a budget, if there is one."""
    return None if seconds is None else max(0.0, seconds - spent)


def ended(run: Run) -> Run:
    """Return `run`; raises Interrupted or Preempted where a signal ended it."""
    if run.facts["status"] == "interrupted":
        best = "best" if run.recipe.train.restore_best else "last"
        way = f"go on with `trimtab resume {run.path}`"
        if not has_checkpoint(run):
            way = "it cannot go on: no checkpoint could be written"
        raise stopped(f"the {best} weights so far are in {run.path}", way)
    return run


def require_unfinished(path: Path) -> None:
    """Raise UsageError where `path` holds a run that no training command goes on with."""
    facts = Run(path).facts if is_run(path) else {"kind": "train"}
    if facts["kind"] != "train" or facts.get("status") == "finished":
        require_no_run(path)


def is_run(path: str | Path) -> bool:
    """Return whether a folder holds a run, finished or not."""
    return (Path(path) / "run.json").is_file()


def flat(recipe: Recipe) -> dict[str, Any]:
    """Return the choices of a recipe by `section.field`."""
    sections = recipe.portable().model_dump(mode="json", exclude={"version"})
    return {f"{section}.{field}": value for section, fields in sections.items()
            for field, value in fields.items()}  # fmt: skip


def with_model(recipe: Recipe, schema: Schema, model: nn.Module | None) -> Recipe:
    """Return the recipe with a network's name: the user's own, the named one, or the usual one."""
    if model is not None:
        if recipe.model != ModelSection():
            raise UsageError("the recipe describes a model, and model= gives another",
                             "leave out the recipe's model section, or model=")  # fmt: skip
        return recipe.override(model__name=adopt_module(model))
    require_named(recipe)
    if recipe.model.name != "auto":
        return recipe
    small = min(schema.height, schema.width) <= SMALL_SIDE
    return recipe.override(model__name="cnn_medium" if small else "mobilenetv3_small_100")


def train_into(
    run: Run, dataset: Dataset, recipe: Recipe, *, model: nn.Module | None = None,
    budget_seconds: float | None = None, seed: int = 0, resumable: bool = True,
) -> TrainResult:  # fmt: skip
    """Train the recipe's network and fill the started `run` with weights and measurements.

    It goes on from the newest checkpoint in the run; a `resumable` one writes them. The budget
    counts from here.
    """
    started = time.monotonic()
    write_json(run.path / "data.json", dataset.describe(run.path))
    if not (run.path / "findings.json").exists():
        write_json(run.path / "findings.json", [f.model_dump() for f in dataset.findings])
    network, taken = first_network(dataset, recipe, seed=seed, model=model,
                                   restored=has_checkpoint(run))  # fmt: skip
    tell_unshrunk(recipe, dataset)
    if taken and run.measured("pretrained") is None:
        run.record("pretrained", **taken)
    recipe = recipe.override(**run.facts.get("settled", {}))
    if recipe.augment.flip == "auto":
        recipe = settle(run, network, dataset, recipe, seed=seed, seconds=budget_seconds)
    left = without(budget_seconds, time.monotonic() - started)
    update_facts(run, budget_seconds=left, resumable=resumable)
    write_text(run.path / "recipe.yaml", recipe.to_yaml())
    resolved = recipe.override(**possible(recipe, run.facts.get("resolved", {})))
    result = train_network(network, dataset, resolved, run, seed=seed, budget_seconds=left)
    finish(run, network, result, dataset)
    return result


def settle(
    run: Run, network: nn.Module, dataset: Dataset, recipe: Recipe, *, seed: int,
    seconds: float | None,
) -> Recipe:  # fmt: skip
    """Decide by trial whether to flip, and write that down; return the settled recipe."""
    trial = FLIP_SHARE * seconds if seconds is not None else None
    recipe = settle_flip(network, dataset, recipe, run, seed=seed, budget_seconds=trial)
    update_facts(run, settled={"augment__flip": recipe.augment.flip},
                 ledger_bytes=length_of(run.path / LEDGER))  # fmt: skip
    return recipe
