"""Random numbers that are a function of what they are for: no state, no order, no batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # the odd constants of splitmix64, as signed numbers
FIRST, SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
HALF_RANGE = 1 << 31


@dataclass(frozen=True, eq=False)
class Draw:
    """Random numbers for the samples `ids` (N,) int64 in one epoch, on the device of `ids`.

    Each number is a hash of seed, epoch, branch, id, the name of the draw and the place within
    its shape. So a sample gets the same numbers in every batch and every order, and the same name
    gives the same numbers again.
    """

    seed: int
    epoch: int
    ids: Tensor
    branch: tuple[str, ...] = ()

    def take(self, rows: Tensor) -> Draw:
        """Return the draws of some rows of the batch."""
        return replace(self, ids=self.ids[rows])

    def to(self, device: torch.device) -> Draw:
        """Return the same draws on another device."""
        return replace(self, ids=self.ids.to(device))

    def branched(self, name: str) -> Draw:
        """Return draws independent of these, for a part that is used more than once."""
        return replace(self, branch=(*self.branch, name))

    @cached_property
    def start(self) -> Tensor:
        """Return one hashed number per sample (N,)."""
        return scrambled(self.ids * GAMMA + key_of(self.seed, self.epoch, self.branch))

    def bits(self, what: str, *shape: int) -> Tensor:
        """Return 64 random bits each, as int64 (N, *shape)."""
        if not shape:
            return scrambled(self.start + key_of(what))
        count = math.prod(shape)
        places = torch.arange(count, device=self.ids.device).mul_(GAMMA).add_(key_of(what))
        return scrambled(self.start[:, None] + places).view(len(self.ids), *shape)

    def uniform(self, what: str, *shape: int) -> Tensor:
        """Return float32 (N, *shape) in [0, 1), in steps of 2**-24."""
        return (self.bits(what, *shape) >> 40).to(torch.float32).mul_(2.0**-24).add_(0.5)

    def integers(self, what: str, low: int, high: int, *shape: int) -> Tensor:
        """Return int64 (N, *shape) from `low` to `high` - 1; at most 2**31 values."""
        upper = (self.bits(what, *shape) >> 32).add_(HALF_RANGE)  # 32 bits, not negative
        return (upper.mul_(high - low) >> 32).add_(low)

    def signs(self, what: str, *shape: int) -> Tensor:
        """Return float32 (N, *shape) of -1 and 1."""
        return (self.bits(what, *shape) >> 63).to(torch.float32).mul_(2).add_(1)

    def normal(self, what: str, *shape: int) -> Tensor:
        """Return standard normal float32 (N, *shape) (Box & Muller 1958)."""
        radius = (1 - self.uniform(f"{what}.radius", *shape).double()).log_().mul_(-2).sqrt_()
        angle = self.uniform(f"{what}.angle", *shape).double().mul_(2 * math.pi)
        return radius.mul_(angle.cos_()).float()

    def beta(self, what: str, alpha: float) -> Tensor:
        """Return float32 (N,) in [0, 1], distributed as Beta(alpha, alpha); alpha above 0.

        Exact, without rejection: Bailey's polar method for Student's t with 2 alpha degrees of
        freedom (Bailey 1994), turned into a beta variate (Devroye 1996, section 2).
        """
        chance = 1 - self.uniform(f"{what}.radius").double()  # in (0, 1]
        cosine = self.uniform(f"{what}.angle").double().mul_(2 * math.pi).cos_()
        square = torch.expm1(chance.log_() / -alpha) * cosine**2
        return (cosine.sign() / (1 + 1 / square).sqrt_()).mul_(0.5).add_(0.5).float()


def scrambled(values: Tensor) -> Tensor:
    """Mix int64 bits in place: the finaliser of splitmix64 (Steele et al. 2014, figure 15)."""
    values.bitwise_xor_(shifted(values, 30)).mul_(FIRST)
    values.bitwise_xor_(shifted(values, 27)).mul_(SECOND)
    return values.bitwise_xor_(shifted(values, 31))


def shifted(values: Tensor, by: int) -> Tensor:
    """Shift int64 bits to the right and fill up with zeros, not with the sign."""
    return (values >> by).bitwise_and_((1 << (64 - by)) - 1)


@lru_cache(maxsize=4096)
def key_of(*parts: object) -> int:
    """Return a signed 64-bit hash of what a stream is for."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
