"""Find the activations that follow a norm, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from torch import nn

# Sequences whose parts are called one after another and in no other way.
CHAINS = ("trimtab.models.blocks.Chain", "torchvision.ops.misc.Conv2dNormActivation")
# Blocks that call a named part right after another, but for what timm may put between them.
IN_A_ROW = {
    "trimtab.models.cifar.Block": (("bn1", "relu1"),),
    "timm.models.resnet.ResNet": (("bn1", "act1"),),
    "timm.models.resnet.BasicBlock": (("bn1", "act1"),),
    "timm.models.resnet.Bottleneck": (("bn1", "act1"), ("bn2", "act2")),
}
BETWEEN = "drop_block"


def followers(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the part that follows each part of `network`, where that is known for certain.

    Both are called only there, and nobody listens to what passes between them.
    """
    uses = Counter(part for _, part in network.named_modules(remove_duplicate=False))
    return {
        first: second for block in network.modules() for first, second in rows_of(block)
        if uses[first] == uses[second] == 1 and not (watched(first) or watched(second))
    }  # fmt: skip


def rows_of(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the pairs of parts of `block` that follow each other."""
    name = f"{type(block).__module__}.{type(block).__qualname__}"
    if name in CHAINS:
        yield from pairwise(block.children())
    elif type(getattr(block, BETWEEN, nn.Identity())) is nn.Identity:
        for first, second in IN_A_ROW.get(name, ()):
            yield block.get_submodule(first), block.get_submodule(second)


def watched(part: nn.Module) -> bool:
    """Return whether `part` has hooks, which see or change what it is given and gives."""
    return any((part._forward_hooks, part._forward_pre_hooks,
                part._backward_hooks, part._backward_pre_hooks))  # fmt: skip
