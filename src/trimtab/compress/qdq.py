"""Turn a float ONNX graph into an int8 one: observe, correct the biases, insert the rounding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from trimtab.errors import CompressError
from trimtab.export.onnx import INPUT, open_session, quiet, shorten

BATCH = 64
VALUES_PER_TENSOR = 100_000
WEIGHTED = ("Conv", "Gemm")
QUANTIZED = (*WEIGHTED, "MatMul", "Add", "Mul", "Relu", "Clip", "MaxPool", "Concat")
FLOAT_OUTPUTS = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}
LEVELS, REDUCED_LEVELS = 127, 63

Graph = onnx.ModelProto
Pixels = NDArray[np.uint8]


def observe(graph: Graph, pixels: Pixels) -> dict[str, NDArray[np.float32]]:
    """Return up to 100,000 values of every float tensor over `pixels`, with its extremes."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    names = [v.name for v in [*inferred.graph.value_info, *inferred.graph.output]
             if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]  # fmt: skip
    rng = np.random.default_rng(0)
    share = max(1, VALUES_PER_TENSOR // max(1, -(-len(pixels) // BATCH)))
    kept: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for found in runs(graph, names, pixels):
        for name, values in zip(names, found, strict=True):
            flat = values.ravel()
            ends = np.array([flat.min(), flat.max()], np.float32)
            part = flat if flat.size <= share else flat[rng.integers(0, flat.size, share)]
            kept[name] += [part, ends]
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def runs(graph: Graph, names: Sequence[str], pixels: Pixels) -> Any:
    """Yield the values of inner tensors `names`, batch by batch."""
    opened = copy.deepcopy(graph)
    del opened.graph.output[:]
    for name in names:
        opened.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = open_session(opened.SerializeToString(), optimize=False)
    for start in range(0, len(pixels), BATCH):
        batch = np.ascontiguousarray(pixels[start : start + BATCH])
        yield session.run(list(names), {INPUT: batch})


def correct_biases(graph: Graph, pixels: Pixels, *, reduce_range: bool) -> Graph:
    """Return the graph with the mean error of rounded weights taken out of each bias.

    Rounding W to q(W) moves a layer's mean output by (q(W) - W) E[x]; the bias takes it back.
    Source: Nagel et al. 2019 (1906.04721), section 4.2.
    """
    graph, levels = with_biases(graph), REDUCED_LEVELS if reduce_range else LEVELS
    constants = {item.name: item for item in graph.graph.initializer}
    layers = [n for n in graph.graph.node if n.op_type in WEIGHTED and n.input[1] in constants]
    means = channel_means(graph, sorted({layer.input[0] for layer in layers}), pixels)
    for layer in layers:
        weight = as_rows(layer, numpy_helper.to_array(constants[layer.input[1]]))
        lost = (weight - rounded(weight, levels)).reshape(*weight.shape[:2], -1).sum(axis=2)
        groups = next((a.i for a in layer.attribute if a.name == "group"), 1)
        mean = means[layer.input[0]].reshape(groups, -1)
        each = np.repeat(mean, weight.shape[0] // groups, axis=0)  # (outputs, inputs of its group)
        bias = numpy_helper.to_array(constants[layer.input[2]]) + (lost * each).sum(axis=1)
        item = numpy_helper.from_array(bias.astype(np.float32), layer.input[2])
        constants[layer.input[2]].CopyFrom(item)
    return graph


def as_rows(layer: onnx.NodeProto, weight: NDArray[Any]) -> NDArray[Any]:
    """Return weights with outputs first; a Gemm may hold them the other way round."""
    transposed = next((a.i for a in layer.attribute if a.name == "transB"), 0)
    return weight.T if layer.op_type == "Gemm" and not transposed else weight


def rounded(weight: NDArray[Any], levels: int) -> NDArray[Any]:
    """Return weights as int8 per output channel holds them, in float."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    step = np.where(largest > 0, largest, 1) / levels
    step = step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(np.round(weight / step) * step)


def with_biases(graph: Graph) -> Graph:
    """Return a copy in which every layer with weights has a bias of its own."""
    graph = copy.deepcopy(graph)
    constants = {item.name: item for item in graph.graph.initializer}
    for index, node in enumerate(graph.graph.node):
        if node.op_type not in WEIGHTED or node.input[1] not in constants:
            continue
        outputs = as_rows(node, numpy_helper.to_array(constants[node.input[1]])).shape[0]
        old = np.zeros(outputs, np.float32)
        if len(node.input) > 2 and node.input[2] in constants:
            old = np.broadcast_to(numpy_helper.to_array(constants[node.input[2]]), (outputs,))
        name = f"bias_{index}"
        graph.graph.initializer.append(numpy_helper.from_array(old.copy(), name))
        node.input[:] = [*node.input[:2], name]
    return graph


def channel_means(graph: Graph, names: list[str], pixels: Pixels) -> dict[str, NDArray[Any]]:
    """Return the mean per channel of inner tensors."""
    totals: dict[str, Any] = dict.fromkeys(names, 0.0)
    for found in runs(graph, names, pixels):
        for name, values in zip(names, found, strict=True):
            axes = (0, *range(2, values.ndim))
            totals[name] = totals[name] + values.mean(axis=axes) * len(values)
    return {name: total / len(pixels) for name, total in totals.items()}


def first_convolution(graph: Graph) -> list[str]:
    """Return the name of the first convolution, which stays in float.

    It sees raw pixels and has few channels: it costs little and loses most when it is rounded.
    """
    return [node.name for node in graph.graph.node if node.op_type == "Conv"][:1]


def insert_rounding(
    graph: Graph, ranges: dict[str, tuple[float, float]], *, reduce_range: bool
) -> Graph:
    """Return the int8 graph: per-channel signed weights, unsigned activations.

    Raises CompressError where nothing in the graph can be quantized.
    """
    model = onnx.shape_inference.infer_shapes(copy.deepcopy(graph))
    done = model.metadata_props.add()
    done.key, done.value = "onnx.infer", "onnxruntime.quant"  # shapes are inferred: no need to warn
    seen = {name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in ranges.items()}  # fmt: skip
    with quiet():
        quantizer = QDQQuantizer(
            model, True, reduce_range, QuantType.QInt8, QuantType.QUInt8, seen, [],
            first_convolution(graph), list(QUANTIZED), FLOAT_OUTPUTS,
        )  # fmt: skip
        quantized: Graph = quantizer.quantize_model()
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise CompressError(
            "nothing in this network can be quantized to int8",
            "it has no convolution, Gemm or MatMul beyond its first layer",
        )
    shorten(quantized)
    return quantized
