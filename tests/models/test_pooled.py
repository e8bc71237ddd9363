"""Max pooling by the package's own C++ gives what torch's gives, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.passing import passed
from trimtab.models.pooled import QuickMaxPool, is_of_four
from trimtab.models.quick import quick_layers

SIZES = [(4, 8, 6, 7), (2, 1, 3, 3), (3, 17, 5, 4), (2, 40, 9, 9), (5, 64, 2, 2), (2, 100, 2, 3),
         (1, 3, 1, 2), (2, 24, 1, 1)]  # fmt: skip


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_gradients_are_those_of_torch(
    size: tuple[int, ...], ceil_mode: bool, low: bool
) -> None:
    torch.manual_seed(0)
    features = torch.randn(size).round(decimals=1).to(torch.bfloat16 if low else torch.float32)
    features = features.contiguous(memory_format=torch.channels_last)
    layer = nn.MaxPool2d(2, ceil_mode=ceil_mode)
    if not ceil_mode and min(size[2:]) < 2:
        with quick_layers(layer), pytest.raises(RuntimeError, match="too small"):
            layer(features)
        return
    wanted = passed(layer, features, low=low)
    with quick_layers(layer):
        assert isinstance(layer, QuickMaxPool)
        got = passed(layer, features, low=low)
    assert type(layer) is nn.MaxPool2d
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


def test_what_comes_after_it_may_work_in_place() -> None:
    features, layer = torch.randn(2, 3, 4, 4), nn.MaxPool2d(2)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    with quick_layers(layer):
        assert isinstance(layer, QuickMaxPool)
        torch.relu_(layer(features)).sum().backward()
    assert features.grad is not None
    assert features.grad.sum() == (layer(features) > 0).sum()


def test_what_is_not_a_number_wins_wherever_it_stands() -> None:
    for place in range(4):
        features = torch.zeros(1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        features[0, 1, place // 2, place % 2] = torch.nan
        layer = nn.MaxPool2d(2)
        with quick_layers(layer):
            assert layer(features).isnan().flatten().tolist() == [False, True, False]


def test_other_orders_of_memory_and_single_pictures_go_the_usual_way() -> None:
    layer = nn.MaxPool2d(2)
    for features in (torch.randn(2, 3, 4, 4), torch.randn(3, 4, 4)):
        wanted = layer(features)
        with quick_layers(layer):
            assert torch.equal(layer(features), wanted)


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, padding=1),
     nn.MaxPool2d(2, dilation=2), nn.MaxPool2d((2, 3)), nn.MaxPool2d(2, return_indices=True)],
    ids=str,
)  # fmt: skip
def test_other_windows_are_left_alone(layer: nn.MaxPool2d) -> None:
    assert not is_of_four(layer)
    with quick_layers(layer):
        assert type(layer) is nn.MaxPool2d


def test_both_spellings_of_two_are_known() -> None:
    assert is_of_four(nn.MaxPool2d(2))
    assert is_of_four(nn.MaxPool2d((2, 2), stride=(2, 2), padding=(0, 0)))
