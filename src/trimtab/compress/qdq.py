"""Turn a float ONNX graph into an int8 one: observe, round the weights, insert the rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from trimtab.compress.rounding import round_weights
from trimtab.compress.rows import centre_rows
from trimtab.errors import CompressError
from trimtab.export.onnx import INPUT, open_session, quiet, shorten

BATCH_BYTES = 128_000_000  # of all tensors of one batch
LARGEST_BATCH = 64
VALUES_PER_TENSOR = 100_000
QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "Concat")
FLOAT_OUTPUTS = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]}

Graph = onnx.ModelProto
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def observe(graph: Graph, pixels: Pixels) -> dict[str, Floats]:
    """Return up to 100,000 values of every float tensor over `pixels`, with its extremes."""
    inferred = onnx.shape_inference.infer_shapes(graph)
    names = [v.name for v in [*inferred.graph.value_info, *inferred.graph.output]
             if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]  # fmt: skip
    size = batch_size(graph, names, pixels)
    rng = np.random.default_rng(0)
    share = max(1, VALUES_PER_TENSOR * size // len(pixels))
    kept: dict[str, list[Floats]] = {name: [] for name in names}
    for found in runs(graph, names, pixels, size):
        for name, values in zip(names, found, strict=True):
            flat = values.ravel()
            ends = np.array([flat.min(), flat.max()], np.float32)
            part = flat if flat.size <= share else flat[rng.integers(0, flat.size, share)]
            kept[name] += [part, ends]
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def batch_size(graph: Graph, names: Sequence[str], pixels: Pixels) -> int:
    """Return how many pictures at once keep all inner tensors within `BATCH_BYTES`."""
    first = next(runs(graph, names, pixels[:1], 1))
    size = BATCH_BYTES // sum(values.nbytes for values in first)
    return max(1, min(size, LARGEST_BATCH, len(pixels)))


def runs(graph: Graph, names: Sequence[str], pixels: Pixels, size: int) -> Iterator[list[Floats]]:
    """Yield the values of inner tensors `names`, `size` pictures at a time."""
    opened = copy.deepcopy(graph)
    del opened.graph.output[:]
    for name in names:
        opened.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = open_session(opened.SerializeToString(), optimize=False)
    for start in range(0, len(pixels), size):
        batch = np.ascontiguousarray(pixels[start : start + size])
        yield session.run(list(names), {INPUT: batch})


def insert_rounding(
    graph: Graph, ranges: dict[str, tuple[float, float]], *, reduce_range: bool
) -> Graph:
    """Return the int8 graph: per-channel signed weights, unsigned activations.

    Raises CompressError where nothing in the graph can be quantized.
    """
    model = onnx.shape_inference.infer_shapes(copy.deepcopy(graph))
    round_weights(model.graph, reduce_range=reduce_range)
    done = model.metadata_props.add()
    done.key, done.value = "onnx.infer", "onnxruntime.quant"  # shapes are inferred: no need to warn
    seen = {name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in ranges.items()}  # fmt: skip
    with quiet():
        quantizer = QDQQuantizer(
            model, True, reduce_range, QuantType.QInt8, QuantType.QUInt8, seen, [],
            float_stem(graph.graph), list(QUANTIZED), FLOAT_OUTPUTS,
        )  # fmt: skip
        quantized: Graph = quantizer.quantize_model()
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise CompressError(
            "nothing in this network can be quantized to int8",
            "it has no convolution, Gemm or MatMul beyond its first layer",
        )
    centre_rows(quantized.graph)
    share_equal(quantized.graph)
    put_in_order(quantized.graph)
    shorten(quantized)
    return quantized


def float_stem(graph: onnx.GraphProto) -> list[str]:
    """Return the name of the first convolution where it is better left in float, else nothing.

    Its three channels make poor use of int8 instructions. That matters only where what follows is
    computed in float anyway (HardSwish, SiLU); in front of a ReLU or a pooling layer, a float
    stem makes a ResNet-18 run 1.7 times as long.
    """
    for node in graph.node:
        if node.op_type == "Conv":
            after = [n.op_type for n in graph.node if node.output[0] in n.input]
            return [node.name] if after and not set(after) & set(QUANTIZED) else []
    return []


def share_equal(graph: onnx.GraphProto) -> None:
    """Keep one of several equal constants (zero points, mostly), in place."""
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    for item in list(graph.initializer):
        content = numpy_helper.to_array(item).tobytes()
        names[item.name] = kept.setdefault((item.data_type, tuple(item.dims), content), item.name)
        if names[item.name] != item.name:
            graph.initializer.remove(item)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def put_in_order(graph: onnx.GraphProto) -> None:
    """Put every node behind those it reads from, as the format demands, in place."""
    known = {"", *(item.name for item in [*graph.initializer, *graph.input])}
    waiting, done = list(graph.node), []
    while waiting:
        ready = []
        for node in waiting:
            if known.issuperset(node.input):
                known.update(node.output)
                ready.append(node)
        assert ready, "a graph has no circles"
        done += ready
        waiting = [node for node in waiting if not known.issuperset(node.output)]
    del graph.node[:]
    graph.node.extend(done)
