"""Compile the forward and backward pass of a network, for the shapes where that can pay."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from trimtab.machine.native import compiler_words

MOST_SHAPES = 4  # each one is compiled anew
COMPILE_SECONDS = 60.0  # of one shape: 16 to 100 were measured on two cores
DISABLED = "__dynamo_disable"  # where torch keeps the marked method
LIKELY_GAIN = {"cpu": 0.1, "cuda": 0.25}  # share of a step that compiling is expected to save


class Compiled:
    """Call `network` compiled where a pass has `rows` samples, and as it is where it has not.

    Odd passes, such as the last of an epoch, are not worth a compilation of their own; nor are more
    than `MOST_SHAPES` sides of pictures. On a CUDA device the kernels of a pass are launched as
    one graph where a step is a single pass: with several, the gradients of one may lie where the
    graph of the next one writes. Weights and buffers are the network's own.
    """

    def __init__(
        self, network: nn.Module, rows: int, device: torch.device, *, passes: int = 1
    ) -> None:
        self.network, self.rows = network, rows
        self.shapes: set[torch.Size] = set()
        mode = "reduce-overhead" if device.type == "cuda" and passes == 1 else None
        self.fast = torch.compile(network, dynamic=False, mode=mode)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to logits (N, K)."""
        call = self.fast if self.takes(pixels.shape) else self.network
        return call(pixels)  # type: ignore[no-any-return]

    def takes(self, shape: torch.Size) -> bool:
        """Return whether inputs of this shape are compiled; remember the first few that are."""
        if shape in self.shapes:
            return True
        if shape[0] != self.rows or len(self.shapes) >= MOST_SHAPES:
            return False
        self.shapes.add(shape)
        return True


def leave_compiler_unloaded() -> None:
    """Let optimizers be made, saved and loaded without torch's compiler, which loads for seconds.

    Torch (2.15) loads it at the first call of these methods, which it has wrapped for that, to mark
    them as not to be compiled. Nothing here compiles them. Where it is loaded nothing is changed.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            plain.__dict__.setdefault(DISABLED, plain)


@cache
def uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return a class of torch's optimizers with steps that do not load torch's compiler, either.

    Torch (2.15) loads it around each `step` to break a graph there, should one be compiled.
    """
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {"step": step, "__doc__": kind.__doc__})


def missing_compiler(device: torch.device) -> str:
    """Return what torch.compile would need and is not here, or an empty text."""
    if device.type == "cuda":
        return "" if torch.utils._triton.has_triton() else "triton is not installed"
    name = compiler_words()[0]
    return "" if shutil.which(name) else f"there is no C++ compiler ({name})"


def broken_compiler(device: torch.device) -> str:
    """Return why nothing can be compiled here, found by compiling a sum, or an empty text."""
    if missing := missing_compiler(device):
        return missing
    try:
        torch.compile(torch.add)(torch.ones(8, device=device), 1)
    except Exception as error:  # noqa: BLE001 - torch has no one class for what can go wrong here
        return f"the compiler does not work ({type(error).__name__})"
    return ""


def can_amortise(seconds: float, device: torch.device, shapes: int = 1) -> bool:
    """Return whether a training of `seconds` would win back what compiling `shapes` costs."""
    cost = min(shapes, MOST_SHAPES) * COMPILE_SECONDS
    return seconds * LIKELY_GAIN.get(device.type, 0.0) > cost
