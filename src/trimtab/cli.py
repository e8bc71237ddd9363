"""The command line: one function per verb: parse, call, print, exit code."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.console import (
    emit,
    end_at_once,
    harmless_lines,
    leave,
    show_comparison,
    show_plan,
    show_run,
    verdict_lines,
)
from trimtab.errors import TrimtabError
from trimtab.machine.progress import OUTPUT, harmless

if TYPE_CHECKING:
    from trimtab.records.recipe import Recipe

EXIT_MISSED, EXIT_STARVED, EXIT_INTERRUPTED = 3, 4, 130


def print_json(chosen: bool) -> bool:
    """Set where results and progress go: with --json, one object on stdout and silence beside."""
    OUTPUT.json, OUTPUT.quiet = chosen, chosen
    return chosen


app = typer.Typer(
    name="trimtab",
    help="Point it at your data and a target; get the smallest model that meets it, proven.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[str, typer.Argument(help="folder of class folders, or a CSV, TSV or Parquet file")]
RunFolder = Annotated[Path, typer.Argument(help="run folder")]
Budget = Annotated[str, typer.Option(help="time for the whole job: 90s, 30m, 2h")]
MaybeBudget = Annotated[str | None, typer.Option("--budget", help="time limit: 90s, 30m, 2h")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="recipe file (YAML)")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, repeatable")
]
Out = Annotated[Path | None, typer.Option("--out", help="folder to write; default below runs/")]
Json = Annotated[
    bool, typer.Option("--json", callback=print_json, help="print one JSON object, nothing else")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="seed of split, weights and order")
]


@app.command()
def fit(
    data: Data,
    target: Annotated[
        str, typer.Option(help='clauses, e.g. "accuracy>=0.92, p95<=10ms, size<=5MB"')
    ],
    budget: Budget = "30m",
    recipe: RecipeFile = None,
    set_: Settings = None,
    out: Out = None,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and screen only")] = False,
    as_json: Json = False,
) -> None:
    """Do the whole job: check, screen, train, prune, quantize, export, verify, report."""
    from trimtab.plan.fit import fit as run_fit
    from trimtab.plan.fit import plan

    chosen = read_choices(recipe, set_)
    if dry_run:
        return show_plan(plan(data, target, budget=budget, recipe=chosen, seed=seed))
    finish_fit(run_fit(data, target, budget=budget, recipe=chosen, out=out, seed=seed))
    return None


def finish_fit(run: Any) -> None:
    """Print the table, the verdict and the report's path; exit with the verdict's code."""
    from trimtab.plan.finish import summary
    from trimtab.records.files import read_json

    verdict = read_json(run.path / "verdict.json")
    if OUTPUT.json:
        emit(summary(run.path))
    else:
        print(harmless_lines(run.table()))
        print(verdict_lines(verdict))
        print(f"artifact: {run.path / 'artifact'}\nreport:   {run.path / 'report.html'}")
    if not verdict["target_met"]:
        raise typer.Exit(EXIT_STARVED if verdict["starved"] else EXIT_MISSED)


@app.command()
def check(
    data: Data, recipe: RecipeFile = None, set_: Settings = None, seed: Seed = 0,
    as_json: Json = False) -> None:  # fmt: skip
    """Look at the data: counts, sizes, unreadable files, duplicates, missing classes."""
    from trimtab.data.check import check as look

    found = look(data, read_choices(recipe, set_), seed=seed)
    emit(found.to_dict()) if OUTPUT.json else print(harmless_lines(str(found)))


@app.command("lr-find")
def lr_find(
    data: Data, recipe: RecipeFile = None, set_: Settings = None, out: Out = None, seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="updates at the most")] = 100,
    as_json: Json = False) -> None:  # fmt: skip
    """Sweep the learning rate for a hundred steps and suggest one."""
    from trimtab.train.lr_find import lr_find as look

    found = look(data, recipe=read_choices(recipe, set_), steps=steps, out=out, seed=seed)
    if OUTPUT.json:
        return emit({**found.to_dict(), "path": str(found.path)})
    print(harmless_lines(f"{found}\npicture: {found.path / 'lr_find.svg'}"))
    return None


@app.command()
def train(
    data: Data, recipe: RecipeFile = None, set_: Settings = None, budget: MaybeBudget = None,
    out: Out = None, seed: Seed = 0, as_json: Json = False) -> None:  # fmt: skip
    """Train one network."""
    from trimtab.train.run import train as run_train

    run = run_train(data, recipe=read_choices(recipe, set_), budget=budget, out=out, seed=seed)
    show_run(run)


@app.command()
def compare(
    data: Data,
    models: Annotated[str, typer.Option(help="two names or more, with commas between them")],
    budget: MaybeBudget = None,
    recipe: RecipeFile = None,
    set_: Settings = None,
    seeds: Annotated[int, typer.Option(help="trainings of each, from --seed on")] = 1,
    out: Out = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train several models alike and measure their files side by side: one table."""
    from trimtab.plan.compare import compare as run_compare

    show_comparison(run_compare(data, models, budget=budget, recipe=read_choices(recipe, set_),
                                out=out, seed=seed, seeds=seeds))  # fmt: skip


@app.command()
def resume(
    run: RunFolder,
    epochs: Annotated[
        int | None, typer.Option(help="passes in all, to go on with a finished one")
    ] = None,
    data: Annotated[str | None, typer.Option(help="the data, where they have moved")] = None,
    as_json: Json = False,
) -> None:
    """Go on with a training that was stopped, from its newest checkpoint."""
    from trimtab.train.run import resume as run_resume

    show_run(run_resume(run, epochs=epochs, data=data))


