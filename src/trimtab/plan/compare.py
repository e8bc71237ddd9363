"""The verb `compare`: several models on the same data, with the same time, in one table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from trimtab.data.dataset import open_dataset
from trimtab.errors import UsageError
from trimtab.export.onnx import open_onnx
from trimtab.machine.interrupt import stop_on_interrupt, stoppable, stopped
from trimtab.machine.progress import say
from trimtab.measure.latency import FEWEST_CALLS, in_turns, summary
from trimtab.models.pretrained import require_for_each
from trimtab.plan.budget import Budget
from trimtab.plan.candidates import LATENCY_SECONDS, Candidate, caller, failed_row
from trimtab.plan.contest import Contest, Member, members_of, named
from trimtab.plan.fit import require_parts
from trimtab.plan.ranking import Ranked, ranked_rows
from trimtab.plan.rounds import flip_stage, require_alive, screen_stage, share_stage, train_member
from trimtab.plan.screen import Screened
from trimtab.records.files import read_json, write_json
from trimtab.records.finding import warn
from trimtab.records.recipe import Recipe, as_recipe
from trimtab.records.run import (
    Run,
    folder_for,
    label_of,
    require_no_run,
    require_seed,
    reserved,
    start_run,
    update_facts,
)
from trimtab.records.target import parse_duration
from trimtab.report.page import report
from trimtab.train.run import is_run, require_same

MOST_SEEDS = 100


def compare(
    data: Any, models: str | Sequence[str | nn.Module], *, budget: str | float | None = None,
    recipe: Recipe | str | Path | None = None, out: str | Path | None = None, seed: int = 0,
    seeds: int = 1,
) -> Run:  # fmt: skip
    """Train `models` alike on `data`, measure their files side by side, and return the run.

    `data` is what `check` takes, `models` names or modules of your own. All get the same split,
    the same augmentation and the same seconds: an equal share of `budget`, which bounds the whole
    comparison; without one, the recipe's epochs. `seeds` trainings of each start from `seed`,
    `seed` + 1, and so on. Accuracy is that of the exported file on valid: a choice among many
    would use up the test split. A model that cannot be built, trained or exported is a row with
    the reason. The same call with the same `out` goes on with an unfinished comparison. Raises
    TrimtabError for what cannot be used and where no model could be measured; BudgetError where
    none would see every picture once; when the folder holds what was reached, Interrupted after
    Ctrl-C and Preempted after SIGTERM.
    """
    limit = Budget(parse_duration(budget)) if budget is not None else None
    chosen = as_recipe(recipe)
    members = members_of(named(models))
    require_comparable(chosen, members, seed, seeds)
    with stoppable(), placed(out, label_of(data)) as path:
        contest = begin(path, data, chosen, members, limit, range(seed, seed + seeds))
        try:
            work(contest)
        except KeyboardInterrupt:
            contest.interrupted = True
            say("stopping: saving what was reached (Ctrl-C again leaves at once)")
        finish(contest)
    return ended(contest)


def require_comparable(recipe: Recipe, members: list[Member], seed: int, seeds: int) -> None:
    """Raise UsageError for choices that a comparison cannot follow, before any time is spent."""
    require_parts(recipe.override(model__name=members[0].name))
    require_for_each(recipe, [member.name for member in members])
    if recipe.model.name != "auto":
        raise UsageError(f"the recipe names model '{recipe.model.name}', and so does models",
                         "leave out model.name, and name it among the models")  # fmt: skip
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"seeds is {seeds}, wanted 1 to {MOST_SEEDS}", "3 show the spread")
    require_seed(seed)
    require_seed(seed + seeds - 1)


@contextmanager
def placed(out: str | Path | None, label: str) -> Iterator[Path]:
    """Hold a new run folder, or that of a comparison to go on with."""
    path = folder_for(out, label)
    with reserved(path):
        if is_run(path):
            facts = Run(path).facts
            if facts["kind"] != "compare" or facts.get("status") == "finished":
                require_no_run(path)
        yield path


def begin(
    path: Path, data: Any, recipe: Recipe, members: list[Member], budget: Budget | None,
    seeds: range,
) -> Contest:  # fmt: skip
    """Start a comparison, or open the one in `path`, which must be the same."""
    dataset = open_dataset(data, recipe, seed=seeds[0])
    warn(dataset.findings)
    told: dict[str, Any] = {
        "models": [member.name for member in members], "seed": seeds[0], "seeds": len(seeds),
        "budget": budget.seconds if budget else None,
    }  # fmt: skip
    if is_run(path):
        require_same(Run(path), dataset, recipe, **told)
        return reopened(Contest(Run(path), dataset, Run(path).recipe, budget, seeds, members))
    run = start_run(path, kind="compare", label=label_of(data), recipe=recipe, **told)
    write_json(path / "data.json", dataset.describe(path))
    write_json(path / "findings.json", [f.model_dump() for f in dataset.findings])
    return Contest(run, dataset, recipe, budget, seeds, members)


def reopened(contest: Contest) -> Contest:
    """Take up what a comparison had settled before it was stopped, if it had come that far."""
    facts, path = contest.run.facts, contest.run.path / "screen.json"
    if "share_seconds" not in facts:
        return contest
    contest.share_seconds = facts["share_seconds"]
    screened = {row["name"]: Screened(**row) for row in read_json(path)}
    for member in contest.members:
        member.screened = screened.get(member.name)
        if member.name in facts.get("failed", {}):
            member.failed = UsageError(facts["failed"][member.name])
    return contest


def work(contest: Contest) -> None:
    """Do all stages up to the table."""
    counts = {name: len(split) for name, split in contest.dataset.splits.items()}
    say(f"data: {counts}, {len(contest.dataset.schema.classes)} classes")
    if "share_seconds" not in contest.run.facts:
        screen_stage(contest)
        flip_stage(contest)
        share_stage(contest)
    for member in contest.alive:
        with contest.guarded(member):
            for seed in contest.seeds:
                train_member(contest, member, seed)


def finish(contest: Contest) -> None:
    """Conclude; a Ctrl-C that comes only now waits for the end, a second one leaves at once."""
    if contest.interrupted:
        conclude(contest)
        return
    with stop_on_interrupt() as stop:
        conclude(contest)
    contest.interrupted = stop.requested


def conclude(contest: Contest) -> None:
    """Time the files side by side and write table and report."""
    rows = ranked_rows(ranked(contest)) if contest.complete else []
    left = [member for member in contest.members if member not in contest.complete]
    write_json(contest.run.path / "table.json", [*rows, *(row_of_none(one) for one in left)])
    facts = contest.run.facts
    update_facts(
        contest.run, status="interrupted" if contest.interrupted else "finished",
        seconds=round(facts.get("seconds", 0.0) + time.monotonic() - contest.started, 2),
        best=rows[0]["name"] if rows else None,
        front=[row["name"] for row in rows if row["front"]],
    )  # fmt: skip
    report(contest.run)


def ranked(contest: Contest) -> list[Ranked]:
    """Return everything measured; the first seed's files are timed in turns."""
    members = contest.complete
    threads = [member.screened.threads for member in members if member.screened]
    calls = [caller(open_onnx(member.artifacts[0].model, threads=each), contest.dataset)
             for member, each in zip(members, threads, strict=True)]  # fmt: skip
    say("measure: latency of the files, in turns")
    blocks = in_turns(calls, seconds=LATENCY_SECONDS * len(calls), fewest=FEWEST_CALLS)
    return [ranked_member(*one) for one in zip(members, blocks, threads, strict=True)]


