"""The state of one comparison: its models, what each may spend, what each reached."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.data.dataset import Dataset
from trimtab.errors import BusyError, DataError, Interrupted, TrimtabError, UsageError
from trimtab.export.bundle import Artifact
from trimtab.machine.probe import SECONDS as PROBE_SECONDS
from trimtab.machine.progress import say
from trimtab.measure.quality import Scores
from trimtab.models.build import adopt_module
from trimtab.models.image import find_model
from trimtab.plan.budget import Budget
from trimtab.plan.candidates import LATENCY_SECONDS
from trimtab.plan.screen import Screened
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, update_facts
from trimtab.train.log import SAVED_BYTES, SAVING_SECONDS

EVALUATIONS = 3  # of valid per training: the network, its file for parity, its file for the table
REPORT_SECONDS = 3.0


@dataclass
class Member:
    """One model of a comparison; `runs`, `artifacts` and `scores` hold one entry per seed."""

    name: str
    folder: str
    screened: Screened | None = None
    screen_seconds: float = 0.0
    runs: list[Run] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    failed: TrimtabError | None = None


@dataclass
class Contest:
    """One comparison on its way; `share_seconds` is what each training may take, None: any."""

    run: Run
    dataset: Dataset
    recipe: Recipe
    budget: Budget | None
    seeds: Sequence[int]
    members: list[Member]
    started: float = field(default_factory=time.monotonic)
    share_seconds: float | None = None
    interrupted: bool = False

    @property
    def alive(self) -> list[Member]:
        """The members that have not failed."""
        return [member for member in self.members if member.failed is None]

    @property
    def complete(self) -> list[Member]:
        """The members that were trained, exported and scored with every seed."""
        return [one for one in self.alive if len(one.scores) == len(self.seeds)]

    def folder(self, member: Member, seed: int) -> Path:
        """Return the folder of one training."""
        name = member.folder if len(self.seeds) == 1 else f"{member.folder}-seed{seed}"
        return self.run.path / "candidates" / name

    def epoch_seconds(self, member: Member) -> float:
        """Return about how long a training takes that sees every train picture once.

        The trial of precisions before it, the evaluations after it and the saving are its own, too.
        """
        found = member.screened
        assert found is not None
        epoch = len(self.dataset.splits["train"]) / (found.images_per_second or 1e-9)
        looks = 2 * len(self.dataset.splits["valid"]) * (found.p50_ms or 0.0)
        saving = SAVING_SECONDS + (found.size_bytes or 0) / SAVED_BYTES
        return PROBE_SECONDS + epoch + looks / 1000 + saving

    def reserve(self, member: Member) -> float:
        """Return the seconds kept for a member's export, parity, scores and latency.

        An export takes no longer than its screening did.
        """
        assert member.screened is not None
        looks = EVALUATIONS * len(self.dataset.splits["valid"]) * (member.screened.p50_ms or 0.0)
        return LATENCY_SECONDS + len(self.seeds) * (member.screen_seconds + looks / 1000)

    def kept_seconds(self) -> float:
        """Return the seconds that no training may take: reserves and the report."""
        return REPORT_SECONDS + sum(self.reserve(member) for member in self.alive)

    def share(self) -> float:
        """Return what one training may take if all members that are left get the same."""
        assert self.budget is not None
        trainings = max(1, len(self.alive) * len(self.seeds))
        return max(0.0, self.budget.left - self.kept_seconds()) / trainings

    def fail(self, member: Member, error: TrimtabError) -> None:
        """Take a member out and remember why."""
        member.failed = error
        update_facts(self.run, failed={m.name: m.failed.message for m in self.members if m.failed})
        say(f"  {member.name}: {error.message}")

    @contextmanager
    def guarded(self, member: Member) -> Iterator[None]:
        """Let whatever a member's network or training raises take out that member alone."""
        try:
            yield
        except (BusyError, DataError, Interrupted):
            raise
        except TrimtabError as error:
            self.fail(member, error)
        except Exception as error:  # noqa: BLE001 - another's network may raise anything
            self.fail(member, foreign(member.name, error))


def foreign(name: str, error: Exception) -> UsageError:
    """Return what a network of someone else's raised as an error in one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    return UsageError(f"{type(error).__name__}: {first}",
                      f"`trimtab train` with {name} alone shows more")  # fmt: skip


def named(models: str | Sequence[str | nn.Module]) -> list[str]:
    """Return the names of the models to compare, every one of them resolved.

    `models` are names, with commas between them or in a list, or modules of the user's own, which
    are remembered for this process. Raises UsageError for an unknown name, for one that stands
    twice and for fewer than two.
    """
    if isinstance(models, str):
        models = [part.strip() for part in models.split(",") if part.strip()]
    given = models if isinstance(models, list | tuple) else [models]
    names = [resolved(model) for model in given]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise UsageError(f"model '{twice[0]}' stands twice among those to compare",
                         "leave one out; two modules need different layers")  # fmt: skip
    if len(names) < 2:
        raise UsageError(f"a comparison needs two models or more, got {len(names)}",
                         "name them like --models cnn_small,resnet8")  # fmt: skip
    return names


def resolved(model: Any) -> str:
    """Return the name of a model that can be found."""
    if not isinstance(model, str):
        return adopt_module(model)
    find_model(model)
    return model


def members_of(names: Sequence[str]) -> list[Member]:
    """Return a member per name, each with a folder name of its own."""
    found: list[Member] = []
    for name in names:
        plain = re.sub(r"[^\w-]+", "-", name.removeprefix("custom:")).strip("-") or "model"
        taken = {member.folder for member in found}
        folder = next(f for n in range(len(names) + 1)
                      if (f := plain if n == 0 else f"{plain}-{n + 1}") not in taken)  # fmt: skip
        found.append(Member(name, folder))
    return found
