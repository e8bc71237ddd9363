"""Small strided pointwise convolutions are led around a kernel that destroys memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from trimtab.models.strided import Subsampled, sound_strides


@pytest.mark.parametrize("side", [7, 8])
def test_subsampled_convolution_gives_the_same_outputs_and_gradients(side: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 24, 1, stride=2).double()
    inputs = torch.rand(3, 8, side, side, dtype=torch.float64, requires_grad=True)
    found = []
    for _ in range(2):
        layer.zero_grad()
        inputs.grad = None
        outputs = layer(inputs)
        outputs.square().sum().backward()
        found.append([outputs.detach(), inputs.grad, layer.weight.grad, layer.bias.grad])
        layer.__class__ = Subsampled
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_the_layers_at_risk_change_and_only_inside_the_block() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(16, 8, 1, stride=2),
                           nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, stride=2, padding=1))  # fmt: skip
    with sound_strides(layers):
        assert [type(layer) is Subsampled for layer in layers] == [True, False, False, False]
    assert all(type(layer) is nn.Conv2d for layer in layers)


def test_training_such_a_layer_does_not_destroy_memory() -> None:
    code = """
import torch
from torch import nn
from trimtab.models.strided import sound_strides
layer = nn.Conv2d(8, 24, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
with sound_strides(layer):
    for _ in range(200):
        inputs = torch.rand(29, 8, 38, 38).to(memory_format=torch.channels_last).requires_grad_()
        layer(inputs).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
