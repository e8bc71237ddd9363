"""An epoch is reproducible, whole, and augmented sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data.augment import augmented_batches, bounds, generator_of, shift
from trimtab.data.dataset import Batch, Split


def split_of(count: int, side: int = 8) -> Split:
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    inputs.flags.writeable = False
    return Split(inputs, np.arange(count) % 3, tuple(map(str, range(count))))


def epoch(split: Split, number: int = 0, *, seed: int = 0, by: float = 0.125) -> list[Batch]:
    return list(augmented_batches(split, 16, seed=seed, epoch=number, shift=by, flip=by > 0))


def same(one: list[Batch], two: list[Batch]) -> bool:
    pairs = zip(one, two, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_epoch_depends_on_seed_and_number_alone() -> None:
    split = split_of(50)
    first = epoch(split, 3)
    torch.manual_seed(99)
    assert same(epoch(split, 3), first)
    assert not same(epoch(split, 4), first)
    assert not same(epoch(split, 3, seed=1), first)


def test_each_epoch_and_each_batch_is_changed_in_another_way() -> None:
    alike = np.broadcast_to(split_of(1).inputs, (32, 8, 8, 3))
    split = Split(alike, np.zeros(32, np.int64), tuple(map(str, range(32))))
    found = [batch.inputs for number in range(2) for batch in epoch(split, number)]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 70), st.integers(2, 20))
def test_every_sample_comes_once_and_no_batch_is_a_singleton(count: int, size: int) -> None:
    sizes = [end - start for start, end in bounds(count, size)]
    assert sum(sizes) == count
    assert min(sizes) > 1 or count == 1
    assert max(sizes) <= size + 1


def test_rows_targets_and_pixels_belong_together() -> None:
    split = split_of(33)
    found = epoch(split, by=0.0)
    ids = torch.cat([batch.ids for batch in found])
    assert sorted(ids.tolist()) == list(range(33))
    assert ids.tolist() != list(range(33))
    assert [len(batch.ids) for batch in found] == [16, 17]
    for batch in found:
        rows = batch.ids.numpy()
        np.testing.assert_array_equal(batch.inputs.permute(0, 2, 3, 1).numpy(), split.inputs[rows])
        np.testing.assert_array_equal(batch.targets.numpy(), split.targets[rows])
        assert batch.inputs.dtype == torch.float32


def test_augmentation_keeps_the_memory_layout() -> None:
    for batch in epoch(split_of(32)):
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shift_moves_each_picture_by_its_own_offset(channels: int, dtype: torch.dtype) -> None:
    inputs = torch.randint(0, 256, (64, channels, 8, 12)).to(dtype)
    moved = shift(inputs, generator_of(1), 0.25)
    offsets = set()
    for before, after in zip(inputs.numpy(), moved.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (3, 3)), mode="reflect")
        places = [(top, left) for top in range(5) for left in range(7)
                  if np.array_equal(padded[:, top : top + 8, left : left + 12], after)]  # fmt: skip
        assert places
        offsets.update(places)
    assert len(offsets) > 20


def test_shift_reaches_at_most_its_fraction_and_zero_changes_nothing() -> None:
    inputs = torch.randint(0, 256, (32, 3, 8, 8)).float()
    assert torch.equal(shift(inputs, generator_of(0), 0.0), inputs)
    assert torch.equal(shift(inputs, generator_of(0), 0.05), inputs)  # under half a pixel
    assert shift(inputs, generator_of(0), 0.5).shape == inputs.shape


@pytest.mark.parametrize("side", [1, 2, 3])
def test_smallest_pictures_can_be_shifted(side: int) -> None:
    inputs = torch.randint(0, 256, (9, 3, side, side))
    assert shift(inputs, generator_of(0), 0.5).shape == inputs.shape
