"""Quantize: int8 that decides alike, its ranges from train samples, its steps written down."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from trimtab.compress import qdq
from trimtab.compress import quantize as room
from trimtab.compress.qdq import insert_rounding, observe
from trimtab.compress.quantize import calibration_pixels, quantize
from trimtab.compress.ranges import RANGES
from trimtab.compress.rounding import on_grid
from trimtab.data.dataset import Dataset
from trimtab.errors import CompressError, UsageError
from trimtab.export.onnx import export_graph, open_onnx, slim
from trimtab.export.parity import parity
from trimtab.measure.quality import logits_of, network_call
from trimtab.models.build import Network, load
from trimtab.records.run import Run
from trimtab.records.schema import Schema

COLOUR = Schema(classes=("a", "b", "c"), channels=3, height=16, width=12,
                mean=(120.3, 110.2, 100.1), std=(60.0, 55.0, 50.0))  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 16, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def int8(tiny_run: Run, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The trained run as int8."""
    return quantize(tiny_run, data=tiny_dataset, out=tmp_path_factory.mktemp("int8") / "run")


def network(activation: type[nn.Module] = nn.ReLU) -> Network:
    """Return a small colour network with biases, pooling and a residual."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), activation(), nn.MaxPool2d(2),
                         nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, 3))  # fmt: skip
    return Network(COLOUR, body).eval()


@functools.cache
def graphs_of(activation: type[nn.Module]) -> tuple[Any, Any]:
    """Return the float and the int8 graph of the small network, made once."""
    return graphs(network(activation))


def graphs(module: nn.Module, *, reduce_range: bool = False) -> tuple[Any, Any]:
    """Return the float and the int8 graph of a colour network."""
    graph = slim(export_graph(module, COLOUR))
    ranges = {name: RANGES["mse"](values) for name, values in observe(graph, PIXELS).items()}
    return graph, insert_rounding(graph, ranges, reduce_range=reduce_range)


def test_int8_decides_as_float_does(int8: Run, tiny_dataset: Dataset) -> None:
    valid = tiny_dataset.splits["valid"]
    found = logits_of(open_onnx(int8.path / "model.int8.onnx"), valid)
    assert parity(logits_of(network_call(load(int8)), valid), found).flip_fraction <= 0.02


def test_the_run_says_how_it_was_made(int8: Run, tiny_run: Run) -> None:
    edit = int8.edits[-1]
    assert (edit["kind"], edit["scheme"], edit["ranges"]) == ("quantize", "int8", "mse")
    assert edit["calibration_split"] == "train"
    assert isinstance(edit["reduce_range"], bool)
    assert all(low <= high for low, high in edit["tensors"].values())
    assert int8.parent is not None
    assert int8.parent.path == tiny_run.path.resolve()
    assert int8.facts["kind"] == "quantize"


def test_loading_an_int8_run_gives_the_parents_float_network(int8: Run, tiny_run: Run) -> None:
    wanted, found = load(tiny_run).state_dict(), load(int8).state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_the_accuracy_in_the_ledger_is_that_of_the_int8_graph(
    int8: Run, tiny_dataset: Dataset
) -> None:
    valid = tiny_dataset.splits["valid"]
    logits = logits_of(open_onnx(int8.path / "model.int8.onnx"), valid)
    row = int8.measured("accuracy")
    assert row is not None
    assert row["value"] == pytest.approx(float((logits.argmax(1) == valid.targets).mean()))
    assert row["low"] <= row["value"] <= row["high"]


def test_the_same_run_gives_the_same_file_twice(
    int8: Run, tiny_run: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    again = quantize(tiny_run, data=tiny_dataset, out=tmp_path / "again")
    names = "model.int8.onnx"
    assert (again.path / names).read_bytes() == (int8.path / names).read_bytes()


def test_ranges_come_from_train_samples_only(tiny_run: Run, tiny_dataset: Dataset) -> None:
    class Closed(dict[str, Any]):
        def __getitem__(self, split: str) -> Any:
            assert split == "train"
            return super().__getitem__(split)

    guarded = Dataset(**{**tiny_dataset.__dict__, "splits": Closed(tiny_dataset.splits)})
    content, _ = room.int8_graph(tiny_run, guarded, "mse")
    assert len(content) > 1000


def test_calibration_samples_are_spread_over_the_classes(
    tiny_run: Run, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_run.recipe.override(compress__calibration_samples=40)
    monkeypatch.setattr(Run, "recipe", recipe)
    train = tiny_dataset.splits["train"]
    found = calibration_pixels(tiny_run, tiny_dataset)
    assert len(found) == 40
    rows = [int(np.flatnonzero((train.inputs == one).all(axis=(1, 2, 3)))[0]) for one in found]
    assert len(set(train.targets[rows].tolist())) >= 7


def test_an_unknown_scheme_is_refused_with_the_closest_name(tiny_run: Run) -> None:
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        quantize(tiny_run, "int4")


def test_an_unknown_range_is_refused_before_anything_is_written(
    tiny_run: Run, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="did you mean 'minmax'"):
        quantize(tiny_run, data=tiny_dataset, ranges="minimax", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_int8_run_is_not_quantized_again(int8: Run) -> None:
    with pytest.raises(UsageError, match="quantized already"):
        quantize(int8)


def test_weights_are_signed_per_channel_and_activations_unsigned() -> None:
    _, quantized = graphs_of(nn.ReLU)
    constants = {item.name: numpy_helper.to_array(item) for item in quantized.graph.initializer}
    kinds = [node.op_type for node in quantized.graph.node]
    weights = [array for array in constants.values() if array.dtype == np.int8 and array.ndim == 4]
    assert {array.shape for array in weights} == {(16, 3, 3, 3), (16, 16, 3, 3)}
    zeros = [constants[n.input[2]] for n in quantized.graph.node if n.op_type == "QuantizeLinear"]
    assert all(zero.dtype == np.uint8 for zero in zeros)
    assert "Relu" not in kinds
    assert kinds[-1] == "Gemm"  # its output is not rounded: close decisions stay apart


def test_the_rows_of_the_image_are_centred_before_the_layout_changes() -> None:
    _, quantized = graphs_of(nn.ReLU)
    kinds = [node.op_type for node in quantized.graph.node][:6]
    assert kinds == ["Reshape", "Cast", "Sub", "QuantizeLinear", "Reshape", "Transpose"]
    onnx.checker.check_model(quantized, full_check=True)


def test_centring_by_rows_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, by_rows = graphs_of(nn.ReLU)
    monkeypatch.setattr(qdq, "centre_rows", lambda graph: None)
    _, plain = graphs(network())
    one, other = (open_onnx(g.SerializeToString())(PIXELS) for g in (by_rows, plain))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_int8_takes_every_batch_size(count: int) -> None:
    _, quantized = graphs_of(nn.ReLU)
    call = open_onnx(quantized.SerializeToString(), threads=1)
    assert np.allclose(call(PIXELS[:count]), call(PIXELS)[:count], atol=1e-5)


@pytest.mark.parametrize(("activation", "stem"), [(nn.ReLU, np.int8), (nn.Hardswish, np.float32)])
def test_the_first_layer_stays_in_float_only_before_a_float_activation(
    activation: type[nn.Module], stem: type
) -> None:
    _, quantized = graphs_of(activation)
    found = [numpy_helper.to_array(item) for item in quantized.graph.initializer]
    assert [array.dtype for array in found if array.shape == (16, 3, 3, 3)] == [np.dtype(stem)]


def test_reduced_range_keeps_weights_within_seven_bits() -> None:
    graph, quantized = graphs(network(), reduce_range=True)
    weights = [numpy_helper.to_array(item) for item in quantized.graph.initializer]
    assert max(np.abs(w).max() for w in weights if w.dtype == np.int8) == 64
    wanted = open_onnx(graph.SerializeToString())(PIXELS)
    found = open_onnx(quantized.SerializeToString())(PIXELS)
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize(("has", "wanted"), [("", True), ("avx512", True), ("vnni", False),
                                             ("dot", False)])  # fmt: skip
def test_reduced_range_is_for_processors_that_overflow(
    monkeypatch: pytest.MonkeyPatch, has: str, wanted: bool
) -> None:
    flags = {name: name == has for name in room.processor_flags()}
    monkeypatch.setattr(room, "processor_flags", lambda: flags)
    assert room.needs_reduced_range() is wanted


def test_a_network_without_a_layer_to_quantize_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.tanh(inputs.mean((2, 3)))

    with pytest.raises(CompressError, match="nothing in this network"):
        graphs(Network(COLOUR, Mean()).eval())


def test_large_pictures_are_observed_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = slim(export_graph(network(), COLOUR))
    sizes: list[int] = []
    runs = qdq.runs

    def counted(graph: Any, names: Any, pixels: Any, size: int) -> Any:
        sizes.append(size)
        return runs(graph, names, pixels, size)

    monkeypatch.setattr(qdq, "BATCH_BYTES", 100_000)
    monkeypatch.setattr(qdq, "runs", counted)
    found = observe(graph, PIXELS)
    assert 1 <= sizes[-1] < 10
    monkeypatch.setattr(qdq, "BATCH_BYTES", 10**9)
    at_once = observe(graph, PIXELS)
    assert sizes[-1] == len(PIXELS)
    assert all(np.isclose(found[n].max(), at_once[n].max()) for n in at_once)


def test_equal_constants_are_stored_once() -> None:
    _, quantized = graphs_of(nn.ReLU)
    seen = [(i.data_type, tuple(i.dims), numpy_helper.to_array(i).tobytes())
            for i in quantized.graph.initializer]  # fmt: skip
    assert len(seen) == len(set(seen))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31), kernel=st.sampled_from([1, 3, 5]), levels=st.sampled_from([127, 64])
)
def test_rounded_weights_stay_near_and_keep_their_sums(seed: int, kernel: int, levels: int) -> None:
    shape = (6, 5, kernel, kernel)
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    weight[0] = 0
    step = np.abs(weight).reshape(6, -1).max(axis=1).reshape(-1, 1, 1, 1) / levels
    found = on_grid(weight, levels)
    whole = found / np.where(step > 0, step, 1)
    assert np.allclose(whole, np.round(whole), atol=1e-4)
    assert np.abs(whole).max() <= levels + 1e-3
    assert (np.abs(found - weight) <= 2 * step + 1e-9).all()
    assert (np.abs((found - weight).sum(axis=(1, 2, 3))) <= 0.51 * step.reshape(-1)).all()


def test_keeping_sums_loses_less_of_a_bright_picture_than_rounding_to_the_nearest() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 16, 3, 3)).astype(np.float32)
    inputs = np.abs(rng.normal(size=(200, 16, 3, 3))) + 1.0  # as after a ReLU: all positive
    step = np.abs(weight).reshape(32, -1).max(axis=1).reshape(-1, 1, 1, 1) / 127

    def lost(found: Any) -> float:
        error = np.einsum("nikl,oikl->no", inputs, found - weight)
        return float(np.square(error).mean())

    assert lost(on_grid(weight, 127)) < 0.5 * lost(np.round(weight / step) * step)
