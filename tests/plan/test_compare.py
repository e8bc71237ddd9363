"""Several models on the same data: alike trained, paired, and no failure ends the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import trimtab as tt
from trimtab.errors import BudgetError, Interrupted, UsageError
from trimtab.measure.latency import Latency
from trimtab.measure.quality import score
from trimtab.plan import compare as room
from trimtab.plan import rounds, screen
from trimtab.plan.budget import Budget
from trimtab.plan.candidates import Candidate
from trimtab.plan.compare import comparison
from trimtab.plan.contest import Contest, members_of, named
from trimtab.plan.ranking import Ranked, ranked_rows
from trimtab.plan.screen import Screened
from trimtab.records.files import read_json
from trimtab.records.recipe import Recipe
from trimtab.records.table import layout, render

N = 400


class Net(nn.Module):
    """A network of a user: a hidden layer on raw pixels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(),
                                    nn.Linear(hidden, 10))  # fmt: skip

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)  # type: ignore[no-any-return]


def wanted_more(schema: Any, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a model that cannot be built."""
    raise MemoryError("not enough memory")


# Ranking, on made-up measurements


def ranked(name: str, right: np.ndarray[Any, Any], p95: float, size: int) -> Ranked:
    correct = np.atleast_2d(right)
    logits = np.where(correct[0][:, None], [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
    scores = score(logits, np.zeros(correct.shape[1], np.int64), split="valid")
    latency = Latency(p95, p95, p95, p95, p95, 20, 1)
    run: Any = SimpleNamespace(measured=lambda what: {"value": 10.0}, parent=None)
    file: Any = SimpleNamespace(size_bytes=size)
    made = Candidate(name, ("train",), run, file, scores, latency)
    blocks = [np.array([p95])] * 8
    return Ranked(made, correct, blocks, [3.0] * len(correct), scores.f1)


def first(n: int) -> np.ndarray[Any, Any]:
    return np.arange(N) < n


def test_the_most_accurate_comes_first_and_the_others_are_paired_with_it() -> None:
    rows = ranked_rows([ranked("weak", first(300), 1, 10), ranked("best", first(360), 2, 20)])
    assert [row["name"] for row in rows] == ["best", "weak"]
    assert rows[0]["against_best"] is None
    assert rows[1]["against_best"]["value"] == pytest.approx(-0.15)
    assert rows[1]["against_best"]["high"] < 0
    assert "less accurate, -15.0 points" in rows[1]["why"]
    assert rows[1]["speedup"]["value"] == pytest.approx(2.0)


def test_a_difference_that_may_be_chance_is_called_none_shown() -> None:
    rows = ranked_rows([ranked("a", first(360), 1, 10), ranked("b", first(359), 2, 20)])
    assert rows[1]["against_best"]["high"] >= 0
    assert "no difference shown" in rows[1]["why"]


def test_pairing_shows_what_overlapping_intervals_hide() -> None:
    """Twelve pictures of 400, all lost by the same model: the intervals overlap, the pairs tell."""
    rows = ranked_rows([ranked("a", first(360), 1, 10), ranked("b", first(348), 1, 10)])
    assert rows[1]["accuracy"]["high"] > rows[0]["accuracy"]["low"]
    assert "less accurate" in rows[1]["why"]


def test_the_front_holds_what_nothing_beats_in_all_three() -> None:
    rows = ranked_rows([
        ranked("best", first(390), 9, 90), ranked("fast", first(350), 1, 50),
        ranked("small", first(340), 5, 10), ranked("beaten", first(345), 2, 60),
    ])  # fmt: skip
    assert {row["name"] for row in rows if row["front"]} == {"best", "fast", "small"}


def test_equals_stand_on_the_front_together_and_the_faster_one_comes_first() -> None:
    rows = ranked_rows([ranked("a", first(300), 2, 10), ranked("b", first(300), 1, 20)])
    assert [row["name"] for row in rows] == ["b", "a"]
    assert all(row["front"] for row in rows)


def test_seeds_that_disagree_widen_the_interval_and_show_their_range() -> None:
    steady = np.stack([first(340), first(340), first(340)])
    shaky = np.stack([first(380), first(340), first(270)])
    rows = ranked_rows([ranked("steady", steady, 1, 10), ranked("shaky", shaky, 1, 10)])
    alone = ranked_rows([ranked("steady", steady[0], 1, 10), ranked("shaky", first(330), 1, 10)])
    assert rows[1]["seeds"] == {"n": 3, "low": 0.675, "high": 0.95,
                                "deviation": pytest.approx(0.1392, abs=1e-3)}  # fmt: skip
    assert "3 seeds 67.5-95.0 %" in rows[1]["why"]
    assert alone[1]["against_best"]["high"] < 0 < rows[1]["against_best"]["high"]
    assert rows[1]["accuracy"]["low"] < alone[1]["accuracy"]["low"]


def test_the_table_of_a_comparison_has_its_own_columns() -> None:
    rows = ranked_rows([ranked("a", first(360), 1, 10), ranked("[b]", first(300), 1, 10)])
    text = render(rows, 160, columns=layout("compare"))
    assert "MACs" in text.splitlines()[0]
    assert "epochs" in text.splitlines()[0]
    assert text.splitlines()[1].startswith("*  a")
    assert "[b]" in text


# Names


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ("", "two models or more, got 0"), ([], "got 0"), ("cnn_small", "got 1"),
        ("cnn_small,", "got 1"), ("cnn_small,resnet9", "unknown model 'resnet9'"),
        ("cnn_small, cnn_small", "stands twice"), ([Net(4), Net(4)], "stands twice"),
        (None, "nn.Module, got None"), (["cnn_small", 5], "nn.Module, got 5"), (Net(4), "got 1"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_compared_are_one_error(models: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        named(models)


def test_a_typo_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UsageError) as told:
        named("cnn_small,resnet88")
    assert "resnet8" in told.value.hint


def test_modules_of_ones_own_are_named_and_every_member_gets_its_folder() -> None:
    names = named(["cnn_small", Net(4), Net(8)])
    assert names[1].startswith("custom:Net-")
    folders = [member.folder for member in members_of([*names, "a.b:c", "a-b:c"])]
    assert len(set(folders)) == len(folders)
    assert all(folder.replace("-", "").replace("_", "").isalnum() for folder in folders)


# Shares


def contest(tmp_path: Path, budget: float, speeds: dict[str, float], seeds: int = 1) -> Contest:
    members = members_of(list(speeds))
    for member in members:
        member.screened = Screened(member.name, 10, 10, True, "", size_bytes=10, p50_ms=1.0,
                                   images_per_second=speeds[member.name])  # fmt: skip
        member.screen_seconds = 2.0
    (tmp_path / "run.json").write_text("{}")
    dataset: Any = SimpleNamespace(splits={"train": range(1000), "valid": range(100)})
    return Contest(tt.Run(tmp_path), dataset, Recipe(), Budget(budget), range(seeds), members)


def test_every_training_gets_the_same_share_and_all_of_it_fits_the_budget(tmp_path: Path) -> None:
    made = contest(tmp_path, 100, {"a": 1000.0, "b": 500.0}, seeds=2)
    rounds.share_stage(made)
    assert made.share_seconds is not None
    assert 4 * made.share_seconds + made.kept_seconds() == pytest.approx(100, abs=0.5)
    assert made.kept_seconds() > 2 * 2 * 2.0  # each export as long as its screening
    assert not [member for member in made.members if member.failed]


def test_a_model_too_slow_for_its_share_is_out_and_the_others_get_its_time(tmp_path: Path) -> None:
    made = contest(tmp_path, 60, {"a": 1000.0, "slow": 10.0})
    alone = contest(tmp_path, 60, {"a": 1000.0})
    rounds.share_stage(made)
    rounds.share_stage(alone)
    assert made.share_seconds == pytest.approx(alone.share_seconds, abs=0.5)
    reason = made.members[1].failed
    assert reason is not None
    assert "one epoch takes about 1m42s" in reason.message
    assert read_json(tmp_path / "run.json")["failed"].keys() == {"slow"}


def test_a_budget_too_small_for_any_says_what_it_would_need(tmp_path: Path) -> None:
    made = contest(tmp_path, 12, {"a": 50.0, "b": 20.0})
    with pytest.raises(BudgetError) as told:
        rounds.share_stage(made)
    needed = float(told.value.hint.partition("--budget ")[2].partition("s")[0])
    enough = contest(tmp_path, needed, {"a": 50.0, "b": 20.0})
    rounds.share_stage(enough)
    assert len(enough.alive) == 2


# Pretrained weights


def test_flip_is_tried_with_the_weights_that_a_training_starts_from(
    tmp_path: Path, tiny_dataset: Any, tiny_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[dict[str, Tensor]] = []

    def settled(network: Any, dataset: Any, recipe: Recipe, run: Any, **rest: Any) -> Recipe:
        tried.append(network.state_dict())
        return recipe.override(augment__flip=True)

    monkeypatch.setattr(rounds, "settle_flip", settled)
    made = contest(tmp_path, 100, {"cnn_small": 1000.0})
    made.dataset = tiny_dataset
    made.recipe = Recipe().override(model__pretrained=str(tiny_run.path))
    rounds.flip_stage(made)
    assert made.recipe.augment.flip is True
    wanted = load_file(tiny_run.weights)
    assert torch.equal(tried[0]["body.stem.conv.weight"], wanted["body.stem.conv.weight"])


def test_models_may_each_start_from_what_their_library_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    (place / "shufflenetv2_x0.5-f707e7126e.pth").write_bytes(b"weights")
    members = members_of(["shufflenet_v2_x0_5", "mobilenet_v2"])
    cached, fetched = (Recipe().override(model__pretrained=each) for each in ("cache", "download"))
    with pytest.raises(UsageError, match=r"mobilenet_v2 cannot start from cache: .*mobilenet_v2-"):
        room.require_comparable(cached, members, 0, 1)
    room.require_comparable(fetched, members, 0, 1)
    (place / "mobilenet_v2-7ebf99e0.pth").write_bytes(b"weights")
    room.require_comparable(cached, members, 0, 1)
    with pytest.raises(UsageError, match="cannot start from download: nobody publishes"):
        room.require_comparable(fetched, members_of(["mobilenet_v2", "cnn_small"]), 0, 1)


# Whole comparisons


class Poisoned(Net):
    """A network whose outputs are no numbers as soon as it is trained."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (float("nan") if self.training else 1.0)


@pytest.fixture(scope="module")
def quick(tiny_recipe: Any) -> Any:
    return tiny_recipe.override(model__name="auto", train__epochs=12)


@pytest.fixture(scope="module")
def asked(digits_folder: Path, quick: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `compare` is called with: two sound models, one that diverges, one without memory."""
    torch.manual_seed(0)
    models = ["cnn_small", Net(32), Poisoned(16), f"{__name__}:wanted_more"]
    out = tmp_path_factory.mktemp("compared") / "run"
    return {"data": digits_folder, "models": models, "recipe": quick, "out": out}


@pytest.fixture(scope="module")
def stopped(asked: Any) -> Any:
    """Stop a comparison by Ctrl-C when its second training begins; return its table and trainings.

    Timing is cut short: it is not what is tested here.
    """
    patch, begun = pytest.MonkeyPatch(), []
    patch.setattr(room, "LATENCY_SECONDS", 0.1)
    patch.setattr(screen, "LATENCY_SECONDS", 0.1)
    patch.setattr(screen, "PROBE_SECONDS", 0.1)

    def train_into(run: Any, *rest: Any, **settings: Any) -> Any:
        begun.append(run.path.name)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(run, *rest, **settings)

    real = rounds.train_into
    patch.setattr(rounds, "train_into", train_into)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with pytest.raises(Interrupted, match=r"report\.html") as told:
        tt.compare(**asked)
    table, status = read_json(asked["out"] / "table.json"), tt.Run(asked["out"]).facts["status"]
    yield SimpleNamespace(table=table, begun=begun, told=told.value, status=status)
    patch.undo()


@pytest.fixture(scope="module")
def compared(asked: Any, stopped: Any) -> Any:
    """Go on with the stopped comparison by the same call."""
    return tt.compare(**asked)


def rows_of(table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"].partition("-")[0].rpartition(":")[2]: row for row in table}


def test_a_stopped_comparison_has_what_was_finished_and_says_how_to_go_on(stopped: Any) -> None:
    rows = rows_of(stopped.table)
    assert stopped.status == "interrupted"
    assert rows["cnn_small"]["p95_ms"] > 0
    assert rows["Net"]["accuracy"] is None
    assert "the same command goes on" in rows["Net"]["why"]
    assert "same command" in stopped.told.hint


def test_the_same_call_goes_on_with_the_models_that_are_missing(
    stopped: Any, compared: Any
) -> None:
    assert stopped.begun[:2] == ["cnn_small", stopped.begun[1]]
    assert stopped.begun.count("cnn_small") == 1
    rows = rows_of(read_json(compared.path / "table.json"))
    assert rows["Net"]["accuracy"]["value"] > 0.5
    assert compared.facts["status"] == "finished"


def test_a_model_that_fails_is_a_row_with_the_reason(compared: Any) -> None:
    rows = rows_of(read_json(compared.path / "table.json"))
    assert list(rows)[2:] == ["Poisoned", "wanted_more"]
    assert rows["wanted_more"]["why"] == "MemoryError: not enough memory"
    assert "step 1" in rows["Poisoned"]["why"]
    assert rows["Poisoned"]["params"] == 64 * 16 + 16 + 16 * 10 + 10
    assert not rows["Poisoned"]["front"]


def test_all_models_share_split_augmentation_and_epochs(compared: Any) -> None:
    members = [tt.Run(compared.path / "candidates" / each.name)
               for each in sorted((compared.path / "candidates").iterdir())]  # fmt: skip
    whole = [run for run in members if run.facts.get("status") == "finished"]
    assert len(whole) == 2
    assert len({json.dumps(run.data["ids"]) for run in [compared, *whole]}) == 1
    assert len({json.dumps(run.recipe.augment.model_dump()) for run in whole}) == 1
    rows = rows_of(read_json(compared.path / "table.json"))
    assert rows["cnn_small"]["epochs"] == rows["Net"]["epochs"] == [12.0]


def test_the_numbers_are_those_of_the_exported_files_on_valid(
    compared: Any, digits_folder: Path
) -> None:
    best = read_json(compared.path / "table.json")[0]
    folder = compared.path / "candidates" / best["name"].removeprefix("custom:")
    ids = tt.Run(folder).data["ids"]["valid"]
    found = tt.predict(folder, *(digits_folder / name for name in ids))
    right = [row["label"] == Path(name).parent.name for row, name in zip(found, ids, strict=True)]
    assert np.mean(right) == best["accuracy"]["value"]
    assert best["accuracy"]["split"] == "valid"
    assert best["size_bytes"] == (folder / "artifact" / "model.onnx").stat().st_size


def test_json_and_report_show_the_comparison(compared: Any) -> None:
    found = comparison(compared.path)
    assert json.loads(json.dumps(found))["best"] == found["table"][0]["name"]
    assert found["front"]
    page = (compared.path / "report.html").read_text("utf-8")
    assert "4 models compared" in page
    assert "is the most accurate" in page
    assert "Not measured: " in page
    assert "<svg" in page
    assert "MemoryError: not enough memory" in page
    assert "1 fit" not in page


def test_a_finished_comparison_is_never_overwritten_and_another_command_is_refused(
    asked: Any, compared: Any
) -> None:
    with pytest.raises(UsageError, match="already holds a run"):
        tt.compare(**asked)
    facts = compared.path / "run.json"
    before = facts.read_text("utf-8")
    facts.write_text(json.dumps({**json.loads(before), "status": "interrupted"}), "utf-8")
    try:
        with pytest.raises(UsageError, match="another comparison: seeds is 1, got 2"):
            tt.compare(**asked, seeds=2)
    finally:
        facts.write_text(before, "utf-8")


def test_a_comparison_is_no_network_but_its_candidates_are(compared: Any) -> None:
    with pytest.raises(UsageError, match="no network of its own") as told:
        tt.load(compared)
    assert "candidates/" in told.value.hint
    assert not tt.load(compared.path / "candidates" / "cnn_small").training
    with pytest.raises(UsageError, match="no checkpoint"):
        tt.resume(compared.path / "candidates" / "cnn_small", epochs=99)


def test_a_run_that_is_no_comparison_is_not_gone_on_with(
    tiny_run: Any, digits_folder: Path
) -> None:
    with pytest.raises(UsageError, match="already holds a run"):
        tt.compare(digits_folder, "cnn_small,resnet8", out=tiny_run.path)


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"models": "cnn_small,resnet88"}, "resnet88"), ({"seeds": 0}, "seeds is 0"),
        ({"recipe": Recipe().override(model__name="resnet8")}, "names model 'resnet8'"),
        ({"recipe": Recipe().override(train__loss="nosuch")}, "nosuch"),
        ({"recipe": Recipe().override(model__pretrained="w.npz")}, "w.npz holds weights of one"),
        ({"recipe": Recipe().override(model__pretrained="cache")}, "cnn_small cannot start from"),
    ],
)  # fmt: skip
def test_a_wrong_argument_leaves_no_folder(
    digits_folder: Path, tmp_path: Path, choice: dict[str, Any], says: str
) -> None:
    asked = {"models": "cnn_small,resnet8", "out": tmp_path / "r", **choice}
    with pytest.raises(UsageError, match=says):
        tt.compare(digits_folder, **asked)
    assert not (tmp_path / "r").exists()


def test_where_no_model_can_be_built_the_first_reason_is_the_error_and_nothing_is_left(
    digits_folder: Path, tmp_path: Path
) -> None:
    class Wide(Net):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs)[:, :3]

    with pytest.raises(UsageError, match="no model could be measured"):
        tt.compare(digits_folder, [Wide(4), Wide(8)], out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_seeds_within_a_budget_through_sigterm_and_again(
    digits_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "trimtab", "compare", str(digits_folder), "--models",
        "cnn_small,resnet8", "--budget", "120s", "--seeds", "2", "--set", "train.epochs=100000",
        "--set", "train.patience=100000", "--set", "augment.flip=false", "--out", str(out),
    ]  # fmt: skip
    log = out / "candidates" / "cnn_small-seed1" / "metrics.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: log.exists() and log.read_text("utf-8").count("valid_accuracy") > 3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert (out / "report.html").is_file()
    begun = log.read_text("utf-8")
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert log.read_text("utf-8").startswith(begun[: len(begun) // 2])  # it went on
    assert [row["seeds"]["n"] for row in found["table"]] == [2, 2]
    assert found["seconds"] < 1.1 * found["budget_seconds"]
    budgets = [json.loads(path.read_text("utf-8"))["budget"]
               for path in out.glob("candidates/*/run.json")]  # fmt: skip
    assert budgets == [found["share_seconds"]] * 4


def wait_for(ready: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)
