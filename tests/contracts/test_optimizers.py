"""Every registered optimizer takes groups and settings and makes the loss smaller."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.errors import UsageError
from trimtab.train.optimizers import (
    OPTIMIZERS,
    PEAK_LEARNING_RATE,
    find_optimizer,
    lion,
    muon,
    parameter_groups,
    usual_rate,
)  # fmt: skip

FOREIGN = ["Adamax", "RAdam", "asgd", "lamb", "nadamw"]
FUSED = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad,
         "sgd": torch.optim.SGD}  # fmt: skip


def tiny_cnn() -> nn.Sequential:
    """Three convolutions: the middle one is hidden and followed by a batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3),
    )  # fmt: skip


def tiny_task() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 1, 8, 8, generator=generator)
    targets = torch.arange(48) % 3
    inputs[torch.arange(48), 0, :, 2 * targets] += 2  # a bright column says the class
    return inputs, targets


def make(name: str, network: nn.Module, **settings: float) -> torch.optim.Optimizer:
    rate = PEAK_LEARNING_RATE.get(name, 1e-2)
    groups = parameter_groups(network, weight_decay=settings.pop("weight_decay", 0.0))
    optimizer = find_optimizer(name)(groups, lr=rate, **settings)
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * rate
    return optimizer


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    inputs, targets = tiny_task()
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "rate"),
    [("SGD", 0.1), ("sgd", 0.1), ("AdamW", 3e-3), ("Muon", 0.2), ("RMSprop", 3e-4),
     ("adadelta", 1.0), ("Adamax", 2e-3), ("lamb", 1e-3), ("madgrad", 1e-2),
     (f"{__name__}:of_my_own", 0.25), ("trimtab.train.optimizers:lion", 1e-3)],
)  # fmt: skip
def test_the_usual_rate_is_that_of_the_optimizer_in_any_case_of_its_name(
    name: str, rate: float
) -> None:
    assert usual_rate(name) == rate


def of_my_own(groups: list[dict[str, object]], *, lr: float = 0.25) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr)


