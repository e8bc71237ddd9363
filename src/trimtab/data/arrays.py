"""Lists pictures that are in memory already: arrays and the items of a torch Dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.data import decode
from trimtab.data.entries import Entry, Listing, class_name, digest_of, note, split_of
from trimtab.errors import DataError
from trimtab.machine.progress import progress
from trimtab.records.finding import Finding

MAX_BYTES = 8_000_000_000
CHANNELS = (1, 3, 4)
FLOAT_NOTE = note("converted_floats", "info", "float pixels in [0, 1] were scaled to 0..255")
CHANGING_NOTE = note(
    "changing_items", "warning", "the dataset gives another picture each time; what was read first "
    "is used", "leave random augmentations to the recipe",
)  # fmt: skip
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "x"), ("label", "target", "class", "y")

Pixels = NDArray[np.uint8]


def list_arrays(source: Any) -> Listing:
    """List arrays `(x, y)`, a Dataset of `(picture, label)`, or a dict of either per split."""
    if not isinstance(source, Mapping):
        return list_part(source, None, "")
    parts = [list_part(part, split_of(str(name), "the dict of splits"), f"{name}/")
             for name, part in source.items()]  # fmt: skip
    if not parts:
        raise DataError("the dict of splits is empty", "give at least {'train': (x, y)}")
    classes = next((part.classes for part in parts if part.classes), None)
    findings = {finding.message: finding for part in parts for finding in part.findings}
    return Listing([entry for part in parts for entry in part.entries], None, classes,
                   list(findings.values()))  # fmt: skip


def list_part(source: Any, split: str | None, prefix: str) -> Listing:
    """List one pair of arrays or one Dataset; ids are `prefix` and the row."""
    findings: list[Finding] = []
    classes = None
    if is_pair(source):
        pixels, labels = pair(source[0], source[1], findings)
    else:
        classes = classes_of(source)
        pixels, labels = items(source, classes, findings)
    entries = [
        Entry(f"{prefix}{row:06d}", label, split, image, digest_of(image.data).hex())
        for row, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
    if not entries:
        raise DataError("the data hold no samples", "give at least two classes of pictures")
    return Listing(entries, None, classes, findings)


def is_pair(source: Any) -> bool:
    """Return whether `source` is `(x, y)` rather than a Dataset."""
    return isinstance(source, tuple | list) and len(source) == 2 and hasattr(source[0], "shape")


def pair(x: Any, y: Any, findings: list[Finding]) -> tuple[Iterable[Pixels], list[str]]:
    """Check arrays `x` (N, H, W[, C]) and `y` (N,); raises DataError."""
    pixels, labels = np.asarray(x), label_texts(np.asarray(y))
    check_layout(pixels)
    if len(pixels) != len(labels):
        raise DataError(f"x holds {len(pixels):,} pictures and y {len(labels):,} labels",
                        "give one label per picture")  # fmt: skip
    return np.ascontiguousarray(eight_bits(pixels, "x", findings)), labels


def check_layout(pixels: NDArray[Any]) -> None:
    """Refuse arrays that are not (N, H, W) or (N, H, W, C)."""
    shape = pixels.shape
    if pixels.ndim == 3 or (pixels.ndim == 4 and shape[3] in CHANNELS):
        return
    hint = "give pictures as an array (N, H, W) or (N, H, W, C) of uint8"
    if pixels.ndim == 4 and shape[1] in CHANNELS:
        hint = "channels come last: x.transpose(0, 2, 3, 1)"
    raise DataError(f"x has the shape {shape}, wanted (N, H, W) or (N, H, W, 1, 3 or 4)", hint)


def eight_bits(pixels: NDArray[Any], where: str, findings: list[Finding]) -> Pixels:
    """Return uint8 pixels; floats in [0, 1] are scaled, with a finding; raises DataError."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f":
        raise DataError(f"{where} is {pixels.dtype}, wanted uint8 in 0..255 or floats in [0, 1]",
                        "scale the values to 0..255, then .astype('uint8')")  # fmt: skip
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # NaN ends here as well
        raise DataError(
            f"{where} holds floats from {low:g} to {high:g}, wanted [0, 1]",
            "scale to [0, 1] and leave out Normalize: mean and spread are measured by trimtab",
        )
    if FLOAT_NOTE not in findings:
        findings.append(FLOAT_NOTE)
    scaled: Pixels = np.rint(pixels * 255).astype(np.uint8)
    return scaled


def label_texts(labels: NDArray[Any]) -> list[str]:
    """Return labels (N,) as class names; raises DataError for what is no class."""
    if labels.ndim != 1:
        hint = (
            "y.argmax(1) turns one-hot rows into labels" if labels.ndim == 2 else "one per picture"
        )
        raise DataError(f"y has the shape {labels.shape}, wanted (N,)", hint)
    if labels.dtype.kind == "f":
        lost = int(np.isnan(labels).sum())
        got = f"{lost:,} of them NaN" if lost else f"such as {labels[0]:g}"
        raise DataError(f"y holds {labels.dtype} labels, {got}; wanted whole numbers or names",
                        "y.astype('int64'), once every label is there")  # fmt: skip
    if labels.dtype.kind == "O":
        return [label_name(each, f"y, row {row}") for row, each in enumerate(labels.tolist())]
    unique, rows = np.unique(labels, return_inverse=True)
    names = [label_name(each, "y") for each in unique.tolist()]
    return [names[row] for row in rows]


