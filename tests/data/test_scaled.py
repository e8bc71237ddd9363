"""A part of a picture, decoded no larger than needed, is what the slow way gives."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trimtab.data import decode
from trimtab.data.scaled import outline, reduction, region, upright_pixels

WIDE = 96, 160  # height, width


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def by_pillow(content: bytes, box: tuple[int, int, int, int], side: int, channels: int = 3) -> Any:
    top, left, height, width = box
    image = decode.open_picture(content).convert("RGB" if channels == 3 else "L")
    part = image.crop((left, top, left + width, top + height))
    found = np.asarray(part.resize((side, side), Image.Resampling.BILINEAR))
    return found.reshape(side, side, channels)


def difference(one: Any, two: Any) -> tuple[float, int]:
    gap = np.abs(one.astype(int) - two.astype(int))
    return float(gap.mean()), int(gap.max())


ODD = {
    "plain": saved(smooth(*WIDE)),
    "progressive": saved(smooth(*WIDE), progressive=True),
    "grey": saved(smooth(*WIDE).convert("L")),
    "cmyk": saved(smooth(*WIDE).convert("CMYK")),
    "rgb": saved(smooth(*WIDE), keep_rgb=True),
    "444": saved(smooth(*WIDE), subsampling=0),
    "png": saved(smooth(*WIDE), "PNG"),
    "palette": saved(smooth(*WIDE).quantize(64), "PNG"),
    "webp": saved(smooth(*WIDE), "WEBP", lossless=True),
}
odd = pytest.mark.parametrize("name", sorted(ODD))


@odd
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("box", [(0, 0, 96, 160), (10, 31, 70, 55), (3, 5, 9, 12)])
def test_a_part_is_what_pillow_gives(
    name: str, channels: int, box: tuple[int, int, int, int]
) -> None:
    found = region(ODD[name], channels, box, (32, 32))
    assert found.shape == (32, 32, channels)
    assert found.dtype == np.uint8
    mean, most = difference(found, by_pillow(ODD[name], box, 32, channels))
    assert mean < 1.5
    assert most <= 12


@odd
def test_at_full_size_pixels_are_pillows_to_the_bit(name: str) -> None:
    expected = np.asarray(decode.open_picture(ODD[name]).convert("RGB"))
    np.testing.assert_array_equal(upright_pixels(ODD[name], 3, 1, WIDE[0])[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("by", [1, 2, 4])
def test_exif_orientation_is_followed_at_every_scale(orientation: int, by: int) -> None:
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    content = saved(smooth(*WIDE), exif=exif)
    upright = decode.open_picture(content)
    pixels, scale = upright_pixels(content, 3, by, upright.height)
    assert pixels.shape[:2] == (upright.height // by, upright.width // by)
    assert scale == (1 / by, 1 / by)
    expected = upright.resize((upright.width // by, upright.height // by), Image.Resampling.BOX)
    mean, most = difference(pixels, np.asarray(expected))
    assert mean < 1.5
    assert most <= 12
    box = (20, 8, 64, 64)
    mean, _ = difference(region(content, 3, box, (16, 16)), by_pillow(content, box, 16))
    assert mean < 1.5


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_rows_that_are_decoded_do_not_depend_on_where_it_ends(data: Any) -> None:
    height, width = data.draw(st.integers(17, 140)), data.draw(st.integers(17, 60))
    by, bottom = data.draw(st.sampled_from([1, 2, 4, 8])), data.draw(st.integers(8, height))
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = data.draw(st.sampled_from([
        {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True},
        {"restart_marker_blocks": 3}, {"comment": b"\xff\xc0" * 9}, {"keep_rgb": True},
    ]))  # fmt: skip
    content = saved(Image.fromarray(noise), **options)
    found, scale = upright_pixels(content, 3, by, bottom)
    whole, same_scale = upright_pixels(content, 3, by, height)
    assert scale == same_scale
    rows = -(-bottom // by)
    np.testing.assert_array_equal(found[:rows], whole[:rows])


def test_a_photo_of_several_scans_is_left_whole() -> None:
    content = bytearray(ODD["plain"])
    assert outline(bytes(content))[0]
    content[content.index(b"\xff\xda") + 4] = 1  # the first scan holds one of three colours
    assert outline(bytes(content)) == (0, 1)


def test_a_photo_is_not_decoded_far_below_the_box() -> None:
    content = saved(smooth(800, 600))
    assert upright_pixels(content, 3, 1, 300)[0].shape[0] < 320
    assert upright_pixels(content, 3, 2, 300)[0].shape[0] < 160


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 512))
def test_a_reduced_box_still_holds_the_wanted_size(height: int, width: int, side: int) -> None:
    by = reduction((0, 0, height, width), (side, side))
    assert by in {1, 2, 4, 8}
    if by > 1:
        assert min(height, width) / by >= side
    if by < 8:
        assert min(height, width) / (2 * by) < side, "a smaller one would have done"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_part_is_ever_enlarged_that_was_large_enough(data: Any) -> None:
    height, width = data.draw(st.integers(20, 130)), data.draw(st.integers(20, 130))
    side = data.draw(st.integers(2, 12))
    down, across = data.draw(st.integers(side, height)), data.draw(st.integers(side, width))
    top, left = data.draw(st.integers(0, height - down)), data.draw(st.integers(0, width - across))
    seen: list[tuple[int, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.data.scaled.resized",
                      lambda pixels, size: seen.append(pixels.shape))  # fmt: skip
        region(saved(smooth(height, width)), 3, (top, left, down, across), (side, side))
    assert min(seen[0][:2]) >= side
    assert seen[0][2] == 3


def test_a_large_photo_is_decoded_small() -> None:
    seen: list[Any] = []
    original = simplejpeg.decode_jpeg

    def noted(*content: Any, **least: int) -> Any:
        seen.append(original(*content, **least))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simplejpeg, "decode_jpeg", noted)
        region(saved(smooth(800, 1200)), 3, (0, 200, 800, 800), (96, 96))
    assert [pixels.shape for pixels in seen] == [(100, 150, 3)]


@pytest.mark.parametrize("name", ["plain", "progressive", "cmyk", "png"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_what_is_cut_off_is_never_half_grey(name: str, share: float) -> None:
    content = ODD[name][: int(len(ODD[name]) * share)]
    with pytest.raises(decode.DecodeError):
        region(content, 3, (0, 0, 96, 160), (32, 32))


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    content = bytearray(ODD["plain"])
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(decode.DecodeError, match="decompression bomb"):
        region(bytes(content), 3, (0, 0, 96, 160), (32, 32))


def test_a_box_beyond_the_picture_is_refused() -> None:
    with pytest.raises(decode.DecodeError, match="another size"):
        region(ODD["plain"], 3, (0, 0, 200, 160), (32, 32))
