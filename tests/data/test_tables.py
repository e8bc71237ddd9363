"""CSV, TSV and Parquet tables, as spreadsheets and other tools write them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from trimtab.data.dataset import open_dataset
from trimtab.data.sources import list_source
from trimtab.errors import DataError
from trimtab.records.recipe import Recipe


def write(root: Path, text: str, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def listed(path: Path) -> list[tuple[str, str, str | None]]:
    return [(e.id, e.label, e.split) for e in list_source(path).entries]


@pytest.fixture
def folder(photos: Any) -> Path:
    return photos({"a": 2, "b": 2})  # type: ignore[no-any-return]


WANTED = [("a/000.png", "cat", None), ("b/000.png", "dog", None)]


@pytest.mark.parametrize("header", ["path,label", "file_name,target", " Image , CLASS", "x,path,y"])
def test_columns_are_found_by_name(folder: Path, header: str) -> None:
    x = "7," if header.startswith("x") else ""
    assert listed(write(folder, f"{header}\n{x}a/000.png,cat\n{x}b/000.png,dog\n")) == WANTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_spreadsheet_dialect_is_read(
    folder: Path, encoding: str, delimiter: str, ending: str
) -> None:
    lines = ["path,label", 'a/000.png,"猫"', "", "b/000.png,dog"]
    text = ending.join(lines).replace(",", delimiter)
    assert [row[1] for row in listed(write(folder, text, encoding=encoding))] == ["猫", "dog"]


def test_tsv_is_read(folder: Path) -> None:
    path = write(folder, "path\tlabel\na/000.png\ta, b; c\nb/000.png\tdog\n", "t.tsv")
    assert listed(path)[0][1] == "a, b; c"


def test_split_column_is_used(folder: Path) -> None:
    text = "path,label,split\na/000.png,cat,Train\nb/000.png,dog,val\n"
    assert [row[2] for row in listed(write(folder, text))] == ["train", "valid"]


def test_unknown_split_is_an_error_with_its_line(folder: Path) -> None:
    text = "path,label,split\na/000.png,cat,train\nb/000.png,dog,tset\n"
    with pytest.raises(DataError, match=r"line 3: 'tset' is no split") as caught:
        list_source(write(folder, text))
    assert "test" in caught.value.hint


def test_paths_are_relative_to_the_table_and_may_leave_its_folder(folder: Path) -> None:
    (folder / "tables").mkdir()
    text = f"path,label\n../a/000.png,cat\n{folder}/b/000.png,dog\n..\\b\\001.png,dog\n"
    entries = list_source(write(folder / "tables", text)).entries
    assert [e.id for e in entries] == ["../a/000.png", "../b/000.png", "../b/001.png"]
    assert not any(e.fault for e in entries)


def test_missing_file_is_quarantined(folder: Path) -> None:
    entries = list_source(write(folder, "path,label\na/000.png,cat\nno.png,dog\n")).entries
    assert [e.fault for e in entries] == ["", "No such file or directory"]


def test_path_that_stands_twice_gets_two_ids(folder: Path) -> None:
    text = "path,label\na/000.png,cat\na/000.png,dog\n"
    assert [row[0] for row in listed(write(folder, text))] == ["a/000.png", "a/000.png#2"]


def test_columns_that_could_also_be_meant_are_named(folder: Path) -> None:
    text = "path,label,class\na/000.png,0,cat\nb/000.png,1,dog\n"
    (finding,) = list_source(write(folder, text)).findings
    assert finding.evidence == {"unused": ["class"]}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("path,lable\na/000.png,cat\n", "no label column.*got path, lable", "did you mean 'label'"),
        ("picture,label\na/000.png,cat\n", "no image column", "path"),
        ("path,label,Label\na/000.png,cat,x\n", "'label' stands twice", "rename"),
        ("path,label\n", "holds no rows", "header"),
        ("", "no image column.*got none", "path"),
        ("path,label\na/000.png\n", "line 2: 1 cells, the header has 2", "quotes"),
        ("path,label\na/000.png,cat,dog\n", "line 2: 3 cells", "quotes"),
        ("path,label\na/000.png,\n", "line 2: the label is missing", "class name"),
        ("path,label\na/000.png,NaN\n", "line 2: the label is missing", "class name"),
        ("path,label\n,cat\n", "line 2: no path", "row"),
        ("path,label\na/000.png,1.0\nb/000.png,2.0\n", "decimal numbers such as 1.0", "whole"),
        ("path,label\na/000.png,0.37\nb/000.png,1\n", "decimal numbers such as 0.37", "whole"),
        ('path,label\n"a/000.png,cat\n', "line 2: ", "CSV"),
        ("path,label\na/0\x0000.png,cat\n", "line 2: a NUL", "CSV"),
    ],
)
def test_broken_table_is_an_error_with_its_place(
    folder: Path, text: str, message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list_source(write(folder, text))
    assert hint in caught.value.hint
    assert caught.value.exit_code == 5


def test_table_in_another_encoding_is_an_error_with_its_line(folder: Path) -> None:
    path = write(folder, "path,label\na/000.png,cat\nb/000.png,中文\n", encoding="gbk")
    with pytest.raises(DataError, match="line 3: not UTF-8"):
        list_source(path)


def test_whole_numbers_are_class_names_in_their_order(folder: Path) -> None:
    text = "path,label\na/000.png,10\nb/000.png,9\n"
    assert list_source(write(folder, text)).classes == ("9", "10")


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(file: Path, names: list[str] | None = None, **columns: Any) -> Path:
    table = pyarrow.table(columns)
    if names:
        features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, file)
    return file


def test_parquet_with_picture_bytes_gives_their_pixels(tmp_path: Path, noise: Any) -> None:
    pixels = [noise(seed) for seed in range(8)]
    cells = [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)]
    path = write_parquet(tmp_path / "t.parquet", ["cat", "dog"], image=cells, label=[0, 1] * 4)
    dataset = open_dataset(path, Recipe())
    assert dataset.schema.classes == ("cat", "dog")
    for split in dataset.splits.values():
        for inputs, target, name in zip(split.inputs, split.targets, split.ids, strict=True):
            np.testing.assert_array_equal(inputs, pixels[int(name[0])])
            assert target == int(name[0]) % 2


def test_parquet_with_plain_bytes_or_paths_is_read(folder: Path, noise: Any) -> None:
    plain = write_parquet(folder / "b.parquet", image=[png(noise(1)), png(noise(2))], y=["p", "q"])
    assert listed(plain) == [("000000", "p", None), ("000001", "q", None)]
    paths = write_parquet(folder / "p.parquet", path=["a/000.png", "b/000.png"], y=[True, False])
    assert listed(paths) == [("a/000.png", "True", None), ("b/000.png", "False", None)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0], r"row 0: the label is 0\.0"),
        ([0.0, float("nan")], r"row 0: the label is 0\.0"),
        ([1, None], "row 1: the label is missing"),
    ],
)
def test_parquet_labels_that_are_no_classes_are_an_error(
    folder: Path, labels: Any, message: str
) -> None:
    path = write_parquet(folder / "t.parquet", path=["a/000.png", "b/000.png"], label=labels)
    with pytest.raises(DataError, match=message):
        list_source(path)


def test_parquet_label_beyond_its_class_names_is_an_error(folder: Path) -> None:
    path = write_parquet(folder / "t.parquet", ["x", "y"], path=["a", "b"], label=[0, 2])
    with pytest.raises(DataError, match="row 1: label 2 of 2 classes"):
        list_source(path)


def test_file_that_is_no_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(DataError, match="no readable Parquet"):
        list_source(tmp_path / "t.parquet")
