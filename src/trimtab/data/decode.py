"""Turns the bytes of one picture into pixels; stands alone, since every artifact holds a copy."""

from __future__ import annotations

import io
import threading
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 120_000_000  # just above the 108 million of the largest phone cameras
MAX_ASPECT = 100
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
TEXT_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<svg")
HEADERS = threading.Lock()  # the warning filters are shared by all threads

Pixels = NDArray[np.uint8]


class DecodeError(ValueError):
    """A picture that cannot be read; the message is the reason."""


def decode(content: bytes, channels: int, size: tuple[int, int]) -> Pixels:
    """Return the picture in `content` as pixels (H, W, C) of `size` (height, width).

    EXIF orientation is applied, transparency shown on white, 16 bits scaled to 8; of an animation
    the first frame is taken. The short side is resized, then the centre cropped. `channels` is 1
    (grey) or 3 (RGB). Raises DecodeError with the reason.
    """
    return fit_picture(open_picture(content), channels, size)


def fit(image: Pixels, channels: int, size: tuple[int, int]) -> Pixels:
    """Return decoded pixels (H, W) or (H, W, C) uint8 as `decode` returns a file's.

    C is 1 (grey), 3 (RGB) or 4 (RGBA). Raises DecodeError.
    """
    return fit_picture(picture_of(image), channels, size)


def open_picture(content: bytes) -> Image.Image:
    """Return the picture in `content` upright, in mode L or RGB, at full resolution.

    Raises DecodeError for whatever cannot be read whole.
    """
    if not content:
        raise DecodeError("the file is empty")
    image = open_header(content)
    try:
        image.load()
        return upright(plain(image), orientation_of(image))
    except DecodeError:
        raise
    except Exception as error:  # hostile bytes raise nearly anything in a decoder
        raise DecodeError(reason_of(error)) from error


def picture_of(image: Pixels) -> Image.Image:
    """Return an array (H, W) or (H, W, C) uint8 as a picture of mode L or RGB."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] in {(3,), (4,)}):
        raise DecodeError(f"pixels must be uint8 (H, W) or (H, W, C), got {image.shape}")
    check_size(image.shape[1], image.shape[0])
    return plain(Image.fromarray(np.ascontiguousarray(image)))


def size_of(content: bytes) -> tuple[int, int]:
    """Return the two sides that the header of `content` names, in pixels; raises DecodeError."""
    return open_header(content).size


def open_header(content: bytes) -> Image.Image:
    """Read the header of an allowed format and refuse sizes that no photo has."""
    try:
        with HEADERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below are stricter
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (UnidentifiedImageError, KeyError) as error:  # KeyError: a format this Pillow lacks
        raise DecodeError(unknown(content)) from error
    except Exception as error:
        raise DecodeError(reason_of(error)) from error
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Refuse decompression bombs, single pixels and threads."""
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width}x{height} is over {MAX_PIXELS:,} pixels (decompression bomb?)")
    if min(width, height) < 2:
        raise DecodeError(f"{width}x{height} is too small: both sides need 2 pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DecodeError(f"{width}x{height} is over {MAX_ASPECT} times as long as wide")


def unknown(content: bytes) -> str:
    """Say what bytes are that no decoder knows."""
    if content[:256].lstrip().lower().startswith(TEXT_STARTS):
        return "text (HTML, XML or SVG), not a picture"
    return f"not a picture in a known format ({', '.join(FORMATS)})"


def reason_of(error: Exception) -> str:
    """Return one short line on why a decoder gave up."""
    text = " ".join(str(error).split())[:120]
    return text or type(error).__name__


def plain(image: Image.Image) -> Image.Image:
    """Return `image` in mode L or RGB: 16 bits scaled to 8, transparency on white."""
    if image.mode.startswith("I"):
        return Image.fromarray(eight_bits(image))
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        return on_white(image.convert("RGBA"))
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def eight_bits(image: Image.Image) -> Pixels:
    """Scale 16-bit grey values [0, 65535] to [0, 255]."""
    values = np.asarray(image)
    if image.format == "TIFF" and image.mode == "I":
        raise DecodeError("32-bit pixels have no fixed range")
    scaled: Pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return scaled


def on_white(image: Image.Image) -> Image.Image:
    """Show an RGBA picture on white paper."""
    paper = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, image).convert("RGB")


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged."""
    if not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    try:
        with HEADERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value: Any = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - the pixels are whole, only the note beside them is not
        return 1
    return value if isinstance(value, int) else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture as its EXIF orientation says."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def fit_picture(image: Image.Image, channels: int, size: tuple[int, int]) -> Pixels:
    """Resize the short side and crop the centre; returns pixels (H, W, channels).

    A picture that has the size already keeps every pixel as it is.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    height, width = size
    scale = min(image.width / width, image.height / height)  # source pixels per pixel
    across, down = min(image.width, width * scale), min(image.height, height * scale)
    left, top = (image.width - across) // 2, (image.height - down) // 2
    box = (left, top, left + across, top + down)
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    return np.array(resized).reshape(height, width, channels)
