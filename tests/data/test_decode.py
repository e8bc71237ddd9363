"""Every kind of picture becomes the right pixels, or a reason."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trimtab.data import decode as module
from trimtab.data.decode import DecodeError, decode, fit

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], 2)
NOISE = np.random.default_rng(7).integers(0, 256, (80, 80, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png_of_zeros(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 2) * min(height, 100)))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_picture_of_the_wanted_size_keeps_every_pixel() -> None:
    np.testing.assert_array_equal(decode(saved(Image.fromarray(COLOUR)), 3, (8, 8)), COLOUR)


def test_grey_picture_in_rgb_has_equal_channels_and_comes_back_exactly() -> None:
    found = decode(saved(Image.fromarray(GREY)), 3, (8, 8))
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, 2))
    again = decode(saved(Image.fromarray(found)), 1, (8, 8))
    np.testing.assert_array_equal(again[..., 0], GREY)


def test_palette_and_one_bit_pictures_show_their_colours() -> None:
    palette = Image.fromarray(COLOUR).quantize(256)
    found = decode(saved(palette), 3, (8, 8))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))
    bits = decode(saved(Image.fromarray(GREY > 128)), 1, (8, 8))
    np.testing.assert_array_equal(bits[..., 0], (GREY > 128) * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    found = decode(saved(Image.fromarray(deep), kind), 1, (8, 8))
    np.testing.assert_array_equal(found[..., 0], GREY)


def test_transparency_is_shown_on_white() -> None:
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    rgba = Image.fromarray(np.dstack([COLOUR, alpha]))
    found = decode(saved(rgba), 3, (8, 8))
    np.testing.assert_array_equal(found[:4], COLOUR[:4])
    assert (found[4:] == 255).all()
    la = decode(saved(Image.fromarray(np.dstack([GREY, alpha]))), 1, (8, 8))[..., 0]
    np.testing.assert_array_equal(la[:4], GREY[:4])
    assert (la[4:] == 255).all()


def test_transparent_palette_entry_is_shown_on_white_without_a_warning() -> None:
    index = np.zeros((8, 8), np.uint8)
    index[:4] = 1
    image = Image.fromarray(index).convert("P")
    image.putpalette([9, 9, 9, 200, 100, 50])
    found = decode(saved(image, transparency=bytes([0, 255])), 3, (8, 8))
    assert (found[4:] == 255).all()
    assert (found[:4] == [200, 100, 50]).all()


def test_cmyk_jpeg_has_its_colours() -> None:
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    found = decode(saved(flat.convert("CMYK"), "JPEG", quality=95), 3, (16, 16))
    assert np.abs(found.astype(int) - [200, 40, 90]).max() <= 6


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    animated = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(animated, 3, (8, 8)) == [255, 0, 0]).all()
    stereo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert (np.abs(decode(stereo, 3, (8, 8)).astype(int) - [255, 0, 0]) < 6).all()
    first, second = Image.new("L", (8, 8), 7), Image.new("L", (8, 8), 9)
    pages = saved(first, "TIFF", save_all=True, append_images=[second])
    assert (decode(pages, 1, (8, 8)) == 7).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(orientation: int, kind: str) -> None:
    turned = {
        1: COLOUR, 2: COLOUR[:, ::-1], 3: COLOUR[::-1, ::-1], 4: COLOUR[::-1],
        5: COLOUR.transpose(1, 0, 2), 6: np.rot90(COLOUR), 8: np.rot90(COLOUR, -1),
        7: np.rot90(COLOUR, 2).transpose(1, 0, 2),
    }  # fmt: skip
    exif = Image.Exif()
    exif[module.ORIENTATION] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    stored = Image.fromarray(np.ascontiguousarray(turned[orientation]))
    content = saved(stored, kind, exif=exif, **options)
    np.testing.assert_array_equal(decode(content, 3, (8, 8)), COLOUR)


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    content = saved(Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(content, 3, (8, 8)), COLOUR)


def test_photo_is_resized_by_its_short_side_and_cropped_at_the_centre() -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert (decode(saved(Image.fromarray(wide)), 3, (16, 16)) == 255).all()
    assert (decode(saved(Image.fromarray(wide)), 3, (8, 8))[:, 1:-1] == 255).all()
    tall = wide.transpose(1, 0, 2)
    assert (decode(saved(Image.fromarray(tall)), 3, (16, 16)) == 255).all()


def test_crop_without_resizing_does_not_blur() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    found = decode(saved(Image.fromarray(noise)), 3, (9, 9))
    np.testing.assert_array_equal(found, noise[:, 1:10])


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    board = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    found = decode(saved(Image.fromarray(board)), 1, (8, 8))
    assert 118 <= found.min() <= found.max() <= 137


def test_fit_agrees_with_decode_for_pixels_in_memory() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise))
    for channels in (1, 3):
        expected = decode(content, channels, (16, 16))
        np.testing.assert_array_equal(fit(noise, channels, (16, 16)), expected)
    np.testing.assert_array_equal(fit(noise[..., :1], 1, (37, 37)), fit(noise[..., 0], 1, (37, 37)))


def test_pixels_that_are_no_picture_are_refused() -> None:
    for wrong in (np.zeros((8, 8)), np.zeros((8, 8, 2), np.uint8), np.zeros((8,), np.uint8)):
        with pytest.raises(DecodeError, match="uint8"):
            fit(wrong, 3, (8, 8))


BAD = {
    "empty": (b"", "empty"),
    "one byte": (b"\x89", "known format"),
    "html": (b"  <!DOCTYPE html><html></html>", "text"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text"),
    "pdf": (b"%PDF-1.7\n", "known format"),
    "half a png": (saved(Image.fromarray(NOISE))[:9000], "trunc"),
    "half a jpeg": (saved(Image.fromarray(NOISE), "JPEG")[:900], "trunc"),
    "half a webp": (saved(Image.fromarray(NOISE), "WEBP", lossless=True)[:9000], "."),
    "bomb": (png_of_zeros(50_000, 50_000), "bomb"),
    "bomb that pillow only warns of": (png_of_zeros(12_000, 11_000), "bomb"),
    "one pixel": (saved(Image.new("L", (1, 1))), "too small"),
    "one row": (saved(Image.new("L", (20, 1))), "too small"),
    "thread": (saved(Image.new("L", (20_000, 2))), "times as long"),
    "floats": (saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "floating"),
    "32 bits": (saved(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"), "32-bit"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_file_that_is_no_whole_picture_is_refused_with_a_reason(name: str) -> None:
    content, reason = BAD[name]
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(content, 3, (8, 8))
    assert "object at 0x" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_png_with_a_wrong_checksum_is_refused() -> None:
    content = bytearray(saved(Image.fromarray(NOISE)))
    content[content.index(b"IDAT") + 20] ^= 0xFF
    with pytest.raises(DecodeError):
        decode(bytes(content), 3, (8, 8))


def test_format_outside_the_list_is_refused() -> None:
    assert "EPS" not in module.FORMATS
    with pytest.raises(DecodeError, match="known format"):
        decode(saved(Image.fromarray(COLOUR), "TGA"), 3, (8, 8))


def test_truncated_files_are_not_tolerated_anywhere() -> None:
    root = Path(module.__file__).parent.parent
    for path in root.rglob("*.py"):
        assert "LOAD_TRUNCATED_IMAGES" not in path.read_text("utf-8")


def test_large_photo_gives_no_warning_and_the_filters_stay_as_they_were() -> None:
    before = list(warnings.filters)
    content = saved(Image.new("1", (10_000, 9_500)))  # above the size of which Pillow warns
    threads = [threading.Thread(target=module.size_of, args=(content,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert module.size_of(content) == (10_000, 9_500)
    assert list(warnings.filters) == before


def test_the_file_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "decode.py").write_bytes(Path(module.__file__).read_bytes())
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(COLOUR)))
    code = (
        "import sys, decode; print(decode.decode(open('a.png', 'rb').read(), 3, (4, 4)).shape, "
        "any(n.split('.')[0] in ('trimtab', 'torch') for n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip() == "(4, 4, 3) False"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]),
    st.integers(0, 400), st.binary(min_size=1, max_size=8), st.integers(1, 400),
)  # fmt: skip
def test_damaged_bytes_give_pixels_or_a_reason_never_a_crash(
    kind: str, at: int, patch: bytes, length: int
) -> None:
    content = bytearray(saved(Image.fromarray(COLOUR), kind))
    content[at : at + len(patch)] = patch
    with contextlib.suppress(DecodeError):
        assert decode(bytes(content[:length]), 3, (8, 8)).shape == (8, 8, 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 40), st.integers(0, 9))
def test_grey_pixels_are_the_same_through_one_channel_and_three(
    width: int, height: int, side: int, seed: int
) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    hypothesis.assume(max(width, height) <= 100 * min(width, height))
    colour = fit(np.repeat(grey[..., None], 3, 2), 3, (side, side))
    np.testing.assert_array_equal(colour, np.repeat(fit(grey, 1, (side, side)), 3, 2))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 70), st.integers(2, 70), st.integers(1, 70), st.integers(1, 70))
def test_any_size_fits_into_any_size(width: int, height: int, out_w: int, out_h: int) -> None:
    flat = np.full((height, width, 3), 77, np.uint8)
    found = fit(flat, 3, (out_h, out_w))
    assert found.shape == (out_h, out_w, 3)
    assert (found == 77).all()
