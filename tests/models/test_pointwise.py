"""Pointwise convolutions as products: the same numbers, and no destroyed memory."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.models.passing import passed
from trimtab.models import pointwise
from trimtab.models.pointwise import Pointwise, few_rows, is_pointwise

LAYERS = [
    nn.Conv2d(8, 24, 1, stride=2), nn.Conv2d(24, 8, 1), nn.Conv2d(20, 24, 1, stride=(3, 2)),
    nn.Conv2d(24, 8, 1, bias=False, padding="same"),
]  # fmt: skip


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("rows", [0, 8192])
@pytest.mark.parametrize("side", [1, 7, 8])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_outputs_and_gradients_are_those_of_the_convolution(
    layer: nn.Conv2d, side: int, rows: int, low: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointwise, "MOST_ROWS", rows)
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    inputs = torch.rand(3, layer.in_channels, side, side).to(memory_format=torch.channels_last)
    wanted = passed(layer, inputs, low=low)
    layer.__class__ = Pointwise
    found = passed(layer, inputs, low=low)
    close = 2e-2 if low else 1e-5
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=close, atol=close * float(other.abs().max()))
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_few_pixels_side_by_side_are_rows() -> None:
    last = torch.rand(8, 4, 32, 32).to(memory_format=torch.channels_last)
    assert few_rows(last)
    assert not few_rows(last.contiguous())
    assert not few_rows(torch.cat([last, last]))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 8, 1, padding=1)],
    ids=str,
)
def test_other_layers_are_not_pointwise(layer: nn.Conv2d) -> None:
    assert not is_pointwise(layer)


def test_the_gradient_of_pixels_taken_lies_in_memory_as_the_map_does() -> None:
    seen = []
    last = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    layer = copy.deepcopy(LAYERS[0])
    layer.__class__ = Pointwise
    for features in (last, last.contiguous()):
        active = features.requires_grad_().relu()
        active.register_hook(lambda outer: seen.append(outer.stride()))
        layer(active).sum().backward()
    assert seen == [last.stride(), last.contiguous().stride()]


@pytest.mark.parametrize("layer", LAYERS[:2], ids=str)
def test_the_graph_that_torch_compiles_gives_the_same(layer: nn.Conv2d) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    layer.__class__ = Pointwise
    torch.compiler.reset()
    inputs = torch.rand(3, layer.in_channels, 4, 4).to(memory_format=torch.channels_last)
    wanted = passed(layer, inputs, low=False)
    found = passed(torch.compile(layer, backend="aot_eager", fullgraph=True), inputs, low=False)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("samples", [5, 29])
def test_training_a_faulty_layer_does_not_destroy_memory(samples: int) -> None:
    code = f"""
import torch
from torch import nn
from trimtab.models.quick import quick_layers
layer = nn.Conv2d(8, 24, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
with quick_layers(layer):
    for _ in range(200):
        inputs = torch.rand({samples}, 8, 38, 38).to(memory_format=torch.channels_last)
        layer(inputs.requires_grad_()).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
