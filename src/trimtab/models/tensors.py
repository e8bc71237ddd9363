"""Read the tensors of a weights file, whoever wrote it, without running anything it says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from trimtab.errors import UsageError

SAFETENSORS, NUMPY, TORCH = ".safetensors", ".npz", (".pt", ".pth", ".th", ".bin")
KINDS = (SAFETENSORS, NUMPY, *TORCH)
SCALE = ":scale"
INSIDE = ("state_dict", "model")  # keys under which training scripts keep the tensors
PARALLEL = "module."  # what DataParallel puts in front of every name


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the processor.

    `.npz` holds arrays, an int8 one `key` beside its factors `key:scale`; torch's files hold
    tensors by name, perhaps below `state_dict` or `model`; `module.` in front of all names is left
    out. Raises UsageError for a file that is missing, of another kind or damaged, and for one that
    holds more than tensors and plain values.
    """
    if path.suffix not in KINDS:
        raise UsageError(f"{path} is no weights file trimtab reads, wanted {', '.join(KINDS)}",
                         "save the weights as safetensors")  # fmt: skip
    if not path.is_file():
        raise UsageError(
            f"there is no weights file {path.absolute()}",
            f"put {path.name} there, or give its path as model.pretrained",
        )
    try:
        found = tensors_of(path)
    except Exception as error:
        first = str(error).split("\n")[0][:200]
        raise UsageError(
            f"{path} cannot be read as weights: {first}",
            "fetch or save it again; files with code in them are not read",
        ) from error
    if not found:
        raise UsageError(f"{path} holds no tensors", "save a state_dict, names to tensors")
    if all(name.startswith(PARALLEL) for name in found):
        return {name.removeprefix(PARALLEL): value for name, value in found.items()}
    return found


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by the reader for its ending."""
    if path.suffix == SAFETENSORS:
        return dict(load_file(path))
    return from_numpy(path) if path.suffix == NUMPY else from_torch(path)


def from_numpy(path: Path) -> dict[str, Tensor]:
    """Return the arrays of an `.npz` file; those with a scale are multiplied by it."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    plain = {name: value for name, value in arrays.items() if not name.endswith(SCALE)}
    for name in plain:
        if name + SCALE in arrays:
            plain[name] = (plain[name] * arrays[name + SCALE]).astype(np.float32)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in plain.items()}


def from_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of torch; anything but data in it makes torch refuse it."""
    found: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, no names and tensors")
    found = next((found[key] for key in INSIDE if isinstance(found.get(key), Mapping)), found)
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def digest_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
