"""Splits are stratified, stable, and keep identical pictures together."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data.split import (
    Samples,
    carve,
    class_findings,
    duplicate_findings,
    in_hash_order,
    leave_out,
)
from trimtab.errors import DataError

SHARES = {"test": 0.15, "valid": 0.15}


def made(labels: list[str], digests: list[bytes] | None = None) -> Samples:
    ids = [f"{label}/{row}" for row, label in enumerate(labels)]
    return Samples(ids, labels, digests or [name.encode() for name in ids])


def test_each_class_gives_each_split_its_share() -> None:
    labels = ["a"] * 200 + ["b"] * 20 + ["c"] * 3
    splits = carve(made(labels), SHARES, seed=0)
    counts = Counter(zip(labels, splits, strict=True))
    assert {split: counts["a", split] for split in ("train", "valid", "test")} == {
        "train": 140, "valid": 30, "test": 30,
    }  # fmt: skip
    assert counts["b", "valid"] == counts["b", "test"] == 3
    assert counts["c", "valid"] == counts["c", "test"] == counts["c", "train"] == 1


def test_split_depends_on_ids_and_seed_not_on_the_order_of_rows() -> None:
    samples = made(["a", "b"] * 50)
    splits = dict(zip(samples.ids, carve(samples, SHARES, seed=1), strict=True))
    turned = samples.take(reversed(range(100)))
    assert dict(zip(turned.ids, carve(turned, SHARES, seed=1), strict=True)) == splits
    assert dict(zip(samples.ids, carve(samples, SHARES, seed=2), strict=True)) != splits


@pytest.mark.parametrize("count", [3, 4, 5])
def test_small_class_keeps_a_picture_in_every_split_whatever_the_shares(count: int) -> None:
    splits = carve(made(["a"] * count), {"test": 0.49, "valid": 0.49}, 0)
    assert set(splits) == {"train", "valid", "test"}


def test_no_test_split_where_its_share_is_zero() -> None:
    assert set(carve(made(["a", "b"] * 9), {"test": 0.0, "valid": 0.2}, 0)) == {"train", "valid"}


def test_class_with_too_few_pictures_is_refused() -> None:
    with pytest.raises(DataError, match="class 'b' holds 2 pictures, 2 of them different; wanted"):
        carve(made(["a"] * 9 + ["b"] * 2), SHARES, 0)


def test_class_of_one_picture_copied_is_refused() -> None:
    same = [bytes([row]) for row in range(9)] + [b"x"] * 3
    with pytest.raises(DataError, match="3 pictures, 1 of them different"):
        carve(made(["a"] * 9 + ["b"] * 3, same), SHARES, 0)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=80),
    st.integers(0, 5), st.floats(0, 0.49), st.floats(0.01, 0.49),
)  # fmt: skip
def test_identical_pictures_never_stand_in_two_splits(
    rows: list[tuple[str, int]], seed: int, test: float, valid: float
) -> None:
    rows = [*rows, *(("a", 100 + i) for i in range(3)), *(("b", 200 + i) for i in range(3))]
    samples = made([label for label, _ in rows], [bytes([picture]) for _, picture in rows])
    splits = carve(samples, {"test": test, "valid": valid}, seed)
    places = defaultdict(set)
    for digest, split in zip(samples.digests, splits, strict=True):
        places[digest].add(split)
    assert all(len(found) == 1 for found in places.values())
    assert {"train", "valid"} <= set(splits)


def test_any_first_part_is_a_fair_sample() -> None:
    ids = [f"{label}/{row}" for label in "abcde" for row in range(200)]
    first = Counter(ids[row][0] for row in in_hash_order(ids, range(1000))[:200])
    assert all(20 <= first[label] <= 60 for label in "abcde")


def test_copies_of_test_and_valid_are_left_out_of_the_others() -> None:
    digests = [b"1", b"1", b"2", b"2", b"3", b"3", b"4", b"1"]
    splits = ["train", "test", "train", "valid", "valid", "test", "train", "valid"]
    samples = Samples([f"{s}{i}" for i, s in enumerate(splits)], ["a"] * 8, digests)
    gone, told = leave_out(samples, splits)
    assert gone == {0, 2, 4, 7}
    assert {"id": "train2", "split": "train", "copy_of": "valid3"} in told
    assert not any(row["split"] == "test" for row in told)


def test_copies_inside_a_split_are_kept_and_named() -> None:
    samples = made(["a", "a", "a", "b"], [b"1", b"1", b"1", b"2"])
    gone, told = leave_out(samples, ["train"] * 4)
    assert (gone, told) == (set(), [])
    (finding,) = duplicate_findings(samples)
    assert (finding.name, finding.severity, finding.evidence["count"]) == ("duplicates", "info", 2)


def test_one_picture_under_two_labels_is_a_warning() -> None:
    findings = duplicate_findings(made(["a", "b"], [b"1", b"1"]))
    assert [f.name for f in findings] == ["duplicates", "conflicting_labels"]
    assert findings[1].severity == "warning"
    assert duplicate_findings(made(["a", "b"])) == []


def test_class_that_a_split_lacks_is_named() -> None:
    counts = {"train": {"a": 20, "b": 20}, "valid": {"a": 2, "b": 0}, "test": {"a": 2, "b": 2}}
    (finding,) = class_findings(counts)
    assert finding.evidence == {"split": "valid", "classes": ["b"]}
    counts["valid"]["b"] = 1
    assert class_findings(counts) == []


def test_class_that_train_lacks_is_an_error_with_the_one_that_is_meant() -> None:
    with pytest.raises(DataError, match="class 'horses' has no pictures in train") as caught:
        class_findings({"train": {"horse": 9, "horses": 0}, "valid": {"horse": 1, "horses": 1}})
    assert "'horse'" in caught.value.hint


def test_class_with_few_pictures_is_named() -> None:
    (finding,) = class_findings({"train": {"a": 20, "b": 2}, "valid": {"a": 2, "b": 1}})
    assert finding.name == "few_pictures"
