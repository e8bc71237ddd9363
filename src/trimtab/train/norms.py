"""What is done with batch norms while a network trains."""

from __future__ import annotations

from torch import nn

from trimtab.errors import UsageError
from trimtab.records.recipe import Recipe, fields_of

BatchNorm = nn.modules.batchnorm._BatchNorm  # of any number of dimensions
FOR_NORMS = ("model.freeze_norms", "model.norm_momentum")


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


def norms_of(network: nn.Module) -> list[BatchNorm]:
    """Return the batch norms."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def require_norms(network: nn.Module, recipe: Recipe) -> None:
    """Raise UsageError for a choice about batch norms where `network` has none to follow it."""
    if norms_of(network):
        return
    for place in FOR_NORMS:
        section, field = place.split(".")
        value = getattr(getattr(recipe, section), field)
        if value != fields_of(section)[field].default:
            raise UsageError(f"{place} is {value}, and {recipe.model.name} has no batch norm",
                             f"leave out {place}")  # fmt: skip
