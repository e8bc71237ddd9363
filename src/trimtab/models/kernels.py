"""Call the package's own C++, where it could be compiled, with tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.machine.native import load

SOURCES = Path(__file__).parent / "native"
NUMBERS = (torch.float32, torch.bfloat16)
PLAIN = (Tensor, nn.Parameter)  # others may have no memory of their own
LEAST = 2**17  # numbers: with fewer, a call from Python costs more than the C++ gains

Value = Tensor | float | tuple[int, ...] | None


def is_here() -> bool:
    """Return whether the C++ could be compiled and loaded."""
    return not why_not()


def why_not() -> str:
    """Return why the C++ is not here, or an empty text."""
    library = load(SOURCES)
    return library if isinstance(library, str) else ""


def suits(features: Tensor) -> bool:
    """Return whether the C++ takes features, and they are enough to gain by it."""
    return features.numel() >= LEAST and is_taken(features)


def is_taken(features: Tensor) -> bool:
    """Return whether the C++ takes a tensor: numbers on a processor, without gaps in memory."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and type(features) in PLAIN
        and features.device.type == "cpu"
        and features.dtype in NUMBERS
        and features.numel() > 0
        and (features.is_contiguous() or has_rows(features))
    )


def fit(weights: tuple[Tensor | None, ...], channels: int) -> bool:
    """Return whether weights of a layer, where there are such, are one float for each channel."""
    return all(
        one is None
        or (
            (one.dtype, one.shape, one.device.type) == (torch.float32, (channels,), "cpu")
            and one.is_contiguous()
            and type(one) in PLAIN
        )
        for one in weights
    )


def floats(*size: int) -> Tensor:
    """Return memory for fp32, whatever the defaults are."""
    return torch.empty(size, dtype=torch.float32, device="cpu")


def has_rows(features: Tensor) -> bool:
    """Return whether features (N, C, H, W) lie as rows of channels."""
    return features.ndim == 4 and features.is_contiguous(memory_format=torch.channels_last)


def like(outer: Tensor, features: Tensor) -> Tensor:
    """Return a gradient as the features are: in their precision and order of memory."""
    if outer.dtype == features.dtype and outer.stride() == features.stride():
        return outer
    return torch.empty_like(features).copy_(outer)


def call(name: str, *values: Value) -> None:
    """Call a function of the library with values in its order, and with the number of threads."""
    library = load(SOURCES)
    assert not isinstance(library, str), library
    getattr(library, name)(*map(in_c, values), ctypes.c_long(torch.get_num_threads()))


def in_c(value: Value) -> Any:
    """Return what C takes: the address of numbers of a tensor, a float, a long or some of them."""
    if isinstance(value, Tensor):
        assert value.numel() == 0 or value.data_ptr(), "a tensor without memory of its own"
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, tuple):
        return (ctypes.c_long * len(value))(*value)
    return None if value is None else ctypes.c_long(value)


def bfloat(features: Tensor) -> int:
    """Return whether the numbers are bf16, for C."""
    return int(features.dtype == torch.bfloat16)
