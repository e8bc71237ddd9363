"""Which layer of a network is its head, and how far each parameter is from it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CONTAINERS = (nn.Sequential, nn.ModuleList)


def head_of(network: nn.Module) -> tuple[str, nn.Module]:
    """Return the last convolution or linear layer, which gives the logits, and its dotted name."""
    layers = [(name, part) for name, part in network.named_modules() if isinstance(part, LAYERS)]
    assert layers, "a network has layers"
    return layers[-1]


def depths_of(network: nn.Module) -> dict[int, int]:
    """Return how many blocks stand between a parameter and the last block, by the parameter's id.

    Parts without weights of two dimensions, as norms, count with the block before them; parameters
    in no part, as position embeddings, with the first.
    """
    inner, number, numbers = core_of(network), 0, {}
    for block in blocks_of(inner):
        parameters = list(block.parameters())
        number += any(one.ndim > 1 for one in parameters)
        numbers.update({id(one): number for one in parameters})
    return {id(one): number - max(1, numbers.get(id(one), 1)) for one in network.parameters()}


def core_of(module: nn.Module) -> nn.Module:
    """Return the innermost part that holds all parameters and is more than a wrapper of one."""
    own = any(True for _ in module.parameters(recurse=False))
    inner = [child for child in module.children() if any(True for _ in child.parameters())]
    return core_of(inner[0]) if len(inner) == 1 and not own else module


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts that follow each other: plain sequences of larger parts are unrolled.

    A sequence that holds layers itself, such as convolution, norm and activation, is one block.
    """
    for child in module.children():
        layered = any(isinstance(inner, LAYERS) for inner in child.children())
        if type(child) in CONTAINERS and not layered:
            yield from blocks_of(child)
        else:
            yield child
