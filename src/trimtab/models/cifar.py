"""The CIFAR ResNets as they were published, layer names included, so that their weights fit."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from trimtab.models.blocks import Chain, scaled
from trimtab.models.fused import of_norm, of_sum
from trimtab.records.schema import Schema


class Block(nn.Module):
    """Two convolutions around which the input is added, without weights of its own: option A.

    Where the map is halved the shortcut takes every second pixel and pads half of the new channels
    with zeros on either side (He et al. 2015, section 4.2; the sides as Idelbayev's weights have
    them).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.stride, self.added = stride, outputs - inputs

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        inner = of_norm(self.relu1, self.bn1, self.conv1(features))
        branch = self.bn2(self.conv2(inner))
        if self.stride > 1:
            features = features[:, :, :: self.stride, :: self.stride]
        if self.added:
            before = self.added // 2
            features = functional.pad(features, (0, 0, 0, 0, before, self.added - before))
        return of_sum(self.relu2, branch, features)


def cifar_resnet(
    schema: Schema, blocks_per_stage: int, *, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    """Build 6n + 2 layers of widths 16, 32, 64, for 32x32 pictures (He et al. 2015, section 4.2).

    Names of layers: conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear.
    """
    network, inputs = Chain(), scaled(16, width)
    network.add_module("conv1", nn.Conv2d(schema.channels, inputs, 3, padding=1, bias=False))
    network.add_module("bn1", nn.BatchNorm2d(inputs))
    network.add_module("relu", nn.ReLU())
    for index, channels in enumerate((16, 32, 64), 1):
        outputs, stage = scaled(channels, width), nn.Sequential()
        for place in range(blocks_per_stage):
            stage.append(Block(inputs, outputs, 2 if index > 1 and place == 0 else 1))
            inputs = outputs
        network.add_module(f"layer{index}", stage)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten(1))
    network.add_module("dropout", nn.Dropout(dropout))
    network.add_module("linear", nn.Linear(inputs, len(schema.classes)))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return network


def cifar_resnet20(schema: Schema, **settings: Any) -> nn.Module:
    """Build the published CIFAR ResNet-20, about 270 thousand parameters."""
    return cifar_resnet(schema, 3, **settings)


def cifar_resnet32(schema: Schema, **settings: Any) -> nn.Module:
    """Build the published CIFAR ResNet-32, about 460 thousand parameters."""
    return cifar_resnet(schema, 5, **settings)


def cifar_resnet56(schema: Schema, **settings: Any) -> nn.Module:
    """Build the published CIFAR ResNet-56, about 850 thousand parameters."""
    return cifar_resnet(schema, 9, **settings)
