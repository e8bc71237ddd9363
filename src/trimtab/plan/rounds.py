"""The stages of a comparison: screening, one trial for all, equal shares, a training of each."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from trimtab.errors import BudgetError
from trimtab.export.bundle import Artifact, export
from trimtab.export.onnx import open_onnx, write_onnx
from trimtab.machine.progress import clock, progress, say
from trimtab.models.build import build
from trimtab.plan.budget import FLIP
from trimtab.plan.candidates import score_file, write_scores
from trimtab.plan.contest import Contest, Member
from trimtab.plan.screen import screen_one
from trimtab.records.files import write_json, write_text
from trimtab.records.run import Run, start_run, update_facts
from trimtab.records.table import screen_line
from trimtab.records.target import Target
from trimtab.train.flip import settle_flip
from trimtab.train.initial import first_network
from trimtab.train.keep import FOLDER
from trimtab.train.run import go_on, is_run, train_into


def screen_stage(contest: Contest) -> None:
    """Build, export and time every model untrained; one that cannot is out."""
    say("screen: untrained models on this machine (p95, file, parameters)")
    names = [member.name for member in contest.members]
    with progress(len(names), "screen") as bar, tempfile.TemporaryDirectory() as folder:
        if contest.budget is not None:
            load_exporter(contest, Path(folder) / "first.onnx")
        for index, member in enumerate(contest.members):
            bar.update(index, member.name)
            with contest.guarded(member):
                screen_member(contest, member, Path(folder) / f"{index}.onnx")
    rows = [m.screened.to_dict() for m in contest.members if m.screened]
    write_json(contest.run.path / "screen.json", rows)
    require_alive(contest)


def load_exporter(contest: Contest, path: Path) -> None:
    """Export a small network, so that the first model's screening is not charged with the loading.

    What screening takes is what is kept for exporting later.
    """
    recipe = contest.recipe.override(model__name="cnn_small", model__width=1.0)
    write_onnx(build(contest.dataset.schema, recipe), contest.dataset.schema, path)


def screen_member(contest: Contest, member: Member, path: Path) -> None:
    """Measure one model untrained."""
    started = time.monotonic()
    recipe = contest.recipe.override(model__name=member.name)
    found = screen_one(contest.dataset.schema, recipe, Target(()), path, model=None, skip=False,
                       enough=False)  # fmt: skip
    member.screened = replace(found, why="")
    member.screen_seconds = time.monotonic() - started
    say("  " + screen_line(member.screened.to_dict()).rstrip())


def flip_stage(contest: Contest) -> None:
    """Settle `augment.flip` once for all models, by a trial of the fastest that can be trained."""
    for member in sorted(contest.alive, key=contest.epoch_seconds):
        if contest.recipe.augment.flip != "auto":
            break
        with contest.guarded(member):
            recipe = contest.recipe.override(model__name=member.name)
            network, _ = first_network(contest.dataset, recipe, seed=contest.seeds[0])
            seconds = contest.budget.share(FLIP) if contest.budget else None
            settled = settle_flip(network, contest.dataset, recipe, contest.run,
                                  seed=contest.seeds[0], budget_seconds=seconds)  # fmt: skip
            contest.recipe = contest.recipe.override(augment__flip=settled.augment.flip)
    require_alive(contest)
    write_text(contest.run.path / "recipe.yaml", contest.recipe.to_yaml())


def share_stage(contest: Contest) -> None:
    """Give every training the same seconds; a model that would not see every picture once is out.

    Raises BudgetError where that is all of them.
    """
    if contest.budget is not None:
        needed = budget_for_one_epoch(contest)
        while contest.alive:
            share = contest.share()
            slowest = max(contest.alive, key=contest.epoch_seconds)
            if contest.epoch_seconds(slowest) <= share:
                break
            contest.fail(slowest, too_slow(contest.epoch_seconds(slowest), share))
        if not contest.alive:
            raise BudgetError(
                f"no model would see every picture once in {lasting(contest.budget.seconds)}",
                f"one epoch of each takes about --budget {math.ceil(needed)}s; give more than that",
            )
        contest.share_seconds = contest.share()
        say(f"train: {lasting(contest.share_seconds)} at the most for each training")
    update_facts(contest.run, share_seconds=contest.share_seconds)


def lasting(seconds: float) -> str:
    """Return seconds as `0.42 s`, or as `1m03s` where they are many."""
    return f"{seconds:.2g} s" if seconds < 60 else clock(seconds)


def too_slow(epoch_seconds: float, share: float) -> BudgetError:
    """Return the reason of a model that is too slow for its share."""
    return BudgetError(f"one epoch takes about {lasting(epoch_seconds)}, and the share of each "
                       f"training is {lasting(share)}", "give more --budget")  # fmt: skip


def budget_for_one_epoch(contest: Contest) -> float:
    """Return the budget in which all models would see every picture once."""
    assert contest.budget is not None
    slowest = max(contest.epoch_seconds(member) for member in contest.alive)
    trainings = len(contest.alive) * len(contest.seeds)
    return 1.1 * (contest.budget.used + contest.kept_seconds() + trainings * slowest) + 1


def train_member(contest: Contest, member: Member, seed: int) -> None:
    """Train one model with one seed, or take what is there of it, export it and score the file."""
    assert member.screened is not None
    run = trained(contest, member, seed)
    path, threads = run.path / "artifact", member.screened.threads
    made = Artifact(path) if path.exists() else export(run, data=contest.dataset, threads=threads)
    scores = score_file(open_onnx(made.model, threads=threads), contest.dataset)
    write_scores(run, scores, made)
    shutil.rmtree(run.path / FOLDER, ignore_errors=True)  # a member of a finished table stays
    member.runs.append(run)
    member.artifacts.append(made)
    member.scores.append(scores)
    say(f"  {run.path.name}: {100 * scores.accuracy:.1f} % on valid, "
        f"{run.facts['epochs']:.3g} epochs")  # fmt: skip


def trained(contest: Contest, member: Member, seed: int) -> Run:
    """Return the trained run of a member; raises KeyboardInterrupt where the user stopped it."""
    path = contest.folder(member, seed)
    recipe = contest.recipe.override(model__name=member.name)
    run = Run(path)
    if not is_run(path):
        share = contest.share_seconds
        run = start_run(path, kind="train", label=member.name, recipe=recipe, seed=seed,
                        budget=share, budget_seconds=share)  # fmt: skip
        train_into(run, contest.dataset, recipe, budget_seconds=share, seed=seed)
    elif run.facts.get("status") != "finished":
        go_on(run, contest.dataset, recipe, model=None)
    if run.facts["status"] == "interrupted":
        raise KeyboardInterrupt
    if run.facts["epochs"] < 1:
        raise BudgetError(f"saw {100 * run.facts['epochs']:.0f} % of the train pictures once in "
                          f"its share of {lasting(contest.share_seconds or 0)}",
                          "give more --budget")  # fmt: skip
    return run


def require_alive(contest: Contest) -> None:
    """Raise what the first model failed with where all have failed."""
    if contest.alive:
        return
    first = contest.members[0].failed
    assert first is not None
    raise type(first)(f"no model could be measured; {contest.members[0].name}: {first.message}",
                      first.hint)  # fmt: skip
