"""Depthwise convolutions in bf16 give the gradients they should, by a quicker road."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trimtab.models.depthwise import Depthwise, is_depthwise, quick_depthwise

LAYERS = [
    nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
    nn.Conv2d(8, 16, 5, stride=(2, 1), padding=2, groups=8),
    nn.Conv2d(8, 8, 7, padding=6, dilation=2, groups=8),
]


def passed(layer: nn.Module, features: torch.Tensor, *, low: bool) -> list[torch.Tensor]:
    """Return the outputs and the gradients of inputs and parameters."""
    features = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        outputs = layer(features)
    generator = torch.Generator().manual_seed(1)
    (outputs.float() * torch.randn(outputs.shape, generator=generator)).sum().backward()
    found = [outputs.detach(), features.grad, *(p.grad for p in layer.parameters())]
    return [one for one in found if one is not None]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradients_are_those_of_fp32_as_near_as_bf16_can_be(layer: nn.Conv2d) -> None:
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    features = torch.randn(4, 8, 9, 11).contiguous(memory_format=torch.channels_last)
    exact = passed(layer, features, low=False)
    layer.zero_grad()
    plain = passed(layer, features, low=True)
    layer.zero_grad()
    with quick_depthwise(layer):
        assert isinstance(layer, Depthwise)
        quick = passed(layer, features, low=True)
    assert type(layer) is nn.Conv2d
    assert [one.dtype for one in quick] == [one.dtype for one in plain]
    for wanted, usual, got in zip(exact, plain, quick, strict=True):
        error = (got.float() - wanted).norm()
        assert error <= 1.5 * (usual.float() - wanted).norm() + 1e-3 * wanted.norm()


def test_without_autocast_nothing_changes() -> None:
    layer, features = copy.deepcopy(LAYERS[1]), torch.randn(2, 8, 9, 9)
    wanted = passed(layer, features, low=False)
    layer.zero_grad()
    with quick_depthwise(layer):
        got = passed(layer, features, low=False)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(1, 8, 3), nn.Linear(8, 8),
     nn.Conv2d(8, 8, 3, groups=8, padding="same"),
     nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect")],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert not is_depthwise(layer)
