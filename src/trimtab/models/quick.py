"""Lead a network's convolutions around what oneDNN does slowly or wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from trimtab.models.depthwise import Depthwise, is_depthwise
from trimtab.models.narrow import Narrow, is_dense
from trimtab.models.pointwise import Pointwise, is_pointwise

KINDS: tuple[tuple[type[nn.Conv2d], Callable[[nn.Conv2d], bool]], ...] = (
    (Depthwise, is_depthwise), (Pointwise, is_pointwise), (Narrow, is_dense),
)  # fmt: skip


@contextmanager
def quick_convolutions(network: nn.Module) -> Iterator[None]:
    """Train `network` inside the block with quick convolutions; afterwards it is as before."""
    layers = [module for module in network.modules() if type(module) is nn.Conv2d]
    for layer in layers:
        for quick, fits in KINDS:
            if fits(layer):
                layer.__class__ = quick
                break
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Conv2d
