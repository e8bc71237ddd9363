"""First weights: whitened patches have unit variance, identities pass their inputs on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.data.dataset import batch_of
from trimtab.errors import UsageError
from trimtab.models.build import Network, build
from trimtab.records.recipe import read_recipe
from trimtab.train.initial import pass_on, set_first_weights, whiten
from trimtab.train.run import train
from trimtab.train.settings import resolve

ROOT = Path(__file__).parents[2]


def test_whitened_patches_have_unit_variance_and_no_correlation(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = build(tiny_dataset.schema, tiny_recipe.override(model__name="wcnn_small"))
    train = tiny_dataset.splits["train"]
    whiten(network, train)
    layer = network.body.patches
    pictures = network.normalize(batch_of(train, torch.arange(len(train)).numpy()).inputs)
    found = layer(pictures).transpose(0, 1).flatten(1)
    count = len(found) // 2
    moments = found[:count] @ found[:count].T / found.shape[1]
    torch.testing.assert_close(moments.diag(), torch.ones(count), atol=0.05, rtol=0)
    assert (moments - moments.diag().diag()).abs().max() < 0.05
    torch.testing.assert_close(found[count:], -found[:count])
    assert not layer.weight.requires_grad


def test_identity_convolutions_return_their_inputs_first() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1, bias=False)
    )
    first = network[0].weight.detach().clone()
    pass_on(network)
    features = torch.rand(2, 4, 5, 5)
    torch.testing.assert_close(network[1](features)[:, :4], features)
    assert network[1].weight[4:].any()
    assert torch.equal(network[0].weight, first)


def test_network_without_a_first_convolution_cannot_be_whitened(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Network(tiny_dataset.schema, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    recipe = tiny_recipe.override(model__whiten=True)
    with pytest.raises(UsageError, match=r"model\.whiten"):
        set_first_weights(network, tiny_dataset.splits["train"], recipe)


def flat(*inner: nn.Module) -> nn.Sequential:
    """A network without convolutions, and with the norms that it is given."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *inner, nn.Linear(16, 10))


UNHEARD = [
    {"model__freeze_norms": True}, {"model__norm_momentum": 0.3}, {"train__bias_rate": 4.0},
]  # fmt: skip


@pytest.mark.parametrize("change", [*UNHEARD, {"model__identity": True}])
def test_choice_that_no_layer_can_follow_is_refused(
    change: dict[str, Any], tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network, train = Network(tiny_dataset.schema, flat()), tiny_dataset.splits["train"]
    place = next(iter(change)).replace("__", ".")
    with pytest.raises(UsageError, match=rf"{re.escape(place)} is ") as caught:
        set_first_weights(network, train, tiny_recipe.override(**change))
    assert caught.value.hint == f"leave out {place}"
    set_first_weights(network, train, tiny_recipe)


@pytest.mark.parametrize("change", UNHEARD)
def test_choice_that_a_layer_follows_is_taken(
    change: dict[str, Any], tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Network(tiny_dataset.schema, flat(nn.BatchNorm1d(16)))
    recipe = tiny_recipe.override(**change)
    set_first_weights(network, tiny_dataset.splits["train"], recipe)
    settings = resolve(network, tiny_dataset, recipe, None)
    settings.freeze.train_mode()
    norm, rates = network.body[2], [one["rate"] for one in settings.optimizer.param_groups]
    heard = {"model__freeze_norms": not norm.training, "model__norm_momentum": norm.momentum,
             "train__bias_rate": max(rates)}  # fmt: skip
    assert {name: heard[name] for name in change} == change


def test_biases_of_a_frozen_layer_hear_their_rate(tiny_dataset: Any, tiny_recipe: Any) -> None:
    network = Network(tiny_dataset.schema, flat())
    network.body[1].weight.requires_grad_(False)
    recipe = tiny_recipe.override(train__bias_rate=4.0)
    set_first_weights(network, tiny_dataset.splits["train"], recipe)
    groups = resolve(network, tiny_dataset, recipe, None).optimizer.param_groups
    (fast,) = (group for group in groups if group["rate"] == 4.0)
    assert [id(one) for one in fast["params"]] == [id(network.body[1].bias)]


def test_training_with_a_choice_that_no_layer_follows_leaves_no_run(
    tiny_dataset: Any, tiny_recipe: Any, tmp_path: Path
) -> None:
    recipe = tiny_recipe.override(model__name="auto", train__bias_rate=4.0)
    with pytest.raises(UsageError, match=r"train\.bias_rate is 4"):
        train(tiny_dataset, recipe=recipe, model=flat(), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("name", "changes"), [
    ("cifar10.yaml", {"train__epochs": 5}),
    ("cifar10_94.yaml", {"train__epochs": 18, "train__bias_rate": 16}),
])  # fmt: skip
def test_the_recipes_for_small_pictures_learn_the_digits(
    name: str, changes: dict[str, float], tiny_dataset: Any, tmp_path: Path
) -> None:
    recipe = read_recipe(ROOT / "recipes" / name)
    small = recipe.override(model__width=0.125, train__batch_size=32, augment__flip=False,
                            train__resolution=(), **changes)  # fmt: skip
    run = train(tiny_dataset, recipe=small, out=tmp_path / "r")
    assert (run.measured("accuracy") or {})["value"] > 0.8
