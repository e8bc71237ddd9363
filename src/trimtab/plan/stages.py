"""The stages of a fit between screening and choosing: flip trial, heats, training, compression."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trimtab.compress.prune import prune
from trimtab.compress.quantize import quantize
from trimtab.errors import CompressError, DivergedError, ExportError
from trimtab.machine.progress import say
from trimtab.plan.budget import COMPRESS, FLIP, HEATS, SCREEN
from trimtab.plan.candidates import Candidate, assess, failed_row, gate, missing
from trimtab.plan.finish import rescue
from trimtab.plan.job import Heat, Job
from trimtab.plan.screen import Screened, screen
from trimtab.records.files import write_json
from trimtab.records.run import Run
from trimtab.records.table import screen_line
from trimtab.train.flip import settle_flip
from trimtab.train.initial import first_network

HEAT_COUNT = 3
ENOUGH_EPOCHS = 4
CLOSE = 0.005


def screen_stage(job: Job) -> list[Screened]:
    """Time all candidates untrained and return those that can meet the target."""
    job.screened = screen(job.dataset.schema, job.recipe, job.target,
                          seconds=job.budget.share(SCREEN), model=job.model)  # fmt: skip
    write_json(job.run.path / "screen.json", [row.to_dict() for row in job.screened])
    fitting = [row for row in job.screened if row.fits]
    for row in job.screened:
        say("  " + screen_line(row.to_dict()))
    if not fitting:
        timed = [row for row in job.screened if row.p95_ms is not None]
        fitting = [min(timed, key=lambda row: (row.size_bytes or 0, row.p95_ms or 0.0))]
        say(f"no candidate can meet the target; going on with the nearest, {fitting[0].name}")
    return fitting


def flip_stage(job: Job, fitting: list[Screened]) -> None:
    """Settle `augment.flip` by a trial of the fastest candidate."""
    if job.recipe.augment.flip != "auto":
        return
    fastest = max(fitting, key=lambda row: row.images_per_second or 0.0)
    recipe = job.recipe.override(model__name=fastest.name)
    network, _ = first_network(job.dataset, recipe, seed=job.seed, model=job.model)
    settled = settle_flip(
        network, job.dataset, recipe, job.run, seed=job.seed,
        budget_seconds=job.budget.share(FLIP),
    )  # fmt: skip
    job.recipe = job.recipe.override(augment__flip=settled.augment.flip)


def pick_heats(job: Job, fitting: list[Screened]) -> list[Screened]:
    """Return up to three candidates, from small to large, that can see enough epochs in time.

    Those that can meet the target without losing channels go before those that cannot.
    """
    samples = len(job.dataset.splits["train"])
    seconds = job.budget.before(HEATS, COMPRESS)
    seen = {row.name: (row.images_per_second or 0) * seconds / samples for row in fitting}
    whole = [row for row in fitting if row.whole] or fitting
    able = [row for row in whole if seen[row.name] >= ENOUGH_EPOCHS]
    able = able or [max(whole, key=lambda row: seen[row.name])]
    able.sort(key=lambda row: row.capacity)
    if len(able) <= HEAT_COUNT:
        return able
    return [able[0], able[len(able) // 2], able[-1]]


def heat_stage(job: Job, entrants: list[Screened]) -> Heat | None:
    """Train a few candidates shortly and return the best one; None where there is one only.

    Each for about as many epochs as the others, so that a large network is not judged by fewer.
    From small to large, until one is sure to meet the wanted accuracy. One that diverges is out.
    """
    job.threads = entrants[0].threads
    if len(entrants) == 1:
        return None
    seconds = job.budget.share(HEATS)
    costs = [1 / (row.images_per_second or 1.0) for row in entrants]
    for row, cost in zip(entrants, costs, strict=True):
        try:
            heat = run_heat(job, row, seconds * cost / sum(costs))
        except DivergedError as error:
            job.failed.append(failed_row(f"heat-{row.name}", ("short training",), None, error))
            say(f"  heat {row.name}: {error.message}")
            continue
        if is_sure(job, heat):
            break
    return pick_winner(job) if job.heats else None


def run_heat(job: Job, row: Screened, seconds: float) -> Heat:
    """Train one candidate shortly and note what it reached."""
    run, complete = job.train(f"heat-{row.name}", row.name, seconds)
    accuracy = run.measured("accuracy")
    assert accuracy is not None
    kept = {key: accuracy[key] for key in ("value", "low", "high", "n", "split")}
    job.heats.append(Heat(row, run, kept, complete))
    say(f"  heat {row.name}: {100 * kept['value']:.1f} % on valid")
    return job.heats[-1]


def is_sure(job: Job, heat: Heat) -> bool:
    """Return whether the whole interval of a heat's accuracy is above what is wanted."""
    wanted = job.target.wanted("accuracy")
    return wanted is not None and float(heat.accuracy["low"]) >= wanted


