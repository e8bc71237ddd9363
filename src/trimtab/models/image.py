"""Image networks: trimtab's own for small inputs, and timm's by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.records.schema import Schema
from trimtab.registry import did_you_mean, lookup

Builder = Callable[..., nn.Module]
BLOCK = 8  # channels are multiples of this: one vector register of floats
SMALLEST_MAP = 4  # pixels: no feature map is halved below this side


class Residual(nn.Module):
    """Add `branch` to `shortcut`, then ReLU (He et al. 2015, figure 2)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        return self.relu(self.branch(features) + self.shortcut(features))  # type: ignore[no-any-return]


def unit(
    inputs: int, outputs: int, *, size: int = 3, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Build convolution, batch norm and a ReLU of its own."""
    layers = nn.Sequential()
    layers.add_module("conv", nn.Conv2d(inputs, outputs, size, stride, padding=size // 2,
                                        groups=groups, bias=False))  # fmt: skip
    layers.add_module("norm", nn.BatchNorm2d(outputs))
    if relu:
        layers.add_module("relu", nn.ReLU())
    return layers


def residual(inputs: int, outputs: int, *, stride: int = 1) -> Residual:
    """Build two units with a shortcut around them; projected where the shape changes."""
    branch = nn.Sequential(unit(inputs, outputs, stride=stride), unit(outputs, outputs, relu=False))
    same = stride == 1 and inputs == outputs
    shortcut = nn.Identity() if same else unit(inputs, outputs, size=1, stride=stride, relu=False)
    return Residual(branch, shortcut)


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


def cnn_small(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build three convolutions, about 24 thousand parameters."""
    first, *rest = (scaled(c, width) for c in (16, 32, 64))
    blocks = [("stem", stem(schema, first, halvings(schema) - 3))]
    inputs = first
    for index, (outputs, stride) in enumerate(zip(rest, strides(schema, 2), strict=True), 1):
        blocks.append((f"stage{index}", unit(inputs, outputs, stride=stride)))
        inputs = outputs
    return assemble(blocks, inputs, schema, dropout)


def pooled_cnn(
    schema: Schema, channels: Sequence[int], *, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    """Build a stem and stages of two convolutions, with max pooling in front of each stage.

    The first of `channels` is the stem's. Shape after the airbench nets (Jordan 2024, 2404.00498,
    section 3), whose first layer and pooling keep the full-size maps few and cheap.
    """
    inputs, *rest = (scaled(c, width) for c in channels)
    blocks = [("stem", stem(schema, inputs, halvings(schema) - len(rest)))]
    for index, (outputs, stride) in enumerate(
        zip(rest, strides(schema, len(rest)), strict=True), 1
    ):
        stage = nn.Sequential()
        if stride > 1:
            stage.add_module("pool", nn.MaxPool2d(stride, ceil_mode=True))
        stage.add_module("first", unit(inputs, outputs))
        stage.add_module("second", unit(outputs, outputs))
        blocks.append((f"stage{index}", stage))
        inputs = outputs
    return assemble(blocks, inputs, schema, dropout)


def cnn_medium(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build seven convolutions, about 150 thousand parameters."""
    return pooled_cnn(schema, (24, 32, 64, 64), width=width, dropout=dropout)


def cnn_large(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build seven wide convolutions, about 830 thousand parameters: below 1 MB in int8."""
    return pooled_cnn(schema, (24, 64, 128, 192), width=width, dropout=dropout)


def resnet8(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a ResNet of one block per stage, about 78 thousand parameters."""
    return resnet(schema, 1, width=width, dropout=dropout)


def resnet20(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a ResNet of three blocks per stage, about 270 thousand parameters."""
    return resnet(schema, 3, width=width, dropout=dropout)


def resnet(
    schema: Schema, blocks_per_stage: int, *, width: float = 1.0, dropout: float = 0.0
) -> nn.Module:
    """Build a CIFAR ResNet of 6n + 2 layers, widths 16, 32, 64 (He et al. 2015, section 4.2)."""
    inputs = scaled(16, width)
    blocks: list[tuple[str, nn.Module]] = [("stem", stem(schema, inputs, halvings(schema) - 3))]
    for index, (channels, stride) in enumerate(
        zip((16, 32, 64), (1, *strides(schema, 2)), strict=True), 1
    ):
        outputs, stage = scaled(channels, width), nn.Sequential()
        for _ in range(blocks_per_stage):
            stage.append(residual(inputs, outputs, stride=stride))
            inputs, stride = outputs, 1
        blocks.append((f"stage{index}", stage))
    return assemble(blocks, inputs, schema, dropout)


def dwconv_small(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build a light net of depthwise separable convolutions, about 37 thousand parameters."""
    inputs = scaled(16, width)
    blocks: list[tuple[str, nn.Module]] = [("stem", stem(schema, inputs, halvings(schema) - 3))]
    early, late = strides(schema, 2)
    plan = ((32, early), (64, 1), (64, 1), (128, late), (128, 1))
    for index, (channels, stride) in enumerate(plan, 1):
        outputs = scaled(channels, width)
        blocks.append((f"block{index}", separable(inputs, outputs, stride=stride)))
        inputs = outputs
    return assemble(blocks, inputs, schema, dropout)


def timm_model(name: str, schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build any timm model with fresh weights; nothing is fetched.

    Raises UsageError for a width other than 1 and for a model that cannot be built for the data.
    """
    import timm  # here, since it takes seconds and trimtab's own nets do without

    if width != 1.0:
        raise UsageError(
            f"model.width is for trimtab's own networks; {name} is timm's, got {width:g}",
            f"leave model.width at 1, or take one of: {', '.join(OWN_NAMES)}",
        )
    settings: dict[str, Any] = {"drop_rate": dropout} if dropout else {}
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        settings["img_size"] = (schema.height, schema.width)
    try:
        body = timm.create_model(name, pretrained=False, num_classes=len(schema.classes),
                                 in_chans=schema.channels, **settings)  # fmt: skip
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"timm cannot build {name} for this data: {error}",
                         "choose another model, or another data.image_size") from error  # fmt: skip
    assert isinstance(body, nn.Module)
    return body


def find_model(name: str) -> Builder:
    """Return the builder of a registered model, any timm model, or `package.module:function`.

    Raises UsageError with the closest name for an unknown one.
    """
    if name in MODELS or ":" in name:
        return lookup("model", MODELS, name)
    import timm

    if "." in name:
        raise UsageError(
            f"model '{name}' asks for pretrained weights, and trimtab fetches none",
            f"write {name.partition('.')[0]}; it is trained from fresh weights",
        )
    if timm.is_model(name):
        return partial(timm_model, name)
    close = difflib.get_close_matches(name, timm.list_models(), n=1)
    raise UsageError(f"unknown model '{name}'", did_you_mean(name, [*MODELS, *close]))


def mobilenetv3_small_100(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build MobileNetV3-Small (Howard et al. 2019), 1.5 million parameters at 10 classes."""
    return timm_model("mobilenetv3_small_100", schema, width=width, dropout=dropout)


def mobilenetv3_large_100(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build MobileNetV3-Large (Howard et al. 2019), 4.2 million parameters at 10 classes."""
    return timm_model("mobilenetv3_large_100", schema, width=width, dropout=dropout)


def resnet18(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build ResNet-18 for photos (He et al. 2015, table 1), 11.2 million parameters."""
    return timm_model("resnet18", schema, width=width, dropout=dropout)


def resnet50(schema: Schema, *, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    """Build ResNet-50 for photos (He et al. 2015, table 1), 23.5 million parameters."""
    return timm_model("resnet50", schema, width=width, dropout=dropout)


OWN_NAMES = ("cnn_small", "cnn_medium", "cnn_large", "resnet8", "resnet20", "dwconv_small")
MODELS: dict[str, Builder] = {
    "cnn_small": cnn_small,
    "cnn_medium": cnn_medium,
    "cnn_large": cnn_large,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "dwconv_small": dwconv_small,
    "mobilenetv3_small_100": mobilenetv3_small_100,
    "mobilenetv3_large_100": mobilenetv3_large_100,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