@app.command()
def prune(
    run: RunFolder,
    keep: Annotated[float | None, typer.Option(help="share of channels kept, in (0, 1]")] = None,
    importance: Annotated[
        str | None, typer.Option(help="magnitude, output_variance, or package.module:function")
    ] = None,
    data: Annotated[str | None, typer.Option(help="the data, where they have moved")] = None,
    budget: MaybeBudget = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Cut channels out of a run's network and fine-tune what is left."""
    from trimtab.compress.prune import prune as run_prune

    show_run(run_prune(run, keep=keep, importance=importance, data=data, budget=budget, out=out))


@app.command()
def quantize(
    run: RunFolder,
    scheme: Annotated[str, typer.Argument(help="int8")] = "int8",
    data: Annotated[str | None, typer.Option(help="the data, where they have moved")] = None,
    ranges: Annotated[str | None, typer.Option(help="minmax, percentile or mse")] = None,
    out: Out = None, as_json: Json = False) -> None:  # fmt: skip
    """Make an int8 graph of a run, its ranges set by train samples."""
    from trimtab.compress.quantize import quantize as run_quantize

    show_run(run_quantize(run, scheme, data=data, ranges=ranges, out=out))


@app.command()
def export(
    run: RunFolder,
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help="onnx")] = "onnx",
    data: Annotated[str | None, typer.Option(help="the data, where they have moved")] = None,
    out: Out = None, as_json: Json = False) -> None:  # fmt: skip
    """Write the artifact of a run: model file, labels, card, predict.py; parity proven first."""
    from trimtab.export.bundle import export as run_export

    artifact = run_export(run, format_, data=data, out=out)
    row = {"artifact": str(artifact.path), "size_bytes": artifact.size_bytes}
    emit({**row, "card": artifact.card}) if OUTPUT.json else print(f"artifact: {artifact.path}")


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="run folder or artifact folder")],
    data: Annotated[str | None, typer.Option(help="the data, where they have moved")] = None,
    as_json: Json = False,
) -> None:
    """Measure an artifact again: parity, decision flips, latency, against its fp32 parent."""
    from trimtab.export.verify import verify as run_verify

    found = run_verify(model, data=data)
    if OUTPUT.json:
        return emit(found)
    for key, value in found.items():
        print(f"{key}: {value}")
    return None


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")], out: Out = None,
    as_json: Json = False) -> None:  # fmt: skip
    """Draw one offline HTML page of runs."""
    from trimtab.report.page import report as draw

    path = draw(*runs, out=out)
    emit({"report": str(path)}) if OUTPUT.json else print(f"report: {path}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="run folder or artifact folder")],
    pictures: Annotated[list[Path], typer.Argument(help="picture files")],
    as_json: Json = False,
) -> None:
    """Label pictures with an artifact."""
    from trimtab.export.predict import predict as run_predict

    rows = run_predict(model, *pictures)
    if OUTPUT.json:
        emit({"predictions": rows})
    for row in [] if OUTPUT.json else rows:
        text = row.get("error") or f"{row['label']}  {100 * row['probability']:.1f} %"
        print(f"{harmless(str(row['path']))}: {harmless(str(text))}")
    if any(row.get("error") for row in rows):
        raise typer.Exit(5)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: versions, processor, disk, cache, extras."""
    from trimtab.machine.doctor import as_text
    from trimtab.machine.doctor import doctor as look

    found = look()
    emit(found) if OUTPUT.json else print(harmless_lines(as_text(found)))


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="folder that holds runs")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs of a folder."""
    from trimtab.records.run import list_runs

    rows = [{"run": str(r.path), "kind": "run", "status": "unfinished", **r.facts,
             "accuracy": (r.measured("accuracy") or {}).get("value")}
            for r in list_runs(folder)]  # fmt: skip
    if OUTPUT.json:
        return emit({"runs": rows})
    for row in rows:
        accuracy = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
        print(harmless(f"{row['run']}  {row['kind']}  {row['status']}  {accuracy}"))
    if not rows:
        print(f"no runs in {folder}")
    return None


@app.command()
def version() -> None:
    """Print the version."""
    from trimtab import __version__

    print(__version__)


def read_choices(recipe: Path | None, settings: list[str] | None) -> Recipe:
    """Return the recipe of a file with `--set` applied."""
    from trimtab.records.recipe import Recipe, apply_settings, read_recipe

    chosen = read_recipe(recipe) if recipe is not None else Recipe()
    return apply_settings(chosen, settings or [])


def command() -> None:
    """Run the command line as a process of its own, which ends with it."""
    try:
        main()
    except SystemExit as end:
        end_at_once(end)
    except KeyboardInterrupt:  # once more, while it was told how it ends
        end_at_once(SystemExit(EXIT_INTERRUPTED))
    end_at_once(SystemExit(0))


def main() -> None:
    """Run the command line and turn errors into one message and an exit code."""
    OUTPUT.began = time.monotonic()
    try:
        app()
    except TrimtabError as error:
        leave(error, error.exit_code)
    except KeyboardInterrupt:
        leave(TrimtabError("stopped by Ctrl-C"), EXIT_INTERRUPTED)
    except Exception as error:  # the last stand: a bug is one line, the traceback on request
        if "TRIMTAB_DEBUG" in os.environ:
            raise
        what = f"internal error: {type(error).__name__}: {error}"
        leave(TrimtabError(what, "set TRIMTAB_DEBUG=1 for the traceback, and please report it"), 1)
