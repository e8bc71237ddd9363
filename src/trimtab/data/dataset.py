"""The data of a training: opened from any source, decoded once, split, and served in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from trimtab.data import cache, streamed
from trimtab.data.entries import Listing, count_of, listed, note
from trimtab.data.pictures import Inputs
from trimtab.data.pool import Pool
from trimtab.data.prepare import Prepared, prepare
from trimtab.data.sources import list_source
from trimtab.errors import DataError, MachineError
from trimtab.records.finding import Finding
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, relative
from trimtab.records.schema import Schema
from trimtab.records.sections import DataSection

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
PIXELS = ("image_size", "channels")
SETTINGS = (*PIXELS, "valid_fraction", "test_fraction", "max_bad_fraction")


class Batch(NamedTuple):
    """N samples as a network takes them.

    `inputs` (N, C, H, W) float32 pixels in [0, 255], channels last in memory; `targets` (N,)
    int64, or (N, K) float32 shares of the classes where samples are mixed; `ids` (N,) int64, the
    row in the split.
    """

    inputs: Tensor
    targets: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Split:
    """One split: `inputs` (N, H, W, C) uint8, `targets` (N,) int64.

    The inputs are an array, perhaps mapped from disk, or pictures that are decoded on reading.

    Rows stand in the order of a hash of their ids, so that any first part is a fair sample.
    """

    inputs: Inputs
    targets: NDArray[np.int64]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Dataset:
    """Opened data; `source` is the absolute path they came from, kept in memory only."""

    schema: Schema
    splits: dict[str, Split]
    fingerprint: str
    source: str | None = None
    quarantined: tuple[dict[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()
    left_out: tuple[dict[str, str], ...] = ()
    sizes: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def lost(self) -> list[Finding]:
        """What could not be read any more after the data were opened."""
        return streamed.lost(split.inputs for split in self.splits.values())

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Samples per split and class."""
        classes = self.schema.classes
        found = {}
        for name, split in self.splits.items():
            numbers = np.bincount(split.targets, minlength=len(classes)).tolist()
            found[name] = dict(zip(classes, numbers, strict=True))
        return found

    def describe(self, relative_to: Path) -> dict[str, Any]:
        """Return the content of data.json; the source becomes relative to a run folder."""
        return {
            "version": VERSION, "fingerprint": self.fingerprint,
            "source": relative(Path(self.source), Path(relative_to)) if self.source else None,
            "seed": self.seed, "settings": self.settings,
            "schema": self.schema.model_dump(mode="json"),
            "counts": self.counts, "sizes": self.sizes,
            "quarantined": list(self.quarantined), "left_out": list(self.left_out),
            "ids": {name: list(split.ids) for name, split in self.splits.items()},
        }  # fmt: skip


def open_dataset(source: Any, recipe: Recipe, *, seed: int = 0) -> Dataset:
    """Open data for training; they are decoded once and kept in the cache.

    `source` is a folder of class folders (split or not), a CSV, TSV or Parquet file, arrays
    `(x, y)`, a torch Dataset, a dict of either per split, or a Dataset, which is returned as it
    is. Raises DataError, with what to do, for data that cannot be used.
    """
    if isinstance(source, Dataset):
        return source
    listing = list_source(source)
    prepared, storage = stored_or_streamed(listing, recipe.data, seed)
    settings = settings_of(recipe.data) | {"storage": storage}
    return dataset_from(prepared, listing.source, settings, seed)


def stored_or_streamed(
    listing: Listing, choices: DataSection, seed: int
) -> tuple[Prepared, str]:  # fmt: skip
    """Return the data as `data.storage` says; what it leaves open is as it was the last time."""
    key, streamed_key = (key_of(listing, choices, seed, kind) for kind in ("", "stream"))
    wanted = choices.storage
    if wanted != "stream" and (known := recalled(key)) is not None:
        return known, "memory"
    if wanted == "auto":
        noted = cache.recall(streamed_key) is not None
        wanted = "stream" if noted or not streamed.fits(listing, choices) else "memory"
    if wanted == "stream":
        return streamed.stream(listing, choices, seed, streamed_key), wanted
    return build(listing, choices, seed, key), wanted


def recalled(key: str) -> Prepared | None:
    """Return what the cache holds of the source `key`, or None."""
    known = cache.recall(key)
    stored = cache.load(known[0]) if known else None
    if known is None or stored is None:
        return None
    return Prepared(stored[0], Schema.model_validate(stored[1]), known[0], known[1])


def build(listing: Listing, choices: DataSection, seed: int, key: str) -> Prepared:
    """Decode a listing into the cache, or into memory where that cannot be written."""
    pool = Pool(key_of(listing, choices, None, "pixels"))
    try:
        with cache.workspace() as folder:
            made = prepare(listing, choices, seed, folder, decode=pool)
            (folder / "pool.bin").unlink()
            splits = {name: {"ids": split.ids, "targets": split.targets}
                      for name, split in made.splits.items()}  # fmt: skip
            cache.keep(folder, made.fingerprint, splits, made.schema.model_dump(mode="json"))
            cache.remember(key, made.fingerprint, made.told)
            pool.remember(made.fingerprint)
            return made
    except (OSError, MachineError) as error:
        reason = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
        finding = note("cache_not_written", "info", f"the decoded pictures are not kept: {reason}",
                       "set TRIMTAB_CACHE to a folder with space")  # fmt: skip
    made = prepare(listing, choices, seed, None)
    made.told["findings"].append(finding.model_dump())
    return made


