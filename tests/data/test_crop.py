"""Random resized crops lie within the picture, as wide and as large as the paper has them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from trimtab.data.crop import boxes, random_resized_crop
from trimtab.data.draw import Draw

MANY = Draw(3, 1, torch.arange(4000))
sides = st.integers(1, 5000)


def of(height: int, width: int, draw: Draw = MANY, strength: float = 0.92) -> torch.Tensor:
    every = torch.ones_like(draw.ids)
    return boxes(draw, strength, every * height, every * width)


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.floats(0, 1, exclude_max=True), st.integers(0, 2**31))
def test_a_crop_lies_within_its_picture(
    height: int, width: int, strength: float, seed: int
) -> None:
    found = of(height, width, Draw(seed, 0, torch.arange(20)), strength)
    top, left, down, across = found.unbind(1)
    assert found.dtype == torch.int64
    assert int(down.min()) >= 1
    assert int(across.min()) >= 1
    assert int(top.min()) >= 0
    assert int(left.min()) >= 0
    assert int((top + down).max()) <= height
    assert int((left + across).max()) <= width


def test_areas_and_ratios_are_spread_as_the_paper_has_them() -> None:
    _, _, down, across = of(4000, 4000).double().unbind(1)
    area, ratio = down * across / 4000**2, (across / down).log()
    assert 0.0799 < float(area.min()) < 0.09
    assert 0.44 < float(area.mean()) < 0.53  # large ones often do not fit and are drawn again
    assert abs(float(ratio.mean())) < 0.02
    assert math.log(4 / 3) - 0.02 < float(ratio.max()) < math.log(4 / 3) + 0.001


def test_crops_come_as_often_as_torchvision_draws_them() -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
                           for _ in range(4000)])  # fmt: skip
    ours = of(375, 500)
    for mine, other in zip(ours.double().unbind(1), theirs.double().unbind(1), strict=True):
        spread = float(other.std())
        assert abs(float(mine.mean() - other.mean())) < 0.08 * spread  # 4 standard errors are 0.09
        assert abs(float(mine.std()) / spread - 1) < 0.08


def test_a_picture_too_narrow_for_any_crop_gives_its_middle() -> None:
    found = of(1000, 10, strength=0.0)
    assert found.unique(dim=0).tolist() == [[(1000 - 13) // 2, 0, 13, 10]]


def test_a_crop_is_what_cutting_and_enlarging_gives() -> None:
    inputs = torch.rand(30, 3, 24, 20) * 255
    draw = Draw(0, 0, torch.arange(30))
    found = random_resized_crop(inputs, draw, strength=0.9)
    for row, (top, left, down, across) in enumerate(of(24, 20, draw, 0.9).tolist()):
        part = inputs[row : row + 1, :, top : top + down, left : left + across]
        expected = interpolate(part, (24, 20), mode="bilinear", align_corners=False)
        assert torch.allclose(found[row : row + 1], expected, atol=0.01)


def test_a_sample_has_the_same_crop_in_any_batch_and_another_in_every_epoch() -> None:
    rows = torch.tensor([77, 5, 3999])
    assert torch.equal(of(300, 400, Draw(3, 1, rows)), of(300, 400)[rows])
    for other in (Draw(3, 2, MANY.ids), Draw(4, 1, MANY.ids)):
        same = (of(300, 400, other) == of(300, 400)).all(1)
        assert float(same.double().mean()) < 0.02


@pytest.mark.parametrize("strength", [0.0, 1e-9])
def test_nothing_left_out_is_the_whole_of_a_square_picture_nearly(strength: float) -> None:
    down = of(200, 200, strength=strength)[:, 2]
    assert int(down.min()) >= 150
