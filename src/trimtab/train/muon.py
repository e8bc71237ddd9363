"""Muon: steps of hidden weights are made orthogonal; all else takes steps of SGD.

Sources: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"; the normalised
filters are those of Jordan's cifar10-airbench.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.train.groupwise import Groupwise
from trimtab.train.norms import BatchNorm

Groups = list[dict[str, Any]]
OTHER, HIDDEN, SCALE_FREE = "other", "hidden", "scale_free"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.Identity)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
RATES = {SCALE_FREE: 1.0, HIDDEN: 0.1, OTHER: 0.5}  # of the peak, which is for scale-free weights


class Muon(Groupwise):
    """Step along the orthogonal matrix nearest to the Nesterov momentum of each hidden weight.

    A group with `orthogonal` holds weights (out, ...), seen as matrices (out, the rest); their
    decay is decoupled. With `unit_norm` each is first scaled to the norm sqrt(out), which changes
    no output where a batch norm follows, and decay, which would change nothing, is left out. Other
    groups take steps of SGD with Nesterov momentum. All state is tensors, shaped as the weights.
    """

    def __init__(
        self, groups: Groups, *, lr: float, momentum: float = 0.9, iterations: int = 5
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "iterations": iterations, "weight_decay": 0.0,
            "orthogonal": False, "unit_norm": False,
        }  # fmt: skip
        super().__init__(groups, defaults)

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move the parameters of one group, by the rule of their role."""
        rule = self.orthogonal_step if group["orthogonal"] else self.plain_step
        rule(parameters, group)

    def orthogonal_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move hidden weights."""
        gradients = [one.grad for one in parameters if one.grad is not None]
        moves = orthogonal(self.with_momentum(parameters, gradients, group), group["iterations"])
        if group["unit_norm"]:
            normalize(parameters)
        elif group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    def plain_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move all other weights, as torch.optim.SGD does."""
        gradients = [one.grad for one in parameters if one.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        moves = self.with_momentum(parameters, gradients, group)
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    def with_momentum(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> list[Tensor]:
        """Add the gradients to the momentum and return Nesterov's look ahead (Sutskever 2013)."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=group["momentum"]))


def normalize(parameters: list[Tensor]) -> None:
    """Scale each weight (out, ...) in place to the norm sqrt(out); 0 stays 0."""
    norms = torch._foreach_norm(parameters)
    scales = [len(one) ** 0.5 / norm.clamp_min(1e-12)
              for one, norm in zip(parameters, norms, strict=True)]  # fmt: skip
    torch._foreach_mul_(parameters, scales)


def orthogonal(moves: Sequence[Tensor], iterations: int) -> list[Tensor]:
    """Return moves (out, ...) as orthogonal matrices times sqrt(max(1, out / the rest)).

    The factor makes the norm of a wide and of a tall move grow alike with `out` (Jordan 2024).
    Matrices of one shape are worked on together.
    """
    shapes: dict[tuple[int, ...], list[int]] = {}
    flat = [move.flatten(1) for move in moves]
    for index, matrix in enumerate(flat):
        shapes.setdefault(tuple(matrix.shape), []).append(index)
    found = list(flat)
    for (rows, columns), indices in shapes.items():
        stack = newton_schulz(torch.stack([flat[index] for index in indices]), iterations)
        stack *= max(1.0, rows / columns) ** 0.5
        for index, matrix in zip(indices, stack, strict=True):
            found[index] = matrix.view(moves[index].shape)
    return found


def newton_schulz(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return about U V^T of each matrix U S V^T of a stack (B, rows, columns).

    The quintic iteration X ← a X + (b A + c A²) X, A = X X^T, of Jordan 2024: singular values end
    between 0.7 and 1.2, except those that were tiny beside the largest.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(working_type(matrices.device))
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def working_type(device: torch.device) -> torch.dtype:
    """Return bf16 where the processor multiplies it in hardware, which is several times faster."""
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def roles_of(network: nn.Module) -> dict[int, str]:
    """Return the role of hidden weights by the id of the parameter.

    Hidden are the weights of all convolutions and linear layers but the first and the last, and but
    convolutions in groups, whose filters are no one matrix. Scale-free are those without a bias in
    front of a batch norm, pooled in between or not: pooling scales as its inputs do.
    """
    leaves = [module for module in network.modules() if not any(True for _ in module.children())]
    layers = [index for index, leaf in enumerate(leaves) if isinstance(leaf, LAYERS)]
    found = {}
    for index in layers[1:-1]:
        layer = leaves[index]
        if getattr(layer, "groups", 1) == 1:
            after = next(leaf for leaf in leaves[index + 1 :] if not isinstance(leaf, POOLS))
            normed = getattr(layer, "bias", None) is None and isinstance(after, BatchNorm)
            found[id(layer.weight)] = SCALE_FREE if normed else HIDDEN
    return found


def split_by_role(groups: Groups, *, unit_norm: bool) -> Groups:
    """Return the groups cut by the roles of their parameters, which `parameter_groups` has noted.

    Without notes all that has two dimensions or more is hidden. The rates follow `RATES`: with the
    peak 0.2, hidden weights step with 0.02 and SGD with 0.1, which is usual for each.
    """
    found = []
    for group in groups:
        parameters = group["params"]
        guess = [HIDDEN if one.ndim > 1 else OTHER for one in parameters]
        roles = group.get("roles", guess)
        rest = {key: value for key, value in group.items() if key not in {"params", "roles"}}
        for role, rate in RATES.items():
            members = [one for one, own in zip(parameters, roles, strict=True) if own == role]
            if members:
                found.append({**rest, "params": members, "rate": rest.get("rate", 1.0) * rate,
                              "orthogonal": role != OTHER,
                              "unit_norm": unit_norm and role == SCALE_FREE})  # fmt: skip
    return found