def ranked_member(member: Member, blocks: list[Any], threads: int) -> Ranked:
    """Return what was measured of one member, and note its latency in its ledger."""
    latency = summary(np.concatenate(blocks), threads)
    run = member.runs[0]
    run.record("latency", latency.p50_ms, "ms", **latency.to_dict())
    made = Candidate(member.name, ("train",), run, member.artifacts[0], member.scores[0], latency)
    return Ranked(made, np.stack([scores.correct for scores in member.scores]), blocks,
                  [float(one.facts["epochs"]) for one in member.runs],
                  float(np.mean([scores.f1 for scores in member.scores])))  # fmt: skip


def row_of_none(member: Member) -> dict[str, Any]:
    """Return the row of a model that was not measured: it failed, or its turn did not come."""
    error = member.failed or UsageError("stopped before it was done; the same command goes on")
    row = {**failed_row(member.name, ("train",), None, error), "front": False, "epochs": [],
           "against_best": None, "seeds": None}  # fmt: skip
    if member.screened is not None:
        row.update(params=member.screened.params, macs=member.screened.macs)
    return row


def ended(contest: Contest) -> Run:
    """Return the run; raises Interrupted or Preempted after a signal, or why nothing is in it."""
    path = contest.run.path
    if contest.interrupted:
        raise stopped(f"what was finished is in {path / 'report.html'}",
                      f"the same command goes on, with --out {path}")  # fmt: skip
    require_alive(contest)
    return contest.run


def comparison(path: Path) -> dict[str, Any]:
    """Return what `compare --json` prints for a finished run folder."""
    facts = Run(path).facts
    kept = ("best", "front", "seed", "seeds", "seconds", "share_seconds")
    return {
        "run": str(path), "report": str(path / "report.html"), "split": "valid",
        **{key: facts.get(key) for key in kept}, "budget_seconds": facts.get("budget"),
        "table": read_json(path / "table.json"),
    }  # fmt: skip
