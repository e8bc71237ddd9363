"""Geometries of convolutions, drawn by hypothesis."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """A kernel, where it goes, and a map (height, width) that it fits into."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    size: Pair


def drawn_geometry(data: st.DataObject, *, largest_kernel: int, slack: int) -> Geometry:
    """Draw one; each side of the map is up to `slack` pixels longer than it must be."""
    kernel, stride, padding, dilation = (
        data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))
        for low, high in ((1, largest_kernel), (1, 3), (0, 4), (1, 2))
    )
    least = [max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis])
             for axis in range(2)]  # fmt: skip
    height, width = (data.draw(st.integers(one, one + slack)) for one in least)
    return Geometry(kernel, stride, padding, dilation, (height, width))
