"""Copy tensors to host memory that is used again, and write such copies as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from trimtab.errors import UsageError

CHUNK_BYTES = 8 << 20
METADATA = "__metadata__"  # a key that safetensors keeps for itself
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip

Tensors = Mapping[str, Tensor]
Groups = Mapping[str, Tensors]


def total_bytes(groups: Groups) -> int:
    """Return how many bytes the values of all tensors take."""
    return sum(one.numel() * one.element_size() for group in groups.values()
               for one in group.values())  # fmt: skip


def take(groups: Groups, old: Groups) -> dict[str, dict[str, Tensor]]:
    """Return copies of all tensors in host memory, finished when this returns.

    Memory of `old`, an earlier result that nobody reads any more, is used again where it fits:
    fresh pages would cost more than the copy. All are copied by one call, which uses torch's
    threads; from a graphics processor into pinned memory. Raises UsageError for what cannot be
    stored.
    """
    copies: dict[str, dict[str, Tensor]] = {}
    sources: list[Tensor] = []
    for group, tensors in groups.items():
        known = old.get(group, {})
        copies[group] = {name: room_for(group, name, tensor, known.get(name))
                         for name, tensor in tensors.items()}  # fmt: skip
        sources += tensors.values()
    targets = [buffer for buffers in copies.values() for buffer in buffers.values()]
    if targets:
        with torch.no_grad():
            torch._foreach_copy_(targets, sources, non_blocking=True)
    if any(one.is_cuda for one in sources):
        torch.cuda.synchronize()
    return copies


def room_for(group: str, name: str, source: Tensor, buffer: Tensor | None) -> Tensor:
    """Return host memory in the order of `source`: `buffer` where that fits."""
    if buffer is not None and fits(buffer, source):
        return buffer
    if source.layout != torch.strided or source.dtype not in DTYPES or name == METADATA:
        what = f"{group}/{name} cannot be kept in a checkpoint: {source.layout}, {source.dtype}"
        raise UsageError(what, "checkpoints hold dense tensors of plain types")
    return torch.empty_like(source, device="cpu", pin_memory=source.is_cuda, requires_grad=False)


def fits(buffer: Tensor, source: Tensor) -> bool:
    """Return whether `buffer` is what a copy of `source` would be put into."""
    return (
        buffer.dtype == source.dtype
        and buffer.shape == source.shape
        and source.layout == torch.strided
        and buffer.stride() == source.stride()
    )


def safetensors_of(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """Yield the pieces of the safetensors file of host tensors.

    Eight bytes of little-endian length, a JSON header padded by spaces, then the values without
    gaps, larger types first so that all are aligned (format: github.com/huggingface/safetensors).
    Pieces are views of the tensors: written and hashed without another copy and without Python's
    lock, so that training goes on meanwhile.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    yield header_of({name: tensors[name] for name in names})
    for name in names:
        values = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(values), CHUNK_BYTES):
            yield values[start : start + CHUNK_BYTES]


def header_of(tensors: Tensors) -> bytes:
    """Return the length and the header of a file that holds `tensors` in this order."""
    entries, start = {}, 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape),
                         "data_offsets": [start, end]}  # fmt: skip
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
