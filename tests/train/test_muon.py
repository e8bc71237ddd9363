"""Muon makes the steps of hidden weights orthogonal and leaves the rest to SGD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trimtab.train import muon as rules
from trimtab.train.muon import Muon, newton_schulz, normalize, orthogonal, roles_of
from trimtab.train.optimizers import muon, parameter_groups


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def with_random_gradients(module: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.flatten(1))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8), (1, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_gives_an_almost_orthogonal_matrix(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "working_type", lambda _: dtype)
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(1, 0.1, min(shape[1:]))
    found = newton_schulz(7 * (u * values) @ v)
    assert found.dtype == torch.float32
    for one, wanted in zip(found, u @ v, strict=True):
        assert singular_values(one).min() > 0.65
        assert singular_values(one).max() < 1.3
        assert (one * wanted).sum() / (one.norm() * wanted.norm()) > 0.97


def test_one_iteration_is_not_enough() -> None:
    torch.manual_seed(0)
    assert singular_values(newton_schulz(torch.randn(1, 8, 8), iterations=1)[0]).min() < 0.5


def test_moves_of_mixed_shapes_come_back_in_order() -> None:
    torch.manual_seed(0)
    moves = [torch.randn(4, 2, 3, 3), torch.randn(6, 4), torch.randn(4, 2, 3, 3), torch.randn(4, 6)]
    found = orthogonal(moves, 5)
    assert [one.shape for one in found] == [one.shape for one in moves]
    for one, move in zip(found, moves, strict=True):
        alone = orthogonal([move], 5)[0]
        assert torch.allclose(one, alone, atol=2e-2)
        assert (one * move).sum() > 0
    tall = singular_values(found[1])
    assert 0.6 * 1.5**0.5 < tall.mean() < 1.3 * 1.5**0.5  # times sqrt(6 / 4)


def test_a_zero_gradient_moves_nothing() -> None:
    assert torch.equal(orthogonal([torch.zeros(3, 4)], 5)[0], torch.zeros(3, 4))


def test_normalize_gives_the_norm_of_the_root_of_the_filters() -> None:
    weights = [torch.randn(9, 2, 3, 3), torch.zeros(4, 2)]
    direction = weights[0] / weights[0].norm()
    normalize(weights)
    assert weights[0].norm().item() == pytest.approx(3)
    assert torch.allclose(weights[0] / 3, direction, atol=1e-6)
    assert torch.equal(weights[1], torch.zeros(4, 2))


def test_first_last_and_grouped_layers_are_not_hidden() -> None:
    module = network()
    assert roles_of(module) == {
        id(module[3].weight): "scale_free",
        id(module[8].weight): "hidden",
    }


def test_filters_with_a_pooling_layer_in_front_of_their_norm_are_scale_free() -> None:
    layers = [nn.Conv2d(3, 8, 2), nn.Conv2d(8, 8, 3, bias=False), nn.MaxPool2d(2),
              nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)]  # fmt: skip
    assert roles_of(nn.Sequential(*layers)) == {id(layers[1].weight): "scale_free"}


def test_biases_of_whitened_layers_learn_as_fast_as_those_of_norms() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 2), nn.BatchNorm2d(8), nn.Linear(8, 2))
    layers[0].weight.requires_grad_(False)
    groups = parameter_groups(layers, weight_decay=0.1, bias_rate=64)
    fast = next(group for group in groups if group["rate"] == 64)
    assert {id(one) for one in fast["params"]} == {id(layers[0].bias), id(layers[1].bias)}
    assert not layers[1].weight.requires_grad


def test_normalising_a_scale_free_filter_changes_no_output() -> None:
    module = network()
    inputs = torch.randn(16, 3, 7, 7)
    before = module[:8](inputs)
    normalize([module[3].weight.data])
    assert torch.allclose(module[:8](inputs), before, atol=1e-3)


def test_each_kind_of_weight_steps_by_its_own_rule() -> None:
    module = network()
    before = copy.deepcopy(module)
    optimizer = muon(parameter_groups(module, weight_decay=0.0), lr=0.2, momentum=0.0)
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * 0.2
    with_random_gradients(module)
    optimizer.step()
    start = before[3].weight * 8**0.5 / before[3].weight.norm()
    moved = (module[3].weight - start) / 0.2
    assert (
        0.6 < singular_values(moved.detach()).min() <= singular_values(moved.detach()).max() < 1.3
    )
    moved = (module[8].weight - before[8].weight) / 0.02
    assert singular_values(moved.detach()).mean().item() == pytest.approx(2**0.5, rel=0.3)
    for index in (0, 6, 11):
        gradient = module[index].weight.grad
        assert gradient is not None
        wanted = before[index].weight - 0.1 * gradient
        assert torch.allclose(module[index].weight, wanted, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_rest_moves_exactly_as_sgd_moves_it(decay: float) -> None:
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    mine = Muon([{"params": list(ours.parameters()), "weight_decay": decay}], lr=0.1)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True,
                                weight_decay=decay)  # fmt: skip
    for seed in range(5):
        for module, optimizer in ((ours, mine), (theirs, reference)):
            with_random_gradients(module, seed)
            optimizer.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)


def test_without_unit_norm_weights_keep_their_size_and_decay() -> None:
    module = network()
    before = module[3].weight.detach().clone()
    optimizer = muon(parameter_groups(module, weight_decay=0.5), lr=0.2, unit_norm=False)
    assert not any(group["unit_norm"] for group in optimizer.param_groups)
    with_random_gradients(module)
    module[3].weight.grad = torch.zeros_like(before)
    optimizer.step()
    assert torch.allclose(module[3].weight, before * (1 - 0.2 * 0.5))


def test_frozen_weights_and_weights_without_a_gradient_are_not_touched() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    optimizer = muon(parameter_groups(module, weight_decay=0.1), lr=0.2)
    with_random_gradients(module)
    module[3].weight.grad = None
    optimizer.step()
    for key, value in module.state_dict().items():
        touched = not torch.equal(value, before[key])
        assert touched != (key in {"0.weight", "3.weight"} or "running" in key or "num_" in key)


def test_groups_without_roles_have_all_matrices_hidden() -> None:
    module = nn.Linear(4, 4)
    optimizer = muon([{"params": list(module.parameters())}], lr=0.1)
    flags = {len(group["params"][0].shape): group["orthogonal"] for group in optimizer.param_groups}
    assert flags == {2: True, 1: False}


def test_closure_gives_its_loss_back() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = Muon([{"params": [weight]}], lr=0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (weight < 1).all()
