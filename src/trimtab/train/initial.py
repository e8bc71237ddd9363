"""The network a training starts with: fresh, pretrained, or with whitened patches, identities."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.data.dataset import Dataset, Split, batches
from trimtab.errors import UsageError
from trimtab.machine.device import seed_everything
from trimtab.models.build import Network, build
from trimtab.models.pretrained import start_from
from trimtab.records.recipe import Recipe
from trimtab.records.sections import FRESH
from trimtab.train.norms import require_norms
from trimtab.train.optimizers import require_lone_biases

PICTURES = 5000
BATCH = 500
FLOOR = 5e-4  # of a direction's variance, so that flat ones are not blown up


def first_network(
    dataset: Dataset, recipe: Recipe, *, seed: int, model: nn.Module | None = None,
    restored: bool = False,
) -> tuple[Network, dict[str, Any]]:  # fmt: skip
    """Return the network a training starts with, and what it took of pretrained weights.

    Random weights are those of `seed`; `model` is a user's own module. `restored` says that a
    checkpoint will bring the weights, so that no file of them is read. Raises UsageError where
    network or weights cannot be had, and for a choice that no layer of the network can follow.
    """
    seed_everything(seed)
    network = build(dataset.schema, recipe, model)
    taken: dict[str, Any] = {}
    if recipe.model.pretrained != FRESH and not restored:
        taken = start_from(network, recipe)
    set_first_weights(network, dataset.splits["train"], recipe)
    return network, taken


def set_first_weights(network: Network, train: Split, recipe: Recipe) -> None:
    """Change first weights in place as `model.whiten` and `model.identity` say.

    Raises UsageError for a choice that no layer of the network can follow.
    """
    if recipe.model.identity and not pass_on(network):
        raise UsageError("model.identity is True, and no convolution behind the first of "
                         f"{recipe.model.name} is plain, unstrided and of odd sides",
                         "leave out model.identity")  # fmt: skip
    if recipe.model.whiten:
        whiten(network, train)
    require_norms(network, recipe)
    require_lone_biases(network, recipe)


@torch.no_grad()
def pass_on(network: nn.Module) -> int:
    """Let the first filters of every convolution but the first return their own inputs.

    Filters beyond the inputs keep their random weights; depthwise and strided ones all do. Returns
    how many convolutions took it. Source: Jordan 2024 (2404.00498), section 3.3.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    fitting = [
        layer for layer in layers[1:] if layer.groups == 1 and layer.stride == (1, 1)
        and all(size % 2 for size in layer.kernel_size)
    ]  # fmt: skip
    for layer in fitting:
        nn.init.dirac_(layer.weight[: layer.in_channels])
    return len(fitting)


@torch.no_grad()
def whiten(network: Network, train: Split) -> None:
    """Set the first convolution to the principal directions of train patches, and freeze it.

    Each direction comes scaled to unit variance, with both signs, the strongest first, as far as
    there are filters. Sources: Page 2018, "How to train your ResNet 8"; Jordan 2024 (2404.00498),
    section 3.2. Raises UsageError where the first layer is no plain convolution.
    """
    layer = first_convolution(network)
    if layer is None or layer.in_channels != train.inputs.shape[3]:
        raise UsageError("model.whiten needs a network whose first layer is a convolution of the "
                         "pictures", "leave model.whiten off, or choose wcnn_medium")  # fmt: skip
    values, directions = torch.linalg.eigh(patch_covariance(network, layer, train))
    scaled = (directions / (values + FLOOR).sqrt()).T.flip(0)  # (patch values, patch values)
    filters = scaled.reshape(-1, *layer.weight.shape[1:])
    half = min(len(filters), layer.out_channels // 2)
    layer.weight[:half] = filters[:half]
    layer.weight[half : 2 * half] = -filters[:half]
    freeze_whitened(network)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def freeze_whitened(network: Network) -> None:
    """Freeze the weights of the first convolution, which are directions of the data."""
    layer = first_convolution(network)
    assert layer is not None, "a whitened network begins with a convolution"
    layer.weight.requires_grad_(False)


def first_convolution(network: Network) -> nn.Conv2d | None:
    """Return the convolution that sees the pictures, or None."""
    return next((m for m in network.body.modules() if isinstance(m, nn.Conv2d)), None)


def patch_covariance(network: Network, layer: nn.Conv2d, train: Split) -> Tensor:
    """Return the second moments of the patches that `layer` sees, over some train pictures."""
    count, total = 0, torch.zeros(())
    for batch in islice(batches(train, BATCH), PICTURES // BATCH):
        pictures = network.normalize.cpu()(batch.inputs)
        patches = nn.functional.unfold(pictures, layer.kernel_size)
        rows = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()
        total, count = total + rows.T @ rows, count + len(rows)
    return (total / count).float()
