"""The report on data says what they hold and what is wrong, in plain text and as plain data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trimtab.data.check import check
from trimtab.errors import DataError
from trimtab.records.recipe import Recipe


def test_report_counts_every_class_and_split(digits_folder: Path) -> None:
    report = check(digits_folder)
    assert report.total == 400
    text = str(report)
    assert text.startswith("digits: 400 pictures of 10 classes, read as grey 8x8\n")
    assert "originals: width 8 and height 8 pixels" in text
    assert "all classes      280       60       60" in text
    assert text.endswith("nothing to complain about")


def test_report_names_faults_with_remedies(photos: Any) -> None:
    root = photos({"train/a": 12, "train/b": 12, "test/a": 3})
    shutil.copy(root / "test/a/000.png", root / "train/a/copy.png")
    report = check(root, Recipe(), seed=1)
    assert {f.name for f in report.findings} == {
        "class_missing_from_split", "duplicates_across_splits",
    }  # fmt: skip
    assert "! duplicates_across_splits: 1 picture of train" in str(report)
    assert "    remove the copies" in str(report)


def test_report_is_plain_data(photos: Any) -> None:
    told = json.loads(json.dumps(check(photos({"a": 9, "b": 9})).to_dict()))
    assert told["samples"] == 18
    assert told["counts"]["train"] == {"a": 7, "b": 7}
    assert {"schema", "sizes", "quarantined", "left_out", "findings", "fingerprint"} <= told.keys()


def test_many_and_long_and_wide_class_names_keep_the_table_straight(photos: Any) -> None:
    names = {"猫" * 3: 3, "x" * 90: 3, **{f"class {i}": 3 for i in range(40)}}
    lines = str(check(photos(names))).splitlines()
    assert any(line == "... and 12 more" for line in lines)
    assert all(len(line) < 100 for line in lines if "x" * 10 in line)


def test_data_that_cannot_be_used_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        check(tmp_path)
