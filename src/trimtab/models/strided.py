"""Lead small strided pointwise convolutions around a fault in oneDNN that destroys memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional

FEWEST_CHANNELS = 16  # from here on the fault does not show, whatever the processor


class Subsampled(nn.Conv2d):
    """A pointwise convolution that takes every n-th pixel first: the same numbers."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / n), ceil(W / n))."""
        down, across = self.stride
        return functional.conv2d(features[:, :, ::down, ::across], self.weight, self.bias)


@contextmanager
def sound_strides(network: nn.Module) -> Iterator[None]:
    """Train `network` inside the block without writing past a buffer; afterwards it is as before.

    The gradient of a 1x1 convolution with a stride and fewer than 16 input channels in fp32 and
    channels-last order writes past its workspace on x86 (uxlfoundation/oneDNN issue 6035, in torch
    2.14 and 2.15). Networks whose channels were cut have such layers.
    """
    layers = [module for module in network.modules() if is_faulty(module)]
    for layer in layers:
        layer.__class__ = Subsampled
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Conv2d


def is_faulty(module: nn.Module) -> bool:
    """Return whether the fault can hit this layer."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding in ((0, 0), "valid")
        and module.groups == 1
        and module.in_channels < FEWEST_CHANNELS
    )
