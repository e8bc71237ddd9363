"""Each augmentation does what it says, compared with a slow and plain way to do the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor

from trimtab.data import augment, colour, mixing, policies, warp
from trimtab.data.augment import AUGMENTATIONS, steps_of
from trimtab.data.dataset import Batch
from trimtab.data.draw import Draw
from trimtab.errors import UsageError
from trimtab.records.sections import AugmentSection


def noise(count: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=generator).to(dtype)


def draw(count: int, epoch: int = 0) -> Draw:
    return Draw(0, epoch, torch.arange(count))


def smooth(count: int, side: int = 32) -> Tensor:
    """Pictures without fine detail, whose resampling can be compared."""
    coarse = noise(count, 3, 4, 4, dtype=torch.float32)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255)


# Moves


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_shift_moves_each_picture_by_its_own_offset(channels: int, dtype: torch.dtype) -> None:
    inputs = noise(64, channels, 8, 12, dtype=dtype)
    found = augment.shift(inputs, draw(64), strength=0.25)
    offsets = set()
    for before, after in zip(inputs.numpy(), found.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (3, 3)), mode="reflect")
        at = [(top, left) for top in range(5) for left in range(7)
              if np.array_equal(padded[:, top : top + 8, left : left + 12], after)]  # fmt: skip
        assert at
        offsets.update(at)
    assert len(offsets) > 20
    assert {top for top, _ in offsets} == set(range(5))
    assert {left for _, left in offsets} == set(range(7))


def test_shift_under_half_a_pixel_changes_nothing() -> None:
    inputs = noise(32, 3, 8, 8)
    assert torch.equal(augment.shift(inputs, draw(32), strength=0.05), inputs)


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("shape", [(9, 4, 6, 3), (9, 5, 5, 1), (1, 4, 6, 3)])
def test_mirroring_alone_gives_what_the_moves_give(shape: tuple[int, ...], flip: str) -> None:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    own = torch.arange(len(pixels))
    for epoch in range(2):
        draw, moves = Draw(3, epoch, own), warp.Moves(flip=flip)
        at = warp.places(draw, moves, *shape[1:3])
        wanted = warp.moved(warp.widened(pixels, 0, True), own, at, (0, 0))
        found = warp.mirrored(pixels, draw, flip)
        assert found.is_contiguous()
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("name", "dim"), [("flip", 3), ("flip_alternating", 3),
                                           ("flip_vertical", 2)])  # fmt: skip
def test_a_flip_mirrors_about_half_of_the_pictures(name: str, dim: int) -> None:
    inputs = noise(400, 1, 4, 6)
    found = AUGMENTATIONS[name](inputs, draw(400))
    mirrored = (found == inputs.flip(dim)).flatten(1).all(1)
    assert bool((mirrored | (found == inputs).flatten(1).all(1)).all())
    assert 160 < int(mirrored.sum()) < 240


@pytest.mark.parametrize(("name", "alternates"), [("flip_alternating", True), ("flip", False)])
def test_alternating_flips_mirror_each_sample_every_other_epoch(
    name: str, alternates: bool
) -> None:
    inputs = noise(100, 3, 4, 6)
    epochs = [AUGMENTATIONS[name](inputs, draw(100, epoch)) for epoch in range(5)]
    assert all(torch.equal(x, y.flip(3)) for x, y in pairwise(epochs)) is alternates
    assert torch.equal(epochs[0], epochs[2]) is alternates


def test_a_quarter_turn_is_exact_and_no_turn_changes_nothing() -> None:
    inputs = noise(3, 3, 9, 9, dtype=torch.float32)
    turned = warp.resampled(inputs, angle=torch.pi / 2)
    assert any(torch.allclose(turned, torch.rot90(inputs, by, (2, 3)), atol=1e-2) for by in (1, 3))
    assert torch.allclose(warp.resampled(inputs), inputs, atol=1e-2)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_resampling_turns_pixels_not_fractions_of_a_side(shape: tuple[int, int]) -> None:
    """A turn there and back is the same picture inside, which holds for no stretched turn."""
    inputs = torch.nn.functional.interpolate(
        noise(4, 1, 4, 4, dtype=torch.float32), shape, mode="bicubic"
    ).clamp(0, 255)
    back = warp.resampled(warp.resampled(inputs, angle=0.3), angle=-0.3)
    middle = (..., slice(5, -5), slice(5, -5))
    assert float((back[middle] - inputs[middle]).abs().mean()) < 5


def test_zoom_by_two_shows_the_middle() -> None:
    inputs = torch.zeros(1, 1, 16, 16)
    inputs[:, :, 4:12, 4:12] = 255
    assert float(warp.resampled(inputs, scale=2.0).min()) > 100
    assert float(warp.resampled(inputs, scale=0.5).mean()) > 20  # the border is mirrored in


@pytest.mark.parametrize(("by", "dim"), [("move_x", 3), ("move_y", 2)])
def test_a_move_by_whole_pixels_is_exact_and_mirrors_the_border(by: str, dim: int) -> None:
    inputs = noise(2, 3, 8, 8, dtype=torch.float32)
    found = warp.resampled(inputs, **{by: 0.25})
    wanted = torch.cat([inputs.narrow(dim, 0, 2).flip(dim), inputs.narrow(dim, 0, 6)], dim)
    assert torch.allclose(found, wanted, atol=1e-2)


def test_slants_move_lines_in_proportion_to_their_height() -> None:
    inputs = smooth(2)
    found = warp.resampled(inputs, slant_x=0.5)
    middle = slice(10, 22)
    assert torch.allclose(found[:, :, 20, middle], inputs[:, :, 20].roll(-2, 2)[..., middle],
                          atol=15)  # fmt: skip
    down = warp.resampled(inputs.mT, slant_y=0.5)
    assert torch.allclose(down, found.mT, atol=1e-2)


def test_turn_zoom_and_shear_are_one_resampling() -> None:
    inputs = smooth(8)
    found = warp.affine(inputs, draw(8), rotate=20, zoom=0.2, shear=10)
    once = augment.rotate(inputs, draw(8), strength=20)
    once = augment.zoom(once, draw(8), strength=0.2)
    once = augment.shear(once, draw(8), strength=10)
    middle = (..., slice(8, 24), slice(8, 24))
    assert float((found[middle] - inputs[middle]).abs().mean()) > 5
    assert float((found[middle] - once[middle]).abs().mean()) < 5


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutout_blanks_one_square_each_cut_by_the_edges(side: int, dtype: torch.dtype) -> None:
    inputs = noise(1200, 3, 9, 11, dtype=dtype).clamp(max=254)
    found = warp.cutout(inputs, draw(1200), strength=side / 9, fill=torch.tensor([255, 255, 255]))
    blank = (found == 255).all(1)
    assert torch.equal(found[~blank[:, None].expand_as(found)],
                       inputs[~blank[:, None].expand_as(found)])  # fmt: skip
    down, across = blank.any(2), blank.any(1)
    assert torch.equal(blank, down[:, :, None] & across[:, None])
    assert int(down.sum(1).max()) == int(across.sum(1).max()) == side
    assert int(down.sum(1).min()) >= side // 2
    assert bool(blank.any(0).all()), "every pixel is blanked in some picture"
    for lines in (down, across):
        assert int(lines.int().diff(dim=1).abs().sum(1).max()) <= 2, "the lines hang together"


def test_cutout_fills_with_the_colour_it_is_given() -> None:
    found = warp.cutout(torch.zeros(4, 3, 8, 8), draw(4), fill=torch.tensor([1, 2, 3]))
    assert {tuple(pixel) for pixel in found.permute(0, 2, 3, 1).reshape(-1, 3).tolist()} == {
        (0, 0, 0), (1, 2, 3)
    }  # fmt: skip


# Colours


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_brightness_adds_a_share_of_white() -> None:
    inputs = torch.full((2, 3, 2, 2), 100.0)
    none = values(0, 0)
    found = colour.recoloured(inputs, values(0.2, -0.2), none, none, none)
    assert torch.allclose(found[:, 0, 0, 0], torch.tensor([151.0, 49.0]))


def test_contrast_keeps_the_mean_and_spreads_the_rest() -> None:
    inputs = noise(4, 3, 8, 8, dtype=torch.float32) / 4 + 96
    none = values(0, 0, 0, 0)
    found = colour.recoloured(inputs, none, none + 0.5, none, none)
    assert torch.allclose(found.std(), inputs.std() * 1.5, rtol=0.01)
    assert torch.allclose(found.mean(), inputs.mean(), atol=0.5)


def test_saturation_nought_is_pillows_grey() -> None:
    inputs = noise(2, 3, 8, 8)
    none = values(0, 0)
    found = colour.recoloured(inputs, none, none, none - 1, none)
    for before, after in zip(inputs, found, strict=True):
        grey = np.asarray(Image.fromarray(before.permute(1, 2, 0).numpy()).convert("L"), np.int16)
        assert np.abs(after.numpy().astype(np.int16) - grey).max() <= 1


def test_hue_turns_round_the_circle_and_keeps_the_luma() -> None:
    inputs = noise(1, 3, 8, 8, dtype=torch.float32) / 4 + 96
    none = values(0)
    thirds = [colour.recoloured(inputs, none, none, none, none + turn) for turn in (1 / 3, 1)]
    assert torch.allclose(thirds[1], inputs, atol=1e-2)
    assert not torch.allclose(thirds[0], inputs, atol=10)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert torch.allclose((thirds[0] * luma).sum(1), (inputs * luma).sum(1), atol=0.5)
    grey = inputs[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(colour.recoloured(grey, none, none, none, none + 0.3), grey, atol=0.5)


@pytest.mark.parametrize("deviation", [0.0, 0.5, 1.0, 2.0])
def test_blur_is_a_gaussian_mirrored_at_the_border(deviation: float) -> None:
    inputs = noise(2, 3, 16, 20, dtype=torch.float32)
    found = colour.blurred(inputs, values(deviation, 1.0))
    wanted = gaussian_filter(inputs[0].numpy(), (0, deviation, deviation), mode="reflect",
                             truncate=8)  # fmt: skip
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=0.05)


def test_sharpening_raises_the_spread_and_keeps_the_mean() -> None:
    inputs = smooth(4).clamp(60, 200)
    found = colour.sharpened(inputs, torch.ones(4))
    assert float(found.std()) > float(inputs.std())
    assert torch.allclose(found.mean(), inputs.mean(), atol=0.5)


# Policies


@pytest.mark.parametrize(("name", "twin"), [("equalize", ImageOps.equalize),
                                            ("autocontrast", ImageOps.autocontrast)])  # fmt: skip
def test_changes_of_the_histogram_are_pillows(name: str, twin: object) -> None:
    inputs = (noise(3, 3, 16, 16).float() / 3 + 50).floor()
    inputs[2] = 77
    found = getattr(policies, name)(inputs, torch.zeros(3))
    for before, after in zip(inputs, found, strict=True):
        wanted = np.asarray(twin(Image.fromarray(before.permute(1, 2, 0).byte().numpy())))  # type: ignore[operator]
        assert np.abs(after.permute(1, 2, 0).numpy() - wanted).max() <= 1


def test_posterize_and_solarize_are_pillows() -> None:
    inputs = noise(2, 3, 8, 8, dtype=torch.float32)
    image = Image.fromarray(inputs[0].permute(1, 2, 0).byte().numpy())
    poster = policies.posterize(inputs, torch.tensor([3.0, 0.0]))
    sun = policies.solarize(inputs, torch.tensor([0.5, 0.0]))
    for found, wanted in ((poster, ImageOps.posterize(image, 5)), (sun, ImageOps.solarize(image))):
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.asarray(wanted))
        assert torch.equal(found[1], inputs[1])


def test_policies_use_all_changes_and_identity_leaves_some_pictures_alone() -> None:
    inputs = noise(280, 3, 8, 8)
    alone = [(AUGMENTATIONS[name](inputs, draw(280)) == inputs).flatten(1).all(1).sum()
             for name in ("randaugment", "trivialaugment")]  # fmt: skip
    assert 0 < int(alone[0]) < 20
    assert 8 < int(alone[1]) < 60
    assert len(draw(280).branched("trivialaugment").integers("change", 0, 14).unique()) == 14


def test_randaugment_draws_its_two_changes_apart() -> None:
    drawn = [draw(200).branched(f"randaugment {i}").integers("change", 0, 14) for i in (0, 1)]
    assert 3 < int((drawn[0] == drawn[1]).sum()) < 35


def test_an_unknown_policy_is_refused_with_the_closest_name() -> None:
    with pytest.raises(UsageError, match="unknown policy 'randaugmnt'") as caught:
        steps_of(AugmentSection(policy="randaugmnt"))
    assert "randaugment" in caught.value.hint


def test_a_policy_of_the_users_own_is_called_with_its_strength_and_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dim(inputs: Tensor, draw: Draw, *, strength: float) -> Tensor:
        return inputs * strength if len(draw.ids) > 1 else inputs[:, :1]

    monkeypatch.setattr(policies, "dim", dim, raising=False)
    (step,) = steps_of(AugmentSection(policy="trimtab.data.policies:dim", policy_strength=0.5))
    inputs = torch.full((2, 3, 4, 4), 100.0)
    assert torch.equal(step(inputs, draw(2)), inputs / 2)
    with pytest.raises(UsageError, match=r"gave torch.float32 \(1, 1, 4, 4\), wanted"):
        step(inputs[:1], draw(1))


# Mixing


def samples(count: int = 64) -> Batch:
    return Batch(noise(count, 3, 8, 8, dtype=torch.float32), torch.arange(count) % 5,
                 torch.arange(count))  # fmt: skip


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_inputs_and_targets_have_the_same_shares(mixup: float, cutmix: float) -> None:
    batch = samples()
    partner = batch.inputs.roll(1, 0)
    found = mixing.mix(batch, draw(64), mixup=mixup, cutmix=cutmix, classes=5)
    assert found.targets.shape == (64, 5)
    assert torch.allclose(found.targets.sum(1), torch.ones(64))
    share = found.targets[torch.arange(64), batch.targets]
    averaged = partner + share.view(-1, 1, 1, 1) * (batch.inputs - partner)
    by_share = torch.isclose(found.inputs, averaged, atol=1e-2).flatten(1).all(1)
    own, other = ((found.inputs == x).all(1) for x in (batch.inputs, partner))
    pasted = (own | other).flatten(1).all(1)
    pasted &= torch.isclose(own.float().mean((1, 2)), share, atol=1e-5)
    assert bool((by_share | pasted).all())
    assert len(share.unique()) > 10
    if mixup and cutmix:
        assert 16 < int(pasted.sum()) < 48


def test_boxes_hang_together_and_reach_everywhere() -> None:
    keep, _ = mixing.boxes(draw(400), 1.0, samples(400).inputs)
    box = keep[:, 0] == 0
    down, across = box.any(2), box.any(1)
    assert torch.equal(box, down[:, :, None] & across[:, None])
    assert bool(box.any(0).all())
    assert int(down.int().diff(dim=1).abs().sum(1).max()) <= 2


def test_mixing_leaves_the_batch_that_was_given() -> None:
    batch, kept = samples(), samples()
    mixing.mix(batch, draw(64), mixup=0.2, cutmix=1.0, classes=5)
    assert all(torch.equal(one, two) for one, two in zip(batch, kept, strict=True))