def dataset_from(
    made: Prepared, source: str | None, settings: dict[str, Any], seed: int
) -> Dataset:
    """Make a Dataset of what was prepared now or earlier."""
    told = made.told
    splits = {name: Split(split.inputs, np.array(split.targets, np.int64), tuple(split.ids))
              for name, split in made.splits.items()}  # fmt: skip
    return Dataset(
        schema=made.schema, splits=splits, fingerprint=made.fingerprint, source=source,
        quarantined=tuple(told["quarantined"]), left_out=tuple(told["left_out"]),
        findings=tuple(Finding.model_validate(row) for row in told.get("findings", ())),
        sizes=told["sizes"], settings=settings, seed=seed,
    )  # fmt: skip


def settings_of(choices: DataSection, names: Sequence[str] = SETTINGS) -> dict[str, Any]:
    """Return the choices that decide on the pixels and splits; the others act later."""
    return choices.model_dump(mode="json", include=set(names))


def key_of(listing: Listing, choices: DataSection, seed: int | None, kind: str = "") -> str:
    """Return what identifies a source without decoding it: ids, labels, sizes, times, choices.

    `kind` tells notes of different kinds on one source apart. Without a seed, nothing counts that
    decides on the splits alone.
    """
    found = blake2b(digest_size=16)
    settings = settings_of(choices, PIXELS if seed is None else SETTINGS)
    head = (
        VERSION,
        PIL.__version__,
        listing.source,
        listing.classes,
        sorted(settings.items()),
        seed,
        *([kind] if kind else []),
    )
    found.update(repr(head).encode())
    for entry in listing.entries:
        row = (entry.id, entry.label, entry.split, entry.stamp, entry.fault)
        found.update(repr(row).encode())
    return found.hexdigest()


def dataset_of(run: Run, data: Any = None) -> Dataset:
    """Return the data that `run` was made with.

    They are `data` where given, else the cache's copy, else the source that data.json names
    relative to the run. A few streamed pictures may be lost since: others stand in for them. Raises
    DataError where the data are gone or are not the same.
    """
    told = run.data
    recipe = Recipe().override(**{f"data__{name}": v for name, v in told["settings"].items()})
    seed = int(told["seed"])
    if data is not None:
        return same(data, recipe, run, "the data given are")
    source = (run.path / told["source"]).resolve() if told.get("source") else None
    reading = told["settings"].get("storage") == "stream"  # what is decoded already is not the same
    stored = None if reading else cache.load(str(told["fingerprint"]))
    if stored is not None:
        made = Prepared(stored[0], Schema.model_validate(stored[1]), told["fingerprint"], told)
        return dataset_from(made, str(source) if source else None, told["settings"], seed)
    if source is None or not source.exists():
        raise DataError(f"the data of {run.name} are neither in the cache nor "
                        f"{'at ' + told['source'] if source else 'in a file'}",
                        "give them with --data, or data= in Python")  # fmt: skip
    return same(source, recipe, run, f"{told['source']} is")


def same(data: Any, recipe: Recipe, run: Run, what: str) -> Dataset:
    """Open `data` if they are what the data.json of `run` tells of; raises DataError."""
    told = run.data
    dataset, wanted = open_dataset(data, recipe, seed=int(told["seed"])), str(told["fingerprint"])
    if dataset.fingerprint == wanted:
        return dataset
    if told["settings"].get("storage") == "stream" and not isinstance(data, Dataset):
        made = streamed.as_begun(list_source(data), recipe.data, wanted)
        if made is not None:
            return dataset_from(made, dataset.source, told["settings"], dataset.seed)
    raise DataError(
        f"{what} not what the run was made with: {difference(dataset, run)} (fingerprint "
        f"{dataset.fingerprint[:12]}, wanted {wanted[:12]})",
        "bring the same pictures back, give them with --data, or train again",
    )


def difference(dataset: Dataset, run: Run) -> str:
    """Return which pictures make data others than those of a run.

    A run keeps no digests of single pictures: one whose content alone is another is named where
    the training noticed it.
    """
    before = {name for ids in run.data["ids"].values() for name in ids}
    now = {name for split in dataset.splits.values() for name in split.ids}
    noticed = {row["id"] for found in run.findings if found.name == "lost_pictures"
               for row in found.evidence["samples"]}  # fmt: skip
    kinds = {"missing or unreadable": before - now, "new": now - before,
             "lost while it trained": noticed & now}  # fmt: skip
    told = [f"{count_of(len(ids), 'picture')} {kind}: {listed(sorted(ids))}"
            for kind, ids in kinds.items() if ids]  # fmt: skip
    return "; ".join(told) or "pictures of the same names have other contents, labels or splits"


def batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Yield a split in order, without augmentation; the last batch may be short."""
    for start in range(0, len(split), batch_size):
        yield batch_of(split, np.arange(start, min(start + batch_size, len(split))))


def batch_of(split: Split, rows: NDArray[np.int64]) -> Batch:
    """Return some rows of a split as a batch."""
    import torch  # here, since looking at data needs none

    inputs = torch.from_numpy(split.inputs[rows]).permute(0, 3, 1, 2).float()
    return Batch(inputs, torch.from_numpy(split.targets[rows]), torch.from_numpy(rows))
