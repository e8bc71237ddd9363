"""Augmentations that blend each sample of a batch with another, targets included."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.data.dataset import Batch
from trimtab.data.draw import Draw
from trimtab.data.values import per_sample


def mix(batch: Batch, draw: Draw, *, mixup: float, cutmix: float, classes: int) -> Batch:
    """Blend every sample with the one before it in the batch, the first with the last.

    `mixup` and `cutmix` are the alphas, of which one at least is above 0; where both are, each
    sample draws which. The shares are drawn per sample. Targets become (N, K) float32 with rows
    that sum to 1.
    """
    if not cutmix:
        return mixed_up(batch, draw, alpha=mixup, classes=classes)
    if not mixup:
        return cut_and_mixed(batch, draw, alpha=cutmix, classes=classes)
    share = draw.beta("mixup", mixup)
    keep, kept = boxes(draw, cutmix, batch.inputs)
    pasted = draw.bits("mix") < 0
    keep = torch.where(per_sample(pasted), keep, per_sample(share))
    return blended(batch, keep, torch.where(pasted, kept, share), classes)


def mixed_up(batch: Batch, draw: Draw, *, alpha: float, classes: int) -> Batch:
    """Average every sample with its partner, by a share from Beta(alpha, alpha) (Zhang 2018)."""
    share = draw.beta("mixup", alpha)
    return blended(batch, per_sample(share), share, classes)


def cut_and_mixed(batch: Batch, draw: Draw, *, alpha: float, classes: int) -> Batch:
    """Paste a box of its partner into every sample (Yun et al. 2019)."""
    keep, kept = boxes(draw, alpha, batch.inputs)
    return blended(batch, keep, kept, classes)


def boxes(draw: Draw, alpha: float, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one box per sample: masks (N, 1, H, W), 0 inside it, and the share outside (N,).

    Its area is 1 - lambda of the picture, lambda from Beta(alpha, alpha); its centre is any pixel
    and what of it lies outside is lost, so that the share is counted afterwards (Yun et al. 2019,
    appendix A).
    """
    side = (1 - draw.beta("cutmix", alpha)).sqrt_()
    down = inside(draw, "cutmix.down", side, inputs.shape[2])
    across = inside(draw, "cutmix.across", side, inputs.shape[3])
    area = down.sum(1) * across.sum(1)
    keep = ~(down[:, None, :, None] & across[:, None, None, :])
    return keep.float(), 1 - area / (inputs.shape[2] * inputs.shape[3])


def inside(draw: Draw, what: str, side: Tensor, size: int) -> Tensor:
    """Return which of `size` lines are in a box of `side` (N,) as a fraction: (N, size) bool."""
    extent = (side * size).long()
    first = (draw.integers(what, 0, size) - extent // 2)[:, None]
    lines = torch.arange(size, device=side.device)
    return (lines >= first) & (lines < first + extent[:, None])


def blended(batch: Batch, keep: Tensor, share: Tensor, classes: int) -> Batch:
    """Keep of each sample what `keep` says, in [0, 1], and fill up with the one before it."""
    own = torch.zeros(len(share), classes, device=share.device)
    own.scatter_(1, batch.targets[:, None], 1)
    inputs = torch.lerp(before(batch.inputs), batch.inputs, keep)
    return Batch(inputs, torch.lerp(before(own), own, share[:, None]), batch.ids)


def before(rows: Tensor) -> Tensor:
    """Return the batch moved on by one."""
    return torch.cat([rows[-1:], rows[:-1]])
