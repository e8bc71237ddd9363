"""Label pictures with this artifact: needs onnxruntime, numpy and Pillow, nothing else.

    python predict.py picture.jpg another.png [--json]

As a library: `Predictor(folder).predict(["picture.jpg"])`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

if __package__:
    from trimtab.data.decode import DecodeError, decode
else:
    from decode import DecodeError, decode  # type: ignore[import-not-found, no-redef]

BAD_PICTURE, UNSAFE = 5, 10
SHAPE = ("channels", "height", "width")
LARGEST_SIDE, MOST_THREADS, LARGEST_FILE = 4096, 1024, 256_000_000
ELSEWHERE = b"location"  # the key under which an ONNX file names weights that lie outside it
REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F}


class UnsafeArtifactError(Exception):
    """An artifact that cannot be read, is not what its card describes, or leaves its folder."""


class Predictor:
    """An artifact, opened. Raises UnsafeArtifactError where it is not whole and self-contained."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            self.card: dict[str, Any] = json.loads((folder / "card.json").read_text("utf-8"))
            self.classes = [str(name) for name in self.card["classes"]]
            self.channels, *self.size = (int(self.card["input"][key]) for key in SHAPE)
            threads, digest = int(self.card["threads"]), self.card["files"]["model.onnx"]
            content = (folder / "model.onnx").read_bytes()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UnsafeArtifactError(f"{folder} is no whole artifact: {error!r}") from error
        if not (all(0 < side <= LARGEST_SIDE for side in self.size) and self.channels in (1, 3)):
            raise UnsafeArtifactError(f"{folder / 'card.json'} names no picture size")
        if not 0 < threads <= MOST_THREADS:
            raise UnsafeArtifactError(f"{folder / 'card.json'} asks for {threads} threads")
        if hashlib.sha256(content).hexdigest() != digest:
            raise UnsafeArtifactError(f"{folder / 'model.onnx'} is not the file its card describes")
        if ELSEWHERE in content:
            raise UnsafeArtifactError(f"{folder / 'model.onnx'} keeps weights in other files")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = open_session(content, options, folder)
        if self.session.get_outputs()[0].shape[-1] != len(self.classes):
            raise UnsafeArtifactError(f"{folder / 'card.json'} names other classes than the model")

    def pixels(self, path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read one picture as the network sees it: uint8 (H, W, C). Raises DecodeError, OSError."""
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError("is no regular file")
        if found.st_size > LARGEST_FILE:
            raise DecodeError(f"is larger than {LARGEST_FILE:,} bytes")
        height, width = self.size
        return decode(Path(path).read_bytes(), self.channels, (height, width))

    def probabilities(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return class probabilities (N, K) of uint8 pixels (N, H, W, C)."""
        logits = self.session.run(["logits"], {"image": pixels})[0].astype(np.float64)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]

    def predict(self, paths: list[str]) -> list[dict[str, Any]]:
        """Return one row per picture: path, label and probability, or path and error."""
        return [self.predict_one(path) for path in paths]

    def predict_one(self, path: str) -> dict[str, Any]:
        """Return the row of one picture."""
        try:
            pixels = self.pixels(path)
        except (DecodeError, OSError) as error:
            return {"path": path, "error": getattr(error, "strerror", None) or str(error)}
        share = self.probabilities(pixels[None])[0]
        best = int(share.argmax())
        return {"path": path, "label": self.classes[best], "probability": float(share[best])}


def open_session(content: bytes, options: Any, folder: Path) -> Any:
    """Open a model file; raises UnsafeArtifactError for what onnxruntime cannot read."""
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base class for what it raises
        name = folder / "model.onnx"
        raise UnsafeArtifactError(f"{name} is no model that onnxruntime can run") from error


def plain(text: str) -> str:
    """Return text without control characters and those that reorder what follows."""
    return "".join("\ufffd" if is_control(c) else c for c in text)


def is_control(character: str) -> bool:
    """Return whether a terminal may act on a character; joined emoji stay whole."""
    control = unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
    return control or ord(character) in REORDERING


def main() -> int:
    """Label the pictures named on the command line; 5 where one could not be read."""
    parser = argparse.ArgumentParser(description="Label pictures with this model.")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        rows = Predictor(Path(__file__).parent).predict(options.pictures)
    except UnsafeArtifactError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNSAFE
    if options.json:
        print(json.dumps({"predictions": rows}, ensure_ascii=False))
    for row in rows:
        if "error" in row:
            print(plain(f"{row['path']}: {row['error']}"), file=sys.stderr)
        elif not options.json:
            print(plain(f"{row['path']}: {row['label']}  {100 * row['probability']:.1f} %"))
    return BAD_PICTURE if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
