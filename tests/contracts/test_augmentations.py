"""Every registered augmentation keeps shape, type and range, and depends on its draws alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.data.augment import AUGMENTATIONS
from trimtab.data.draw import Draw
from trimtab.records.sections import AugmentSection

GREY_STAYS = {"saturation", "hue"}
COUNT = 48
BY_JUMPS = {"crop", "shift", "flip", "flip_alternating", "flip_vertical", "cutout", "randaugment",
            "trivialaugment"}  # fmt: skip

names = pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
dtypes = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])


def batch(channels: int = 3, dtype: torch.dtype = torch.float32, *, last: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = (COUNT, 12, 14, channels)
    pixels = torch.randint(0, 256, shape, generator=generator).to(dtype).permute(0, 3, 1, 2)
    return pixels if last else pixels.contiguous()


def draw(epoch: int = 0, rows: Tensor | None = None) -> Draw:
    return Draw(3, epoch, torch.arange(COUNT) if rows is None else rows)


@names
@dtypes
@pytest.mark.parametrize("channels", [1, 3])
def test_batch_keeps_its_shape_type_and_range(name: str, channels: int, dtype: torch.dtype) -> None:
    inputs = batch(channels, dtype)
    before = inputs.clone()
    outputs = AUGMENTATIONS[name](inputs, draw())
    assert (outputs.shape, outputs.dtype) == (inputs.shape, dtype)
    assert bool(((outputs >= 0) & (outputs <= 255)).all())  # NaN fails as well
    assert torch.equal(inputs, before), "the batch that was given must stay as it is"
    changed = not torch.equal(outputs, inputs)
    assert changed is not (name in GREY_STAYS and channels == 1)


@names
@dtypes
def test_strength_nought_changes_nothing(name: str, dtype: torch.dtype) -> None:
    inputs = batch(3, dtype)
    assert torch.equal(AUGMENTATIONS[name](inputs, draw(), strength=0), inputs)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - BY_JUMPS))
@dtypes
def test_a_small_strength_is_a_small_change(name: str, dtype: torch.dtype) -> None:
    inputs = batch(3, dtype)
    changed = AUGMENTATIONS[name](inputs, draw(), strength=1e-6)
    assert float((changed.float() - inputs.float()).abs().max()) < 0.02


@names
def test_augmentation_repeats_from_its_draws_alone(name: str) -> None:
    inputs = batch()
    first = AUGMENTATIONS[name](inputs, draw())
    torch.manual_seed(123)
    assert torch.equal(AUGMENTATIONS[name](inputs, draw()), first)
    assert not torch.equal(AUGMENTATIONS[name](inputs, draw(1)), first)


@names
def test_augmentation_changes_samples_each_in_its_own_way(name: str) -> None:
    one = batch()[:1].expand(COUNT, -1, -1, -1)
    outputs = AUGMENTATIONS[name](one, draw())
    kinds = len({tuple(sample.flatten().tolist()) for sample in outputs})
    assert kinds == 2 if name.startswith("flip") else kinds > COUNT // 3


@names
@dtypes
def test_a_batch_is_changed_as_its_parts_are(name: str, dtype: torch.dtype) -> None:
    inputs = batch(3, dtype)
    whole = AUGMENTATIONS[name](inputs, draw())
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    for rows in (torch.arange(COUNT // 2), order[:17], order[:1]):
        part = AUGMENTATIONS[name](inputs[rows], draw(rows=rows))
        assert torch.equal(part, whole[rows])


@names
def test_order_in_memory_makes_no_difference(name: str) -> None:
    found = [AUGMENTATIONS[name](batch(last=last), draw()) for last in (True, False)]
    assert torch.equal(*found)


@names
def test_bytes_and_floats_are_changed_alike(name: str) -> None:
    eight, real = (AUGMENTATIONS[name](batch(3, dtype), draw()).float()
                   for dtype in (torch.uint8, torch.float32))  # fmt: skip
    assert float((eight - real).abs().max()) <= 0.5


@names
@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_smallest_pictures_can_be_changed(name: str, side: int) -> None:
    inputs = batch()[:, :, :side, :side]
    outputs = AUGMENTATIONS[name](inputs, draw())
    assert outputs.shape == inputs.shape
    assert bool(outputs.isfinite().all())


@names
def test_augmentation_is_documented_and_has_a_field(name: str) -> None:
    assert AUGMENTATIONS[name].__doc__
    policy = AugmentSection.model_fields["policy"].description or ""
    assert name in {*AugmentSection.model_fields, "flip_alternating"} or name in policy


def test_the_contract_finds_a_part_that_looks_at_the_batch() -> None:
    def centred(inputs: Tensor, draw: Draw, *, strength: float = 1) -> Tensor:
        return (inputs - inputs.mean() + 127).clamp(0, 255)

    inputs = batch()
    assert not torch.equal(centred(inputs[:5], draw()), centred(inputs, draw())[:5])
