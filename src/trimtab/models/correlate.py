"""The gradient of a depthwise weight as products of matrices, one for each channel.

For each place in the kernel it is the sum, over samples and pixels, of what came in there times
what is asked for. oneDNN's own is slower for kernels of side 5 and above in fp32, and slower still
in bf16. The products compute more than is used, in the way that the processor is best at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Pair = tuple[int, int]
Place = tuple[Pair, Pair, Pair]  # stride, padding, dilation

MOST_PAIRS = 4096  # pixels of the input times pixels of the output
LONGEST_LINE = 32  # pixels; above, the products waste more than they save


def weight_gradient(outer: Tensor, features: Tensor, kernel: Pair, place: Place) -> Tensor | None:
    """Return the gradient of a depthwise weight (C, 1, h, w), or None where it would not pay.

    `outer` (N, C, H', W') is the gradient of what the layer made of `features` (N, C, H, W).
    """
    (channels, *asked), within = outer.shape[1:], features.shape[2:]
    stride, padding, dilation = place
    if channels != features.shape[1]:  # several outputs for each channel
        return None
    if asked[0] * asked[1] * within.numel() <= MOST_PAIRS:
        found = of_pictures(outer, features, kernel, place)
    elif stride == dilation == (1, 1) and within[1] <= LONGEST_LINE:
        found = of_lines(outer, features, kernel, padding)
    else:
        return None
    return found.view(channels, 1, *kernel)


def of_pictures(outer: Tensor, features: Tensor, kernel: Pair, place: Place) -> Tensor:
    """Multiply every pixel that is asked for with every one that came in; add those that met."""
    pairs = torch.bmm(by_channel(outer).transpose(1, 2), by_channel(features))
    down, across = (
        (outer.shape[2 + axis], features.shape[2 + axis], kernel[axis], *(at[axis] for at in place))
        for axis in range(2)
    )
    return pairs.flatten(1) @ known(met_in_pictures)(down, across, pairs.dtype)


def by_channel(features: Tensor) -> Tensor:
    """Return features (N, C, H, W) as (C, N, H · W)."""
    return features.permute(1, 0, 2, 3).flatten(2).contiguous()


def of_lines(outer: Tensor, features: Tensor, kernel: Pair, padding: Pair) -> Tensor:
    """Do the same for lines alone, once for each line of the kernel."""
    samples, channels, height, width = features.shape
    lines = outer.permute(1, 2, 0, 3).flatten(1, 2).transpose(1, 2)  # (C, W', H' · N)
    padded = features.new_zeros(channels, height + 2 * padding[0], samples, width)
    padded[:, padding[0] : padding[0] + height] = features.permute(1, 2, 0, 3)
    shifts = (padded[:, row : row + outer.shape[2]].flatten(1, 2) for row in range(kernel[0]))
    pairs = torch.stack([torch.bmm(lines, each) for each in shifts], 1)
    across = (outer.shape[3], width, kernel[1], 1, padding[1], 1)
    return pairs.view(channels * kernel[0], -1) @ known(met_in_lines)(across, pairs.dtype)


def known(made: Any) -> Callable[..., Tensor]:
    """Return a function with a memory, or without it while torch compiles, which takes no such."""
    found: Callable[..., Tensor] = made.__wrapped__ if torch.compiler.is_compiling() else made
    return found


@lru_cache(maxsize=64)
def met_in_pictures(
    down: tuple[int, ...], across: tuple[int, ...], dtype: torch.dtype
) -> Tensor:  # fmt: skip
    """Return which pairs of pixels (H' · W' · H · W) met at which place in the kernel (h · w)."""
    both = torch.einsum("abi,cdj->acbdij", met(*down).to(dtype), met(*across).to(dtype))
    return both.flatten(0, 3).flatten(1)


@lru_cache(maxsize=64)
def met_in_lines(across: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return which pairs of pixels of a line (W' · W) met at which place in the kernel (w)."""
    return met(*across).to(dtype).flatten(0, 1)


def met(asked: int, within: int, side: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Return whether pixels met: bool (asked, within, side), along one axis."""
    places = torch.arange(side) * dilation - padding
    first = torch.arange(asked)[:, None, None] * stride
    return first + places == torch.arange(within)[:, None]
