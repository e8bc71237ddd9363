"""Optimizers: parameter groups and settings to a torch optimizer."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.machine.compiled import uncompiled
from trimtab.models.depth import depths_of
from trimtab.records.recipe import Recipe
from trimtab.registry import did_you_mean, lookup
from trimtab.train.groupwise import Groupwise
from trimtab.train.muon import LAYERS, OTHER, Groups, Muon, roles_of, split_by_role
from trimtab.train.norms import BatchNorm, norms_of

Build = Callable[..., torch.optim.Optimizer]
PEAK_LEARNING_RATE = {
    "adamw": 3e-3, "sgd": 0.1, "adam": 3e-3, "nadam": 3e-3, "rmsprop": 3e-4, "adagrad": 0.03,
    "lion": 1e-3, "muon": 0.2,
}  # fmt: skip
UNKNOWN_RATE = 1e-3
# No class to use; needs a closure; sparse gradients; hears neither schedules nor weight decay.
UNFIT = {"Optimizer", "LBFGS", "SparseAdam", "Rprop"}


def parameter_groups(
    network: nn.Module, *, weight_decay: float, bias_rate: float = 1.0, layer_decay: float = 1.0
) -> Groups:
    """Return the trainable parameters in groups: weights with decay, norms and biases without.

    A group's `rate` is the factor on the scheduled learning rate; the loop sets `lr` by it. The
    weights' `roles` say which are hidden, for muon. With a `bias_rate` other than 1 the biases of
    batch norms and of a whitened layer are a group of that rate, and the weights of batch norms are
    frozen; such a weight that is 0, as at the end of a residual branch, becomes 1, for it could
    never grow. With a `layer_decay` other than 1 groups are cut by depth, and their rates fall by
    that factor for each block in front of the head (Howard & Ruder 2018, section 3.2).
    Empty groups are left out (He et al. 2019, section 3.1; Jordan 2024, section 3.4).
    """
    moved = lone_biases(network) if bias_rate != 1 else set()
    trainable = [one for one in network.parameters() if one.requires_grad]
    weights = [one for one in trainable if one.ndim > 1]
    plain = [one for one in trainable if one.ndim <= 1 and id(one) not in moved]
    biases = [one for one in trainable if id(one) in moved]
    known = roles_of(network)
    roles = tuple(known.get(id(one), OTHER) for one in weights)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "rate": 1.0, "roles": roles},
        {"params": plain, "weight_decay": 0.0, "rate": 1.0},
        {"params": biases, "weight_decay": 0.0, "rate": bias_rate},
    ]
    found = [group for group in groups if group["params"]]
    return found if layer_decay == 1 else split_by_depth(found, depths_of(network), layer_decay)


def split_by_depth(groups: Groups, depths: dict[int, int], decay: float) -> Groups:
    """Return the groups cut by the depths of their parameters, the first layers first."""
    found = []
    for group in groups:
        depth = [depths[id(one)] for one in group["params"]]
        for number in sorted(set(depth), reverse=True):
            rows = [row for row, own in enumerate(depth) if own == number]
            part = {**group, "params": [group["params"][row] for row in rows]}
            if "roles" in group:
                part["roles"] = tuple(group["roles"][row] for row in rows)
            found.append({**part, "rate": group["rate"] * decay**number})
    return found


@torch.no_grad()
def lone_biases(network: nn.Module) -> set[int]:
    """Freeze the weights of batch norms, zeros as ones; return the ids of biases that learn alone.

    These are those of batch norms and of layers whose weights were frozen before.
    """
    for norm in norms_of(network):
        if norm.affine:
            norm.weight.requires_grad_(False)
            norm.weight.masked_fill_(norm.weight == 0, 1.0)
    layers = [one for one in network.modules() if isinstance(one, (BatchNorm, *LAYERS))]
    return {id(one.bias) for one in layers if one.bias is not None
            and not one.weight.requires_grad}  # fmt: skip


def require_lone_biases(network: nn.Module, recipe: Recipe) -> None:
    """Raise UsageError for a `train.bias_rate` that no bias of `network` would get."""
    if recipe.train.bias_rate == 1 or any(norm.bias is not None for norm in norms_of(network)):
        return
    layers = [one for one in network.modules() if isinstance(one, LAYERS)]
    if all(one.bias is None or one.weight.requires_grad for one in layers):
        raise UsageError(f"train.bias_rate is {recipe.train.bias_rate:g}, and {recipe.model.name} "
                         "has neither batch norms with biases nor a whitened layer with one",
                         "leave out train.bias_rate")  # fmt: skip


def is_fusible(groups: Groups) -> bool:
    """Return whether torch has one kernel for the whole step of these parameters."""
    return all(
        one.is_floating_point() and one.device.type in {"cpu", "cuda"}
        for group in groups
        for one in group["params"]
    )


class InOrder(torch.optim.Adam):
    """Adam over the numbers of each tensor in their order of memory.

    torch's one kernel for the step (2.15) copies tensors that are not contiguous, as weights in
    channels-last order are not, which takes longer than the step. It also mistakes gradients in
    another order than their parameter's for such in the same.
    """

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: Any
    ) -> Any:
        """Gather what the step works on, as torch does, and look at it as lines of numbers."""
        found = super()._init_group(group, params, grads, *states)  # type: ignore[no-untyped-call]
        if all(map(Tensor.is_contiguous, (*params, *grads))):
            return found
        for row, parameter in enumerate(params):
            if parameter.is_contiguous() and grads[row].is_contiguous():
                continue
            own = [one for one in states if row < len(one) and one[row].shape == parameter.shape]
            alike = all(one[row].stride() == parameter.stride() for one in own)
            if alike and is_dense(parameter):
                for one in (params, grads, *own):
                    one[row] = in_order(one[row], parameter)
        return found


class InOrderDecoupled(InOrder, torch.optim.AdamW):
    """The same with decoupled weight decay."""


def is_dense(tensor: Tensor) -> bool:
    """Return whether the numbers of a tensor lie one after another, in whatever order."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def in_order(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return the numbers of a tensor as one line, in the order of a dense parameter's."""
    if tensor.stride() != parameter.stride():
        tensor = torch.empty_like(parameter).copy_(tensor)
    return tensor.as_strided((tensor.numel(),), (1,))


