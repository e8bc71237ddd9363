"""Copy tensors to host memory that is used again, and write such copies as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import UsageError
from trimtab.models.kernels import call, is_here

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


@dataclass(frozen=True)
class Copy:
    """Tensors in host memory, and the pieces of their file, known before they are written."""

    tensors: dict[str, Tensor]
    header: bytes
    runs: list[Tensor]  # what lies side by side in memory as one, in the order of the file


def take(groups: Groups, old: Mapping[str, Copy]) -> dict[str, Copy]:
    """Return copies of all tensors in host memory, finished when this returns.

    Memory of `old`, an earlier result that nobody reads any more, is used again where it fits:
    fresh pages would cost more than the copy. All are copied by one call, by all threads; from a
    graphics processor into pinned memory. Raises UsageError for what cannot be stored.
    """
    copies = {group: room_for(group, groups[group], old.get(group)) for group in groups}
    sources = [one for tensors in groups.values() for one in tensors.values()]
    targets = [copies[group].tensors[name] for group, tensors in groups.items() for name in tensors]
    if targets and all(map(alike, targets, sources)) and is_here():
        bytes_each = tuple(one.nbytes for one in sources)
        call("copy_tensors", addresses(sources), addresses(targets), bytes_each, len(sources))
    elif targets:
        with torch.no_grad():
            torch._foreach_copy_(targets, sources, non_blocking=True)
    if any(one.is_cuda for one in sources):
        torch.cuda.synchronize()
    return copies


def with_nan(tensors: Tensors) -> list[str]:
    """Return the names of those tensors in host memory that hold a NaN, by this thread alone."""
    real = {name: one for name, one in tensors.items() if one.is_floating_point() and one.numel()}
    wide = {name: one if one.itemsize > 2 else one.float() for name, one in real.items()}
    return [name for name, one in wide.items() if np.isnan(one.numpy().min())]


def alike(target: Tensor, source: Tensor) -> bool:
    """Return whether both lie in this machine's memory in the same order without gaps."""
    turned = source.is_conj() or source.is_neg()  # its memory holds other values
    return source.device.type == "cpu" and not turned and source.stride() == target.stride()


def addresses(tensors: Iterable[Tensor]) -> tuple[int, ...]:
    """Return where the values of tensors begin."""
    return tuple(one.data_ptr() for one in tensors)


def room_for(group: str, tensors: Tensors, old: Copy | None) -> Copy:
    """Return host memory for `tensors`, each in its own order: `old` where that fits.

    All are parts of one block, in the order of the file, so that neighbours are written at once.
    """
    if old is not None and fits(old.tensors, tensors):
        return old
    for name, one in tensors.items():
        if one.layout != torch.strided or one.dtype not in DTYPES or name == METADATA:
            what = f"{group}/{name} cannot be kept in a checkpoint: {one.layout}, {one.dtype}"
            raise UsageError(what, "checkpoints hold dense tensors of plain types")
    # Larger types first, so that all values are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    pinned = any(one.is_cuda for one in tensors.values())
    block = torch.empty(total_bytes({group: tensors}), dtype=torch.uint8, pin_memory=pinned)
    parts = block.split([tensors[name].nbytes for name in names]) if names else ()
    copies = {name: part.view(tensors[name].dtype).as_strided(tensors[name].shape,
                                                              strides(tensors[name]))
              for name, part in zip(names, parts, strict=True)}  # fmt: skip
    return Copy(copies, header_of(copies), joined(copies.values(), block))


def fits(buffers: Tensors, sources: Tensors) -> bool:
    """Return whether `buffers` are what copies of `sources` would be put into."""
    return buffers.keys() == sources.keys() and all(
        buffer.dtype == source.dtype
        and buffer.shape == source.shape
        and source.layout == torch.strided
        and (buffer.stride() == source.stride() or buffer.stride() == strides(source))
        for buffer, source in ((buffers[name], sources[name]) for name in sources)
    )


def strides(source: Tensor) -> tuple[int, ...]:
    """Return the strides of a copy of `source` without gaps."""
    return torch.empty_like(source, device="meta").stride()


def joined(parts: Iterable[Tensor], block: Tensor) -> list[Tensor]:
    """Return the `parts` of a block, in order; those that need no turning come together."""
    runs: list[Tensor] = []
    start = end = 0
    for part in parts:
        if not part.is_contiguous():
            runs += [block[start:end], part]
            start = end + part.nbytes
        end += part.nbytes
    return [run for run in [*runs, block[start:end]] if run.numel()]


def safetensors_of(copy: Copy) -> Iterator[bytes | memoryview]:
    """Yield the pieces of the safetensors file of host tensors.

    Eight bytes of little-endian length, a JSON header padded by spaces, then the values without
    gaps (format: github.com/huggingface/safetensors). Pieces are views of the tensors: written and
    hashed without another copy and without Python's lock, so that training goes on meanwhile.
    """
    yield copy.header
    for run in copy.runs:
        values = run.contiguous().reshape(-1).view(torch.uint8).numpy().data
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
