"""An epoch is whole, reproducible, resumable, and the same however it is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.data import augment as augmentations
from trimtab.data import feed as feeds
from trimtab.data import store, warp
from trimtab.data.dataset import Batch, Split
from trimtab.data.draw import Draw
from trimtab.data.feed import Feed, bounds, generator_of
from trimtab.errors import UsageError
from trimtab.records.sections import AugmentSection

OFF = AugmentSection(shift=0.0, flip=False)
MOVES = AugmentSection(shift=0.25, flip=True)
ALL = AugmentSection(
    shift=0.125, flip="alternating", flip_vertical=True, rotate=15, zoom=0.1, shear=5,
    brightness=0.1, contrast=0.2, saturation=0.2, hue=0.05, blur=0.8, sharpen=0.5, cutout=0.3,
    policy="randaugment", mixup=0.2, cutmix=1.0,
)  # fmt: skip
CROPS = AugmentSection(crop=0.9, shift=0.125, flip=True, cutout=0.3)
kinds = pytest.mark.parametrize(
    "augment", [OFF, MOVES, CROPS, ALL], ids=["off", "moves", "crops", "all"]
)


def split_of(count: int, side: int = 8, channels: int = 3) -> Split:
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (count, side, side + 2, channels), dtype=np.uint8)
    inputs.flags.writeable = False
    return Split(inputs, np.arange(count) % 3, tuple(map(str, range(count))))


def feed_of(count: int = 50, augment: AugmentSection = MOVES, **changes: Any) -> Feed:
    split = changes.pop("split", None) or split_of(count)
    return Feed(split, augment, **{"batch_size": 16, "seed": 0, "classes": 3, **changes})


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHUNK_BYTES", "CHANGED_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(feeds, name, 1)


@kinds
def test_epoch_depends_on_seed_and_number_alone(augment: AugmentSection) -> None:
    feed = feed_of(augment=augment)
    first = list(feed.epoch(3))
    torch.manual_seed(99)
    assert same(list(feed.epoch(3)), first)
    assert same(list(feed_of(augment=augment).epoch(3)), first)
    assert not same(list(feed.epoch(4)), first)
    assert not same(list(feed_of(augment=augment, seed=1).epoch(3)), first)


@kinds
@pytest.mark.parametrize("count", [50, 49, 33])
def test_an_epoch_from_the_middle_is_the_tail_of_the_whole(
    augment: AugmentSection, count: int
) -> None:
    feed = feed_of(count, augment)
    whole = list(feed.epoch(1))
    for start in range(len(feed) + 1):
        assert same(list(feed.epoch(1, start)), whole[start:])


@kinds
@pytest.mark.parametrize("count", [1, 2, 16, 17, 33, 50])
def test_chunks_make_no_difference(
    augment: AugmentSection, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(feed_of(count, augment).epoch(0))
    small_chunks(monkeypatch)
    assert same(list(feed_of(count, augment).epoch(0)), whole)


@kinds
def test_a_split_that_does_not_fit_gives_the_same_batches(
    augment: AugmentSection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    split = split_of(50)
    held = list(feed_of(split=split, augment=augment).epoch(2))
    np.save(tmp_path / "x.npy", split.inputs)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(store, "MOST_BYTES", 10)
    feed = feed_of(split=Split(mapped, split.targets, split.ids), augment=augment)
    assert feed.store.held is None
    assert same(list(feed.epoch(2)), held)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(2, 20))
def test_every_sample_comes_once_and_no_batch_is_a_singleton(count: int, size: int) -> None:
    sizes = [end - start for start, end in bounds(count, size)]
    assert sum(sizes) == count
    assert min(sizes) > 1 or count == 1
    assert max(sizes) <= size + 1
    feed = feed_of(count, batch_size=size)
    found = [batch.ids for batch in feed.epoch(0)]
    assert [len(ids) for ids in found] == sizes
    assert len(feed) == len(sizes)
    assert sorted(torch.cat(found).tolist()) == list(range(count))


def test_rows_targets_and_pixels_belong_together() -> None:
    split = split_of(33)
    found = list(feed_of(split=split, augment=OFF).epoch(0))
    ids = torch.cat([batch.ids for batch in found])
    assert ids.tolist() == torch.randperm(33, generator=generator_of(0, 0)).tolist()
    assert [len(batch.ids) for batch in found] == [16, 17]
    for batch in found:
        rows = batch.ids.numpy()
        np.testing.assert_array_equal(batch.inputs.permute(0, 2, 3, 1).numpy(), split.inputs[rows])
        np.testing.assert_array_equal(batch.targets.numpy(), split.targets[rows])


@kinds
@pytest.mark.parametrize("channels", [1, 3])
def test_inputs_are_floats_in_range_channels_last_and_nobody_elses(
    augment: AugmentSection, channels: int
) -> None:
    split = split_of(40, channels=channels)
    feed = feed_of(split=split, augment=augment)
    first = list(feed.epoch(0))
    for batch in first:
        assert batch.inputs.dtype == torch.float32
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        assert bool(((batch.inputs >= 0) & (batch.inputs <= 255)).all())
        batch.inputs.fill_(-1)  # a loop may use its batch up
    assert all(float(batch.inputs.min()) >= 0 for batch in feed.epoch(0))


def test_moves_and_cutout_at_once_are_the_parts_one_after_another() -> None:
    split = split_of(60)
    augment = AugmentSection(shift=0.25, flip="alternating", cutout=0.4)
    feed = feed_of(split=split, augment=augment)
    assert feed.store.held is not None
    mean = torch.from_numpy(np.rint(split.inputs.mean((0, 1, 2))))
    for epoch in range(2):
        for batch in feed.epoch(epoch):
            draw = Draw(0, epoch, batch.ids)
            inputs = torch.from_numpy(split.inputs[batch.ids.numpy()]).permute(0, 3, 1, 2)
            inputs = augmentations.shift(inputs, draw, strength=0.25)
            inputs = augmentations.flip_alternating(inputs, draw)
            inputs = warp.cutout(inputs, draw, strength=0.4, fill=mean)
            assert torch.equal(batch.inputs, inputs.float())


def test_crops_read_in_threads_are_those_of_the_registered_part() -> None:
    split = split_of(60, side=20)
    for batch in feed_of(split=split, augment=OFF.model_copy(update={"crop": 0.9})).epoch(1):
        inputs = torch.from_numpy(split.inputs[batch.ids.numpy()]).permute(0, 3, 1, 2)
        draw = Draw(0, 1, batch.ids)
        expected = augmentations.random_resized_crop(inputs, draw, strength=0.9)
        assert float((batch.inputs - expected).abs().max()) <= 1  # one of them rounds twice


def test_alternating_flips_alternate_over_the_epochs() -> None:
    augment = AugmentSection(shift=0.0, flip="alternating")
    feed = feed_of(augment=augment)
    epochs = [by_id(feed, number) for number in range(3)]
    assert torch.equal(epochs[0], epochs[1].flip(3))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], by_id(feed_of(augment=OFF), 0))


def by_id(feed: Feed, epoch: int) -> Tensor:
    """Return an epoch's inputs in the order of the split."""
    found = list(feed.epoch(epoch))
    order = torch.cat([batch.ids for batch in found]).argsort()
    return torch.cat([batch.inputs for batch in found])[order]


