"""What image networks are made of: units, residual and separable blocks, stems, first weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.models.fused import Norm, of_norm, of_sum
from trimtab.records.schema import Schema

BLOCK = 8  # channels are multiples of this: one vector register of floats
SMALLEST_MAP = 4  # pixels: no feature map is halved below this side


class Chain(nn.Sequential):
    """Layers one after another; a norm and the activation behind it may be computed as one."""

    def forward(self, features: Tensor) -> Tensor:
        """Call all layers."""
        waiting: nn.Module | None = None
        for layer in self:
            if waiting is not None:
                features, waiting = of_norm(layer, waiting, features), None
            elif isinstance(layer, Norm):
                waiting = layer
            else:
                features = layer(features)
        return features if waiting is None else waiting(features)


class Residual(nn.Module):
    """Add `branch` to `shortcut`, then ReLU (He et al. 2015, figure 2) or another `activation`.

    In training the branch of a sample is left out with the chance `skipped` and scaled up
    otherwise (Huang et al. 2016, 1603.09382, section 3).
    """

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module, skipped: float = 0.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = activation()
        self.skipped = skipped

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        added = self.branch(features)
        if self.training and self.skipped > 0:
            kept = torch.rand(len(added), 1, 1, 1, device=added.device) >= self.skipped
            added = added * (kept / (1 - self.skipped)).to(added.dtype)
        return of_sum(self.act, added, self.shortcut(features))


def unit(
    inputs: int, outputs: int, *, size: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> Chain:
    """Build convolution, batch norm and a ReLU of its own."""
    layers = Chain()
    layers.add_module("conv", nn.Conv2d(inputs, outputs, size, stride, padding=size // 2,
                                        groups=groups, bias=False))  # fmt: skip
    layers.add_module("norm", nn.BatchNorm2d(outputs))
    if relu:
        layers.add_module("relu", nn.ReLU())
    return layers


def residual(inputs: int, outputs: int, *, stride: int = 1, skipped: float = 0.0) -> Residual:
    """Build two units with a shortcut around them; projected where the shape changes."""
    branch = nn.Sequential(unit(inputs, outputs, stride=stride), unit(outputs, outputs, relu=False))
    same = stride == 1 and inputs == outputs
    shortcut = nn.Identity() if same else unit(inputs, outputs, size=1, stride=stride, relu=False)
    return Residual(branch, shortcut, skipped)


def separable(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """Build a depthwise and a pointwise unit (Howard et al. 2017, figure 2)."""
    return nn.Sequential(
        unit(inputs, inputs, stride=stride, groups=inputs), unit(inputs, outputs, size=1)
    )


def assemble(
    blocks: Sequence[tuple[str, nn.Module]], channels: int, schema: Schema, dropout: float
) -> nn.Sequential:
    """Add global average pooling and the classifier to named blocks, and set the first weights."""
    network = nn.Sequential()
    for name, block in blocks:
        network.add_module(name, block)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten(1))
    network.add_module("dropout", nn.Dropout(dropout))
    network.add_module("classifier", nn.Linear(channels, len(schema.classes)))
    return initialise(network)


@torch.no_grad()
def initialise(network: nn.Sequential) -> nn.Sequential:
    """Set He-normal convolutions, and residual branches that start as zero.

    Sources: He et al. 2015 (1502.01852), section 2.2; Goyal et al. 2017 (1706.02677), section 5.1.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * module.weight[0, 0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, Residual):
            norms = [m for m in module.branch.modules() if isinstance(m, nn.BatchNorm2d)]
            nn.init.zeros_(norms[-1].weight)
    return network


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded to a multiple of 8."""
    return max(BLOCK, BLOCK * int(channels * width / BLOCK + 0.5))


def halvings(schema: Schema) -> int:
    """Return how often the short side can be halved, rounding up, with 4 pixels or more left."""
    side, count = min(schema.height, schema.width), 0
    while (side + 1) // 2 >= SMALLEST_MAP:
        side, count = (side + 1) // 2, count + 1
    return count


def strides(schema: Schema, stages: int) -> list[int]:
    """Return the strides of `stages` blocks: late ones halve first, so 8 pixels are halved once."""
    used = min(halvings(schema), stages)
    return [1] * (stages - used) + [2] * used


def stem(schema: Schema, channels: int, halved: int) -> nn.Sequential:
    """Build the first unit, and strided ones behind it that halve large inputs `halved` times."""
    layers = unit(schema.channels, channels, stride=2 if halved > 0 else 1)
    for index in range(1, halved):
        layers.add_module(f"halve{index}", unit(channels, channels, stride=2))
    return layers
