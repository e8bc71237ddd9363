"""Lead a network's layers around what torch and oneDNN do slowly or wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from trimtab.models.averaged import GlobalAverage, is_global
from trimtab.models.depthwise import Depthwise, is_depthwise
from trimtab.models.narrow import Narrow, is_dense
from trimtab.models.pointwise import Pointwise, is_pointwise

# What a layer is, what it is for the time of a training, and whether that is for this one.
KINDS: tuple[tuple[type[nn.Module], type[nn.Module], Callable[[Any], bool]], ...] = (
    (nn.Conv2d, Depthwise, is_depthwise),
    (nn.Conv2d, Pointwise, is_pointwise),
    (nn.Conv2d, Narrow, is_dense),
    (nn.AdaptiveAvgPool2d, GlobalAverage, is_global),
)


@contextmanager
def quick_layers(network: nn.Module) -> Iterator[None]:
    """Train `network` inside the block with quick layers; afterwards it is as before."""
    changed = []
    for module in network.modules():
        for usual, quick, fits in KINDS:
            if type(module) is usual and fits(module):
                module.__class__ = quick
                changed.append((module, usual))
                break
    try:
        yield
    finally:
        for module, usual in changed:
            module.__class__ = usual
