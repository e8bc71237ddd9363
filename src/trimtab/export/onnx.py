"""Networks as ONNX files: raw uint8 pixels in, normalisation inside, logits out."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from trimtab.errors import ExportError, UnsafeError
from trimtab.machine.processor import core_count
from trimtab.records.files import write_bytes
from trimtab.records.schema import Schema

INPUT, OUTPUT = "image", "logits"
EXAMPLES = 2  # a batch of one would be taken for a constant
NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._dynamo")
ELSEWHERE = b"location"
SPATIAL = ([2, 3], [-2, -1], [-1, -2])


class FromPixels(nn.Module):
    """A network that takes uint8 pixels (N, H, W, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Map uint8 pixels (N, H, W, C) to logits (N, K)."""
        # contiguous, since adaptive pooling of channels-last tensors is exported as a gather
        pixels = image.permute(0, 3, 1, 2).contiguous().float()
        return self.network(pixels)  # type: ignore[no-any-return]


def write_onnx(network: nn.Module, schema: Schema, path: Path) -> None:
    """Write `network` as an ONNX file; batch size is free, weights are inside the file.

    Input `image` uint8 (N, H, W, C), output `logits` float (N, K). Raises ExportError where the
    network holds something that has no ONNX form.
    """
    model = slim(export_graph(network, schema))
    write_bytes(path, model.SerializeToString())


def export_graph(network: nn.Module, schema: Schema) -> onnx.ModelProto:
    """Trace `network` in eval mode on the processor."""
    module = FromPixels(copy.deepcopy(network).cpu()).eval()
    shape = (EXAMPLES, schema.height, schema.width, schema.channels)
    example = torch.zeros(shape, dtype=torch.uint8)
    with quiet():
        try:
            program = torch.onnx.export(
                module, (example,), dynamo=True, verbose=False, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("N")},),
            )  # fmt: skip
        except Exception as error:
            first = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise ExportError(
                f"the network cannot be written as ONNX: {first}",
                "leave out data-dependent Python branches; its forward must be traceable",
            ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's logs and warnings off the terminal."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold the scaling into the first layer, name nodes shortly, and drop what only tools read."""
    fold_scaling(model.graph)
    pool_for_mean(model.graph)
    drop_unused(model.graph)
    shorten(model)
    return model


def fold_scaling(graph: onnx.GraphProto) -> None:
    """Fold a per-channel division in front of a convolution into its weights.

    Zero padding stays exact, since zero divided is zero.
    """
    constants = {item.name: item for item in graph.initializer}
    for node in list(graph.node):
        readers = [n for n in graph.node if node.output[0] in n.input]
        if node.op_type != "Div" or node.input[1] not in constants or len(readers) != 1:
            continue
        conv = readers[0]
        divisor = numpy_helper.to_array(constants[node.input[1]]).reshape(-1)
        if conv.op_type != "Conv" or conv.input[1] not in constants:
            continue
        weight = numpy_helper.to_array(constants[conv.input[1]])
        if weight.shape[1] == divisor.size:
            scaled = (weight / divisor.reshape(1, -1, 1, 1)).astype(np.float32)
            constants[conv.input[1]].CopyFrom(numpy_helper.from_array(scaled, conv.input[1]))
            conv.input[0] = node.input[0]
            graph.node.remove(node)


def pool_for_mean(graph: onnx.GraphProto) -> None:
    """Write a mean over height and width as global average pooling, which runtimes fuse."""
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in list(graph.node):
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        if constants[node.input[1]].tolist() not in SPATIAL:
            continue
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        node.op_type = "GlobalAveragePool"
        del node.attribute[:]
        del node.input[1:]
        if not keep:
            flat, pooled = node.output[0], f"{node.output[0]}_pooled"
            node.output[0] = pooled
            place = list(graph.node).index(node) + 1
            graph.node.insert(place, helper.make_node("Flatten", [pooled], [flat], axis=1))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove constants that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for item in list(graph.initializer):
        if item.name not in used:
            graph.initializer.remove(item)


def shorten(model: onnx.ModelProto) -> None:
    """Give tensors and nodes short names and drop documentation, so that small files are small."""
    graph, names = model.graph, {"": "", INPUT: INPUT, OUTPUT: OUTPUT}
    for index, node in enumerate(graph.node):
        for field in ("metadata_props", "doc_string"):
            node.ClearField(field)
        node.name = f"n{index}"
        node.input[:] = [names.setdefault(name, f"t{len(names)}") for name in node.input]
        node.output[:] = [names.setdefault(name, f"t{len(names)}") for name in node.output]
    for item in [*graph.initializer, *graph.input, *graph.output]:
        item.name = names.setdefault(item.name, f"t{len(names)}")
        for field in ("metadata_props", "doc_string"):
            item.ClearField(field)
    del graph.value_info[:]
    model.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    model.ClearField("functions")
    graph.name = "trimtab"


def open_onnx(
    path: Path | bytes, *, threads: int = 0
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Return a file as a function of uint8 pixels (N, H, W, C) to logits (N, K).

    Runs on the processor with `threads` threads, 0 for all cores. Raises UnsafeError for a file
    that is no ONNX or whose weights lie outside it.
    """
    session = open_session(path, threads=threads)

    def call(pixels: NDArray[Any]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: pixels})[0]
        return logits

    return call


def open_session(path: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Any:
    """Open a file as an onnxruntime session; idle threads sleep instead of spin."""
    content = path if isinstance(path, bytes) else path.read_bytes()
    require_inside(content, path if isinstance(path, Path) else Path("model.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or core_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def require_inside(content: bytes, path: Path) -> None:
    """Raise UnsafeError for what is no ONNX, or points to files outside itself.

    A tensor of any node or subgraph that lies in another file names it under the key `location`.
    """
    try:
        onnx.load_model_from_string(content)
    except Exception as error:
        raise UnsafeError(f"{path} is no ONNX file", "export the run again") from error
    if ELSEWHERE in content:
        raise UnsafeError(f"{path} keeps weights in other files",
                          "only files with their weights inside are opened")  # fmt: skip
