"""Random changes of whole batches, reproducible from seed and epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b

import torch
from torch import Tensor

from trimtab.data.dataset import Batch, Split, raw_batch

Augmentation = Callable[..., Tensor]  # (inputs (N, C, H, W), generator) -> inputs


def augmented_batches(
    split: Split, batch_size: int, *, seed: int, epoch: int, shift: float, flip: bool
) -> Iterator[Batch]:
    """Yield one epoch of a split, shuffled and augmented; every sample comes once.

    Order and changes depend on `seed` and `epoch` alone, so that a resumed training sees the same
    batches. A last batch of one sample joins the one before it: batch norm needs two.
    """
    order = torch.randperm(len(split), generator=generator_of(seed, epoch)).numpy()
    for number, (start, end) in enumerate(bounds(len(split), batch_size)):
        generator = generator_of(seed, epoch, number)
        inputs, targets, ids = raw_batch(split, order[start:end])
        if shift > 0:
            inputs = AUGMENTATIONS["shift"](inputs, generator, fraction=shift)
        if flip:
            inputs = AUGMENTATIONS["flip"](inputs, generator)
        yield Batch(inputs.float(), targets, ids)


def bounds(samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Return first and last row (exclusive) of each batch; none but an only one is a singleton."""
    starts = list(range(0, samples, batch_size))
    if len(starts) > 1 and samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], samples], strict=True))


def generator_of(*counters: int) -> torch.Generator:
    """Return a generator whose numbers depend on `counters` alone."""
    digest = blake2b(repr(counters).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def shift(inputs: Tensor, generator: torch.Generator, fraction: float = 0.125) -> Tensor:
    """Move every picture by its own random offset, at most `fraction` of each side.

    What comes in at an edge is the picture mirrored (He et al. 2015, section 4.2, with reflection
    for zeros). One gather over the batch: rows of a mirrored-out copy, read at shifted places.
    """
    count, channels, height, width = inputs.shape
    down, across = (min(round(side * fraction), side - 1) for side in (height, width))
    source = inputs.permute(0, 2, 3, 1)
    wide = mirrored(mirrored(source, 1, down), 2, across).contiguous()
    tall_side, wide_side = height + 2 * down, width + 2 * across
    top = offsets(count, down, generator).to(inputs.device)
    left = offsets(count, across, generator).to(inputs.device)
    number, line = (torch.arange(n, device=inputs.device) for n in (count, height))
    first = ((number[:, None] * tall_side + top + line) * wide_side + left).reshape(-1)
    windows = wide.as_strided((count * tall_side * wide_side - width + 1, width * channels),
                              (channels, 1))  # fmt: skip
    moved = windows.index_select(0, first).reshape(count, height, width, channels)
    return moved.permute(0, 3, 1, 2)


def offsets(count: int, border: int, generator: torch.Generator) -> Tensor:
    """Draw whole numbers (count, 1) from 0 to twice the border, both included."""
    device = generator.device
    return torch.randint(0, 2 * border + 1, (count, 1), generator=generator, device=device)


def mirrored(inputs: Tensor, dim: int, border: int) -> Tensor:
    """Add `border` mirrored rows or columns on both sides of `dim`; the edge is not repeated."""
    if not border:
        return inputs
    size = inputs.shape[dim]
    before = inputs.narrow(dim, 1, border).flip(dim)
    after = inputs.narrow(dim, size - 1 - border, border).flip(dim)
    return torch.cat([before, inputs, after], dim)


def flip(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every picture left to right with probability one half."""
    chosen = torch.rand(len(inputs), generator=generator, device=generator.device) < 0.5
    changed = inputs.clone()
    chosen = chosen.to(inputs.device)
    changed[chosen] = inputs[chosen].flip(3)
    return changed


AUGMENTATIONS: dict[str, Augmentation] = {"shift": shift, "flip": flip}
