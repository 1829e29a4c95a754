"""A tower that stays as it is, for the whole run or the first part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sslnlp.nn import Teacher

_NEW = "pooler."
"""What is trained of a locked tower: it has no use in the pretraining of most."""


class Lock(nn.Module):
    """Keeps all of `tower` but its pooler as it is until the share `until` of the run; 1: for good.

    Locked for good, its parameters are frozen. Otherwise they get gradients of zero until then (so that DDP finds them
    from the first update on), and what weight decay does to them is undone from a copy, which checkpoints carry.
    `tower=None` locks nothing.
    """

    closed: Tensor

    def __init__(self, tower: nn.Module | None, *, until: float) -> None:
        super().__init__()
        self.until = until
        self._tower = (tower,)  # in a tuple, so that its weights are in the state once
        self.kept: Teacher | None = None
        if tower is not None and until == 1:
            for name, parameter in tower.named_parameters():
                parameter.requires_grad_(name.startswith(_NEW))
        elif tower is not None:
            self.kept = Teacher(tower, momentum=1.0)
            self.register_buffer("closed", torch.ones((), dtype=torch.bool))
        self._closed: bool | None = None  # what `closed` says, once it was read: each time the CPU waits for a GPU
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def _holds(self, tower: nn.Module) -> bool:
        if self.kept is None or self._tower[0] is not tower:
            return False
        if self._closed is None:
            self._closed = bool(self.closed)
        return self._closed

    def closed_for_good(self, tower: nn.Module) -> bool:
        """Whether `tower` never trains."""
        return self._tower[0] is tower and self.until == 1

    @contextmanager
    def around(self, tower: nn.Module) -> Iterator[None]:
        """What `tower` computes inside gets no gradient while it is held."""
        with torch.no_grad() if self._holds(tower) else nullcontext():
            yield

    def touch(self) -> Tensor | float:
        """Zero, to be added to the loss: gradients of zero for what is held."""
        tower = self._tower[0]
        if tower is None or not self._holds(tower):
            return 0.0
        # Of a parameter that FSDP2 has cut and not put together, the part of this rank.
        parts = (p.to_local() if isinstance(p, DTensor) else p for p in tower.parameters())
        return sum(((part * 0).sum() for part in parts), start=0.0)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Undo the update of what is held, and let it go when its time has come."""
        tower = self._tower[0]
        if tower is None or self.kept is None or not self._holds(tower):
            return
        before = dict(self.kept.module.named_parameters())
        for name, parameter in tower.named_parameters():
            if not name.startswith(_NEW):
                parameter.copy_(before[name])
        if progress >= self.until:
            self.closed.fill_(False)
            self._closed = False


def _forget(lock: Lock, _: object) -> None:
    """A checkpoint was loaded."""
    lock._closed = None
