"""trimtab's own nets fit small inputs, and timm's come by name without a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.errors import UsageError
from trimtab.models.blocks import Residual, halvings, scaled, stem, strides
from trimtab.models.image import MODELS, OWN_NAMES, find_model
from trimtab.models.libraries import TIMM, library_model
from trimtab.records.schema import Schema


def sized(schema: Schema, side: int) -> Schema:
    return schema.model_copy(update={"height": side, "width": side})


@pytest.mark.parametrize(
    ("side", "expected"), [(4, 0), (6, 0), (7, 1), (8, 1), (16, 2), (28, 3), (32, 3), (224, 6)]
)
def test_no_map_is_halved_below_four_pixels(colour: Schema, side: int, expected: int) -> None:
    assert halvings(sized(colour, side)) == expected


def test_late_stages_are_halved_first(colour: Schema) -> None:
    assert strides(sized(colour, 8), 3) == [1, 1, 2]
    assert strides(sized(colour, 32), 3) == [2, 2, 2]
    assert strides(sized(colour, 4), 3) == [1, 1, 1]


def test_large_inputs_are_halved_by_the_stem(colour: Schema) -> None:
    large = sized(colour, 128)
    out = stem(large, 16, halvings(large) - 3)(torch.zeros(2, 3, 128, 128))
    assert out.shape == (2, 16, 32, 32)


@pytest.mark.parametrize("name", OWN_NAMES)
@pytest.mark.parametrize("side", [4, 5, 8, 13, 28, 64, 100])
def test_own_nets_take_any_side_from_four_pixels(colour: Schema, name: str, side: int) -> None:
    body = MODELS[name](sized(colour, side), width=0.5).eval()
    assert body(torch.zeros(1, 3, side, side)).shape == (1, 10)


def test_own_nets_take_pictures_that_are_not_square(colour: Schema) -> None:
    schema = colour.model_copy(update={"height": 20, "width": 48})
    assert MODELS["cnn_large"](schema).eval()(torch.zeros(1, 3, 20, 48)).shape == (1, 10)


@pytest.mark.parametrize("name", OWN_NAMES)
def test_own_nets_share_no_activation_and_change_nothing_in_place(
    colour: Schema, name: str
) -> None:
    body = MODELS[name](colour)
    kinds = nn.ReLU | nn.GELU
    paths = [p for p, m in body.named_modules(remove_duplicate=False) if isinstance(m, kinds)]
    modules = {id(m) for m in body.modules() if isinstance(m, kinds)}
    assert len(paths) == len(modules) > 0
    assert not any(getattr(m, "inplace", False) for m in body.modules())


def test_residual_branches_start_as_zero(colour: Schema) -> None:
    blocks = [m for m in MODELS["resnet8"](colour).modules() if isinstance(m, Residual)]
    assert len(blocks) == 3
    features = torch.rand(2, 16, 8, 8)
    assert torch.equal(blocks[0].train()(features), features)


@pytest.mark.parametrize(
    ("width", "expected"), [(1.0, 24), (0.5, 16), (0.1, 8), (1.5, 40), (2, 48)]
)
def test_width_keeps_channels_at_multiples_of_eight(width: float, expected: int) -> None:
    assert scaled(24, width) == expected


def test_width_and_dropout_reach_the_network(colour: Schema) -> None:
    wide = MODELS["cnn_small"](colour, width=2.0, dropout=0.25)
    assert wide.get_submodule("stem.conv").out_channels == 32
    assert wide.get_submodule("dropout").p == 0.25


def test_large_net_fits_a_megabyte_in_int8(colour: Schema) -> None:
    parameters = sum(p.numel() for p in MODELS["cnn_large"](colour).parameters())
    assert 750_000 < parameters < 900_000


def test_any_timm_model_is_found_by_name(grey: Schema) -> None:
    body = find_model("resnet10t")(grey, dropout=0.5)
    assert body.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    assert body.drop_rate == 0.5


def test_timm_models_of_a_fixed_size_are_built_for_the_data(colour: Schema) -> None:
    body = find_model("vit_tiny_patch16_224")(colour)
    assert body.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_timm_model_with_a_width_is_refused(colour: Schema) -> None:
    with pytest.raises(UsageError, match="is for trimtab's own"):
        MODELS["resnet18"](colour, width=0.5)


def test_timm_model_that_cannot_be_built_is_explained(grey: Schema) -> None:
    with pytest.raises(UsageError, match="timm cannot build"):
        library_model(TIMM, "vit_tiny_patch16_224", grey, dropout=2.0)


@pytest.mark.parametrize(
    ("name", "hint"), [("cnn_smal", "cnn_small"), ("mobilenetv3_smal_100", "mobilenetv3_small_100"),
                       ("efficientnet_b00", "efficientnet_b0"), ("qqqq", "known: cifar_resnet20")],
)  # fmt: skip
def test_unknown_model_names_the_closest_one(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"unknown model '{name}'") as caught:
        find_model(name)
    assert hint in caught.value.hint
    assert len(caught.value.hint) < 300


def test_torchvision_model_is_found_by_the_name_that_timm_does_not_have(grey: Schema) -> None:
    body = find_model("mobilenet_v2")(grey, dropout=0.3)
    assert body.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    assert "features.18.1.running_mean" in body.state_dict()
    assert [m.p for m in body.modules() if isinstance(m, nn.Dropout)] == [0.3]


def test_name_that_both_libraries_have_is_timms_unless_it_says_otherwise(colour: Schema) -> None:
    assert "conv_stem.weight" in find_model("efficientnet_b0")(colour).state_dict()
    assert "conv_stem.weight" in find_model("timm.efficientnet_b0")(colour).state_dict()
    other = find_model("torchvision.efficientnet_b0")(colour, stochastic_depth=0.1)
    assert "features.0.0.weight" in other.state_dict()
    chances = [m.p for m in other.modules() if type(m).__name__ == "StochasticDepth"]
    assert max(chances) == 0.1


def test_torchvisions_own_dropout_gives_way_to_the_recipes(colour: Schema) -> None:
    parts = find_model("mobilenet_v3_large")(colour).modules()
    assert [m.p for m in parts if isinstance(m, nn.Dropout)] == [0.0]
    with pytest.raises(UsageError, match="it has no dropout"):
        find_model("torchvision.resnet18")(colour, dropout=0.5)


@pytest.mark.parametrize("name", ["torchvision.resnet5", "timm.mobilenet_v2", "torchvision."])
def test_library_that_does_not_know_a_model_is_told(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown model '{name}'"):
        find_model(name)


def test_published_cifar_resnets_have_their_layers_names(colour: Schema) -> None:
    keys = set(MODELS["cifar_resnet20"](colour).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer2.0.conv1.weight", "linear.bias"} <= keys
    assert len([key for key in keys if key.endswith(("conv1.weight", "conv2.weight"))]) == 19


def test_name_with_the_tag_of_weights_says_where_to_write_it() -> None:
    with pytest.raises(UsageError, match="names the weights 'a1_in1k'") as caught:
        find_model("resnet50.a1_in1k")
    assert "model.pretrained: cache:a1_in1k" in caught.value.hint
