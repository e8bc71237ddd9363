"""Which device trains."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """Return the first CUDA device where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seed_everything(seed: int) -> None:
    """Seed torch's global generators (weights' initial values, dropout)."""
    torch.manual_seed(seed)


def device_name(device: torch.device) -> str:
    """Return a name for the ledger, e.g. `cpu, 2 threads`."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu, {torch.get_num_threads()} threads"
