"""An average of the weights over the run, beside those that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a module's trainable weights (Polyak and Juditsky, 1992).

    `momentum` is the share of the old average that stays at each update. At first less stays, (1 + step) / (10 + step),
    so that the random start is forgotten. Where text is read again and again, the average has learnt less by heart
    than the last weights; after a learning rate that has come down to zero on fresh text the two are much alike.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        self.momentum = momentum
        self._weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._weights.items()}
        """What a checkpoint keeps."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after update `step`, counted from 0."""
        kept = min(self.momentum, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._weights.values()), 1 - kept)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take the average of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the average in the module, for good."""
        for name, p in self._weights.items():
            p.copy_(self.values[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The module has the average inside, and its own weights back after."""
        trained = {name: p.detach().clone() for name, p in self._weights.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._weights.items():
                    p.copy_(trained[name])
