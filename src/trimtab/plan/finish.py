"""The end of a fit: open the test split once, judge, ship, write everything down, report."""

from __future__ import annotations

import base64
import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trimtab.data.dataset import Split
from trimtab.errors import ExportError
from trimtab.export.bundle import Artifact, seal, staged
from trimtab.export.onnx import open_onnx
from trimtab.machine.interrupt import stop_on_interrupt
from trimtab.machine.progress import say
from trimtab.measure.latency import Latency, measure_latency
from trimtab.measure.quality import Scores, logits_of, score
from trimtab.plan.candidates import LATENCY_SECONDS, Candidate, assess, failed_row
from trimtab.plan.choose import binding, choose
from trimtab.plan.job import Job
from trimtab.records.files import explained, read_json, write_json, write_text
from trimtab.records.run import relative, update_facts
from trimtab.report.page import report

WORST = 30
TILE = 96
MODEL_FILES = ("data.json", "findings.json", "edits.json", "weights.safetensors", "model.int8.onnx")


def finish(job: Job) -> None:
    """Conclude; a Ctrl-C that comes only now waits for the end, a second one leaves at once."""
    if job.interrupted:
        conclude(job)
        return
    with stop_on_interrupt() as stop:
        conclude(job)
    job.interrupted = stop.requested


def conclude(job: Job) -> None:
    """Choose on valid, judge on test, ship the artifact and write table, verdict and report."""
    found = None if job.candidates else rescue(job)
    if found is not None:
        job.candidates.append(found)
    if job.candidates:
        ship(job)
    rows = [h.row() for h in job.heats] + [c.row() for c in job.candidates] + job.failed
    write_json(job.run.path / "table.json", rows)
    update_facts(job.run, status="interrupted" if job.interrupted else "finished")
    report(job.run)


def rescue(job: Job) -> Candidate | None:
    """Make a candidate of the best heat that can be exported, so that a fit still ships something.

    None where there is no such heat; one that fails becomes a row that says why.
    """
    for heat in sorted(job.heats, key=lambda h: -float(h.accuracy["value"])):
        job.heats.remove(heat)
        try:
            return assess(heat.run, heat.screened.name, ("train",), dataset=job.dataset,
                          threads=heat.screened.threads)  # fmt: skip
        except ExportError as error:
            job.failed.append(failed_row(heat.run.name, ("short training",), None, error))
    return None


def ship(job: Job) -> None:
    """Choose, judge and copy the chosen candidate into the fit's own run."""
    chosen = choose(job.candidates, job.target)
    chosen.chosen = True
    split = "test" if "test" in job.dataset.splits else "valid"
    scores = judged(chosen, job.dataset.splits[split], split)
    chosen.latency = measured_again(chosen, job.dataset.splits[split])
    got = {**chosen.got, "accuracy": scores.accuracy, "f1": scores.f1}
    copy_model(job, chosen)
    artifact = Artifact(job.run.path / "artifact")
    copy_artifact(chosen.artifact, artifact)
    verdict = write_verdict(job, chosen, got, scores)
    seal(artifact, verdict=verdict, latency=chosen.latency.to_dict(), accuracy=scores.to_dict())
    write_errors(job, scores, job.dataset.splits[split])
    job.run.record("accuracy", scores.accuracy, low=scores.low, high=scores.high, n=scores.n,
                   split=split, seed=job.seed)  # fmt: skip
    for clause in verdict["clauses"]:
        job.run.record("verdict", clause["met"], metric=clause["metric"], got=clause["got"])


def judged(chosen: Candidate, samples: Split, split: str) -> Scores:
    """Score the chosen file on the split that gives the verdict."""
    if split == "valid":
        return chosen.scores
    call = open_onnx(chosen.artifact.model, threads=chosen.latency.threads)
    return score(logits_of(call, samples), samples.targets, split=split)


