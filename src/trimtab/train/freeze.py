"""Which part of a network learns: only its head at first, then all of it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from trimtab.models.depth import head_of
from trimtab.train.norms import train_mode


class Freeze:
    """Lets only the last layer learn until the share `head_only` of a training is done.

    What is frozen costs no gradient, gets no step, and its batch norms keep their statistics; the
    optimizer holds it all the while. With `norms` they keep them to the end.
    What learns follows from the progress alone, so that a resumed training needs no memory of it.
    """

    def __init__(
        self, network: nn.Module, parameters: Iterable[Tensor], *, head_only: float, norms: bool
    ) -> None:
        head = {id(one) for one in head_of(network)[1].parameters()} if head_only else set()
        self.network, self.head_only, self.norms = network, head_only, norms
        self.body = [one for one in parameters if id(one) not in head]
        self.frozen = False

    def follow(self, progress: float) -> None:
        """Freeze or thaw the body as it belongs to `progress` in [0, 1]."""
        frozen = progress < self.head_only
        if frozen is not self.frozen:
            self.frozen = frozen
            for parameter in self.body:
                parameter.requires_grad_(not frozen)
            self.train_mode()

    def train_mode(self) -> None:
        """Put the network into training mode, batch norms left out where they are frozen."""
        train_mode(self.network, freeze_norms=self.norms or self.frozen)
