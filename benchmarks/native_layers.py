"""Training steps with native layers ÷ the same without them, in ABBA blocks, uncompiled."""

from __future__ import annotations

import argparse
from statistics import median

from cnn_throughput import MODELS, Loop, in_turns
from record import write

from trimtab.measure.stats import paired_ratio

WITHOUT = {"TRIMTAB_NATIVE": "0"}
SHORT = 1  # epoch: a training too short to be compiled


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--blocks", type=int, default=8, help="of each loop, in turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a block without them")
    options = parser.parse_args()
    rows, slow, fast = [], [], []
    for name in options.models.split(","):
        without = Loop(name, ours=True, epochs=SHORT, variables=WITHOUT)
        native = Loop(name, ours=True, epochs=SHORT)
        one, two, number = in_turns(without, native, blocks=options.blocks,
                                    block_seconds=options.seconds)  # fmt: skip
        ratio, low, high = paired_ratio(one, two)
        rows.append({
            "model": name, "without": without.way, "with": native.way,
            "step without ms": round(1000 * median(one) / number, 1),
            "step with ms": round(1000 * median(two) / number, 1),
            "ratio": f"{ratio:.2f} ({low:.2f}-{high:.2f})", "blocks": options.blocks,
        })  # fmt: skip
        print(rows[-1], flush=True)
        slow.append(median(one))
        fast.append(median(two))
    ratio, low, high = paired_ratio(slow, fast)
    write("native_layers", rows,
          notes="Whole steps of `train`, not compiled, in the way that the trial of each chooses: "
          "with `TRIMTAB_NATIVE=0` ÷ with the layers in C++. Over all models "
          f"**{ratio:.2f}** ({low:.2f}-{high:.2f}).")  # fmt: skip


if __name__ == "__main__":
    main()