def measured_again(chosen: Candidate, samples: Split) -> Latency:
    """Time the chosen file once more: the measurement that won the choice is a lucky one."""
    threads = chosen.latency.threads
    once = partial(open_onnx(chosen.artifact.model, threads=threads), samples.inputs[:1].copy())
    found = measure_latency(once, seconds=LATENCY_SECONDS, threads=threads)
    chosen.run.record("latency", found.p50_ms, "ms", **found.to_dict())
    return found


def copy_artifact(source: Artifact, target: Artifact) -> None:
    """Copy an artifact folder, whole or not at all."""
    with staged(target.path) as folder:
        for file in source.path.iterdir():
            with explained(folder / file.name):
                shutil.copy2(file, folder)


def copy_model(job: Job, chosen: Candidate) -> None:
    """Give the fit's run the chosen recipe, edits and weights, so that it loads like any run."""
    for name in MODEL_FILES:
        source = chosen.run.path / name
        if source.exists():
            with explained(job.run.path / name):
                shutil.copy2(source, job.run.path / name)
    write_json(job.run.path / "data.json", job.dataset.describe(job.run.path))
    write_text(job.run.path / "recipe.yaml", chosen.run.recipe.to_yaml())
    for what in ("params", "macs"):
        job.run.record(what, int(chosen.fact(what)))
    update_facts(job.run, chosen=relative(chosen.run.path, job.run.path))


def write_verdict(
    job: Job, chosen: Candidate, got: dict[str, float | None], scores: Scores
) -> dict[str, Any]:
    """Write and return verdict.json."""
    clauses = job.target.judge(got)
    met = all(row["met"] for row in clauses)
    verdict = {
        "target": str(job.target), "target_met": met, "clauses": clauses, "split": scores.split,
        "accuracy": scores.to_dict(), "f1": scores.f1, "chosen": chosen.name,
        "binding": binding(got, job.target), "starved": job.starved,
        "seconds": round(job.budget.used, 2), "budget_seconds": job.budget.seconds,
        "seed": job.seed, "interrupted": job.interrupted,
    }  # fmt: skip
    write_json(job.run.path / "verdict.json", verdict)
    say(f"{chosen.name} ships; judged on {scores.split}")
    return verdict


def write_errors(job: Job, scores: Scores, samples: Split) -> None:
    """Write confusion.json, and errors.json: the errors it was surest of come first."""
    classes = list(job.dataset.schema.classes)
    write_json(
        job.run.path / "confusion.json",
        {"split": scores.split, "classes": classes, "matrix": scores.confusion},
    )
    shifted = scores.logits - scores.logits.max(axis=1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    decided = scores.logits.argmax(axis=1)
    sure = probability[np.arange(len(decided)), decided]
    wrong = np.flatnonzero(~scores.correct)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:WORST]
    rows = [{"id": samples.ids[i], "image": picture(samples.inputs[i]),
             "truth": classes[scores.targets[i]], "predicted": classes[decided[i]],
             "probability": float(sure[i])} for i in worst]  # fmt: skip
    write_json(job.run.path / "errors.json", rows)


def picture(pixels: NDArray[np.uint8]) -> str:
    """Return pixels (H, W, C) as a base64 PNG of about 96 pixels."""
    image = Image.fromarray(np.asarray(pixels).squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    nearest = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    buffer = io.BytesIO()
    image.resize(size, nearest).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def summary(path: Path) -> dict[str, Any]:
    """Return what `fit --json` prints for a finished run folder."""
    verdict = read_json(path / "verdict.json") if (path / "verdict.json").exists() else {}
    artifact = path / "artifact"
    return {
        "run": str(path), "artifact": str(artifact) if artifact.exists() else None,
        "report": str(path / "report.html"), "target_met": verdict.get("target_met", False),
        "clauses": verdict.get("clauses", []), "table": read_json(path / "table.json"),
        "seconds": verdict.get("seconds"),
    }  # fmt: skip
