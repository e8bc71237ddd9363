"""Centre raw pixels row by row, which runtimes do fast in an int8 graph."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trimtab.export.onnx import INPUT

CHAIN = ("QuantizeLinear", "Sub", "Cast", "Transpose")


def centre_rows(graph: onnx.GraphProto) -> None:
    """Subtract the mean and round on rows of W x C values, before the change of layout, in place.

    A runtime that moves the transposition behind the rounding is left to subtract three means from
    three channels, element by element: 0.5 ms at 224 pixels where 0.05 ms will do. The numbers
    are the same to the bit. Graphs that begin otherwise stay as they are.
    """
    chain = input_chain(graph)
    if not chain:
        return
    rounding, centring, _, layout = chain
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    mean = constants[centring.input[1]].reshape(-1)
    _, height, width, channels = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim)
    if channels == 1 or mean.size != channels:
        return
    add(graph, "row_mean", np.tile(mean, width).astype(np.float32))
    add(graph, "row_shape", np.array([0, height, width * channels], np.int64))
    add(graph, "image_shape", np.array([0, height, width, channels], np.int64))
    front = [
        helper.make_node("Reshape", [INPUT, "row_shape"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["row_values"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["row_values", "row_mean"], ["centred"]),
        helper.make_node("QuantizeLinear", ["centred", *rounding.input[1:]], ["row_steps"]),
        helper.make_node("Reshape", ["row_steps", "image_shape"], ["image_steps"]),
        helper.make_node("Transpose", ["image_steps"], list(rounding.output),
                         perm=list(layout.attribute[0].ints)),
    ]  # fmt: skip
    rest = [node for node in graph.node if not any(node is link for link in chain)]
    del graph.node[:]
    graph.node.extend([*front, *rest])


def input_chain(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes between the image and its rounding, last first, or nothing."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in graph.node:
        links = [node]
        while len(links) < len(CHAIN) and links[-1].input and links[-1].input[0] in makers:
            links.append(makers[links[-1].input[0]])
        alone = all(readers[link.output[0]] == 1 for link in links[1:])
        if tuple(link.op_type for link in links) == CHAIN and links[-1].input[0] == INPUT and alone:
            return links
    return []


def add(graph: onnx.GraphProto, name: str, value: NDArray[np.float32 | np.int64]) -> None:
    """Add a constant to `graph`."""
    graph.initializer.append(numpy_helper.from_array(value, name))
