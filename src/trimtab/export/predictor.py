"""Label pictures with this artifact: needs onnxruntime, numpy and Pillow, nothing else.

    python predict.py picture.jpg another.png [--json]

As a library: `Predictor(folder).predict(["picture.jpg"])`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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


class UnsafeArtifactError(Exception):
    """A file of the artifact is not the one its card describes."""


class Predictor:
    """An artifact, opened. Raises UnsafeArtifactError where the model file is not the card's."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        self.classes: list[str] = self.card["classes"]
        self.input: dict[str, int] = self.card["input"]
        content = (folder / "model.onnx").read_bytes()
        if hashlib.sha256(content).hexdigest() != self.card["files"]["model.onnx"]:
            raise UnsafeArtifactError(f"{folder / 'model.onnx'} is not the file its card describes")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(self.card["threads"])
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )

    def pixels(self, path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Read one picture as the network sees it: uint8 (H, W, C). Raises DecodeError, OSError."""
        size = (self.input["height"], self.input["width"])
        return decode(Path(path).read_bytes(), self.input["channels"], size)

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


def plain(text: str) -> str:
    """Return text without control and direction characters."""
    return "".join("\ufffd" if unicodedata.category(c) in {"Cc", "Cf"} else c for c in text)


def main() -> int:
    """Label the pictures named on the command line; 5 where one could not be read."""
    parser = argparse.ArgumentParser(description="Label pictures with this model.")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
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
