"""Decoded data are kept whole or not at all, found again, checked, and limited in size."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trimtab.data import cache
from trimtab.data.dataset import Dataset, open_dataset
from trimtab.records.recipe import Recipe

RECIPE = Recipe()


@pytest.fixture
def folder(photos: Any, apart: Path) -> Path:
    return photos({"a": 6, "b": 6})  # type: ignore[no-any-return]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often everything is decoded."""
    from trimtab.data import pixels

    seen: list[int] = []
    whole = pixels.decode_pass

    def counted(*args: Any) -> Any:
        seen.append(1)
        return whole(*args)

    monkeypatch.setattr(pixels, "decode_pass", counted)
    return seen


def equal(one: Dataset, two: Dataset) -> bool:
    return one.fingerprint == two.fingerprint and all(
        np.array_equal(one.splits[name].inputs, split.inputs) for name, split in two.splits.items()
    )


def test_data_are_decoded_once(folder: Path, passes: list[int]) -> None:
    first = open_dataset(folder, RECIPE)
    second = open_dataset(folder, RECIPE)
    assert len(passes) == 1
    assert equal(first, second)
    assert first.findings == second.findings
    assert first.describe(folder) == second.describe(folder)


def test_kept_pixels_are_mapped_and_cannot_be_changed(folder: Path) -> None:
    for _ in range(2):
        inputs = open_dataset(folder, RECIPE).splits["train"].inputs
        assert isinstance(inputs, np.memmap)
        assert not inputs.flags.writeable


def test_changed_file_is_decoded_again(folder: Path, passes: list[int]) -> None:
    open_dataset(folder, RECIPE)
    path = folder / "a" / "000.png"
    times = path.stat()
    path.write_bytes((folder / "b" / "000.png").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # even where the time is set back
    assert open_dataset(folder, RECIPE).findings
    assert len(passes) == 2


def test_other_choices_are_decoded_again_and_later_ones_are_not(
    folder: Path, passes: list[int]
) -> None:
    open_dataset(folder, RECIPE)
    open_dataset(folder, RECIPE.override(augment__shift=0.4))
    assert len(passes) == 1
    open_dataset(folder, RECIPE.override(data__image_size=4))
    open_dataset(folder, RECIPE.override(data__channels=1))
    assert len(passes) == 3


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(("seed", "share"), [(5, 0.2), (0, 0.4)])
def test_another_split_of_the_same_pictures_decodes_nothing(
    folder: Path, apart: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch, broken: bool,
    seed: int, share: float,
) -> None:  # fmt: skip
    if broken:
        (folder / "b" / "000.png").write_bytes(b"not a picture")
    recipe = RECIPE.override(data__max_bad_fraction=0.2)
    other = recipe.override(data__valid_fraction=share)
    open_dataset(folder, recipe)
    found = open_dataset(folder, other, seed=seed)
    assert len(passes) == 1
    monkeypatch.setenv("TRIMTAB_CACHE", str(apart.parent / "other"))
    afresh = open_dataset(folder, other, seed=seed)
    assert len(passes) == 2
    assert equal(found, afresh)
    assert found.describe(folder) == afresh.describe(folder)
    assert found.findings == afresh.findings


def test_grey_pictures_stay_grey_in_another_split(
    folder: Path, apart: Path, passes: list[int]
) -> None:
    for path in folder.glob("*/*.png"):
        Image.open(path).convert("L").save(path)
    shapes = [open_dataset(folder, RECIPE, seed=seed).schema.input_shape for seed in range(2)]
    assert shapes[0] == shapes[1]
    assert shapes[1][0] == 1
    assert len(passes) == 1


def test_pictures_left_out_of_the_last_split_are_decoded(
    photos: Any, apart: Path, passes: list[int]
) -> None:
    folder = photos({"a": 6, "b": 6}, root="photos/train")
    photos({"a": 3, "b": 3}, root="photos/test")
    (folder / "a" / "copy.png").write_bytes((folder.parent / "test/a/000.png").read_bytes())
    first = open_dataset(folder.parent, RECIPE)
    assert [row["id"] for row in first.left_out] == ["train/a/copy.png"]
    second = open_dataset(folder.parent, RECIPE, seed=3)
    assert second.left_out == first.left_out
    assert len(passes) == 1


def test_nothing_half_written_stays(folder: Path, apart: Path) -> None:
    open_dataset(folder, RECIPE)
    assert list((apart / "tmp").iterdir()) == []
    (entry,) = (apart / "data").iterdir()
    assert {p.name for p in entry.iterdir()} == {"entry.json", "train.npy", "valid.npy", "test.npy"}


@pytest.mark.parametrize("damage", ["cut", "black", "gone", "json", "alias"])
def test_damaged_entry_is_made_again(
    folder: Path, apart: Path, passes: list[int], damage: str
) -> None:
    first = open_dataset(folder, RECIPE)
    (entry,) = (apart / "data").iterdir()
    pixels = entry / "train.npy"
    inputs = first.splits["train"].inputs.copy()
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-10])
    elif damage == "black":
        pixels.write_bytes(pixels.read_bytes()[: -inputs.nbytes] + bytes(inputs.nbytes))
    elif damage == "gone":
        pixels.unlink()
    elif damage == "json":
        (entry / "entry.json").write_text("{")
    else:
        for note in (apart / "sources").iterdir():
            note.write_text("[]")
    again = open_dataset(folder, RECIPE)
    assert len(passes) == 2
    np.testing.assert_array_equal(again.splits["train"].inputs, inputs)
    assert open_dataset(folder, RECIPE).fingerprint == first.fingerprint
    assert len(passes) == 2


