"""Networks that learn small pictures fast: a whitened first layer and wide, max-pooled stages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from trimtab.models.blocks import Chain, Residual, halvings, scaled
from trimtab.models.narrow import convolve
from trimtab.records.schema import Schema

MOST_DIRECTIONS = 64  # filters of the first layer at the most


class PooledConv2d(nn.Conv2d):
    """A 3x3 convolution that pooling by 2 follows: the last row of an odd map is not computed.

    Pooling would drop it. The other values are the same.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W), or to even sides where it trains."""
        height, width = features.shape[2:]
        if not self.training or (height % 2 == 0 and width % 2 == 0):
            return super().forward(features)
        padded = functional.pad(features, (1, 1 - width % 2, 1, 1 - height % 2))
        return convolve(padded, self.weight, self.bias, ((1, 1), (0, 0), (1, 1)))


def whitened_cnn(
    schema: Schema, channels: Sequence[int], *, width: float = 1.0, dropout: float = 0.0,
    deep: bool = False,
) -> nn.Module:  # fmt: skip
    """Build a first layer of small patches and stages of convolutions, globally max-pooled.

    A stage has two convolutions, a `deep` one three, with a shortcut around the last two. Each
    pools between its first convolution and its norm, where that costs least; norms keep
    weights of 1 and learn biases. Any input of 8 pixels or more runs, also smaller than `schema`'s.
    Shape after Jordan 2024 (2404.00498), section 3 and appendix A. The first layer is the one
    that `model.whiten` sets; its number of filters is twice that of a patch's values, at most 64.
    """
    halved = max(0, halvings(schema) - len(channels))
    size = max(2, 2**halved)
    inputs = min(2 * schema.channels * size * size, MOST_DIRECTIONS)
    network = nn.Sequential()
    network.add_module("patches", nn.Conv2d(schema.channels, inputs, size, stride=2**halved))
    network.add_module("act", nn.GELU())
    pooled = min(halvings(schema), len(channels))
    for index, wanted in enumerate(channels):
        outputs = scaled(wanted, width)
        network.add_module(
            f"stage{index + 1}", stage(inputs, outputs, pool=index < pooled, deep=deep)
        )
        inputs = outputs
    network.add_module("pool", nn.AdaptiveMaxPool2d(1))
    network.add_module("flatten", nn.Flatten(1))
    network.add_module("dropout", nn.Dropout(dropout))
    classifier = nn.Linear(inputs, len(schema.classes), bias=False)
    nn.init.normal_(classifier.weight, std=1 / inputs)
    network.add_module("classifier", classifier)
    return network


def stage(inputs: int, outputs: int, *, pool: bool, deep: bool = False) -> Chain:
    """Build convolution, pooling, norm, GELU, and then convolution, norm, GELU.

    A `deep` stage ends with two more convolutions in place of one, and a shortcut around them that
    is added before the last GELU, as in the net for 96 % of Jordan's cifar10-airbench.
    """
    layers = Chain()
    kind = PooledConv2d if pool else nn.Conv2d
    layers.add_module("conv1", kind(inputs, outputs, 3, padding=1, bias=False))
    if pool:
        layers.add_module("pool", nn.MaxPool2d(2))
    layers.add_module("norm1", nn.BatchNorm2d(outputs))
    layers.add_module("act1", nn.GELU())
    if deep:
        branch = Chain(*same(outputs), nn.GELU(), *same(outputs))
        layers.add_module("residual", Residual(branch, nn.Identity(), activation=nn.GELU))
        return layers
    convolution, norm = same(outputs)
    layers.add_module("conv2", convolution)
    layers.add_module("norm2", norm)
    layers.add_module("act2", nn.GELU())
    return layers


def same(channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Build a 3x3 convolution that keeps the shape of its map, and the norm behind it."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels)


def wcnn_small(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a whitened net of 32, 64 and 64 channels, about 120 thousand parameters."""
    return whitened_cnn(schema, (32, 64, 64), width=width, dropout=dropout)


def wcnn_medium(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a whitened net of 64, 128 and 128 channels, about 560 thousand parameters."""
    return whitened_cnn(schema, (64, 128, 128), width=width, dropout=dropout)


def wcnn_large(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a whitened net of 64, 256 and 256 channels, about 2 million parameters."""
    return whitened_cnn(schema, (64, 256, 256), width=width, dropout=dropout)


def wcnn_deep(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a whitened residual net of 80, 320 and 320 channels, about 5 million parameters."""
    return whitened_cnn(schema, (80, 320, 320), width=width, dropout=dropout, deep=True)