def pick_winner(job: Job) -> Heat:
    """Return the heat that is sure to meet the accuracy, else the smallest near the best."""
    best = max(heat.accuracy["value"] for heat in job.heats)
    near = [h for h in job.heats if h.accuracy["value"] >= best - CLOSE]
    sure = [h for h in job.heats if is_sure(job, h)]
    winner = sure[0] if sure else min(near, key=lambda h: h.screened.capacity)
    for heat in job.heats:
        heat.why = "goes on" if heat is winner else "another went on"
    job.threads = winner.screened.threads
    return winner


def train_stage(job: Job, first: str, heat: Heat | None) -> Candidate:
    """Train the winner, or `first`, for what time is left: the base of all edits.

    Where the training diverges, or its file does not agree with it, the best heat stands in; the
    error is raised where there is none.
    """
    label = heat.screened.name if heat else first
    try:
        base = train_winner(job, label, heat)
    except (DivergedError, ExportError) as error:
        say(f"  {label}: {error.message}")
        found = rescue(job)
        if found is None:
            raise
        job.failed.append(failed_row(f"{label}-failed", ("train",), None, error))
        base, job.threads = found, found.latency.threads
    base.why = missing(base, job.target) or "meets the target"
    job.candidates.append(base)
    say(f"  {base.name}: {100 * base.scores.accuracy:.1f} % on valid, {base.why}")
    return base


def train_winner(job: Job, label: str, heat: Heat | None) -> Candidate:
    """Train the network `label`, or take its heat where that ran to its end, and measure it."""
    if heat is not None and heat.complete:
        job.heats.remove(heat)
        run = heat.run
    else:
        run, _ = job.train(label, label, job.budget.before(COMPRESS))
    job.starved = float(run.facts["epochs"]) < 1
    return assess(run, label, ("train",), dataset=job.dataset, threads=job.threads)


def compress_stage(job: Job, base: Candidate) -> None:
    """Try pruned shares from large to small until one is not kept, then int8 on all that was."""
    shares = sorted(job.recipe.compress.prune_keep, reverse=True)
    for index, keep in enumerate(shares):
        seconds = job.budget.before() / (len(shares) - index)
        pruned = prune_one(job, base, keep, seconds)
        if pruned is not None and not pruned.kept:
            break
    if job.recipe.compress.quantize == "none":
        return
    for parent in [c for c in job.candidates if c.kept]:
        name = f"{parent.name}-int8"
        attempt(
            job,
            name,
            parent,
            (*parent.steps, "int8"),
            partial(quantize, parent.run, data=job.dataset, out=job.folder(name)),
        )


def prune_one(job: Job, base: Candidate, keep: float, seconds: float) -> Candidate | None:
    """Make, measure and judge one pruned candidate."""
    name = f"{base.name}-keep{round(100 * keep)}"
    return attempt(
        job,
        name,
        base,
        (*base.steps, f"prune {round(100 * keep)} %"),
        lambda: prune(
            base.run,
            keep=keep,
            importance=job.recipe.compress.importance,
            data=job.dataset,
            budget=max(1.0, seconds),
            out=job.folder(name),
        ),
    )


def attempt(
    job: Job, name: str, parent: Candidate, steps: tuple[str, ...], make: Callable[[], Run]
) -> Candidate | None:
    """Make a child of `parent` and judge it by the gate; a failure becomes a row that says why."""
    if job.budget.left <= 0:
        late = CompressError("not tried: the budget was used up", "give more --budget")
        job.failed.append(failed_row(name, steps, parent, late))
        return None
    try:
        run = make()
        if run.facts.get("status") == "interrupted":
            raise KeyboardInterrupt
        child = assess(run, name, steps, dataset=job.dataset, threads=job.threads, parent=parent)
    except (ExportError, CompressError, DivergedError) as error:
        job.failed.append(failed_row(name, steps, parent, error))
        say(f"  {name}: {error.message}")
        return None
    gate(child, job.target, job.recipe)
    job.candidates.append(child)
    say(f"  {name}: {'kept' if child.kept else 'not kept'}, {child.why}")
    return child
