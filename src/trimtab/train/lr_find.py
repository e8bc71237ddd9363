"""The verb `lr-find`: at which learning rates the loss falls, and which one to train with."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trimtab.data.dataset import Dataset, open_dataset
from trimtab.errors import UsageError
from trimtab.machine.interrupt import stoppable, stopped
from trimtab.records.files import make_folder, write_json, write_text
from trimtab.records.finding import warn
from trimtab.records.recipe import Recipe, as_recipe
from trimtab.records.run import folder_for, require_seed
from trimtab.report.rates import rate_picture
from trimtab.train.initial import first_network
from trimtab.train.run import with_model
from trimtab.train.settings import peak_learning_rate
from trimtab.train.sweep import Sweep, generators_restored, sweep
from trimtab.train.valley import FEWEST, LOWER, Valley, smooth, valley

STEPS = 100  # as in fastai's lr_find
MOST_STEPS = 100_000
DATA, PICTURE = "lr_find.json", "lr_find.svg"
ENDINGS = {
    "top": "up to the highest rate", "diverged": "until the loss diverged",
    "not finite": "until a loss or gradient was not finite", "stopped": "until it was stopped",
}  # fmt: skip


@dataclass(frozen=True)
class LrFind:
    """What a sweep of learning rates met, and the peak learning rate it suggests.

    `rates` and `losses` are those of single steps, each loss that of a batch before its update;
    `smoothed` are the losses without their noise. `suggestion` is None where the curve does not
    tell; `usual` is the optimizer's usual rate, which then is as good as any. `clear` says whether
    the suggestion needs no second look, `reason` why. `ended` is top, diverged, not finite or
    stopped. `head_only` says that only the last layer learnt. `path` is the folder of the files.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    clear: bool
    reason: str
    usual: float
    ended: str
    span: tuple[float, float] | None
    model: str
    optimizer: str
    batch_size: int
    precision: str
    head_only: bool
    seed: int
    path: Path

    @property
    def setting(self) -> str | None:
        """The words that train with the suggestion, or with the usual rate where there is none.

        None where the loss rises at every rate: then nothing speaks for the usual one.
        """
        if self.suggestion is None and LOWER in self.reason:
            return None
        return f"--set train.learning_rate={self.suggestion or self.usual:g}"

    @property
    def title(self) -> str:
        """What was swept."""
        learnt = ", the head alone" if self.head_only else ""
        batches = f"batches of {self.batch_size}"
        return f"{self.model}, {self.optimizer}, {batches}, {self.precision}{learnt}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the folder as plain data."""
        names = [name for name in self.__dataclass_fields__ if name != "path"]
        found = {name: getattr(self, name) for name in names}
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in found.items()} | {"setting": self.setting}  # fmt: skip

    def svg(self) -> str:
        """Return the curve as an SVG file."""
        return rate_picture(
            self.rates, self.losses, self.smoothed, suggestion=self.suggestion, span=self.span,
            title=self.title, note=self.verdict,
        )  # fmt: skip

    def picture(self, path: str | Path) -> Path:
        """Write the curve as an SVG file and return its path."""
        write_text(Path(path), self.svg())
        return Path(path)

    @property
    def verdict(self) -> str:
        """The suggestion, how sure it is, and why."""
        if self.suggestion is None:
            return (f"no suggestion: {self.reason}; {self.usual:g} is the usual rate "
                    f"of {self.optimizer}, not one that was found")  # fmt: skip
        sure = "clear valley" if self.clear else "take it with care"
        return f"suggested learning rate {self.suggestion:g} ({sure}): {self.reason}"

    def __str__(self) -> str:
        swept = ""
        if self.rates:
            swept = f", from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        steps = f"{len(self.rates)} steps{swept}, {ENDINGS[self.ended]}"
        setting = [f"  {self.setting}"] if self.setting else []
        return "\n".join([f"{self.title}: {steps}", self.verdict, *setting])

    def _repr_html_(self) -> str:
        """Return the picture for notebooks, as an image so that its style stays its own."""
        content = base64.b64encode(self.svg().encode("utf-8")).decode("ascii")
        return f'<img alt="loss by learning rate" src="data:image/svg+xml;base64,{content}">'


def lr_find(
    data: Any, *, recipe: Recipe | str | Path | None = None, model: nn.Module | None = None,
    steps: int = STEPS, out: str | Path | None = None, seed: int = 0,
) -> LrFind:  # fmt: skip
    """Train for `steps` updates while the learning rate rises, and suggest a peak learning rate.

    `data` and `model` are what `train` takes. The rate rises exponentially from a thousandth of
    the recipe's rate (the optimizer's usual one, where the recipe leaves it open) to a hundred
    times it, with the recipe's optimizer, loss, augmentation, batch size and precision; the sweep
    ends before that where the loss diverges. It begins as a training does: from pretrained weights
    where the recipe names some, and with `train.head_only` only the head learns. All of it happens
    on a copy: `model` and torch's random generators are afterwards as they were. `lr_find.json` and
    `lr_find.svg` are written to `out`, by default a new folder below `runs`. Source: Smith 2017
    (1506.01186), section 3.3; how the suggestion is read off: `trimtab.train.valley`. Raises
    TrimtabError for data, recipe and folder; Interrupted after Ctrl-C, what was swept until then
    being written.
    """
    recipe = as_recipe(recipe)
    require_seed(seed)
    if not FEWEST <= steps <= MOST_STEPS:
        raise UsageError(f"steps is {steps}, wanted {FEWEST} to {MOST_STEPS:,}",
                         f"leave it out for {STEPS}")  # fmt: skip
    with stoppable():
        dataset = open_dataset(data, recipe, seed=seed)
        warn(dataset.findings)
        recipe = with_model(recipe, dataset.schema, model)
        path = make_folder(folder_for(out, "lr-find"))
        with generators_restored(), filled_or_gone(path):
            swept = swept_by(dataset, recipe, model, steps=steps, seed=seed)
        found = found_in(swept, recipe, path, seed=seed)
        write_json(path / DATA, found.to_dict())
        found.picture(path / PICTURE)
    if found.ended == "stopped":
        raise stopped(f"the {len(found.rates)} rates so far are in {path}", "run it again")
    return found


@contextmanager
def filled_or_gone(path: Path) -> Iterator[None]:
    """Remove the folder `path` where an error ends the block before anything is in it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: it holds what was there before
            path.rmdir()
        raise


def swept_by(
    dataset: Dataset, recipe: Recipe, model: nn.Module | None, *, steps: int, seed: int
) -> Sweep:
    """Sweep a network with the first weights that `train` would give it."""
    network, _ = first_network(dataset, recipe, seed=seed, model=model)
    return sweep(network, dataset, recipe, steps=steps, seed=seed)


def found_in(swept: Sweep, recipe: Recipe, path: Path, *, seed: int) -> LrFind:
    """Return what a sweep says."""
    diverged = swept.ended in {"diverged", "not finite"}
    read: Valley = valley(swept.rates, swept.losses, diverged=diverged)
    return LrFind(
        rates=tuple(swept.rates), losses=tuple(swept.losses),
        smoothed=tuple(smooth(swept.losses)), suggestion=read.rate, clear=read.clear,
        reason=read.reason, usual=peak_learning_rate(recipe.override(train__learning_rate="auto")),
        ended=swept.ended, span=read.span, model=recipe.model.name,
        optimizer=recipe.train.optimizer, batch_size=swept.settings.batch_size,
        precision=swept.settings.precision, head_only=recipe.train.head_only > 0, seed=seed,
        path=path,
    )  # fmt: skip