def label_name(value: Any, where: str, classes: tuple[str, ...] | None = None) -> str:
    """Return one label as a class name; numbers index `classes` where these are known."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, str):
        return class_name(value, where)
    if not isinstance(value, int):
        raise DataError(f"{where}: the label is {value!r}, wanted a whole number or a name",
                        "give every picture one class")  # fmt: skip
    if value < 0 or (classes is not None and value >= len(classes)):
        wanted = f"0 to {len(classes) - 1}" if classes is not None else "0 or more"
        raise DataError(f"{where}: the label is {value}, wanted {wanted}",
                        "leave out samples without a class")  # fmt: skip
    return classes[value] if classes is not None else str(value)


def classes_of(source: Any) -> tuple[str, ...] | None:
    """Return `.classes` of a Dataset or of the one it wraps."""
    while source is not None:
        names = getattr(source, "classes", None)
        if isinstance(names, list | tuple) and names:
            return tuple(class_name(str(name), ".classes") for name in names)
        source = getattr(source, "dataset", None)
    return None


def items(
    source: Any, classes: tuple[str, ...] | None, findings: list[Finding]
) -> tuple[list[Pixels], list[str]]:
    """Read every item of a Dataset once; raises DataError naming the item."""
    pixels: list[Pixels] = []
    labels: list[str] = []
    taken = 0
    total = length_of(source)
    with progress(total or 1, "read") as bar:
        for row, item in enumerate(each_item(source, total)):
            where = f"item {row} of the dataset"
            image, label = picture_and_label(item, where)
            pixels.append(image_pixels(image, where, findings))
            labels.append(label_name(label, where, classes))
            taken = checked_bytes(taken + pixels[-1].nbytes)
            bar.update(row + 1)
    if pixels and total and changes(source, pixels[0]):
        findings.append(CHANGING_NOTE)
    return pixels, labels


def length_of(source: Any) -> int | None:
    """Return how many items a Dataset has; None for one that can only be iterated."""
    if not hasattr(source, "__getitem__"):
        return None
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None


def each_item(source: Any, total: int | None) -> Iterator[Any]:
    """Yield the items; what the user's code raises becomes a DataError."""
    give: Callable[[int], Any]
    if total is None:
        iterator = iter(source)
        give = lambda row: next(iterator)  # noqa: E731 - two ways to the next item
    else:
        give = source.__getitem__
    row = 0
    while total is None or row < total:
        try:
            item = give(row)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"item {row} of the dataset: {type(error).__name__}: {error}",
                            "dataset[i] must return (picture, label)") from error  # fmt: skip
        yield item
        row += 1


def picture_and_label(item: Any, where: str) -> tuple[Any, Any]:
    """Take an item apart: a pair, or a dict with an image and a label."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        label = next((item[key] for key in LABEL_KEYS if key in item), None)
        if image is not None and label is not None:
            return image, label
    elif isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    got = f"keys {list(item)}" if isinstance(item, Mapping) else type(item).__name__
    raise DataError(f"{where} is no pair of picture and label, got {got}",
                    "return (picture, label)")  # fmt: skip


def image_pixels(image: Any, where: str, findings: list[Finding]) -> Pixels:
    """Return a PIL picture, an array (H, W[, C]) or a tensor (C, H, W) as uint8 pixels."""
    if hasattr(image, "getbands"):
        return pil_pixels(image, where)
    tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu() if tensor else image)
    if tensor and array.ndim == 3 and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in CHANNELS):
        wanted = "(C, H, W)" if tensor else "(H, W) or (H, W, C)"
        raise DataError(f"{where}: the picture has the shape {array.shape}, wanted {wanted}",
                        "1, 3 or 4 channels are read")  # fmt: skip
    return np.ascontiguousarray(eight_bits(array, where, findings))


def pil_pixels(image: Any, where: str) -> Pixels:
    """Return a PIL picture as pixels; raises DataError where it cannot be read."""
    try:
        return np.array(decode.plain(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: {error}", "leave it out of the dataset") from error


def checked_bytes(taken: int) -> int:
    """Refuse a Dataset that does not fit into memory."""
    if taken > MAX_BYTES:
        raise DataError(f"the pictures of the dataset take over {MAX_BYTES:,} bytes",
                        "give a folder or a table of files, or resize in the dataset")  # fmt: skip
    return taken


def changes(source: Any, first: Pixels) -> bool:
    """Return whether the first item is another picture when read again."""
    again = image_pixels(picture_and_label(source[0], "item 0")[0], "item 0", [])
    return again.shape != first.shape or not np.array_equal(again, first)
