"""Every registered augmentation keeps shape, type and range, and repeats from its seed."""

from __future__ import annotations

import pytest
import torch

from trimtab.data.augment import AUGMENTATIONS, generator_of


def batch(channels: int, dtype: torch.dtype, side: int = 12) -> torch.Tensor:
    pixels = torch.randint(0, 256, (24, side, side, channels), generator=generator_of(5))
    return pixels.to(dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batch_keeps_its_shape_type_and_range(name: str, channels: int, dtype: torch.dtype) -> None:
    inputs = batch(channels, dtype)
    before = inputs.clone()
    outputs = AUGMENTATIONS[name](inputs, generator_of(1))
    assert outputs.shape == inputs.shape
    assert outputs.dtype == dtype
    assert set(outputs.unique().tolist()) <= set(inputs.unique().tolist())
    assert torch.equal(inputs, before), "the batch that was given must stay as it is"


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentation_repeats_from_its_generator_alone(name: str) -> None:
    inputs = batch(3, torch.float32)
    first = AUGMENTATIONS[name](inputs, generator_of(1))
    torch.manual_seed(123)
    assert torch.equal(AUGMENTATIONS[name](inputs, generator_of(1)), first)
    assert not torch.equal(AUGMENTATIONS[name](inputs, generator_of(2)), first)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentation_changes_samples_each_in_its_own_way(name: str) -> None:
    one = batch(3, torch.float32)[:1].expand(24, -1, -1, -1).contiguous()
    outputs = AUGMENTATIONS[name](one, generator_of(3))
    assert len({tuple(sample.flatten().tolist()) for sample in outputs}) > 1


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentation_is_documented(name: str) -> None:
    assert AUGMENTATIONS[name].__doc__
