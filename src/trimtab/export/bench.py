"""Time this artifact on this machine: needs onnxruntime, numpy and Pillow, nothing else.

    python bench.py [--seconds 5] [--threads 1]

Prints one JSON object; milliseconds of one picture after a warm-up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime

WARM_UP_SHARE = 0.2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time this model on this machine.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=None, help="default: the card's")
    options = parser.parse_args()
    folder = Path(__file__).parent
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    content = (folder / "model.onnx").read_bytes()
    threads = options.threads or int(card["threads"])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    shape = (1, card["input"]["height"], card["input"]["width"], card["input"]["channels"])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < (1 + WARM_UP_SHARE) * options.seconds:
        started = time.perf_counter()
        session.run(None, {"image": pixels})
        if started - begin > WARM_UP_SHARE * options.seconds:
            times.append(1000 * (time.perf_counter() - started))
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    print(json.dumps({
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "n": len(times), "threads": threads,
        "machine": platform.machine(), "system": platform.system(),
        "onnxruntime": onnxruntime.__version__, "model_sha256": hashlib.sha256(content).hexdigest(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
