"""Opening data: what a training gets, from every source, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab.data.dataset import Dataset, batches, dataset_of, open_dataset
from trimtab.data.decode import decode
from trimtab.data.pixels import auto_side
from trimtab.errors import DataError
from trimtab.records.files import write_json
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, start_run

RECIPE = Recipe()


def finding(dataset: Dataset, name: str) -> Any:
    return next((f for f in dataset.findings if f.name == name), None)


def run_on(dataset: Dataset, path: Path) -> Run:
    run = start_run(path, kind="train", label="test", recipe=RECIPE, seed=0)
    write_json(run.path / "data.json", dataset.describe(run.path))
    return run


# What comes out


def test_digits_are_read_split_and_measured(digits_folder: Path) -> None:
    dataset = open_dataset(digits_folder, RECIPE)
    assert dataset.schema.classes == tuple("0123456789")
    assert dataset.schema.input_shape == (1, 8, 8)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 280, "valid": 60, "test": 60,
    }  # fmt: skip
    train = dataset.splits["train"]
    assert train.inputs.dtype == np.uint8
    assert train.targets.dtype == np.int64
    assert dataset.schema.mean == pytest.approx([train.inputs.mean()])
    assert dataset.schema.std == pytest.approx([train.inputs.std()])
    for name, row in zip(train.ids, train.inputs, strict=True):
        np.testing.assert_array_equal(row, decode((digits_folder / name).read_bytes(), 1, (8, 8)))


def test_no_sample_is_lost_or_stands_twice(digits_folder: Path) -> None:
    dataset = open_dataset(digits_folder, RECIPE)
    ids = [name for split in dataset.splits.values() for name in split.ids]
    wanted = {p.relative_to(digits_folder).as_posix() for p in digits_folder.rglob("*.png")}
    assert sorted(ids) == sorted(wanted)
    for split in dataset.splits.values():
        labels = [dataset.schema.classes[target] for target in split.targets]
        assert labels == [name.split("/")[0] for name in split.ids]


def test_opened_data_are_returned_as_they_are(tiny_dataset: Dataset) -> None:
    assert open_dataset(tiny_dataset, RECIPE) is tiny_dataset


def test_constant_pictures_do_not_divide_by_zero() -> None:
    x = np.zeros((12, 8, 8), np.uint8)
    x[:, 0, 0] = np.arange(12) % 2
    x[np.arange(12), 1, np.arange(12) % 8] = 1
    assert open_dataset((x, np.arange(12) % 2), RECIPE).schema.std == (1.0,)


@pytest.mark.parametrize(
    ("sides", "wanted"),
    [([8], 8), ([2, 2], 4), ([64], 64), ([100], 96), ([500, 400, 20], 128), ([71], 64), ([31], 31)],
)
def test_automatic_side_is_the_median_within_limits(sides: list[int], wanted: int) -> None:
    assert auto_side(sides) == wanted


def test_side_of_mixed_pictures_is_the_median_of_those_that_can_be_read(photos: Any) -> None:
    root = photos({"a": 30, "b": 30}, height=20, width=40)
    photos({"a": 9, "c": 25}, height=50, width=60)
    dataset = open_dataset(root, RECIPE)
    assert dataset.schema.input_shape == (3, 20, 20)
    assert dataset.sizes["width"] == {"min": 40, "median": 40.0, "max": 60}


def test_wrong_guess_of_the_side_is_put_right(
    photos: Any, monkeypatch: pytest.MonkeyPatch, apart: Path
) -> None:
    root = photos({"a": 5, "b": 5}, height=20, width=20)
    monkeypatch.setattr("trimtab.data.pixels.guess_side", lambda entries: 7)
    dataset = open_dataset(root, RECIPE)
    assert dataset.schema.height == 20
    assert dataset.splits["train"].inputs.shape[1:] == (20, 20, 3)


def test_one_colour_picture_makes_the_data_colour(photos: Any) -> None:
    root = photos({"a": 5, "b": 5}, channels=3)
    for path in sorted(root.rglob("*.png"))[1:]:
        Image.open(path).convert("L").convert("RGB").save(path)
    assert open_dataset(root, RECIPE).schema.channels == 3
    first = min(root.rglob("*.png"))
    Image.open(first).convert("L").save(first)
    assert open_dataset(root, RECIPE).schema.channels == 1


def test_recipe_sets_size_and_channels(photos: Any) -> None:
    root = photos({"a": 4, "b": 4}, height=30, width=20)
    dataset = open_dataset(root, RECIPE.override(data__image_size=16, data__channels=1))
    split = dataset.splits["train"]
    assert split.inputs.shape[1:] == (16, 16, 1)
    wanted = decode((root / split.ids[0]).read_bytes(), 1, (16, 16))
    np.testing.assert_array_equal(split.inputs[0], wanted)


@pytest.mark.parametrize("grey", [False, True])
def test_photos_are_read_as_an_artifact_reads_them(tmp_path: Path, noise: Any, grey: bool) -> None:
    for row in range(10):
        image = Image.fromarray(noise(row, 90 + 13 * row, 140 - 7 * row))
        if grey:
            image = image.convert("L") if row % 3 else image.convert("L").convert("RGB")
        (tmp_path / "ab"[row % 2]).mkdir(exist_ok=True)
        image.save(tmp_path / "ab"[row % 2] / f"{row}.{'bmp' if grey else 'jpg'}")
    dataset = open_dataset(tmp_path, RECIPE)
    channels, *size = dataset.schema.input_shape
    assert channels == (1 if grey else 3)
    for split in dataset.splits.values():
        for name, pixels in zip(split.ids, split.inputs, strict=True):
            content = (tmp_path / name).read_bytes()
            np.testing.assert_array_equal(pixels, decode(content, channels, (size[0], size[1])))


def test_batches_hold_every_row_in_order_as_float_pixels(tiny_dataset: Dataset) -> None:
    split = tiny_dataset.splits["valid"]
    found = list(batches(split, 32))
    assert [len(batch.targets) for batch in found] == [32, 28]
    inputs = torch.cat([batch.inputs for batch in found])
    assert inputs.dtype == torch.float32
    np.testing.assert_array_equal(inputs.permute(0, 2, 3, 1).numpy(), split.inputs)
    assert torch.cat([batch.ids for batch in found]).tolist() == list(range(60))
    np.testing.assert_array_equal(torch.cat([b.targets for b in found]).numpy(), split.targets)


def test_batches_of_colour_lie_channels_last_in_memory(photos: Any) -> None:
    split = open_dataset(photos({"a": 5, "b": 5}), RECIPE).splits["train"]
    (batch,) = batches(split, 32)
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)


# Splits that the user gives


def test_train_and_valid_only_have_no_test_split(photos: Any) -> None:
    root = photos({f"{s}/{c}": 3 for s in ("train", "valid") for c in "ab"})
    dataset = open_dataset(root, RECIPE)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 6, "valid": 6}


def test_train_and_test_only_get_valid_out_of_train(photos: Any) -> None:
    root = photos({"train/a": 20, "train/b": 20, "test/a": 2, "test/b": 2})
    dataset = open_dataset(root, RECIPE)
    assert dataset.counts == {
        "train": {"a": 17, "b": 17}, "valid": {"a": 3, "b": 3}, "test": {"a": 2, "b": 2},
    }  # fmt: skip
    assert all(name.startswith("test/") for name in dataset.splits["test"].ids)
    assert all(name.startswith("train/") for name in dataset.splits["valid"].ids)


def test_train_alone_is_split_like_a_folder_without_splits(photos: Any) -> None:
    assert set(open_dataset(photos({"train/a": 9, "train/b": 9}), RECIPE).splits) == {
        "train", "valid", "test",
    }  # fmt: skip


def test_class_that_train_lacks_is_refused(photos: Any) -> None:
    with pytest.raises(DataError, match="class 'c' has no pictures in train"):
        open_dataset(photos({"train/a": 3, "train/b": 3, "valid/a": 1, "valid/c": 1}), RECIPE)


def test_class_that_test_lacks_is_named(photos: Any) -> None:
    root = photos({"train/a": 12, "train/b": 12, "test/a": 1})
    assert finding(open_dataset(root, RECIPE), "class_missing_from_split").evidence == {
        "split": "test", "classes": ["b"],
    }  # fmt: skip


def test_copies_of_test_pictures_leave_train_and_test_is_not_touched(photos: Any) -> None:
    root = photos({"train/a": 12, "train/b": 12, "test/a": 2, "test/b": 2})
    shutil.copy(root / "test/a/000.png", root / "train/a/copy.png")
    Image.open(root / "test/b/001.png").save(root / "train/b/as.bmp")  # other bytes, same pixels
    dataset = open_dataset(root, RECIPE)
    assert {row["id"] for row in dataset.left_out} == {"train/a/copy.png", "train/b/as.bmp"}
    assert len(dataset.splits["test"]) == 4
    assert len(dataset.splits["train"]) + len(dataset.splits["valid"]) == 24
    assert finding(dataset, "duplicates_across_splits").evidence["count"] == 2
    assert len(dataset.describe(root)["left_out"]) == 2


def test_rows_with_and_without_a_split_are_refused(photos: Any) -> None:
    root = photos({"a": 2, "b": 2})
    (root / "t.csv").write_text("path,label,split\na/000.png,a,train\nb/000.png,b,\n")
    with pytest.raises(DataError, match="split"):
        open_dataset(root / "t.csv", RECIPE)


@pytest.mark.parametrize("count", [1, 2])
def test_class_with_one_or_two_images_is_refused(photos: Any, count: int) -> None:
    with pytest.raises(DataError, match=f"class 'b' holds {count} picture") as caught:
        open_dataset(photos({"a": 9, "b": count}), RECIPE)
    assert caught.value.exit_code == 5
    assert caught.value.hint


# What cannot be decoded


def spoil(root: Path) -> dict[str, str]:
    """Write what is no picture into class a; return the reason to expect for each."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    folder = root / "a"
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "half.jpg").write_bytes(file.getvalue()[:2000])
    (folder / "page.jpg").write_text("<html><body>404</body></html>")
    (folder / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("L", (20_000, 1)).save(folder / "thread.png")
    return {
        "empty.jpg": "empty", "half.jpg": "truncated", "page.jpg": "text", "gone.jpg": "link",
        "folder.jpg": "folder", "pipe.jpg": "pipe", "dot.png": "small", "thread.png": "small",
    }  # fmt: skip


def test_pictures_that_cannot_be_decoded_are_quarantined_with_reasons(photos: Any) -> None:
    root = photos({"a": 10, "b": 10})
    clean = open_dataset(root, RECIPE)
    reasons = spoil(root)
    dataset = open_dataset(root, RECIPE.override(data__max_bad_fraction=0.5))
    told = {row["id"].removeprefix("a/"): row["reason"] for row in dataset.quarantined}
    assert told.keys() == reasons.keys()
    assert all(word in told[name] for name, word in reasons.items())
    assert finding(dataset, "undecodable").evidence["count"] == 8
    for name, split in clean.splits.items():
        assert dataset.splits[name].ids == split.ids
        np.testing.assert_array_equal(dataset.splits[name].inputs, split.inputs)
    assert dataset.fingerprint == clean.fingerprint


def test_many_undecodable_pictures_are_refused_and_the_first_named(photos: Any) -> None:
    root = photos({"a": 10, "b": 10})
    spoil(root)
    with pytest.raises(DataError, match="8 of 28 pictures cannot be used, at most 1 %") as caught:
        open_dataset(root, RECIPE)
    assert caught.value.message.count("a/") == 5
    assert "a/empty.jpg: the file is empty" in caught.value.message
    assert "max_bad_fraction" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_picture_that_may_not_be_read_is_quarantined(photos: Any) -> None:
    root = photos({"a": 5, "b": 5})
    (root / "a" / "000.png").chmod(0)
    dataset = open_dataset(root, RECIPE.override(data__max_bad_fraction=0.5))
    assert dataset.quarantined == ({"id": "a/000.png", "reason": "Permission denied"},)


def test_class_of_nothing_but_broken_pictures_is_refused(photos: Any) -> None:
    root = photos({"a": 9, "b": 9, "c": 3})
    for path in (root / "c").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="class 'c' has no pictures in train"):
        open_dataset(root, RECIPE.override(data__max_bad_fraction=0.5))


