"""Norms and activations by the package's own C++ give what torch's give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.norm import LayerNorm2d
from torch import nn

from tests.models.passing import passed
from trimtab.models import fused, kernels, pooled, quick
from trimtab.models.blocks import Chain, Residual
from trimtab.models.depthwise import inner_counted, weight_counted
from trimtab.models.excite import Gated
from trimtab.models.fused import Activation, Norm
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
    layer = nn.Sequential(Chain(nn.BatchNorm2d(40), nn.SiLU()), nn.MaxPool2d(2), LayerNorm2d(40),
                          nn.GELU())  # fmt: skip
    features = rows(8, 40, 33, 17)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with quick_layers(one := copy.deepcopy(layer)):
                found.append(passed(one, features, low=low))
            number = torch.bfloat16 if low else torch.float32
            inputs, weight = features.to(number), torch.ones(40, 1, 5, 5)
            place = ((2, 2), (2, 2), (1, 1))
            outer = inputs[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last)
            found[-1] += [weight_counted(place, outer, inputs, weight),
                          inner_counted(place, outer, inputs, weight),
                          Gated.apply(inputs, inputs[:, :, :1, :1])]  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("low", [False, True])
def test_what_is_not_finite_stays_so(kind: type[nn.Module], low: bool) -> None:
    features = rows(2, 8, 3, 3).to(torch.bfloat16 if low else torch.float32)
    features[0, 2, 1, 1], features[1, 5, 0, 0] = torch.nan, torch.inf
    layer, alone = Chain(nn.BatchNorm2d(8), kind()), kind()(features.float())
    with quick_layers(layer):
        outputs = layer(features)
    assert (~outputs.isfinite()).any((0, 2, 3)).tolist() == [i in (2, 5) for i in range(8)]
    with quick_layers(act := nn.Sequential(kind())):
        got = act(features).float()
    assert torch.equal(got.isnan(), alone.isnan())
    assert torch.equal(got.isposinf(), alone.isposinf())


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_moments_stay_while_the_norm_does_not_track_them(made: Made) -> None:
    layer, features = sided(made(24)), rows(8, 24, 9, 7)
    before = [one.clone() for one in layer.buffers()]
    norms = [one for one in layer.modules() if isinstance(one, nn.BatchNorm2d)]
    with quick_layers(layer):
        for norm in norms:
            norm.track_running_stats = False
        held = layer(features)
        assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))
        for norm in norms:
            norm.track_running_stats = True
        assert torch.equal(layer(features), held)
    assert not any(torch.equal(a, b) for a, b in zip(layer.buffers(), before, strict=True))


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


def names_called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the names of the functions of the C++ are added when called."""
    names: list[str] = []

    def spied(name: str, *values: Any) -> None:
        names.append(name)
        kernels.call(name, *values)

    for module in (fused, pooled):
        monkeypatch.setattr(module, "call", spied)
    return names


def test_a_norm_and_the_activation_behind_it_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_called(monkeypatch)
    network = Chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    before = [(type(part), dict(vars(part))) for part in network]
    with quick_layers(network):
        assert isinstance(network[1], Norm)
        assert isinstance(network[2], Activation)
        network(rows(2, 3, 6, 6))
    assert names == ["norm_forward", "norm_forward"]
    assert [(type(part), dict(vars(part))) for part in network] == before


def hooked(which: int) -> nn.Module:
    network = Chain(nn.BatchNorm2d(8), nn.ReLU())
    network[which].register_forward_hook(lambda *_: None)
    return network


def replaced() -> nn.Module:
    network: Any = Chain(nn.BatchNorm2d(8), nn.ReLU())
    norm = network[0]
    norm.forward = lambda features: nn.functional.batch_norm(
        features, None, None, norm.weight, norm.bias, training=True
    )
    return network


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), hooked(0), hooked(1), replaced(),
     Chain(nn.BatchNorm2d(8), nn.GELU("tanh"))],
    ids=["of anybody", "hooked norm", "hooked activation", "another forward", "another kind"],
)  # fmt: skip
def test_what_may_be_looked_at_between_is_computed_one_after_the_other(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, features = names_called(monkeypatch), rows(4, 8, 5, 5)
    wanted = passed(network, features, low=False)
    with quick_layers(network):
        got = passed(network, features, low=False)
    assert set(names) - {"norm_forward", "norm_backward"} or "GELU" in str(network)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layers_of_a_block_that_are_called_from_elsewhere_are_what_they_were() -> None:
    from timm import create_model
    from torchvision.ops import Conv2dNormActivation

    features = rows(4, 3, 16, 16)
    body: Any = create_model("resnet18").to(memory_format=torch.channels_last)
    block: Any = Conv2dNormActivation(3, 8).to(memory_format=torch.channels_last)
    wanted = body.bn1(body.conv1(features)), block[1](block[0](features))
    assert all((one < 0).any() for one in wanted)
    with quick_layers(body), quick_layers(block):
        got = body.bn1(body.conv1(features)), block[1](block[0](features))
        whole = block(features)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, wanted[1].relu(), rtol=1e-4, atol=1e-4)


