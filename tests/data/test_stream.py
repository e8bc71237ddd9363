"""Streamed pictures: the same batches however they are read, and no bad file passes unseen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trimtab.data import cache, pictures, reader, store, streamed
from trimtab.data.dataset import Batch, Dataset, dataset_of, open_dataset
from trimtab.data.feed import Feed
from trimtab.data.pictures import Pictures
from trimtab.errors import DataError
from trimtab.records.files import write_json
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, start_run
from trimtab.records.sections import AugmentSection

SIDE = 16
OFF = AugmentSection(shift=0.0, flip=False)
CROPS = AugmentSection(crop=0.9, shift=0.0, flip=True, cutout=0.25)
ALL = CROPS.model_copy(update={"shift": 0.125, "rotate": 10, "policy": "randaugment", "mixup": 0.2})
kinds = pytest.mark.parametrize("augment", [OFF, CROPS, ALL], ids=["off", "crops", "all"])

Photos = Callable[..., Path]


@pytest.fixture
def jpegs(tmp_path: Path, noise: Any, apart: Path, monkeypatch: pytest.MonkeyPatch) -> Photos:
    """Write class folders of JPEG, some grey, one PNG; every picture another one."""
    monkeypatch.setattr(pictures, "PAUSE_SECONDS", 0.0)

    def make(counts: dict[str, int], height: int = 40, width: int = 50) -> Path:
        seed = iter(range(1000))
        for name, count in counts.items():
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True)
            for row in range(count):
                image = Image.fromarray(noise(next(seed), 5, 6)).resize((width, height))
                kind = "png" if row == 1 else "jpg"
                image = image.convert("L") if row == 2 else image
                image.save(folder / f"{row:03d}.{kind}")
        return tmp_path / "photos"

    return make


def opened(folder: Path, storage: str = "stream", **choices: Any) -> Dataset:
    choices = {"image_size": SIDE, "storage": storage, "max_bad_fraction": 0.1} | choices
    return open_dataset(folder, Recipe().override(**{f"data__{k}": v for k, v in choices.items()}))


def feed_of(dataset: Dataset, augment: AugmentSection = CROPS, seed: int = 0) -> Feed:
    return Feed(dataset.splits["train"], augment, batch_size=8, seed=seed,
                classes=len(dataset.schema.classes))  # fmt: skip


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def inputs_of(dataset: Dataset, split: str = "train") -> Pictures:
    inputs = dataset.splits[split].inputs
    assert isinstance(inputs, Pictures)
    return inputs


def path_of(dataset: Dataset, row: int) -> Path:
    return Path(inputs_of(dataset).entries[row].content)


@kinds
def test_threads_and_prefetching_make_no_difference(
    jpegs: Photos, augment: AugmentSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(jpegs({"a": 25, "b": 25}))
    found = []
    for threads, ahead in ((1, 1), (2, 4), (4, 1)):
        monkeypatch.setattr(reader, "core_count", lambda threads=threads: threads)
        monkeypatch.setattr(reader, "AHEAD", ahead)
        found.append(list(feed_of(dataset, augment).epoch(3)))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert not same(found[0], list(feed_of(dataset, augment).epoch(4)))
    if augment is not OFF:
        order = torch.cat([batch.ids for batch in found[0]])
        again = torch.cat([batch.ids for batch in feed_of(dataset, augment, seed=1).epoch(3)])
        assert not torch.equal(order, again)


@kinds
def test_pictures_of_the_size_stream_as_they_are_in_memory(
    jpegs: Photos, augment: AugmentSection
) -> None:
    folder = jpegs({"a": 25, "b": 25}, SIDE, SIDE)
    memory, stream = opened(folder, "memory"), opened(folder)
    assert isinstance(memory.splits["train"].inputs, np.ndarray)
    assert memory.fingerprint == stream.fingerprint
    assert memory.schema == stream.schema
    assert same(*(list(feed_of(data, augment).epoch(1)) for data in (memory, stream)))


def test_rows_are_the_same_pixels_as_in_memory(jpegs: Photos) -> None:
    folder = jpegs({"a": 20, "b": 20})
    memory, stream = opened(folder, "memory"), opened(folder)
    for name, split in memory.splits.items():
        streamed_split = stream.splits[name]
        assert streamed_split.ids == split.ids
        assert streamed_split.inputs.shape == split.inputs.shape
        np.testing.assert_array_equal(streamed_split.targets, split.targets)
        for index in (slice(None), slice(1, 3), np.array([2, 0]), 1, slice(0, 0)):
            np.testing.assert_array_equal(streamed_split.inputs[index], split.inputs[index])
    assert memory.schema == stream.schema


@kinds
def test_an_epoch_from_the_middle_is_the_tail_of_the_whole(
    jpegs: Photos, augment: AugmentSection
) -> None:
    feed = feed_of(opened(jpegs({"a": 25, "b": 26})), augment)
    whole = list(feed.epoch(1))
    for start in range(len(feed) + 1):
        assert same(list(feed.epoch(1, start)), whole[start:])


def test_every_sample_comes_once_per_epoch_also_across_an_interruption(jpegs: Photos) -> None:
    dataset = opened(jpegs({"a": 30, "b": 31}))
    before = feed_of(dataset).epoch(0)
    seen = [next(before).ids, next(before).ids]
    before.close()
    seen += [batch.ids for batch in feed_of(dataset).epoch(0, 2)]
    assert sorted(torch.cat(seen).tolist()) == list(range(len(dataset.splits["train"])))


def test_no_two_samples_or_epochs_share_their_crops(jpegs: Photos) -> None:
    feed = feed_of(opened(jpegs({"a": 30, "b": 30})))
    inner = feed.store.reader
    assert inner is not None
    drawn: list[Any] = []
    original = inner.places

    def noted(draw: Any) -> Any:
        drawn.extend(original(draw))
        return original(draw)

    inner.places = noted  # type: ignore[method-assign]
    for epoch in range(3):
        list(feed.epoch(epoch))
    assert len(drawn) == 3 * len(feed.targets)
    assert len(set(drawn)) > 0.97 * len(drawn)


def test_no_more_is_read_ahead_than_allowed(jpegs: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.data.feed.CHUNK_BYTES", 1)
    feed = feed_of(opened(jpegs({"a": 60, "b": 60})))
    inner = feed.store.reader
    assert inner is not None
    begun = 0
    start = inner.start

    def counted(draw: Any) -> Any:
        nonlocal begun
        begun += 1
        return start(draw)

    inner.start = counted  # type: ignore[method-assign]
    feed.piece = feed.chunk = 1
    for number, _ in enumerate(feed.epoch(0), start=1):
        assert begun <= number + reader.AHEAD


@pytest.mark.parametrize("fault", ["gone", "cut", "changed", "empty"])
def test_a_file_that_breaks_in_the_middle_is_named_and_stood_in_for(
    jpegs: Photos, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(jpegs({"a": 25, "b": 25}))
    told: list[str] = []
    monkeypatch.setattr(pictures, "say", told.append)
    row = 5
    augment = CROPS.model_copy(update={"cutout": 0.0})  # its colour is the mean of the pictures
    whole: dict[int, Tensor] = {}
    for batch in feed_of(dataset, augment).epoch(0):
        whole |= dict(zip(batch.ids.tolist(), batch.inputs, strict=True))
    spoil(path_of(dataset, row), fault)
    found = list(feed_of(dataset, augment).epoch(0))
    ids = torch.cat([batch.ids for batch in found]).tolist()
    assert sorted(ids) == list(range(len(ids)))
    inputs = inputs_of(dataset)
    name = inputs.entries[row].id
    assert list(inputs.faults) == [row]
    assert len(told) == 1
    assert name in told[0]
    assert "1 put aside" in told[0]
    assert name in dataset.lost[0].message
    for batch in found:
        for sample, pixels in zip(batch.ids.tolist(), batch.inputs, strict=True):
            assert torch.equal(pixels, whole[sample]) is (sample != row)
            assert float(pixels.std()) > 1
    assert same(list(feed_of(dataset, augment).epoch(0)), found)
    other = next(at for at in inputs.candidates(row) if at != row)
    assert inputs.targets[other] == inputs.targets[row]
    np.testing.assert_array_equal(inputs[row], inputs[other])


def spoil(path: Path, fault: str) -> None:
    content = path.read_bytes()
    if fault == "gone":
        path.unlink()
    elif fault == "cut":  # keeps its time, so that only decoding can tell
        status = path.stat()
        path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif fault == "changed":
        os.utime(path, ns=(1, 1))
    else:
        path.write_bytes(b"")


def test_too_many_broken_files_end_the_training(jpegs: Photos) -> None:
    dataset = opened(jpegs({"a": 25, "b": 25}), max_bad_fraction=0.05)
    for row in (3, 8):
        path_of(dataset, row).unlink()
    with pytest.raises(DataError, match="2 of 34 pictures cannot be read any more, at most 5 %"):
        list(feed_of(dataset).epoch(0))


def test_a_failure_of_the_moment_is_tried_again(
    jpegs: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(jpegs({"a": 12, "b": 12}))
    whole = list(feed_of(dataset).epoch(0))
    failures = iter([OSError(5, "Input/output error")] * 2)
    original = pictures.content_of

    def flaky(entry: Any) -> bytes:
        for failure in failures:
            raise failure
        return original(entry)

    monkeypatch.setattr(pictures, "content_of", flaky)
    assert same(list(feed_of(dataset).epoch(0)), whole)
    assert not inputs_of(dataset).faults


def test_the_second_opening_decodes_nothing(jpegs: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = jpegs({"a": 20, "b": 20})
    first = opened(folder)
    monkeypatch.setattr(streamed, "prepare", lambda *_, **__: pytest.fail("decoded again"))
    second = opened(folder)
    assert first.describe(folder) == second.describe(folder)
    assert same(list(feed_of(first).epoch(0)), list(feed_of(second).epoch(0)))


def test_storage_is_chosen_by_what_fits_and_then_kept(
    jpegs: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = jpegs({"a": 20, "b": 20})
    monkeypatch.setattr(streamed, "LIMIT_BYTES", 40 * SIDE * SIDE * 3 - 1)
    tight = opened(folder, "auto")
    assert tight.settings["storage"] == "stream"
    assert [finding.name for finding in tight.findings] == ["streamed"]
    monkeypatch.undo()
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder.parent / "cache"))
    assert opened(folder, "auto").settings["storage"] == "stream"
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder.parent / "other"))
    assert opened(folder, "auto").settings["storage"] == "memory"


def test_arrays_cannot_stream_and_say_so(noise: Any) -> None:
    x, y = np.stack([noise(seed) for seed in range(20)]), np.arange(20) % 2
    with pytest.raises(DataError, match="in memory already"):
        open_dataset((x, y), Recipe().override(data__storage="stream"))


def test_pictures_are_moved_by_one_thread_while_others_decode(
    jpegs: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = opened(jpegs({"a": 5, "b": 5})).splits["train"]
    seen, mirrored, floats = [], store.mirrored, Tensor.float

    def watched(change: Any) -> Any:
        def counted(pixels: Tensor, *others: Any) -> Tensor:
            seen.append((change.__name__, torch.get_num_threads()))
            return change(pixels, *others)

        return counted

    monkeypatch.setattr(store, "mirrored", watched(mirrored))
    monkeypatch.setattr(Tensor, "float", watched(floats))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        feed = Feed(split, CROPS, batch_size=4, seed=0, classes=2)
        for _ in feed.epoch(0):
            assert torch.get_num_threads() == 2  # those who train have all of them
    finally:
        torch.set_num_threads(threads)
    assert set(seen) == {("mirrored", 1), ("float", 1)}


def test_nothing_decoded_is_kept(jpegs: Photos, apart: Path) -> None:
    dataset = opened(jpegs({"a": 20, "b": 20}))
    assert cache.load(dataset.fingerprint) is None
    assert sum(path.stat().st_size for path in apart.rglob("*") if path.is_file()) < 10_000


def test_a_run_says_which_pictures_got_lost_while_it_trained(jpegs: Photos, tmp_path: Path) -> None:
    from trimtab.train.run import train

    dataset = opened(jpegs({"a": 25, "b": 25}))
    path_of(dataset, 5).unlink()
    recipe = Recipe().override(model__name="cnn_small", train__epochs=1, train__precision="fp32",
                               train__layout="contiguous", augment__flip=False)  # fmt: skip
    run = train(dataset, recipe=recipe, out=tmp_path / "run")
    found = {finding.name: finding for finding in run.findings}
    assert found.keys() >= {"streamed", "lost_pictures"}
    assert inputs_of(dataset).entries[5].id in found["lost_pictures"].message
    assert dataset_of(run).fingerprint == dataset.fingerprint


def run_on(dataset: Dataset, path: Path) -> Run:
    run = start_run(path, kind="train", label="x", recipe=Recipe(), seed=0)
    write_json(path / "data.json", dataset.describe(path))
    return run


@pytest.mark.parametrize("fault", ["gone", "new", "noticed", "unnoticed"])
def test_pictures_that_are_others_than_a_run_was_made_with_are_named(
    jpegs: Photos, tmp_path: Path, noise: Any, apart: Path, fault: str
) -> None:
    dataset = opened(jpegs({"a": 25, "b": 25}))
    run = run_on(dataset, tmp_path / "run")
    shutil.rmtree(apart)
    assert dataset_of(run).fingerprint == dataset.fingerprint
    path, name = path_of(dataset, 5), inputs_of(dataset).entries[5].id
    if fault == "gone":
        path.unlink()
        told = f"1 picture missing or unreadable: {name} "
    else:
        path = path.with_name("new.png") if fault == "new" else path
        Image.fromarray(noise(999, 40, 50)).save(path)
        told = {"new": f"1 picture new: {Path(name).parent / 'new.png'} ",
                "noticed": f"1 picture lost while it trained: {name} ",
                "unnoticed": "pictures of the same names have other contents"}[fault]  # fmt: skip
    if fault == "noticed":
        assert dataset.splits["train"].inputs[5].any()
        write_json(run.path / "findings.json", [one.model_dump() for one in dataset.lost])
    if fault != "new":
        shutil.rmtree(apart)
    with pytest.raises(DataError, match=told):
        dataset_of(run)


def test_a_run_goes_on_without_the_few_pictures_that_were_lost_since(
    jpegs: Photos, tmp_path: Path, noise: Any
) -> None:
    dataset = opened(jpegs({"a": 25, "b": 25}))
    run, (gone, changed, touched) = run_on(dataset, tmp_path / "run"), (3, 8, 9)
    whole = dataset.splits["train"].inputs[:]
    path_of(dataset, gone).unlink()
    Image.fromarray(noise(999, 40, 50)).save(path_of(dataset, changed))
    os.utime(path_of(dataset, touched), ns=(1, 1))
    for given in (None, tmp_path / "photos"):
        again = dataset_of(run, given)
        assert again.describe(run.path) == run.data
        found = again.splits["train"].inputs[:]
        kept = [row for row in range(len(whole)) if row not in (gone, changed, touched)]
        np.testing.assert_array_equal(found[kept], whole[kept])
        faults = {inputs_of(again).entries[row].id for row in (gone, changed, touched)}
        assert {row["id"] for row in again.lost[0].evidence["samples"]} == faults
        for row in (gone, changed, touched):
            number = next(at for at in inputs_of(again).candidates(row) if at in kept)
            np.testing.assert_array_equal(found[row], whole[number])
    for row in (11, 12, 13):
        path_of(dataset, row).unlink()
    with pytest.raises(DataError, match=r"4 pictures missing or unreadable"):
        dataset_of(run)


def test_labels_and_splits_that_are_others_are_not_taken_for_lost_pictures(
    jpegs: Photos, tmp_path: Path
) -> None:
    folder = jpegs({"a": 25, "b": 25})
    rows = [f"{each.parent.name}/{each.name},{each.parent.name},train"
            for each in sorted(folder.rglob("*.*"))]  # fmt: skip
    table = folder / "labels.csv"

    def write(*changes: tuple[int, str, str]) -> None:
        lines = list(rows)
        for row, old, new in changes:
            lines[row] = lines[row].replace(old, new)
        table.write_text("\n".join(["path,label,split", *lines]))

    write()
    dataset = opened(table)
    run = run_on(dataset, tmp_path / "run")
    (folder / rows[0].partition(",")[0]).unlink()
    assert dataset_of(run).fingerprint == dataset.fingerprint
    for change in ((1, ",a,", ",b,"), (1, ",train", ",valid")):
        write(change)
        with pytest.raises(DataError, match="not what the run was made with"):
            dataset_of(run)
