"""The pieces of a report, typed: what a run folder holds, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator

from trimtab.records.finding import Finding


class Part(BaseModel):
    """One read-only piece of a folder; keys that the report does not draw are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(Part):
    """A measured value with its 95 % interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    split: str = ""


class Candidate(Part):
    """One row of table.json."""

    name: str
    steps: tuple[str, ...] = ()
    accuracy: Interval | None = None
    f1: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    size_bytes: float | None = None
    params: float | None = None
    macs: float | None = None
    kept: bool | None = None
    why: str = ""
    parent: str | None = None
    speedup: Interval | None = None
    flip_fraction: float | None = None
    threads: int | None = None
    chosen: bool = False
    front: bool | None = None  # of a comparison: whether it stands on the Pareto front
    against_best: Interval | None = None


class Clause(Part):
    """One clause of the target, judged; `used` says how much of what it allows is taken."""

    metric: str
    op: str
    wanted: float
    got: float | None = None
    met: bool

    @property
    def used(self) -> float | None:
        """Share of the allowance used: got / wanted, or errors made / errors allowed for `>=`."""
        if self.got is None:
            return None
        if self.op != ">=":
            return self.got / self.wanted if self.wanted else None
        return (1 - self.got) / (1 - self.wanted) if self.wanted < 1 else None


class Verdict(Part):
    """verdict.json: what was wanted, what was reached, on which split."""

    target: str
    target_met: bool
    clauses: tuple[Clause, ...] = ()
    split: str = ""
    chosen: str | None = None
    binding: str | None = None
    accuracy: Interval | None = None
    starved: bool = False
    interrupted: bool = False
    seconds: float | None = None
    budget_seconds: float | None = None
    seed: int | None = None


class Screened(Part):
    """One row of screen.json: a model timed before any training."""

    name: str
    p50_ms: float | None = None
    p95_ms: float | None = None
    size_bytes: float | None = None
    params: float | None = None
    macs: float | None = None
    fits: bool | None = None
    why: str = ""


class Mistake(Part):
    """One row of errors.json; `image` is the base64 text of a PNG file, or None without one."""

    id: str = ""
    image: str | None = None
    truth: str = ""
    predicted: str = ""
    probability: float | None = None


@dataclass(frozen=True)
class ClassRow:
    """How one class fares: `hits` of `n` samples found, and what it is most often taken for."""

    name: str
    hits: int
    n: int
    taken_for: str
    taken: int

    @property
    def recall(self) -> float | None:
        """Share of the class that was found; None where the split has no sample of it."""
        return self.hits / self.n if self.n else None


class Confusion(Part):
    """confusion.json: counts (K, K), row the true class, column the decided one."""

    split: str = ""
    classes: tuple[str, ...]
    matrix: tuple[tuple[NonNegativeInt, ...], ...]

    @model_validator(mode="after")
    def square(self) -> Confusion:
        """Refuse a matrix that does not belong to the classes."""
        size = len(self.classes)
        if not size or len(self.matrix) != size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"the matrix is not {size} x {size}")
        return self

    @cached_property
    def pairs(self) -> list[tuple[int, str, str]]:
        """The confusions (count, truth, predicted), most frequent first."""
        cells = ((n, i, j) for i, row in enumerate(self.matrix) for j, n in enumerate(row)
                 if n > 0 and i != j)  # fmt: skip
        ordered = sorted(cells, key=lambda cell: (-cell[0], cell[1], cell[2]))
        return [(n, self.classes[i], self.classes[j]) for n, i, j in ordered]

    @cached_property
    def rows(self) -> list[ClassRow]:
        """One row per class, the weakest first, classes without samples last."""
        rows = [self.class_row(i) for i in range(len(self.classes))]
        return sorted(rows, key=lambda row: (row.recall is None, row.recall or 0.0, -row.n))

    def class_row(self, i: int) -> ClassRow:
        """Return how class `i` fares."""
        row = self.matrix[i]
        taken, j = max(((n, -j) for j, n in enumerate(row) if j != i), default=(0, 0))
        return ClassRow(self.classes[i], row[i], sum(row), self.classes[-j] if taken else "", taken)


@dataclass(frozen=True)
class Curve:
    """What one training logged; each list holds (epoch, value), `resumed` epochs alone."""

    name: str
    loss: list[tuple[float, float]] = field(default_factory=list)
    mean_loss: list[tuple[float, float]] = field(default_factory=list)
    accuracy: list[tuple[float, float]] = field(default_factory=list)
    rate: list[tuple[float, float]] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)


@dataclass
class Notes:
    """Which files are missing or unreadable, by file name."""

    missing: set[str] = field(default_factory=set)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything one folder holds that a report can show."""

    name: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    verdict: Verdict | None = None
    rows: list[Candidate] = field(default_factory=list)
    screened: list[Screened] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    confusion: Confusion | None = None
    curves: list[Curve] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    ledgers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    card: dict[str, Any] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
