"""Image networks: trimtab's own for small inputs, timm's and torchvision's by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from trimtab.errors import UsageError
from trimtab.models.blocks import (
    assemble,
    halvings,
    residual,
    scaled,
    separable,
    stem,
    strides,
    unit,
)
from trimtab.models.cifar import cifar_resnet20, cifar_resnet32, cifar_resnet56
from trimtab.models.libraries import TIMM, TORCHVISION, library_model, library_of, names_of
from trimtab.models.whitened import wcnn_deep, wcnn_large, wcnn_medium, wcnn_small
from trimtab.records.schema import Schema
from trimtab.registry import did_you_mean, lookup

Builder = Callable[..., nn.Module]


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


def resnet8(schema: Schema, **settings: float) -> nn.Module:
    """Build a ResNet of one block per stage, about 78 thousand parameters."""
    return resnet(schema, 1, **settings)


def resnet20(schema: Schema, **settings: float) -> nn.Module:
    """Build a ResNet of three blocks per stage, about 270 thousand parameters."""
    return resnet(schema, 3, **settings)


def resnet(
    schema: Schema, blocks_per_stage: int, *, width: float = 1.0, dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:  # fmt: skip
    """Build a CIFAR ResNet of 6n + 2 layers, widths 16, 32, 64 (He et al. 2015, section 4.2)."""
    inputs, last = scaled(16, width), 3 * blocks_per_stage
    blocks: list[tuple[str, nn.Module]] = [("stem", stem(schema, inputs, halvings(schema) - 3))]
    for index, (channels, stride) in enumerate(
        zip((16, 32, 64), (1, *strides(schema, 2)), strict=True), 1
    ):
        outputs, stage = scaled(channels, width), nn.Sequential()
        for place in range(blocks_per_stage):
            number = (index - 1) * blocks_per_stage + place + 1
            skipped = stochastic_depth * number / last
            stage.append(residual(inputs, outputs, stride=stride, skipped=skipped))
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


def find_model(name: str) -> Builder:
    """Return the builder of a model by its name.

    In this order: a registered one, `package.module:function`, timm's, torchvision's; `timm.NAME`
    and `torchvision.NAME` say which of the two. Raises UsageError with the closest name for an
    unknown one.
    """
    if name in MODELS or ":" in name:
        return lookup("model", MODELS, name)
    if found := library_of(name):
        return partial(library_model, *found)
    plain, _, tag = name.rpartition(".")
    if plain and library_of(plain):
        raise UsageError(
            f"model '{name}' names the weights '{tag}', where model.name is for the layers",
            f"write model.name: {plain} and model.pretrained: cache:{tag}",
        )
    known = [one for library in (TIMM, TORCHVISION) for one in names_of(library)]
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    raise UsageError(f"unknown model '{name}'", did_you_mean(name, [*MODELS, *close]))


def mobilenetv3_small_100(schema: Schema, **settings: float) -> nn.Module:
    """Build MobileNetV3-Small (Howard et al. 2019), 1.5 million parameters at 10 classes."""
    return library_model(TIMM, "mobilenetv3_small_100", schema, **settings)


def mobilenetv3_large_100(schema: Schema, **settings: float) -> nn.Module:
    """Build MobileNetV3-Large (Howard et al. 2019), 4.2 million parameters at 10 classes."""
    return library_model(TIMM, "mobilenetv3_large_100", schema, **settings)


def resnet18(schema: Schema, **settings: float) -> nn.Module:
    """Build ResNet-18 for photos (He et al. 2015, table 1), 11.2 million parameters."""
    return library_model(TIMM, "resnet18", schema, **settings)


def resnet50(schema: Schema, **settings: float) -> nn.Module:
    """Build ResNet-50 for photos (He et al. 2015, table 1), 23.5 million parameters."""
    return library_model(TIMM, "resnet50", schema, **settings)


OWN_NAMES = ("cnn_small", "cnn_medium", "cnn_large", "resnet8", "resnet20", "dwconv_small",
             "wcnn_small", "wcnn_medium", "wcnn_large", "wcnn_deep", "cifar_resnet20",
             "cifar_resnet32", "cifar_resnet56")  # fmt: skip
MODELS: dict[str, Builder] = {
    "cnn_small": cnn_small,
    "cnn_medium": cnn_medium,
    "cnn_large": cnn_large,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "dwconv_small": dwconv_small,
    "wcnn_small": wcnn_small,
    "wcnn_medium": wcnn_medium,
    "wcnn_large": wcnn_large,
    "wcnn_deep": wcnn_deep,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet32": cifar_resnet32,
    "cifar_resnet56": cifar_resnet56,
    "mobilenetv3_small_100": mobilenetv3_small_100,
    "mobilenetv3_large_100": mobilenetv3_large_100,
    "resnet18": resnet18,
    "resnet50": resnet50,
}
