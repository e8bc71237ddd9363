"""Every registered loss turns outputs and a batch into one finite number per sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trimtab.data.dataset import Batch
from trimtab.train.losses import LOSSES, averaged, balanced_weights

CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0])
SMOOTHED = ("cross_entropy", "bce", "focal")
REGRESSION = ("huber", "l1", "mse", "quantile")


def make_batch(targets: Tensor) -> Batch:
    return Batch(torch.zeros(len(targets), 1, 4, 4), targets, torch.arange(len(targets)))


def sample(rows: int = 5) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(0)
    outputs = (3 * torch.randn(rows, 3, generator=generator)).requires_grad_()
    return outputs, make_batch(torch.randint(0, 3, (rows,), generator=generator))


def one_hot(batch: Batch) -> Batch:
    return batch._replace(targets=functional.one_hot(batch.targets, 3).float())


# The slow formulas: one sample in plain Python, z its outputs and q its row of targets


def softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(one) for one in z)
    return [math.exp(one) / total for one in z]


def slow_cross_entropy(z: list[float], q: list[float]) -> float:
    return -sum(b * math.log(p) for p, b in zip(softmax(z), q, strict=True))


def slow_bce(z: list[float], q: list[float]) -> float:
    sigmoids = [1 / (1 + math.exp(-one)) for one in z]
    terms = [b * math.log(p) + (1 - b) * math.log(1 - p) for p, b in zip(sigmoids, q, strict=True)]
    return -sum(terms) / len(z)


def slow_focal(z: list[float], q: list[float]) -> float:
    return -sum(b * (1 - p) ** 1.5 * math.log(p) for p, b in zip(softmax(z), q, strict=True))


def of_errors(formula: Callable[[float], float]) -> Callable[[list[float], list[float]], float]:
    return lambda z, q: sum(formula(b - a) for a, b in zip(z, q, strict=True)) / len(z)


REFERENCES: dict[str, tuple[Callable[[list[float], list[float]], float], dict[str, Any]]] = {
    "cross_entropy": (slow_cross_entropy, {}),
    "bce": (slow_bce, {}),
    "focal": (slow_focal, {"gamma": 1.5}),
    "mse": (of_errors(lambda e: e * e), {}),
    "l1": (of_errors(abs), {}),
    "huber": (
        of_errors(lambda e: e * e / 2 if abs(e) < 0.7 else 0.7 * (abs(e) - 0.35)),
        {"delta": 0.7},
    ),
    "quantile": (of_errors(lambda e: 0.8 * e if e > 0 else -0.2 * e), {"q": 0.8}),
}


def slow(name: str, outputs: Tensor, rows: Tensor) -> list[float]:
    formula = REFERENCES[name][0]
    return [formula(z, q) for z, q in zip(outputs.tolist(), rows.tolist(), strict=True)]


# What holds for every loss


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_is_one_finite_number_per_sample_with_a_gradient(name: str) -> None:
    outputs, batch = sample()
    values = LOSSES[name](outputs, batch)
    values.mean().backward()
    assert values.shape == (5,)
    assert torch.isfinite(values).all()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()
    assert (outputs.grad.abs().sum(dim=1) > 0).all()
    assert LOSSES[name].__doc__


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_agrees_with_its_slow_formula(name: str) -> None:
    outputs, batch = sample()
    values = LOSSES[name](outputs.double(), batch, **REFERENCES[name][1])
    assert values.tolist() == pytest.approx(slow(name, outputs, one_hot(batch).targets), rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_of_mixed_targets_agrees_with_its_slow_formula(name: str) -> None:
    outputs, batch = sample()
    mixed = 0.7 * one_hot(batch).targets + 0.3 * one_hot(batch).targets.flip(0)
    values = LOSSES[name](outputs.double(), make_batch(mixed), **REFERENCES[name][1])
    assert values.tolist() == pytest.approx(slow(name, outputs, mixed), rel=1e-5)


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_soft_targets_that_are_sure_equal_class_numbers(name: str, weights: Tensor | None) -> None:
    outputs, batch = sample()
    hard = LOSSES[name](outputs, batch, class_weights=weights)
    soft = LOSSES[name](outputs, one_hot(batch), class_weights=weights)
    assert torch.allclose(hard, soft, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_averaged_loss_is_the_mean_of_the_samples(name: str) -> None:
    outputs, batch = sample()
    value = averaged(LOSSES[name])(outputs, batch)
    assert value.shape == ()
    parts = [LOSSES[name](outputs[i : i + 1], make_batch(batch.targets[i : i + 1])).item()
             for i in range(5)]  # fmt: skip
    assert value.item() == pytest.approx(sum(parts) / 5, rel=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_mean_with_class_weights_is_divided_by_the_weights(name: str) -> None:
    outputs, batch = sample()
    weights = CLASS_WEIGHTS[batch.targets]
    wanted = (LOSSES[name](outputs, batch) * weights).sum() / weights.sum()
    got = LOSSES[name](outputs, batch, class_weights=CLASS_WEIGHTS).mean()
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert got.item() != pytest.approx(LOSSES[name](outputs, batch).mean().item(), rel=1e-3)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_settings_have_defaults_and_are_given_by_name(name: str) -> None:
    settings = list(inspect.signature(LOSSES[name]).parameters.values())[2:]
    assert all(one.kind is one.KEYWORD_ONLY and one.default is not one.empty for one in settings)
    assert "class_weights" in {one.name for one in settings}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_and_gradient_stay_finite_for_extreme_outputs(name: str) -> None:
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    values = LOSSES[name](outputs, make_batch(torch.tensor([0, 0])))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


# What holds for some


@pytest.mark.parametrize(("smoothing", "weights"), [(0.0, None), (0.1, None), (0.0, CLASS_WEIGHTS)])
def test_cross_entropy_averages_to_that_of_torch(smoothing: float, weights: Tensor | None) -> None:
    outputs, batch = sample()
    value = LOSSES["cross_entropy"](outputs, batch, label_smoothing=smoothing,
                                    class_weights=weights).mean()  # fmt: skip
    wanted = functional.cross_entropy(outputs, batch.targets, weights, label_smoothing=smoothing)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("name", SMOOTHED)
def test_label_smoothing_spreads_a_share_over_all_classes(name: str) -> None:
    outputs, batch = sample()
    smooth = make_batch(0.9 * one_hot(batch).targets + 0.1 / 3)
    wanted = LOSSES[name](outputs, smooth)
    for given in (batch, one_hot(batch)):
        got = LOSSES[name](outputs, given, label_smoothing=0.1)
        assert torch.allclose(got, wanted, rtol=1e-5)
    assert not torch.allclose(LOSSES[name](outputs, batch), wanted, rtol=1e-2)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_class_weights_do_not_move_what_smoothed_outputs_are_best(name: str) -> None:
    best = torch.tensor([[0.95, 0.05]]).log().requires_grad_()
    settings = {"gamma": 0.0} if name == "focal" else {}
    value = LOSSES[name](best, make_batch(torch.tensor([0])), label_smoothing=0.1,
                         class_weights=torch.tensor([0.5, 50.0]), **settings)  # fmt: skip
    value.mean().backward()
    assert best.grad is not None
    assert best.grad.tolist() == [pytest.approx([0, 0], abs=1e-6)]


@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_without_gamma_is_cross_entropy_whatever_the_weights_and_smoothing(
    weights: Tensor | None, smoothing: float
) -> None:
    outputs, batch = sample()
    settings = {"class_weights": weights, "label_smoothing": smoothing}
    plain = LOSSES["cross_entropy"](outputs, batch, **settings)
    focal = LOSSES["focal"](outputs, batch, gamma=0.0, **settings)
    assert torch.allclose(focal, plain, rtol=1e-5)


def test_focal_without_gamma_is_cross_entropy_and_with_gamma_spares_easy_samples() -> None:
    outputs, batch = sample()
    plain = LOSSES["cross_entropy"](outputs, batch)
    assert torch.allclose(LOSSES["focal"](outputs, batch, gamma=0.0), plain, rtol=1e-5)
    shares = LOSSES["focal"](outputs, batch) / plain
    assert shares[plain.argmin()] < shares[plain.argmax()]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_a_gradient_where_it_is_sure(gamma: float) -> None:
    outputs = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    LOSSES["focal"](outputs, make_batch(torch.tensor([0])), gamma=gamma).sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


@pytest.mark.parametrize("name", REGRESSION)
def test_regression_takes_float_targets_of_the_outputs_shape(name: str) -> None:
    targets = torch.tensor([[3.5, -2.0], [0.25, 7.0]])
    for outputs, wanted in ((targets.clone(), targets), (targets[:, :1], targets[:, 0])):
        assert LOSSES[name](outputs, make_batch(wanted)).tolist() == [0.0, 0.0]
        assert (LOSSES[name](outputs + 1, make_batch(wanted)) > 0).all()


def test_quantile_is_least_at_the_quantile() -> None:
    targets = torch.arange(101.0)[:, None]
    losses = [LOSSES["quantile"](torch.full((101, 1), float(at)), make_batch(targets), q=0.9).mean()
              for at in range(101)]  # fmt: skip
    assert int(torch.stack(losses).argmin()) == 90


def test_averaged_leaves_a_loss_of_ones_own_that_is_one_number() -> None:
    outputs, batch = sample()
    assert averaged(lambda z, b: z.square().sum())(outputs, batch) == outputs.square().sum()


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_balanced_weights_make_all_classes_count_the_same(kind: str) -> None:
    targets = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(targets if kind == "tensor" else targets.numpy(), 4)
    counts = torch.bincount(targets, minlength=4)
    assert weights.dtype == torch.float32
    assert (weights * counts).tolist() == pytest.approx([10 / 3, 10 / 3, 0, 10 / 3])
