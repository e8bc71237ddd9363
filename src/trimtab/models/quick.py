"""Lead a network's layers around what torch and oneDNN do slowly or wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from trimtab.models import excite, layer_norm
from trimtab.models.averaged import GlobalAverage, is_global
from trimtab.models.blocks import Chain
from trimtab.models.depthwise import Depthwise, is_depthwise
from trimtab.models.fused import (
    Activation,
    Norm,
    is_alone,
    is_norm,
    kind_of,
    number_of,
    watched,
)
from trimtab.models.kernels import is_here
from trimtab.models.narrow import Narrow, is_dense
from trimtab.models.pointwise import Pointwise, is_pointwise
from trimtab.models.pooled import QuickMaxPool, is_of_four

# What a layer is, what it is for the time of a training, and whether that is for this one.
Kind = tuple[type[nn.Module], type[nn.Module], Callable[[Any], bool]]
KINDS: tuple[Kind, ...] = (
    (nn.Conv2d, Depthwise, is_depthwise),
    (nn.Conv2d, Pointwise, is_pointwise),
    (nn.Conv2d, Narrow, is_dense),
    (nn.AdaptiveAvgPool2d, GlobalAverage, is_global),
)
MADE: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
CHAINS = ("torchvision.ops.misc.Conv2dNormActivation",)  # sequences whose norms have activations
NATIVE: tuple[Kind, ...] = ((nn.MaxPool2d, QuickMaxPool, is_of_four),)


class Swaps:
    """Layers that became others for a while."""

    def __init__(self) -> None:
        self.made: list[tuple[nn.Module, type[nn.Module], tuple[str, ...]]] = []

    def make(self, module: nn.Module, quick: type[nn.Module], **settings: Any) -> None:
        """Make a layer a `quick` one, with settings of its own."""
        self.made.append((module, type(module), tuple(settings)))
        module.__class__ = quick
        vars(module).update(settings)

    def undo(self) -> None:
        """Make them what they were."""
        for module, usual, settings in self.made:
            module.__class__ = usual
            for name in settings:
                del vars(module)[name]


@contextmanager
def quick_layers(network: nn.Module) -> Iterator[None]:
    """Train `network` inside the block with quick layers; afterwards it is as before."""
    swaps = Swaps()
    native = all(one.device.type == "cpu" for one in network.parameters()) and is_here()
    try:
        if native:
            fuse(network, swaps)
            swap_by_name(network, swaps)
        for module in network.modules():
            for usual, quick, fits in KINDS + NATIVE * native:
                if type(module) is usual and fits(module):
                    swaps.make(module, quick)
                    break
        yield
    finally:
        swaps.undo()


def fuse(network: nn.Module, swaps: Swaps) -> None:
    """Make norms and activations quick ones."""
    norms = [module for module in network.modules() if is_norm(module)]
    inside = {getattr(norm, "act", None) for norm in norms}
    for norm in norms:
        behind = number_of(getattr(norm, "act", None))
        swaps.make(norm, quick_kind(Norm, type(norm)), behind=behind)
    for module in network.modules():
        if is_alone(module) and module not in inside:
            swaps.make(module, quick_kind(Activation, type(module)), behind=number_of(module))


def swap_by_name(network: nn.Module, swaps: Swaps) -> None:
    """Make layers and blocks of libraries quick ones that are known by the names of their classes.

    The libraries are not imported for that.
    """
    for module in network.modules():
        name = kind_of(module)
        if name in layer_norm.WAYS and layer_norm.is_plain(module):  # type: ignore[arg-type]
            swaps.make(module, quick_kind(layer_norm.WAYS[name], type(module)))
        elif name in CHAINS:
            swaps.make(module, quick_kind(Chain, type(module)))
        elif name in excite.PARTS and not any(map(watched, module.children())):
            quick = quick_kind(excite.Excite, type(module))
            swaps.make(module, quick, between=excite.PARTS[name])


def quick_kind(way: type[nn.Module], usual: type[nn.Module]) -> type[nn.Module]:
    """Return a class of layers that are called in a quick way where they can be.

    It is the same one each time, so that a compiled graph stays good.
    """
    if (way, usual) not in MADE:
        name = way.__name__ + usual.__name__
        MADE[way, usual] = type(name, (way, usual), {"__doc__": usual.__doc__})
    return MADE[way, usual]
