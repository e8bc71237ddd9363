"""Norms and activations by the package's own C++ give what torch's give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.passing import passed
from trimtab.models import kernels, quick
from trimtab.models.blocks import Chain, Residual
from trimtab.models.fused import Absorbed, Activation, Norm
from trimtab.models.quick import quick_layers

ACTIVATIONS = [nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish]
SIZES = [(4, 8, 6, 7), (2, 1, 3, 3), (3, 17, 5, 4), (2, 40, 9, 9), (5, 64, 3, 3), (2, 100, 1, 1),
         (1, 3, 1, 2), (16, 24, 31, 33)]  # fmt: skip
Made = Callable[[int], nn.Module]


def rows(*size: int) -> torch.Tensor:
    """Features of uneven channels, as rows of them."""
    torch.manual_seed(0)
    channels = torch.arange(size[1])[:, None, None]
    features = torch.randn(size) * (1 + channels % 5) + 10 * (channels % 3)
    return features.contiguous(memory_format=torch.channels_last)


def sided(network: nn.Module) -> nn.Module:
    """Give norms weights and biases that are not those of the beginning."""
    torch.manual_seed(1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return network


MADE: dict[str, Made] = {
    "norm": nn.BatchNorm2d,
    "norm without weights": lambda channels: nn.BatchNorm2d(channels, affine=False),
    **{f"norm {kind.__name__}": lambda channels, kind=kind: Chain(nn.BatchNorm2d(channels), kind())
       for kind in ACTIVATIONS},
    **{kind.__name__: lambda _, kind=kind: kind() for kind in ACTIVATIONS},
    **{f"sum {kind.__name__}": lambda channels, kind=kind: Residual(
        nn.BatchNorm2d(channels), nn.Identity(), activation=kind) for kind in ACTIVATIONS},
}  # fmt: skip


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_gradients_and_running_moments_are_those_of_double_precision(
    made: Made, size: tuple[int, ...]
) -> None:
    layer, features = sided(made(size[1])), rows(*size)
    exact = copy.deepcopy(layer).double()
    wanted = passed(exact, features.double(), low=False)
    with quick_layers(layer):
        got = passed(layer, features, low=False)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-4 * spread(other))
    for one, other in zip(layer.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_in_bf16_they_are_as_near_as_those_of_torch(made: Made) -> None:
    layer, features = sided(made(24)), rows(8, 24, 9, 7).bfloat16()
    exact = passed(copy.deepcopy(layer).double(), features.double(), low=False)
    usual = passed(copy.deepcopy(layer), features, low=True)
    with quick_layers(layer):
        got = passed(layer, features, low=True)
    assert [one.dtype for one in got] == [one.dtype for one in usual]
    for one, other, wanted in zip(got, usual, exact, strict=True):
        error = (one.double() - wanted).norm()
        assert error <= 1.2 * (other.double() - wanted).norm() + 1e-3 * wanted.norm()


def spread(values: torch.Tensor) -> float:
    return max(1.0, float(values.abs().max()))


@pytest.mark.parametrize("low", [False, True])
def test_results_do_not_hang_on_the_number_of_threads(low: bool) -> None:
    layer, features = Chain(nn.BatchNorm2d(40), nn.SiLU()), rows(8, 40, 33, 17)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with quick_layers(one := copy.deepcopy(layer)):
                found.append(passed(one, features, low=low))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("low", [False, True])
def test_what_is_not_finite_stays_so(kind: type[nn.Module], low: bool) -> None:
    features = rows(2, 8, 3, 3).to(torch.bfloat16 if low else torch.float32)
    features[0, 2, 1, 1], features[1, 5, 0, 0] = torch.nan, torch.inf
    layer = Chain(nn.BatchNorm2d(8), kind())
    with quick_layers(layer):
        outputs = layer(features)
        alone = layer[1].__class__ is Absorbed and kind()(features.float())
    assert (~outputs.isfinite()).any((0, 2, 3)).tolist() == [i in (2, 5) for i in range(8)]
    assert alone is not False
    with quick_layers(act := nn.Sequential(kind())):
        got = act(features).float()
    assert torch.equal(got.isnan(), alone.isnan())
    assert torch.equal(got.isposinf(), alone.isposinf())


def test_activations_are_those_of_torch_from_the_smallest_to_the_largest() -> None:
    features = torch.cat([torch.linspace(-100, 100, 200_001), torch.linspace(-6, 6, 200_001),
                          torch.tensor([-3e38, -1e-38, 0.0, -0.0, 1e-38, 3e38])])  # fmt: skip
    for kind in ACTIVATIONS:
        exact = passed(kind(), features.double(), low=False)
        with quick_layers(layer := nn.Sequential(kind())):
            assert isinstance(layer[0], Activation)
            got = passed(layer, features, low=False)
        for one, other in zip(got, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=2e-6, atol=2e-6)


def test_a_channel_far_from_zero_keeps_its_variance() -> None:
    torch.manual_seed(0)
    features = (torch.randn(64, 16, 9, 9) + 1e4).contiguous(memory_format=torch.channels_last)
    layer = nn.BatchNorm2d(16, momentum=1.0)
    with quick_layers(layer):
        layer(features)
    wanted = features.double().var((0, 2, 3))
    torch.testing.assert_close(layer.running_var.double(), wanted, rtol=1e-4, atol=0)


def test_a_norm_takes_the_activation_behind_it_along_and_gives_it_back() -> None:
    network = Chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    before = [(type(part), dict(vars(part))) for part in network]
    with quick_layers(network):
        assert isinstance(network[1], Norm)
        assert isinstance(network[2], Absorbed)
        assert isinstance(network[3], Norm)
        assert (network[1].behind, network[3].behind) == (1, 0)
    assert [(type(part), dict(vars(part))) for part in network] == before


def hooked() -> nn.Module:
    network = Chain(nn.BatchNorm2d(8), nn.ReLU())
    network[0].register_forward_hook(lambda *_: None)
    return network


def shared() -> nn.Module:
    act = nn.ReLU()
    return Chain(nn.BatchNorm2d(8), act, nn.BatchNorm2d(8), act)


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), hooked(), shared(),
     Chain(nn.BatchNorm2d(8), nn.GELU("tanh"))],
    ids=["sliced perhaps", "hooked", "shared", "of another kind"],
)  # fmt: skip
def test_an_activation_that_may_be_used_otherwise_stays_where_it_is(network: nn.Module) -> None:
    features = rows(4, 8, 5, 5)
    wanted = passed(copy.deepcopy(network), features, low=False)
    with quick_layers(network):
        assert not any(isinstance(part, Absorbed) for part in network.modules())
        got = passed(network, features, low=False)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU])
def test_evaluation_and_other_orders_of_memory_go_the_usual_way(kind: type[nn.Module]) -> None:
    network = sided(Chain(nn.BatchNorm2d(8), kind()))
    for training, features in ((False, rows(4, 8, 5, 5)), (True, rows(4, 8, 5, 5).contiguous())):
        network.train(training)
        wanted = passed(copy.deepcopy(network), features, low=False)
        with quick_layers(network):
            got = passed(network, features, low=False)
        assert all(torch.equal(a, b) for a, b in zip(got[:2], wanted[:2], strict=True)) or training
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.SiLU, nn.Hardswish])
def test_what_works_in_place_does_so_still(kind: type[nn.Module]) -> None:
    features = rows(2, 8, 5, 5)
    wanted = kind()(features)
    with quick_layers(layer := nn.Sequential(kind(inplace=True))):
        assert isinstance(layer[0], Activation) == (kind is nn.ReLU)
        outputs = layer(features)
    assert outputs.data_ptr() == features.data_ptr()
    torch.testing.assert_close(features, wanted)


def test_gradients_pass_an_activation_in_place() -> None:
    features = rows(2, 8, 5, 5)
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    wanted = passed(copy.deepcopy(network), features, low=False)
    with quick_layers(network):
        got = passed(network, features, low=False)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_features_of_other_channels_are_refused_as_torch_does() -> None:
    layer = nn.BatchNorm2d(3)
    with quick_layers(layer), pytest.raises(RuntimeError, match="running_mean"):
        layer(rows(2, 8, 5, 5))


def test_a_sum_of_unlike_features_goes_the_usual_way() -> None:
    block = Residual(nn.Identity(), nn.Conv2d(8, 1, 1))
    features = rows(2, 8, 5, 5)
    wanted = block(features)
    with quick_layers(block):
        torch.testing.assert_close(block(features), wanted)


def test_a_norm_of_one_row_says_what_torch_says() -> None:
    layer = nn.BatchNorm2d(3)
    with quick_layers(layer), pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(rows(1, 3, 1, 1))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(8, momentum=None), nn.BatchNorm2d(8, track_running_stats=False),
     nn.BatchNorm2d(8).double(), nn.BatchNorm1d(8), nn.SyncBatchNorm(8)],
    ids=str,
)  # fmt: skip
def test_norms_of_other_kinds_are_left_alone(norm: nn.Module) -> None:
    with quick_layers(norm):
        assert not isinstance(norm, Norm)


@pytest.mark.parametrize("learns", [(True, False), (False, True)], ids=["inputs", "weights"])
def test_only_what_is_asked_for_gets_a_gradient(learns: tuple[bool, bool]) -> None:
    layer, features = Chain(nn.BatchNorm2d(8), nn.SiLU()), rows(4, 8, 5, 5)
    layer.requires_grad_(learns[1])
    features.requires_grad_(learns[0])
    with quick_layers(layer):
        layer(features).square().sum().backward()
    assert (features.grad is not None, layer[0].weight.grad is not None) == learns


def test_the_graph_that_torch_compiles_gives_the_same() -> None:
    network = sided(Chain(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.GELU()))
    features = rows(4, 8, 5, 5)
    wanted = passed(copy.deepcopy(network), features, low=False)
    with quick_layers(network):
        graph = torch.compile(network, backend="aot_eager", fullgraph=True)
        got = passed(graph, features, low=False)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_without_the_library_layers_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "is_here", lambda: False)
    network = Chain(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.LayerNorm(4))
    before = [type(part) for part in network]
    with quick_layers(network):
        assert [type(part) for part in network] == before


def test_here_there_is_a_library() -> None:
    assert kernels.why_not() == ""


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv3_small_100",
                                  "efficientnet_b0", "convnext_atto"])  # fmt: skip
def test_networks_of_timm_give_the_same_loss_and_gradients(name: str) -> None:
    import timm

    torch.manual_seed(0)
    network: Any = timm.create_model(name, num_classes=4).to(memory_format=torch.channels_last)
    network.train()
    features = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(2)
    wanted = passed(copy.deepcopy(network), features, low=False)
    with quick_layers(network):
        kinds = {type(part).__name__ for part in network.modules()}
        torch.manual_seed(2)
        got = passed(network, features, low=False)
    assert kinds & {"NormBatchNorm2d", "NormBatchNormAct2d", "MapNormLayerNorm2d"}
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3 * spread(other))
