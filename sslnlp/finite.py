"""Whether the gradients of an update were finite, without a wait for the GPU in every update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sslnlp.errors import UserError


class NonFiniteError(UserError):
    """The gradient of update `step` is NaN or Inf; the weights are those before it."""

    def __init__(self, step: int, message: str | None = None) -> None:
        super().__init__(message or f"the gradient of step {step} is not finite")
        self.step = step


class Finite:
    """Looks at the norm of each update's gradient: at once, or, where it is `late`, one update later.

    Reading a number of a GPU waits until everything before it is done, and then the GPU waits for the host. Late, the
    optimiser is told on the device, as torch's gradient scaler does it: with `found_inf` set it leaves weights and
    state as they are. The host reads the flag when the next update is under way, and before anything is written down.
    """

    def __init__(self, *, late: bool) -> None:
        self.late = late
        self._unread: tuple[int, Callable[[], float]] | None = None

    def look(self, norm: Tensor, step: int) -> Tensor | None:
        """What the optimiser's `found_inf` is to be: 1 where the gradient of `step` is bad, 0 else; None when read.

        Raises `NonFiniteError` for the update that is read now: this one, or, late, the one before.
        """
        if not self.late:
            if not torch.isfinite(norm):
                raise NonFiniteError(step)
            return None
        self.settle()
        bad = (~torch.isfinite(norm)).float()
        self._unread = step, on_its_way(bad)
        return bad

    def settle(self) -> None:
        """Reads what is not read yet, waiting for it. Raises `NonFiniteError`."""
        if self._unread is not None:
            (step, read), self._unread = self._unread, None
            if read():
                raise NonFiniteError(step)


def on_its_way(flag: Tensor) -> Callable[[], float]:
    """Starts to copy a number to the host; what is returned waits for that copy alone, and not for later work."""
    if not flag.is_cuda:
        return lambda: float(flag)
    here = torch.empty((), dtype=flag.dtype, pin_memory=True)
    here.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return float(here)

    return read
