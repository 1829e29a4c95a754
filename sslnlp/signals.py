"""SIGTERM, Ctrl-C and the end of terminal or launcher as notes that the loop reads between steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import torch

from sslnlp import distributed
from sslnlp.finite import on_its_way

_LAUNCHER = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
"""The process of `accelerate launch` or `torchrun` that started this one. A run alone may outlive its shell (nohup)."""


def launcher_gone() -> bool:
    """Whether the launcher was killed: it can say nothing then, and its processes would train on for ever."""
    return _LAUNCHER is not None and os.getppid() != _LAUNCHER


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived, or terminal or launcher are gone: the run was saved at `step`, and resumed goes on
    from it."""

    def __init__(self, step: int, signum: int) -> None:
        name = signal.Signals(signum).name
        gone = "its launcher is gone" if launcher_gone() else "its terminal is closed"
        reason = f"{name} ({gone})" if name == "SIGHUP" else name
        super().__init__(f"stopped by {reason} and saved at step {step}")
        self.step, self.signum = step, signum


class Cut(Exception):
    """What was being measured is left as it is, for a signal came."""


_heeding: Signals | None = None


def heed() -> None:
    """Raises `Cut` where a signal has come to a loop that can leave what it measures (`Signals.heeded`). For the places
    between two parts of a measure: nothing is half done there."""
    if _heeding is not None and _heeding.here():
        raise Cut


HEARD = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""What ends a run, and would end it unsaved. Windows has no SIGHUP."""
_BY_HAND = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Inside, the first signal of `HEARD` is noted in `received` and the step in progress ends; a second SIGTERM or
    SIGINT ends the process at once. A SIGHUP that is ignored (`nohup`) stays so. The handlers before are put back.
    Outside the main thread nothing is changed."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, signal._HANDLER] = {}
        self._unread: Callable[[], float] | None = None

    def __enter__(self) -> Signals:
        heard = [s for s in HEARD if s in _BY_HAND or signal.getsignal(s) is not signal.SIG_IGN]
        try:
            self._before = {s: signal.signal(s, self._note) for s in heard}
        except ValueError:  # not the main thread: whoever runs the thread handles signals
            self._before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def here(self) -> int:
        """The signal that arrived at this process, or 0. A launcher that is gone counts as SIGHUP, which says that a
        controlling process died."""
        return self.received or (signal.SIGHUP if launcher_gone() else 0)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, `heed` raises `Cut` once there is a signal, which ends the body and goes no further."""
        global _heeding
        before, _heeding = _heeding, self
        try:
            yield
        except Cut:
            pass
        finally:
            _heeding = before

    def on_any_rank(self, device: torch.device, *, at_once: bool) -> int:
        """The signal that arrived on any rank, or 0: all ranks stop after the same step.

        Of several ranks on GPUs it is what was known a call before, unless it is to be known `at_once`: that waits
        until the GPU has done all that it was given.
        """
        received = self.here()
        if distributed.world_size() == 1:
            return received
        # Filled on the device: a number copied there would be a wait too.
        here = distributed.all_reduce_max(torch.full((), int(received), device=device))
        before, self._unread = self._unread, on_its_way(here)
        if at_once or device.type == "cpu":
            return int(self._unread())  # what was noted stays noted, so what was not read yet is in it
        return 0 if before is None else int(before())

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received and signum in _BY_HAND:  # a terminal that closes may be told of twice
            raise KeyboardInterrupt
        self.received = self.received or signum
