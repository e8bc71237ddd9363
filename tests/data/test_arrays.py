"""Arrays and torch Datasets in every layout people hold them in."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, Subset, TensorDataset

from trimtab.data.dataset import open_dataset
from trimtab.data.sources import list_source
from trimtab.errors import DataError
from trimtab.records.recipe import Recipe

X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Y = np.arange(12) % 3


class Items(TorchDataset[Any]):
    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]


def contents(listing: Any) -> Any:
    return np.stack([np.asarray(e.content) for e in listing.entries])


def test_arrays_are_taken_as_they_are() -> None:
    listing = list_source((X, Y))
    assert listing.classes == ("0", "1", "2")
    assert [e.id for e in listing.entries[:2]] == ["000000", "000001"]
    np.testing.assert_array_equal(contents(listing), X)


def test_grey_arrays_without_channels_are_read() -> None:
    dataset = open_dataset((X[..., 0], Y), Recipe())
    assert dataset.schema.input_shape == (1, 8, 8)


def test_tensors_are_read_like_arrays() -> None:
    listing = list_source((torch.from_numpy(X), torch.from_numpy(Y)))
    np.testing.assert_array_equal(contents(listing), X)


@pytest.mark.parametrize(
    "labels",
    [Y.astype(np.uint8), list(Y), np.array(list("abc") * 4), np.array(list("abc") * 4, object)],
)
def test_labels_of_every_discrete_type_are_classes(labels: Any) -> None:
    assert len(list_source((X, labels)).classes or ()) == 3


def test_dict_of_splits_is_read() -> None:
    listing = list_source(
        {"train": (X[:6], Y[:6]), "VAL": (X[6:9], Y[6:9]), "test": (X[9:], Y[9:])}
    )
    assert [e.split for e in listing.entries] == ["train"] * 6 + ["valid"] * 3 + ["test"] * 3
    assert len({e.id for e in listing.entries}) == 12


def test_floats_in_zero_to_one_are_scaled_and_said_once() -> None:
    floats = {"train": (X[:6] / 255.0, Y[:6]), "test": ((X[6:] / 255).astype(np.float32), Y[6:])}
    listing = list_source(floats)
    np.testing.assert_array_equal(contents(listing), X)
    assert [f.name for f in listing.findings] == ["converted_floats"]


@pytest.mark.parametrize(
    ("x", "y", "message", "hint"),
    [
        (X.transpose(0, 3, 1, 2), Y, r"shape \(12, 3, 8, 8\)", "transpose(0, 2, 3, 1)"),
        (X[..., :2], Y, "shape", "(N, H, W, C)"),
        (X.reshape(12, -1), Y, "shape", "(N, H, W)"),
        (X.astype(np.int64), Y, "int64", "uint8"),
        (X.astype(float), Y, "floats from 0 to 255", "Normalize"),
        (X / 127.5 - 1, Y, "floats from -1 to 1", "Normalize"),
        (np.full((12, 8, 8), np.nan), Y, "floats from nan to nan", "[0, 1]"),
        (X, Y[:-1], "12 pictures and y 11 labels", "one label"),
        (X, Y.astype(float), "float64 labels, such as 0", "int64"),
        (X, np.where(Y == 1, np.nan, Y), "4 of them NaN", "int64"),
        (X, Y - 1, "the label is -1", "without a class"),
        (X, np.eye(3)[Y], r"y has the shape \(12, 3\)", "argmax"),
        (X, np.array([None, *Y[1:]], object), "row 0: the label is None", "one class"),
        (X, np.array([0.5, *Y[1:]], object), r"row 0: the label is 0\.5", "one class"),
        (X, np.zeros(12, int), "one class only", "two"),
        (X[:0], Y[:0], "no samples", "two classes"),
    ],
)
def test_arrays_that_cannot_be_meant_are_an_error(x: Any, y: Any, message: str, hint: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_source((x, y))
    assert hint in str(caught.value)


def test_empty_dict_of_splits_is_an_error() -> None:
    with pytest.raises(DataError, match="empty"):
        list_source({})


def test_unknown_split_name_is_an_error() -> None:
    with pytest.raises(DataError, match="'tarin' is no split") as caught:
        list_source({"tarin": (X, Y)})
    assert "train" in caught.value.hint


@pytest.mark.parametrize("source", [None, 7, object()])
def test_what_is_no_data_is_an_error(source: Any) -> None:
    with pytest.raises(DataError, match="cannot read data from"):
        list_source(source)


Pair = collections.namedtuple("Pair", "picture label")
CHW = torch.from_numpy(X).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "items",
    [
        [(Image.fromarray(x), int(y)) for x, y in zip(X, Y, strict=True)],
        [(x, y) for x, y in zip(X, Y, strict=True)],
        [Pair(x / 255, torch.tensor(y)) for x, y in zip(X, Y, strict=True)],
        [[x, int(y)] for x, y in zip(CHW, Y, strict=True)],
        [(x / 255, int(y)) for x, y in zip(CHW, Y, strict=True)],
        [{"image": x, "label": int(y)} for x, y in zip(CHW, Y, strict=True)],
    ],
    ids=["pil", "array", "named tuple of floats", "tensor", "tensor of floats", "dict"],
)
def test_dataset_items_of_every_form_are_read(items: list[Any]) -> None:
    listing = list_source(Items(items, ["cat", "dog", "cow"]))
    np.testing.assert_array_equal(contents(listing), X)
    assert listing.classes == ("cat", "dog", "cow")
    assert [e.label for e in listing.entries[:4]] == ["cat", "dog", "cow", "cat"]


def test_classes_are_found_through_a_subset_and_absent_ones_left_out() -> None:
    whole = Items([(x, y) for x, y in zip(X, Y, strict=True)], ["cat", "dog", "cow", "hen"])
    listing = list_source(Subset(whole, [0, 1, 3]))
    assert listing.classes == ("cat", "dog")
    assert listing.findings[0].evidence == {"classes": ["cow", "hen"]}


def test_classes_that_only_one_of_two_sources_names_are_kept() -> None:
    train = Items(list(zip(X[:6], [0, 1, 2] * 2, strict=True)), ["b", "a", "z"])
    listing = list_source({"train": train, "test": (X, list("abzq") * 3)})
    assert listing.classes == ("b", "a", "z", "q")


def test_tensor_dataset_and_dataset_that_only_iterates_are_read() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return zip(X, Y, strict=True)

    np.testing.assert_array_equal(contents(list_source(Stream())), X)
    np.testing.assert_array_equal(contents(list_source(TensorDataset(CHW, torch.tensor(Y)))), X)


def test_dataset_that_changes_is_named() -> None:
    class Changing(Items):
        def __getitem__(self, row: int) -> Any:
            return np.random.default_rng().integers(0, 256, (8, 8), dtype=np.uint8), row % 2

    listing = list_source(Changing([0] * 4))
    assert [f.name for f in listing.findings] == ["changing_items"]
    assert list_source(Items([(X[0], 0), (X[1], 1)])).findings == []


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((X[0], 7), "item 1 of the dataset: the label is 7, wanted 0 to 2"),
        ((X[0], 1.0), r"item 1 of the dataset: the label is 1\.0"),
        ((X[0] / 1.0, 1), "item 1 of the dataset holds floats from"),
        ((CHW[0].numpy(), 1), r"item 1 .* shape \(3, 8, 8\)"),
        ((Image.new("F", (8, 8)), 1), "item 1 of the dataset: floating-point"),
        ((X[0], 1, 2), "item 1 of the dataset is no pair"),
        ({"pixels": X[0]}, "no pair of picture and label, got keys"),
        (X[0], "no pair"),
    ],
)
def test_item_that_cannot_be_used_is_an_error_with_its_row(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_source(Items([(X[0], 0), item], ["a", "b", "c"]))


def test_error_of_the_users_dataset_names_the_item() -> None:
    class Broken(Items):
        def __getitem__(self, row: int) -> Any:
            raise RuntimeError("disk on fire")

    with pytest.raises(DataError, match="item 0 of the dataset: RuntimeError: disk on fire"):
        list_source(Broken([0]))


def test_dataset_too_large_for_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.data.arrays.MAX_BYTES", 300)
    with pytest.raises(DataError, match="over 300 bytes"):
        list_source(Items([(x, y) for x, y in zip(X, Y, strict=True)]))