# What is written down


def test_description_is_plain_data_without_absolute_paths(photos: Any, tmp_path: Path) -> None:
    root = photos({"a": 9, "猫": 9})
    told = open_dataset(root, RECIPE).describe(tmp_path / "runs" / "one")
    assert told["source"] == "../../photos"
    assert str(tmp_path) not in json.dumps(told)
    assert told["counts"]["train"] == {"a": 7, "猫": 7}
    assert {len(told["ids"][name]) for name in ("valid", "test")} == {2}
    x = np.arange(9 * 16, dtype=np.uint8).reshape(9, 4, 4)
    assert open_dataset((x, np.arange(9) % 2), RECIPE).describe(tmp_path)["source"] is None


def test_fingerprint_is_that_of_the_content_not_of_the_place(photos: Any, tmp_path: Path) -> None:
    root = photos({"a": 5, "b": 5})
    here = open_dataset(root, RECIPE)
    shutil.copytree(root, tmp_path / "copy")
    assert open_dataset(tmp_path / "copy", RECIPE).fingerprint == here.fingerprint
    assert open_dataset(root, RECIPE, seed=1).fingerprint != here.fingerprint
    pixels = np.asarray(Image.open(root / "a" / "000.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(root / "a" / "000.png")
    assert open_dataset(root, RECIPE).fingerprint != here.fingerprint


def test_choices_that_act_later_do_not_change_the_fingerprint(photos: Any) -> None:
    root = photos({"a": 5, "b": 5})
    flipped = open_dataset(root, RECIPE.override(augment__flip=True, augment__shift=0.3))
    assert flipped.fingerprint == open_dataset(root, RECIPE).fingerprint


# The data of a run


def equal(one: Dataset, two: Dataset) -> bool:
    return one.schema == two.schema and all(
        one.splits[name].ids == split.ids and np.array_equal(one.splits[name].inputs, split.inputs)
        and np.array_equal(one.splits[name].targets, split.targets)
        for name, split in two.splits.items()
    )  # fmt: skip


def test_data_of_a_run_come_from_the_cache(photos: Any, tmp_path: Path) -> None:
    root = photos({"a": 5, "b": 5})
    dataset = open_dataset(root, RECIPE.override(data__image_size=16), seed=3)
    run = run_on(dataset, tmp_path / "run")
    shutil.rmtree(root)
    assert equal(dataset_of(run), dataset)
    assert dataset_of(run).describe(run.path) == run.data


def test_arrays_of_a_run_come_from_the_cache(tmp_path: Path, noise: Any) -> None:
    x, y = np.stack([noise(i) for i in range(12)]), np.arange(12) % 2
    dataset = open_dataset((x, y), RECIPE)
    run = run_on(dataset, tmp_path / "run")
    assert equal(dataset_of(run), dataset)
    assert equal(dataset_of(run, (x, y)), dataset)
    with pytest.raises(DataError, match="the data given are not what the run was made with"):
        dataset_of(run, (255 - x, y))


def test_data_of_a_run_are_read_again_where_the_cache_is_gone(
    photos: Any, tmp_path: Path, apart: Path
) -> None:
    root = photos({"a": 5, "b": 5})
    dataset = open_dataset(root, RECIPE.override(data__image_size=16), seed=3)
    run = run_on(dataset, tmp_path / "run")
    shutil.rmtree(apart)
    assert equal(dataset_of(run), dataset)
    shutil.rmtree(apart)
    (root / "a" / "000.png").unlink()
    with pytest.raises(DataError, match=r"\.\./photos is not what the run was made with"):
        dataset_of(run)
    shutil.rmtree(root)
    with pytest.raises(DataError, match="neither in the cache nor at") as caught:
        dataset_of(run)
    assert "--data" in caught.value.hint


def test_fingerprint_that_leaves_the_cache_finds_nothing(photos: Any, tmp_path: Path) -> None:
    root = photos({"a": 5, "b": 5})
    run = run_on(open_dataset(root, RECIPE), tmp_path / "run")
    write_json(run.path / "data.json", {**run.data, "fingerprint": "../../etc", "source": None})
    with pytest.raises(DataError, match="neither in the cache"):
        dataset_of(run)
