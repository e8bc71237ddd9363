"""Which part follows which is what happens when a network is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trimtab.models.blocks import Chain
from trimtab.models.build import build
from trimtab.models.followers import followers
from trimtab.models.image import MODELS
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema

COLOUR = Schema(classes=tuple("abcdefghij"), channels=3, height=32, width=32,
                mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))  # fmt: skip
LIBRARIES = ["timm.resnet18", "timm.resnet50", "torchvision.resnet18", "torchvision.mobilenet_v2",
             "timm.mobilenetv3_small_100"]  # fmt: skip
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU)


def called(network: nn.Module) -> list[tuple[nn.Module, int, int]]:
    """Return each part that was called, with the numbers of its first input and its output."""
    calls: list[tuple[nn.Module, Any, Any]] = []
    hooks = [part.register_forward_hook(lambda one, given, got: calls.append((one, given[0], got)))
             for part in network.modules()]  # fmt: skip
    network(torch.rand(2, *COLOUR.input_shape) * 255)
    for hook in hooks:
        hook.remove()
    return [(part, id(given), id(got)) for part, given, got in calls]


@pytest.mark.parametrize("name", [*MODELS, *LIBRARIES])
def test_the_second_of_a_pair_gets_what_the_first_gave_and_nobody_else_does(name: str) -> None:
    network = build(COLOUR, Recipe().override(model__name=name)).train()
    for part in network.modules():
        if hasattr(part, "inplace"):
            part.inplace = False  # else inputs and outputs are the same
    pairs, calls = followers(network), called(network)
    outputs = {part: got for part, _, got in calls}
    for first, second in pairs.items():
        if isinstance(first, nn.BatchNorm2d) and isinstance(second, ACTIVATIONS):
            given = [part for part, number, _ in calls if number == outputs[first]]
            assert [one for one in given if not isinstance(one, nn.Identity)] == [second]
            assert sum(part is second for part, _, _ in calls) == 1


@pytest.mark.parametrize(
    ("name", "count"),
    [("cnn_large", 7), ("resnet20", 10), ("wcnn_medium", 6), ("cifar_resnet20", 10),
     ("timm.resnet18", 9), ("timm.resnet50", 33), ("torchvision.mobilenet_v2", 35),
     ("torchvision.resnet18", 0)],
)  # fmt: skip
def test_norms_are_followed_by_activations(name: str, count: int) -> None:
    network = build(COLOUR, Recipe().override(model__name=name))
    pairs = followers(network).items()
    found = [second for first, second in pairs
             if isinstance(first, nn.BatchNorm2d) and isinstance(second, ACTIVATIONS)]  # fmt: skip
    assert len(found) == count


def test_what_is_called_twice_or_watched_is_in_no_pair() -> None:
    act, norms = nn.ReLU(), [nn.BatchNorm2d(3) for _ in range(4)]
    shared = nn.Sequential(Chain(norms[0], act), Chain(norms[1], act))
    assert followers(shared) == {}
    norms[2].register_forward_hook(lambda *_: None)
    assert followers(Chain(norms[2], nn.ReLU())) == {}
    plain = Chain(norms[3], nn.ReLU())
    assert followers(plain) == {norms[3]: plain[1]}


def test_something_between_the_two_parts_them() -> None:
    network = build(COLOUR, Recipe().override(model__name="timm.resnet18"))
    whole = len(followers(network))
    block: Any = network.get_submodule("body.layer1.0")
    block.drop_block = nn.Dropout()
    assert len(followers(network)) == whole - 1