def without(name: str) -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.register_parameter(name, None)
    return norm


def spaced() -> nn.Module:
    norm = nn.BatchNorm2d(8)
    norm.weight = nn.Parameter(torch.arange(16.0)[::2])
    return norm


@pytest.mark.parametrize(
    "norm",
    [without("weight"), without("bias"), spaced(), nn.BatchNorm2d(8, eps=1)],
    ids=["no weight", "no bias", "weights with gaps", "whole eps"],
)
def test_unusual_norms_give_what_torch_gives(norm: nn.Module) -> None:
    features = rows(4, 8, 5, 5)
    wanted = passed(copy.deepcopy(norm), features, low=False)
    with quick_layers(norm):
        got = passed(norm, features, low=False)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_whatever_the_default_dtype_is_the_results_are_the_same() -> None:
    layers = nn.ModuleList([Chain(nn.BatchNorm2d(8), nn.SiLU()), nn.LayerNorm(5)])
    features = rows(4, 8, 5, 5)

    def found() -> list[torch.Tensor]:
        layers.zero_grad()
        inputs = [features.clone().requires_grad_(), features.contiguous().requires_grad_()]
        for layer, one in zip(layers, inputs, strict=True):
            layer(one).pow(3).sum().backward()
        return [one.grad.clone() for one in (*inputs, *layers.parameters())]

    wanted = found()
    try:
        torch.set_default_dtype(torch.float64)
        with quick_layers(layers):
            got = found()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * spread(other))


def test_features_without_memory_and_transforms_go_the_usual_way() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), quick_layers(layer := nn.Sequential(nn.GELU())):
        assert layer(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    with quick_layers(layer := nn.Sequential(nn.GELU(), nn.LayerNorm(3))):
        gradient = torch.func.grad(lambda x: layer(x).square().sum())(torch.randn(2, 3))
    assert gradient.shape == (2, 3)


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU])
def test_evaluation_and_other_orders_of_memory_go_the_usual_way(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, network = names_called(monkeypatch), sided(Chain(nn.BatchNorm2d(8), kind()))
    cases = ((False, rows(4, 8, 5, 5), []),
             (True, rows(4, 8, 5, 5).contiguous(), ["activate", "activate_backward"]))  # fmt: skip
    for training, features, expected in cases:
        network.train(training)
        wanted = passed(copy.deepcopy(network), features, low=False)
        with quick_layers(network):
            got = passed(network, features, low=False)
        assert names == expected
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
     nn.BatchNorm1d(8), nn.SyncBatchNorm(8)],
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
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-4 * spread(wanted[0]))
    one, other = (torch.cat([each.flatten() for each in found[1:]]) for found in (got, wanted))
    assert (one - other).norm() <= 1e-3 * other.norm()  # a few ReLUs near 0 go the other way


@pytest.mark.parametrize(("kind", "numbers", "dtype", "quick"), [
    (nn.GELU, 2**17, torch.float32, True), (nn.GELU, 2**17 - 1, torch.float32, False),
    (nn.ReLU, 2**17, torch.float32, False), (nn.ReLU, 2**17, torch.bfloat16, True),
])  # fmt: skip
def test_few_features_and_what_torch_does_as_fast_are_left_to_torch(
    kind: Any, numbers: int, dtype: Any, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LEAST", 2**17)
    monkeypatch.setattr(fused, "IN_FP32", (fused.GELU,))
    called: list[str] = []
    real = fused.call
    monkeypatch.setattr(fused, "call", lambda name, *rest: called.append(name) or real(name, *rest))
    features = torch.randn(numbers, dtype=dtype)
    network = nn.Sequential(kind())
    with quick_layers(network):
        network(features.requires_grad_()).sum().backward()
    assert bool(called) is quick
