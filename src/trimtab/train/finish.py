"""The end of a training: its weights, what was measured, and what went wrong on the way."""

from __future__ import annotations

from torch import nn

from trimtab.data.dataset import Dataset
from trimtab.machine.device import device_name
from trimtab.models.build import macs_and_params, save_weights
from trimtab.records.files import write_json
from trimtab.records.finding import Finding, warn
from trimtab.records.run import Run, update_facts
from trimtab.train.loop import TrainResult

PAST = "past_its_best"


def finish(run: Run, network: nn.Module, result: TrainResult, dataset: Dataset) -> None:
    """Write the weights, what was measured, and what went wrong on the way."""
    save_weights(network, run.weights)
    late = [*dataset.lost, *hurried(result, run.facts.get("budget")), *fallen(result)]
    known = [finding for finding in run.findings if finding.name != PAST]  # of an earlier end
    found = [*known, *(finding for finding in late if finding not in known)]
    if found != run.findings:
        write_json(run.path / "findings.json", [finding.model_dump() for finding in found])
    macs, params = macs_and_params(network, dataset.schema)
    device = device_name(result.settings.device)
    seed = run.facts["seed"]
    run.record("accuracy", result.scores.accuracy, low=result.scores.low, high=result.scores.high,
               n=result.scores.n, split="valid", seed=seed, device=device)  # fmt: skip
    run.record("f1", result.scores.f1, n=result.scores.n, split="valid", seed=seed)
    run.record("train_seconds", result.seconds, "s", device=device, epochs=result.epochs)
    if result.forecast and not (result.interrupted or result.stopped_early):
        worst = max(result.forecast.values(), key=abs)
        run.record("eta_error", worst, "of what was left", **result.forecast)
    run.record(
        "images_per_second",
        result.images_per_second,
        "1/s",
        device=device,
        precision=result.settings.precision,
        batch_size=result.settings.batch_size,
    )
    if not result.settings.scale.fixed:
        run.record("skipped_steps", result.settings.scale.skipped, "steps", device=device)
    run.record("params", params)
    run.record("macs", macs)
    update_facts(run, status="interrupted" if result.interrupted else "finished",
                 epochs=result.epochs, stopped_early=result.stopped_early)  # fmt: skip


def fallen(result: TrainResult) -> list[Finding]:
    """Tell of last weights that are worse than earlier ones were, by more than chance explains."""
    if result.interrupted or result.scores.high >= result.best:
        return []
    found = [Finding(
        name=PAST, severity="warning",
        message=f"the last weights decide {100 * result.scores.accuracy:.1f} % of valid rightly; "
        f"earlier in the training it was {100 * result.best:.1f} %",
        evidence={"accuracy": result.scores.accuracy, "best": result.best},
        remedy="train.restore_best=true ends with the best, a lower rate may not lose them",
    )]  # fmt: skip
    warn(found)
    return found


def hurried(result: TrainResult, budget: float | None) -> list[Finding]:
    """Tell of a budget that ended a training before it had seen every picture once."""
    if budget is None or result.interrupted or result.epochs >= 1:
        return []
    message = (f"the budget of {budget:g} s was over after {100 * result.epochs:.2g} % of one pass "
               "through the data: the rest was never seen")  # fmt: skip
    found = [Finding(
        name="short_budget", severity="warning", message=message,
        evidence={"budget_seconds": budget, "epochs": result.epochs},
        remedy="give it more time, fewer or smaller pictures, or a smaller model",
    )]  # fmt: skip
    warn(found)
    return found
