"""What is done with batch norms while a network trains."""

from __future__ import annotations

from torch import nn

from trimtab.records.recipe import Recipe


def set_norms(network: nn.Module, recipe: Recipe) -> None:
    """Give the recipe's momentum to every batch norm."""
    if recipe.model.norm_momentum != "auto":
        for norm in norms_of(network):
            norm.momentum = recipe.model.norm_momentum


def train_mode(network: nn.Module, *, freeze_norms: bool) -> None:
    """Put `network` into training mode, batch norms left out where they are frozen."""
    network.train()
    if freeze_norms:
        for norm in norms_of(network):
            norm.eval()


def norms_of(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch norms."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