# What holds for every optimizer


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_is_documented_and_has_a_usual_peak(name: str) -> None:
    assert OPTIMIZERS[name].__doc__
    assert PEAK_LEARNING_RATE[name] > 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_descends_a_quadratic(name: str) -> None:
    weight = nn.Parameter(torch.tensor([[3.0, -2.0], [1.0, 4.0]]))
    optimizer = OPTIMIZERS[name]([{"params": [weight]}], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.square().sum() < 30 / 4


@pytest.mark.parametrize("name", [*sorted(OPTIMIZERS), *FOREIGN])
def test_optimizer_lowers_the_loss_of_a_network(name: str) -> None:
    network = tiny_cnn()
    losses = train(network, make(name, network), 80)
    assert losses[-1] < (0.6 if name in OPTIMIZERS else 0.9) * losses[0]


@pytest.mark.parametrize("name", [*sorted(OPTIMIZERS), *FOREIGN])
def test_state_goes_on_bit_for_bit(name: str) -> None:
    first = tiny_cnn()
    optimizer = make(name, first, weight_decay=0.01)
    train(first, optimizer, 4)
    second = copy.deepcopy(first)
    saved = copy.deepcopy(optimizer.state_dict())
    wanted = train(first, optimizer, 4)
    resumed = make(name, second, weight_decay=0.01)
    resumed.load_state_dict(saved)
    assert train(second, resumed, 4) == wanted
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_forgetting_the_state_is_noticed(name: str) -> None:
    first = tiny_cnn()
    optimizer = make(name, first)
    train(first, optimizer, 4)
    second = copy.deepcopy(first)
    assert train(second, make(name, second), 4)[-1] != train(first, optimizer, 4)[-1]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_each_group_moves_by_its_own_rate(name: str) -> None:
    fast, slow, still = (nn.Parameter(torch.eye(3)) for _ in range(3))
    groups = [{"params": [one]} for one in (fast, slow, still)]
    optimizer = OPTIMIZERS[name](groups, lr=0.1)
    for group, rate in zip(optimizer.param_groups, (0.1, 0.01, 0.0), strict=True):
        group["lr"] = rate
    for one in (fast, slow, still):
        one.grad = torch.arange(9.0).view(3, 3) + torch.eye(3)
    optimizer.step()
    moved = [(one.detach() - torch.eye(3)) for one in (fast, slow, still)]
    assert torch.allclose(moved[0], 10 * moved[1], rtol=1e-4)
    assert moved[1].abs().sum() > 0
    assert moved[2].abs().sum() == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_all_state_is_tensors(name: str) -> None:
    network = tiny_cnn()
    optimizer = make(name, network)
    train(network, optimizer, 2)
    values = [one for state in optimizer.state.values() for one in state.values()]
    assert values
    assert all(isinstance(one, Tensor) or one is None for one in values)
    for group in optimizer.param_groups:
        json.dumps({key: value for key, value in group.items() if key != "params"})


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_decay_shrinks_weights_of_its_group_only(name: str) -> None:
    decayed, plain = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    groups = [{"params": [decayed], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups, lr=0.1)
    decayed.grad, plain.grad = torch.zeros(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert (decayed < 1).all()
    assert torch.equal(plain, torch.ones(2, 2))


# What holds for some


@pytest.mark.parametrize("name", sorted(FUSED))
def test_the_fused_step_is_the_plain_one(name: str) -> None:
    networks = [tiny_cnn(), tiny_cnn()]
    fused = make(name, networks[0], weight_decay=0.01)
    assert all(group["fused"] for group in fused.param_groups)
    plain = make(name, networks[1], weight_decay=0.01)
    for group in plain.param_groups:
        group["fused"] = False
    assert isinstance(plain, FUSED[name])
    for network, optimizer in zip(networks, (fused, plain), strict=True):
        train(network, optimizer, 10)
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_lion_agrees_with_its_formula() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = lion([{"params": [weight], "weight_decay": 0.5}], lr=0.1, momentum=0.8)
    wanted, momentum = weight.detach().clone(), torch.zeros(1, 2)
    for gradient in (torch.tensor([[9.0, -1.0]]), torch.tensor([[-1.0, -1.0]])):
        weight.grad = gradient
        optimizer.step()
        move = torch.sign(0.8 * momentum + 0.2 * gradient)
        wanted = wanted - 0.1 * (move + 0.5 * wanted)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert torch.allclose(weight, wanted)


def test_a_copy_of_an_optimizer_goes_on_as_it_would() -> None:
    for name in ("lion", "muon"):
        network = tiny_cnn()
        pair = (network, make(name, network))
        train(*pair, 2)
        copied = copy.deepcopy(pair)
        assert train(*copied, 3) == train(*pair, 3)


def test_momentum_is_beta1_in_adams_family_and_momentum_elsewhere() -> None:
    for name in ("adam", "adamw", "nadam", "lion", "Adamax", "nadamw"):
        assert make(name, tiny_cnn(), momentum=0.7).param_groups[0]["betas"][0] == 0.7
    for name in ("sgd", "rmsprop", "muon", "sgdw"):
        assert make(name, tiny_cnn(), momentum=0.7).param_groups[0]["momentum"] == 0.7


# Finding one


def test_an_optimizer_is_found_by_name_in_any_case_by_path_and_as_a_callable() -> None:
    assert find_optimizer("AdamW") is OPTIMIZERS["adamw"]
    assert find_optimizer("muon") is muon
    assert find_optimizer(lion) is lion
    assert find_optimizer("trimtab.train.optimizers:lion") is lion
    assert isinstance(make("ADAMAX", tiny_cnn()), torch.optim.Adamax)
    assert type(make("lamb", tiny_cnn())).__module__.startswith("timm.optim")


@pytest.mark.parametrize(
    ("word", "close"),
    [("adamv", "adam"), ("lbfgs", ""), ("adahessian", ""), ("bnbadam8bit", ""), ("lambb", "lamb")],
)
def test_an_unknown_or_unfit_optimizer_is_an_error_with_the_closest_name(
    word: str, close: str
) -> None:
    with pytest.raises(UsageError) as caught:
        find_optimizer(word)
    assert word in caught.value.message
    assert close in caught.value.hint


# Groups


def test_norms_and_biases_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    decayed, plain = parameter_groups(network, weight_decay=0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 1, 3, 3)]
    assert decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 3
    assert plain["weight_decay"] == 0
    assert decayed["rate"] == plain["rate"] == 1


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    network = tiny_cnn()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.ndim > 1)
    network[0].weight.requires_grad_(False)
    (only,) = parameter_groups(network, weight_decay=0.1)
    assert [id(one) for one in only["params"]] == [id(network[i].weight) for i in (2, 5, 8)]
    assert only["roles"] == ("scale_free", "hidden", "other")


def test_bias_rate_moves_the_biases_of_norms_and_freezes_their_weights() -> None:
    network = tiny_cnn()
    network[3].weight.data[:2] = 0
    network[3].weight.data[2] = 1.5
    groups = parameter_groups(network, weight_decay=0.1, bias_rate=64.0)
    assert [group["rate"] for group in groups] == [1, 1, 64]
    assert groups[2]["params"] == [network[3].bias]
    assert groups[2]["weight_decay"] == 0
    assert not network[3].weight.requires_grad
    assert network[3].weight.tolist() == [1, 1, 1.5, 1, 1, 1]
    held = {id(one) for group in groups for one in group["params"]}
    wanted = {id(one) for one in network.parameters()} - {id(network[3].weight)}
    assert held == wanted
    assert sum(len(group["params"]) for group in groups) == len(wanted)


def test_without_a_bias_rate_the_weights_of_norms_learn() -> None:
    network = tiny_cnn()
    groups = parameter_groups(network, weight_decay=0.1)
    assert len(groups) == 2
    assert network[3].weight.requires_grad