def test_every_field_changes_what_comes_out() -> None:
    plain = by_id(feed_of(augment=OFF), 1)
    fields = {"crop": 0.5, "shift": 0.2, "flip": True, "flip_vertical": True, "rotate": 20,
              "zoom": 0.2, "shear": 20, "brightness": 0.2, "contrast": 0.4, "saturation": 0.5,
              "hue": 0.2, "blur": 1.0, "sharpen": 1.0, "cutout": 0.3, "mixup": 0.4, "cutmix": 1.0,
              "policy": "trivialaugment"}  # fmt: skip
    assert set(fields) == set(AugmentSection.model_fields) - {"policy_strength"}
    for name, value in fields.items():
        changed = by_id(feed_of(augment=OFF.model_copy(update={name: value})), 1)
        assert not torch.equal(changed, plain), name
    policies = [OFF.model_copy(update={"policy": "randaugment", "policy_strength": by})
                for by in (0.3, 0.6)]  # fmt: skip
    assert not torch.equal(*(by_id(feed_of(augment=policy), 1) for policy in policies))


def test_flip_auto_is_off() -> None:
    auto = AugmentSection(shift=0.0, flip="auto")
    assert torch.equal(by_id(feed_of(augment=auto), 0), by_id(feed_of(augment=OFF), 0))


def test_mixed_batches_have_a_share_per_class() -> None:
    for batch in feed_of(augment=OFF.model_copy(update={"cutmix": 1.0}), classes=7).epoch(0):
        assert batch.targets.shape == (len(batch.ids), 7)
        assert torch.allclose(batch.targets.sum(1), torch.ones(len(batch.ids)))


def test_an_unknown_policy_is_refused_before_the_first_batch() -> None:
    with pytest.raises(UsageError, match="policy"):
        feed_of(augment=AugmentSection(policy="randaugmnt"))


@pytest.mark.gpu
@kinds
def test_a_graphics_processor_gives_the_same_moves(augment: AugmentSection) -> None:
    here = list(feed_of(augment=augment).epoch(0))
    there = list(feed_of(augment=augment, device="cuda").epoch(0))
    for one, two in zip(here, there, strict=True):
        assert two.inputs.is_cuda
        assert torch.equal(one.ids, two.ids.cpu())
        gap = float((one.inputs - two.inputs.cpu()).abs().max())
        assert augment is ALL or gap <= (1 if augment is CROPS else 0)
