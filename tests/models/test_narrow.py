"""Convolutions on narrow maps, trained by products of matrices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest
import torch
from torch import nn

from tests.models.passing import passed
from trimtab.models import narrow
from trimtab.models.narrow import Narrow, is_dense, pays

LAYERS = [
    nn.Conv2d(64, 8, 3, padding=1), nn.Conv2d(64, 8, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(64, 8, (1, 3), padding=(0, 1)), nn.Conv2d(64, 8, 3, padding=2, dilation=2),
]  # fmt: skip


@pytest.mark.parametrize(("low", "tiles"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_narrow_layers_differ_from_fp32_no_more_than_the_usual_ones(
    layer: nn.Conv2d, low: bool, tiles: bool
) -> None:
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    features = torch.randn(4, 64, 3, 3).to(memory_format=torch.channels_last)
    exact = passed(layer, features, low=False)
    plain = passed(layer, features, low=low)
    layer.__class__ = Narrow
    with mock.patch.object(narrow, "TILES", tiles), watched() as called:
        quick = passed(layer, features, low=low)
    strided = max(layer.stride) > 1
    assert called["convolved"].call_count == tiles
    assert called["both_gradients"].call_count == (tiles and not strided)
    assert called["weight_gradient"].call_count == (strided or not tiles)
    assert [one.dtype for one in quick] == [one.dtype for one in plain]
    for wanted, usual, got in zip(exact, plain, quick, strict=True):
        error = (got.float() - wanted).norm()
        assert error <= 1.5 * (usual.float() - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.parametrize("width", [narrow.NARROWEST_TILES, narrow.NARROWEST_TILES + 1])
def test_with_tiles_the_narrowest_maps_are_products_throughout(width: int) -> None:
    layer = nn.Conv2d(64, 8, 3, padding=1).to(memory_format=torch.channels_last)
    layer.__class__ = Narrow
    with mock.patch.object(narrow, "TILES", True), watched() as called:
        passed(layer, torch.randn(2, 64, 4, width), low=True)
    narrowest = width == narrow.NARROWEST_TILES
    assert called["convolved"].called == called["both_gradients"].called == narrowest
    assert called["weight_gradient"].called == (not narrowest)


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    layer = nn.Conv2d(64, 8, 3, padding=1).requires_grad_(False)
    layer.__class__ = Narrow
    features = torch.randn(2, 64, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with mock.patch.object(narrow, "TILES", True), watched() as called:
        layer.bfloat16()(features).float().sum().backward()
        assert features.grad is not None
        layer.weight.requires_grad_(True)
        layer(features.detach()).float().sum().backward()
    assert not called["both_gradients"].called
    assert called["weight_gradient"].call_count == 1


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("size", [(3, 3), (9, 8), (5, 17)])
def test_the_width_asked_about_is_that_of_the_outputs(
    layer: nn.Conv2d, size: tuple[int, int]
) -> None:
    features = torch.randn(1, 64, *size)
    width, place = layer(features).shape[3], (layer.stride, layer.padding, layer.dilation)
    for longest in (width - 1, width):
        with mock.patch.object(narrow, "NARROW", longest):
            assert pays(features, layer.weight, place) == (longest == width)


@pytest.mark.parametrize(("channels", "width"), [(64, narrow.NARROW + 1), (32, 2)])
def test_wide_maps_and_few_channels_go_the_usual_way(channels: int, width: int) -> None:
    layer = nn.Conv2d(channels, 8, 3, padding=1)
    layer.__class__ = Narrow
    with watched() as called:
        passed(layer, torch.randn(2, channels, 4, width), low=False)
    assert not any(one.called for one in called.values())


def test_lines_are_longer_in_bf16_where_the_processor_has_tiles() -> None:
    weight, place = torch.randn(8, 64, 3, 3), ((1, 1), (1, 1), (1, 1))
    for tiles, kind, longest in (
        (True, torch.bfloat16, narrow.NARROW_TILES), (False, torch.bfloat16, narrow.NARROW),
        (True, torch.float32, narrow.NARROW),
    ):  # fmt: skip
        with mock.patch.object(narrow, "TILES", tiles):
            widths = [width for width in range(1, 20)
                      if pays(torch.zeros(1, 64, 9, width, dtype=kind), weight, place)]  # fmt: skip
        assert widths == list(range(1, longest + 1))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(64, 8, 1), nn.Conv2d(64, 64, 3, groups=64),
     nn.Conv2d(64, 8, 3, padding="same"), nn.Conv2d(64, 8, 3, padding=1, padding_mode="reflect")],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_alone(layer: nn.Conv2d) -> None:
    assert not is_dense(layer)


@pytest.mark.parametrize("layer", LAYERS[:2], ids=str)
@pytest.mark.parametrize("tiles", [False, True])
def test_the_graph_that_torch_compiles_gives_the_same_gradients(
    layer: nn.Conv2d, tiles: bool
) -> None:
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    layer.__class__ = Narrow
    features = torch.randn(4, 64, 3, 3).to(memory_format=torch.channels_last)
    torch.compiler.reset()
    with mock.patch.object(narrow, "TILES", tiles):
        wanted = passed(layer, features, low=True)
        fast = torch.compile(layer, backend="aot_eager", fullgraph=True)
        found = passed(fast, features, low=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@contextmanager
def watched() -> Iterator[dict[str, mock.MagicMock]]:
    """Count which products are computed."""
    names = ("convolved", "both_gradients", "weight_gradient")
    with ExitStack() as stack:
        yield {name: stack.enter_context(mock.patch.object(narrow, name,
                                                           wraps=getattr(narrow, name)))
               for name in names}  # fmt: skip
