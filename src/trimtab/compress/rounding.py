"""Round weights so that what a layer adds up stays right: the sums of a kernel and of a channel."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

LEVELS, REDUCED_LEVELS = 127, 64  # the largest int8 weight, in full and in reduced range
WEIGHTED = ("Conv", "Gemm", "MatMul")

Floats = NDArray[np.float64]


def round_weights(graph: onnx.GraphProto, *, reduce_range: bool) -> None:
    """Put every weight of `graph` on the int8 grid of its output channel, in place.

    An int8 writer that takes the largest weight of each channel as its range then finds each weight
    where it stands.
    """
    constants = {item.name: item for item in graph.initializer}
    levels = REDUCED_LEVELS if reduce_range else LEVELS
    for node in graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in constants:
            continue
        item = constants[node.input[1]]
        weight = numpy_helper.to_array(item)
        rows = on_grid(weight.T if outputs_last(node, weight) else weight, levels)
        found = rows.T if outputs_last(node, weight) else rows
        item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(found, np.float32), item.name))


def outputs_last(node: onnx.NodeProto, weight: NDArray[np.float32]) -> bool:
    """Return whether a layer's weight (inputs, outputs) has its outputs last."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return node.op_type != "Conv" and weight.ndim == 2 and not transposed


def on_grid(weight: NDArray[np.float32], levels: int) -> Floats:
    """Return weights (outputs, inputs, …) rounded to `levels` steps up to each output's largest.

    Rounding to the nearest leaves a sum of errors that a bright patch or an active channel
    multiplies; here a few weights are rounded the other way, those nearest to half a step, until
    the error of each kernel's sum, then of each channel's, is at most half a step.
    Source: Guo et al. 2022 (SQuant, 2202.07471), sections 3.2 and 3.3.
    """
    values = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    step = np.where(largest > 0, largest, 1.0) / levels
    exact = values / step
    whole = balanced(np.round(exact), exact)
    channels = (len(weight), -1)
    whole = balanced(whole.reshape(channels), exact.reshape(channels)).reshape(exact.shape)
    return np.asarray(np.clip(whole, -levels, levels) * step).reshape(weight.shape)


def balanced(whole: Floats, exact: Floats) -> Floats:
    """Move as many entries of `whole` by one as bring the sum of each last axis to `exact`'s."""
    error = whole - exact
    excess = np.round(error.sum(axis=-1, keepdims=True))
    direction = np.sign(excess)
    order = np.argsort(-error * direction, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable")
    return np.asarray(whole - np.where(rank < np.abs(excess), direction, 0.0))
