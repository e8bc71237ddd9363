"""Decodes a part of a picture no larger than it is needed, and resizes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray

from trimtab.data import decode
from trimtab.data.decode import DecodeError

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # top, left, height, width

REDUCTIONS = (8, 4, 2)  # what the inverse cosine transform does for less than nothing
COLOURS = {"YCbCr", "RGB", "Gray", "GRAY"}
SCAN, NOTE, PLAIN = 0xDA, 0xE1, (0xC0, 0xC1)  # markers of a JPEG
CONTEXT = 4  # rows further down that smooth colours of half the resolution
NOTES = (b"Exif\0\0", b"http://ns.adobe.com/xap/")  # what an orientation stands in
TURNED = range(5, 9)  # orientations that swap height and width


def region(content: bytes, channels: int, box: Box, size: tuple[int, int]) -> Pixels:
    """Return the part `box` of the picture in `content`, resized to `size`: (H, W, channels).

    The box counts in pixels of the upright picture. JPEG is decoded no further down than the box,
    at 1/2, 1/4 or 1/8 where what the box holds then is still as large as `size`; other formats
    whole. Raises DecodeError for whatever cannot be read.
    """
    pixels, scale = upright_pixels(content, channels, reduction(box, size), box[0] + box[2])
    return resized(cut(pixels, box, scale), size)


def reduction(box: Box, size: tuple[int, int]) -> int:
    """Return by how much a box may be reduced and still be as large as `size`: 8, 4, 2 or 1."""
    least = min(box[2] // size[0], box[3] // size[1])
    return next((by for by in REDUCTIONS if by <= least), 1)


def upright_pixels(
    content: bytes, channels: int, by: int, bottom: int
) -> tuple[Pixels, tuple[float, float]]:  # fmt: skip
    """Return the picture upright (H, W, channels), and its scale down and across.

    A JPEG is decoded `by` times smaller, and not always below the row `bottom`; then damage that
    came after the check is not looked for. What the quick decoder refuses or does not know goes to
    the one that checks every picture.
    """
    with suppress(ValueError):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours in COLOURS:
            decode.check_size(width, height)
            frame, turn = outline(content)
            rows = min(height, bottom + CONTEXT * by) if frame and turn == 1 else height
            least = (-(-rows // by), -(-width // by)) if by > 1 else (0, 0)
            pixels = simplejpeg.decode_jpeg(
                content if rows == height else shortened(content, frame, rows),
                "GRAY" if channels == 1 else "RGB", min_height=least[0], min_width=least[1],
                strict=rows == height,
            )  # fmt: skip
            scale = (-(-height // by) / height, pixels.shape[1] / width)
            return turned(pixels, turn), scale[::-1] if turn in TURNED else scale
    image = decode.open_picture(content).convert("L" if channels == 1 else "RGB")
    full: Pixels = np.asarray(image)
    return full.reshape(image.height, image.width, channels), (1.0, 1.0)


def outline(content: bytes) -> tuple[int, int]:
    """Return where the frame header of a JPEG stands, and its orientation, 1 to 8.

    0 for frames that are not plain ones, whose rows are written once from top to bottom.
    """
    marked = list(segments(content))
    frame = next((at for kind, at in marked if kind in PLAIN), 0)
    whole = bool(marked) and marked[-1][0] == SCAN
    if whole and content[frame + 9] != content[marked[-1][1] + 4]:
        frame = 0  # the first scan does not hold all colours: there are several
    if whole and not any(content.startswith(NOTES, at + 4) for kind, at in marked if kind == NOTE):
        return frame, 1
    return frame, decode.orientation_of(decode.open_header(content))


def segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and position of what comes before the first scan of a JPEG, and of the scan."""
    at = 2
    while content[at : at + 1] == b"\xff" and at + 4 < len(content):
        yield content[at + 1], at
        if content[at + 1] == SCAN:
            return
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")


def shortened(content: bytes, frame: int, rows: int) -> bytearray:
    """Return a JPEG that says it ends after some rows; a decoder passes over what follows them.

    It warns of that, as of damage, so it must not be strict; files are checked whole before.
    """
    changed = bytearray(content)
    changed[frame + 5 : frame + 7] = rows.to_bytes(2, "big")
    return changed


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels (H, W, C) as the EXIF orientation says, without a copy."""
    if orientation in TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return pixels


def cut(pixels: Pixels, box: Box, scale: tuple[float, float]) -> Pixels:
    """Return the part `box` of pixels that were decoded at `scale`; raises DecodeError."""
    ends = []
    for axis in range(2):
        first, length = box[axis], box[axis + 2]
        start, end = (int(at * scale[axis] + 0.5) for at in (first, first + length))
        if not start < end <= pixels.shape[axis]:
            raise DecodeError("the picture has another size than when it was checked")
        ends.append(slice(start, end))
    return np.array(pixels[ends[0], ends[1]], order="C")


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize dense pixels (h, w, C) to `size`, bilinear, each output a mean of what it covers.

    Runs without the lock of the interpreter and on the calling thread alone.
    """
    if pixels.shape[:2] == size:
        return pixels
    found = np.empty((*size, pixels.shape[2]), np.uint8)
    inputs, outputs = (torch.from_numpy(each[None]).permute(0, 3, 1, 2) for each in (pixels, found))
    # By its public name torch would give few channels in another order, and the copy costs as much.
    torch.ops.aten._upsample_bilinear2d_aa.out(inputs, size, False, None, None, out=outputs)
    return found
