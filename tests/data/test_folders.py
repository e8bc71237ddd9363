"""Folders as people have them: split, unsplit, nested, untidy, and what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trimtab.data.dataset import open_dataset
from trimtab.data.folders import list_folder
from trimtab.data.sources import list_source
from trimtab.errors import DataError
from trimtab.records.recipe import Recipe

RECIPE = Recipe()


def found(listing: Any, name: str) -> Any:
    return next((f for f in listing.findings if f.name == name), None)


def test_class_folders_give_one_entry_per_picture(photos: Any) -> None:
    root = photos({"cat": 3, "dog": 2, "dog/indoors": 1})
    listing = list_source(root)
    assert listing.classes == ("cat", "dog")
    assert [e.id for e in listing.entries] == [
        "cat/000.png", "cat/001.png", "cat/002.png",
        "dog/000.png", "dog/001.png", "dog/indoors/000.png",
    ]  # fmt: skip
    assert {e.split for e in listing.entries} == {None}


@pytest.mark.parametrize("valid", ["valid", "VAL", "Validation", "dev"])
def test_split_folders_are_recognised_in_any_case(photos: Any, valid: str) -> None:
    root = photos({f"{s}/{c}": 1 for s in ("Train", valid, "test") for c in "ab"})
    splits = {e.id.split("/")[0]: e.split for e in list_source(root).entries}
    assert splits == {"Train": "train", valid: "valid", "test": "test"}


def test_class_names_that_are_numbers_stand_in_their_order(photos: Any) -> None:
    root = photos(dict.fromkeys(("10", "9", "0", "2"), 1))
    assert list_source(root).classes == ("0", "2", "9", "10")


@pytest.mark.parametrize("name", ["猫", "🐱 kitty", "<script>alert(1)<", "-rf", "a'b\" c"])
def test_class_names_of_any_language_are_kept(photos: Any, name: str) -> None:
    root = photos({name: 4, "other": 4})
    assert name in open_dataset(root, RECIPE).schema.classes


def test_two_spellings_of_one_name_are_one_class(photos: Any) -> None:
    root = photos({"train/caf\u00e9": 2, "train/x": 2, "valid/cafe\u0301": 1, "valid/x": 1})
    assert list_source(root).classes == ("caf\u00e9", "x")


def test_classes_that_differ_in_case_are_named(photos: Any) -> None:
    assert "Cat" in found(list_source(photos({"Cat": 1, "cat": 1})), "class_twins").message


def test_control_characters_in_a_class_name_are_refused(photos: Any) -> None:
    with pytest.raises(DataError, match=r"control") as caught:
        list_source(photos({"a\x1b[31m": 1, "b": 1}))
    assert "\x1b" not in str(caught.value)


def test_file_name_that_is_no_utf8_gets_a_readable_id(photos: Any) -> None:
    root = photos({"a": 3, "b": 3})
    os.rename(root / "a" / "000.png", os.fsencode(root) + b"/a/\xff.png")
    assert open_dataset(root, RECIPE).describe(root)["counts"]["train"]["a"] == 1
    assert "a/\\xff.png" in [e.id for e in list_source(root).entries]


def test_hidden_files_are_ignored_and_others_counted(photos: Any) -> None:
    root = photos({"a": 1, "b": 1})
    for name in (".DS_Store", ".hidden.png", "notes.txt", "labels.json", "more.txt"):
        (root / "a" / name).write_text("x")
    (root / ".git").mkdir()
    listing = list_source(root)
    assert len(listing.entries) == 2
    assert found(listing, "ignored_files").evidence["files"] == {".txt": 2, ".json": 1}


def test_tidy_folder_gives_no_findings(photos: Any) -> None:
    assert list_source(photos({"a": 1, "b": 1})).findings == []


def test_pictures_outside_of_class_folders_are_named(photos: Any) -> None:
    root = photos({"a": 1, "b": 1})
    os.rename(root / "a" / "000.png", root / "loose.png")
    photos({"a": 1})
    assert found(list_source(root), "loose_pictures").evidence["ids"] == ["loose.png"]


def test_folder_without_pictures_is_named_and_is_no_class(photos: Any) -> None:
    root = photos({"a": 1, "b": 1})
    (root / "c").mkdir()
    listing = list_source(root)
    assert listing.classes == ("a", "b")
    assert found(listing, "empty_class_folder").evidence["ids"] == ["c"]


def test_link_to_a_file_is_followed_and_to_a_folder_is_not(photos: Any, tmp_path: Path) -> None:
    root, other = photos({"a": 1, "b": 1}), photos({"far": 2}, root="elsewhere")
    (root / "a" / "linked.png").symlink_to(other / "far" / "000.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "c").symlink_to(other / "far")
    listing = list_source(root)
    assert [e.id for e in listing.entries] == ["a/000.png", "a/linked.png", "b/000.png"]
    assert not any(e.fault for e in listing.entries)
    assert found(listing, "folder_links").evidence["ids"] == ["c", "a/loop"]


def test_what_is_no_file_has_its_reason_and_nothing_hangs(photos: Any) -> None:
    root = photos({"a": 1, "b": 1})
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "folder.jpg").mkdir()
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "a" / "circle.jpg").symlink_to(root / "a" / "circle.jpg")
    faults = {e.id: e.fault for e in list_source(root).entries if e.fault}
    assert faults == {
        "a/pipe.jpg": "a pipe or device, not a file",
        "a/folder.jpg": "a folder, not a file",
        "a/gone.jpg": "a link to a file that is not there",
        "a/circle.jpg": "a link to a file that is not there",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read_is_an_error(photos: Any) -> None:
    root = photos({"a": 1, "b": 1})
    (root / "a").chmod(0)
    with pytest.raises(DataError, match="cannot read the folder"):
        list_source(root)


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the data") as caught:
        list_source(tmp_path / "nowhere")
    assert caught.value.exit_code == 5
    assert caught.value.hint


def test_folder_of_nothing_but_links_to_folders_is_an_error(photos: Any, tmp_path: Path) -> None:
    root = photos({"a": 1, "b": 1})
    (tmp_path / "links").mkdir()
    for name in "ab":
        (tmp_path / "links" / name).symlink_to(root / name)
    with pytest.raises(DataError, match="2 links to folders, which are not followed"):
        list_source(tmp_path / "links")


def test_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures: got no files"):
        list_source(tmp_path)


def test_folder_of_other_files_is_an_error_that_counts_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.heic").write_text("x")
    with pytest.raises(DataError, match=r"got 1 \.heic in 1 folder"):
        list_source(tmp_path)


def test_one_class_is_an_error(photos: Any) -> None:
    with pytest.raises(DataError, match="one class only: 'cat'"):
        list_source(photos({"cat": 5}))


def test_folder_inside_a_folder_is_proposed(photos: Any) -> None:
    root = photos({"archive/cat": 2, "archive/dog": 2})
    with pytest.raises(DataError) as caught:
        list_source(root)
    assert caught.value.hint == f"did you mean {root / 'archive'}?"


def test_pictures_without_class_folders_are_an_error(photos: Any) -> None:
    root = photos({".": 3})
    with pytest.raises(DataError, match="3 pictures but no class folders"):
        list_source(root)
    (root / "labels.csv").write_text("path,label\n")
    with pytest.raises(DataError) as caught:
        list_source(root)
    assert "labels.csv" in caught.value.hint


def test_splits_beside_class_folders_are_an_error(photos: Any) -> None:
    root = photos({"train/a": 1, "train/b": 1, "test/a": 1, "cat": 1})
    with pytest.raises(DataError, match=r"mixes test/ with class folders \(cat\)"):
        list_source(root)


def test_class_that_is_called_train_is_a_class(photos: Any) -> None:
    assert list_source(photos({"train": 2, "car": 2, "bus": 2})).classes == ("bus", "car", "train")


def test_one_split_under_two_names_is_an_error(photos: Any) -> None:
    root = photos({f"{s}/{c}": 1 for s in ("train", "val", "valid") for c in "ab"})
    with pytest.raises(DataError, match="twice: val, valid"):
        list_source(root)


def test_test_without_train_is_an_error(photos: Any) -> None:
    with pytest.raises(DataError, match="no train/"):
        list_source(photos({"test/a": 1, "test/b": 1}))


def test_split_without_class_folders_is_an_error(photos: Any) -> None:
    with pytest.raises(DataError, match="test holds no class folders"):
        list_source(photos({"train/a": 1, "train/b": 1, "test": 3}))


def test_archive_is_an_error_that_says_to_unpack_it(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="no folder and no table") as caught:
        list_source(tmp_path / "photos.zip")
    assert "unpack" in caught.value.hint


def test_ids_do_not_depend_on_where_the_folder_lies(photos: Any, tmp_path: Path) -> None:
    root = photos({"a": 1, "b": 1})
    ids = [e.id for e in list_folder(root).entries]
    os.rename(root, tmp_path / "moved")
    assert [e.id for e in list_folder(tmp_path / "moved").entries] == ids
