"""The verb `fit`: data, a target and a budget to a verified, compressed model with a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from trimtab.compress.importance import IMPORTANCES
from trimtab.compress.ranges import RANGES
from trimtab.data.dataset import open_dataset
from trimtab.machine.interrupt import stoppable, stopped
from trimtab.machine.progress import clock, say
from trimtab.models.pretrained import require_named
from trimtab.plan.budget import COMPRESS, SCREEN, Budget
from trimtab.plan.finish import finish
from trimtab.plan.job import Job
from trimtab.plan.screen import candidate_names, screen
from trimtab.plan.stages import (
    compress_stage,
    flip_stage,
    heat_stage,
    pick_heats,
    screen_stage,
    train_stage,
)
from trimtab.records.files import write_json
from trimtab.records.finding import warn
from trimtab.records.recipe import Recipe, as_recipe
from trimtab.records.run import (
    Run,
    folder_for,
    label_of,
    require_no_run,
    reserved,
    start_run,
)
from trimtab.records.target import parse_duration, parse_target
from trimtab.registry import lookup
from trimtab.train.losses import LOSSES
from trimtab.train.optimizers import find_optimizer
from trimtab.train.run import with_model
from trimtab.train.schedules import SCHEDULES


def fit(
    data: Any,
    target: str,
    *,
    budget: str | float = "30m",
    recipe: Recipe | str | Path | None = None,
    model: nn.Module | None = None,
    out: str | Path | None = None,
    seed: int = 0,
) -> Run:
    """Return the run of the smallest, fastest model found that meets `target` within `budget`.

    `data` is what `check` takes, `target` clauses such as "accuracy>=0.92, p95<=10ms, size<=5MB",
    `budget` a duration that bounds the whole job. Whether the target was met stands in
    `verdict.json`; where it was missed the nearest candidate ships. Raises TrimtabError for what
    cannot be used, and when the folder holds what was reached: Interrupted after Ctrl-C, Preempted
    after SIGTERM.
    """
    goal, left = parse_target(target), Budget(parse_duration(budget))
    chosen = as_recipe(recipe)
    require_parts(chosen)
    path = folder_for(out, label_of(data))
    with stoppable(), reserved(path):
        require_no_run(path)
        dataset = open_dataset(data, chosen, seed=seed)
        warn(dataset.findings)
        if model is not None:
            chosen = with_model(chosen, dataset.schema, model)
        run = start_run(path, kind="fit", label=label_of(data), recipe=chosen, seed=seed)
        write_json(path / "data.json", dataset.describe(path))
        write_json(path / "findings.json", [f.model_dump() for f in dataset.findings])
        job = Job(run, dataset, chosen, goal, left, seed, model)
        try:
            work(job)
        except KeyboardInterrupt:
            job.interrupted = True
            say("stopping: saving what was reached (Ctrl-C again leaves at once)")
        except Exception:
            if job.candidates or job.heats:
                finish(job)  # what was reached is kept, then the error is told
            raise
        finish(job)
    if job.interrupted:
        raise stopped(f"what was reached is in {path}", f"open {path / 'report.html'}")
    return run


def require_parts(recipe: Recipe) -> None:
    """Raise UsageError for a part that does not exist, before any time is spent."""
    require_named(recipe)
    find_optimizer(recipe.train.optimizer)
    lookup("schedule", SCHEDULES, recipe.train.schedule)
    lookup("loss", LOSSES, recipe.train.loss)
    lookup("importance", IMPORTANCES, recipe.compress.importance)
    lookup("range", RANGES, recipe.compress.ranges)


def work(job: Job) -> None:
    """Do all stages up to the choice."""
    counts = {name: len(split) for name, split in job.dataset.splits.items()}
    say(f"data: {counts}, {len(job.dataset.schema.classes)} classes")
    say("screen: untrained candidates on this machine (p95, file, parameters)")
    fitting = screen_stage(job)
    flip_stage(job, fitting)
    entrants = pick_heats(job, fitting)
    heat = heat_stage(job, entrants)
    say(f"train: {clock(job.budget.before(COMPRESS))} at the most")
    base = train_stage(job, entrants[0].name, heat)
    say("compress: each edit is kept only where it pays")
    compress_stage(job, base)


def plan(
    data: Any,
    target: str,
    *,
    budget: str | float = "30m",
    recipe: Recipe | str | Path | None = None,
    model: nn.Module | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what `fit` would do: data, screened candidates, seconds per stage."""
    goal, seconds = parse_target(target), parse_duration(budget)
    chosen = as_recipe(recipe)
    require_parts(chosen)
    dataset = open_dataset(data, chosen, seed=seed)
    warn(dataset.findings)
    if model is not None:
        chosen = with_model(chosen, dataset.schema, model)
    rows = screen(dataset.schema, chosen, goal, seconds=SCREEN * seconds, model=model)
    shares = Budget(seconds).shares()
    return {
        "target": str(goal), "splits": {name: len(s) for name, s in dataset.splits.items()},
        "classes": list(dataset.schema.classes), "input": list(dataset.schema.input_shape),
        "candidates": list(candidate_names(dataset.schema, chosen)),
        "screen": [row.to_dict() for row in rows],
        "at_most_seconds": {name: round(share, 1) for name, share in shares.items()},
    }  # fmt: skip