def sgd(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""
    return uncompiled(torch.optim.SGD)(groups, lr=lr, momentum=momentum, nesterov=momentum > 0,
                                       fused=is_fusible(groups))  # fmt: skip


def adam(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); beta1 is `momentum`, weight decay is added to the gradient."""
    return uncompiled(InOrder)(groups, lr=lr, betas=(momentum, 0.999),
                               fused=is_fusible(groups))  # fmt: skip


def adamw(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); beta1 is `momentum`."""
    return uncompiled(InOrderDecoupled)(groups, lr=lr, betas=(momentum, 0.999),
                                        fused=is_fusible(groups))  # fmt: skip


def nadam(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Adam with Nesterov momentum (Dozat 2016); beta1 is `momentum`."""
    return uncompiled(torch.optim.NAdam)(groups, lr=lr, betas=(momentum, 0.999))


def rmsprop(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Divide gradients by their recent size, then momentum (Tieleman & Hinton 2012)."""
    return uncompiled(torch.optim.RMSprop)(groups, lr=lr, momentum=momentum)


def adagrad(groups: Groups, *, lr: float) -> torch.optim.Optimizer:
    """Divide gradients by the root of the sum of all their squares (Duchi et al. 2011)."""
    return uncompiled(torch.optim.Adagrad)(groups, lr=lr, fused=is_fusible(groups))


def lion(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Step by the sign of the momentum (Chen et al. 2023); beta1 is `momentum`."""
    return Lion(groups, lr=lr, betas=(momentum, 0.99))


def muon(
    groups: Groups, *, lr: float, momentum: float = 0.9, unit_norm: bool = True,
    iterations: int = 3,
) -> torch.optim.Optimizer:  # fmt: skip
    """Orthogonal steps for hidden weights, SGD with Nesterov for the rest (Jordan 2024).

    With `unit_norm`, weights in front of a batch norm are kept at the norm sqrt(out). Three
    `iterations` of Newton and Schulz suit small convolutional nets, as in Jordan's
    cifar10-airbench; more are slower and nearer to orthogonal.
    """
    return Muon(split_by_role(groups, unit_norm=unit_norm), lr=lr, momentum=momentum,
                iterations=iterations)  # fmt: skip


class Lion(Groupwise):
    """Step by the sign of b1 m + (1 - b1) g, then m ← b2 m + (1 - b2) g; decay is decoupled.

    Chen et al. 2023, algorithm 2. All state is tensors, shaped as the weights. The moves are
    written to memory that is kept, for on a CPU a new page costs more than the arithmetic in it.
    """

    def __init__(
        self, groups: Groups, *, lr: float, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.moves: dict[Tensor, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back from a copy, without the memory of the moves."""
        super().__setstate__(state)
        self.moves = {}

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move the parameters of one group."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            if parameter not in self.moves:
                self.moves[parameter] = torch.empty_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        moves = [self.moves[parameter] for parameter in parameters]
        gradients = [one.grad for one in parameters if one.grad is not None]
        first, second = group["betas"]
        torch._foreach_copy_(moves, buffers)
        torch._foreach_lerp_(moves, gradients, 1 - first)
        torch._foreach_sign_(moves)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])
        torch._foreach_lerp_(buffers, gradients, 1 - second)


def find_optimizer(part: str | Build) -> Build:
    """Resolve an optimizer to `(groups, *, lr, ...) -> Optimizer`.

    In this order: a callable as it is, a registered name, `package.module:function`, a class of
    torch.optim, one of timm.optim, the names in any case. Raises UsageError with the closest name
    for an unknown one.
    """
    if not isinstance(part, str) or ":" in part:
        return lookup("optimizer", OPTIMIZERS, part)
    name = part.lower()
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if (kind := foreign_class(name)) is not None:
        return of_class(kind)
    known = {*OPTIMIZERS, *torch_optimizers(), *timm_optimizers()}
    raise UsageError(f"unknown optimizer '{part}'", did_you_mean(name, known))


def foreign_class(name: str) -> Build | None:
    """Return the class of torch.optim or of timm.optim of this name in lower case, or None."""
    found = torch_optimizers().get(name)
    return timm_optimizers().get(name) if found is None else uncompiled(found)


def usual_rate(name: str) -> float:
    """Return the peak learning rate of an optimizer that was given none.

    Ours have a usual one; of others it is the default `lr` of the class or function, or 0.001.
    """
    if (known := PEAK_LEARNING_RATE.get(name.lower())) is not None:
        return known
    part = foreign_class(name.lower()) or find_optimizer(name)
    taken = inspect.signature(part).parameters
    rate = taken["lr"].default if "lr" in taken else None
    return float(rate) if isinstance(rate, int | float) else UNKNOWN_RATE


def torch_optimizers() -> dict[str, Build]:
    """Return the classes of torch.optim that a loop can use, by their names in lower case."""
    return {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and name not in UNFIT
    }


def timm_optimizers() -> dict[str, Build]:
    """Return timm's optimizers that need no second derivative and no further package."""
    optim: Any = importlib.import_module("timm.optim")
    facts = [optim.get_optimizer_info(name) for name in optim.list_optimizers()]
    fit = [one.name for one in facts if not (one.second_order or isinstance(one.opt_class, str))]
    return {name: optim.get_optimizer_class(name) for name in fit}


def of_class(kind: Build) -> Build:
    """Return what builds `kind` with `lr` and `momentum`, beta1 where it has two betas."""
    known = inspect.signature(kind).parameters
    betas = known["betas"].default if "betas" in known else ()

    def plain(groups: Groups, *, lr: float) -> torch.optim.Optimizer:
        return kind(groups, lr=lr)

    def moving(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
        return kind(groups, lr=lr, momentum=momentum)

    def averaging(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
        return kind(groups, lr=lr, betas=(momentum, *betas[1:]))

    if "momentum" in known:
        return moving
    return averaging if isinstance(betas, tuple) and betas else plain


OPTIMIZERS: dict[str, Build] = {
    "adamw": adamw,
    "sgd": sgd,
    "adam": adam,
    "nadam": nadam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "lion": lion,
    "muon": muon,
}
