"""Write scikit-learn's 1,797 scanned handwritten digits as images: FOLDER/<class>/<id>.png."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path) -> int:
    """Write every scan as an 8 x 8 grey PNG, its 0 to 16 stretched to 0 to 255; returns how many.

    Files that are there already are written anew with the same content, so that it may be repeated.
    """
    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    for row, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        target = folder / str(digit)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{row:04d}.png")
    return len(pixels)


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "build/digits")
    print(f"{write_digits(where)} pictures in {where}")