def test_cache_that_cannot_be_written_is_noted_only(
    folder: Path, apart: Path, passes: list[int]
) -> None:
    apart.write_text("a file where the folder should be")
    dataset = open_dataset(folder, RECIPE)
    assert [f.name for f in dataset.findings if f.severity == "info"] == ["cache_not_written"]
    assert "not kept" in dataset.findings[-1].message
    assert len(dataset.splits["train"]) == 8


def test_full_disk_is_noted_only(
    folder: Path, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_dataset(folder, RECIPE, seed=9)
    monkeypatch.setenv("TRIMTAB_CACHE", str(apart.parent / "other"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.data.prepare.write_split", full)
    dataset = open_dataset(folder, RECIPE, seed=9)
    assert "No space left" in dataset.findings[-1].message
    assert equal(whole, dataset)
    assert list((apart.parent / "other" / "tmp").iterdir()) == []


def test_entry_of_another_process_is_taken_over(folder: Path, apart: Path) -> None:
    first = open_dataset(folder, RECIPE)
    for note in (apart / "sources").iterdir():
        note.unlink()
    (entry,) = (apart / "data").iterdir()
    made = entry.stat().st_ino
    assert equal(open_dataset(folder, RECIPE), first)
    assert entry.stat().st_ino == made


def test_what_was_not_used_for_longest_goes_first(
    photos: Any, apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for number in range(3):
        root = photos({"a": 5, "b": 5}, root=f"photos{number}")
        names.append(open_dataset(root, RECIPE).fingerprint)
        os.utime(apart / "data" / names[-1], (1000 + number, 1000 + number))
    size = sum(f.stat().st_size for f in (apart / "data" / names[0]).iterdir())
    monkeypatch.setattr(cache, "LIMIT_BYTES", round(3.5 * size))
    open_dataset(apart.parent / "photos0", RECIPE)  # used again: now the youngest
    names.append(open_dataset(photos({"a": 5, "b": 5}, root="photos3"), RECIPE).fingerprint)
    assert {p.name for p in (apart / "data").iterdir()} == {names[0], names[2], names[3]}


def test_data_stay_usable_when_their_entry_is_removed(folder: Path, apart: Path) -> None:
    dataset = open_dataset(folder, RECIPE)
    before = dataset.splits["train"].inputs.copy()
    cache.forget(apart / "data" / dataset.fingerprint)
    np.testing.assert_array_equal(dataset.splits["train"].inputs, before)


def test_what_killed_processes_left_is_removed(folder: Path, apart: Path) -> None:
    (apart / "tmp" / "old").mkdir(parents=True)
    (apart / "tmp" / "new").mkdir()
    old = time.time() - 2 * cache.STALE_SECONDS
    os.utime(apart / "tmp" / "old", (old, old))
    open_dataset(folder, RECIPE)
    assert [p.name for p in (apart / "tmp").iterdir()] == ["new"]


def test_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", "/x")
    assert cache.cache_folder() == Path("/x")
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/y")
    assert cache.cache_folder() == Path("/y/trimtab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/z")
    assert cache.cache_folder() == Path("/z/.cache/trimtab")
