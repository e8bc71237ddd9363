"""Convolutions and their gradients as products of matrices: what each pixel saw is copied."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.models.correlate import Pair, Place

MOST_COLUMNS = 1 << 23  # numbers copied at once, for the caches' sake


def convolved(features: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
    """Return what a weight (C', C, h, w) makes of `features` (N, C, H, W): (N, C', H', W')."""
    matrix = weight.permute(0, 2, 3, 1).flatten(1)
    parts = [functional.linear(seen, matrix, bias)
             for _, seen in seen_pixels(features, kernel_of(weight), place)]  # fmt: skip
    return torch.cat(parts).permute(0, 3, 1, 2)


def weight_gradient(outer: Tensor, features: Tensor, kernel: Pair, place: Place) -> Tensor:
    """Return the gradient of a weight (C', C, h, w), summed in fp32 over parts of the batch.

    `outer` (N, C', H', W') is the gradient of what the layer made of `features` (N, C, H, W).
    """
    asked, found = outer.permute(0, 2, 3, 1), None
    for part, seen in seen_pixels(features, kernel, place):
        rows = asked[part].flatten(0, 2).t().contiguous()  # in order is quicker for oneDNN
        found = with_product(found, rows, seen.flatten(0, 2))
    assert found is not None
    return found.view(outer.shape[1], *kernel, features.shape[1]).permute(0, 3, 1, 2)


def both_gradients(
    outer: Tensor, features: Tensor, weight: Tensor, place: Place
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `features` and `weight`, by one copy of what `outer` says of each.

    For a layer whose outputs are as high and as wide as its inputs, with strides of 1: seen from
    the inputs, the outputs lie as the inputs lie seen from them, the other way round.
    """
    across, places = features.permute(0, 2, 3, 1), weight.permute(2, 3, 0, 1).flatten(0, 1)
    matrix = torch.cat(places.unbind()[::-1])
    inner, found = [], None
    for part, seen in seen_pixels(outer, kernel_of(weight), place):
        inner.append(seen @ matrix)
        found = with_product(found, seen.flatten(0, 2).t(), across[part].flatten(0, 2))
    assert found is not None
    turned = torch.stack(found.view(places.shape).unbind()[::-1], 1)
    by_weight = turned.unflatten(1, kernel_of(weight)).permute(0, 3, 1, 2)
    return torch.cat(inner).permute(0, 3, 1, 2), by_weight


def with_product(found: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return `found`, if any, plus the product of matrices, in fp32 from the second on."""
    part = left @ right
    return part if found is None else found.float() + part


def seen_pixels(features: Tensor, kernel: Pair, place: Place) -> Iterator[tuple[slice, Tensor]]:
    """Yield what each output pixel saw, (N, H', W', h · w · C), of some pictures at a time."""
    _, (down, across), _ = place
    padded = functional.pad(features, (across, across, down, down)).permute(0, 2, 3, 1)
    whole = windows(padded.contiguous(), kernel, place)
    each = max(1, MOST_COLUMNS // whole[0].numel())
    for first in range(0, len(whole), each):
        part = slice(first, first + each)
        yield part, whole[part].flatten(3)


def windows(padded: Tensor, kernel: Pair, place: Place) -> Tensor:
    """Return a view of what each output pixel saw, (N, H', W', h, w, C), of (N, H, W, C)."""
    stride, _, dilation = place
    for axis in range(2):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        padded = padded.unfold(1 + axis, span, stride[axis])[..., :: dilation[axis]]
    return padded.permute(0, 1, 2, 4, 5, 3)


def kernel_of(weight: Tensor) -> Pair:
    """Return the sides of a weight (C', C, h, w)."""
    return weight.shape[2], weight.shape[3]
