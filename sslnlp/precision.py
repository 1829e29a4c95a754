"""The precision of a run: whether half of it pays on this machine, which is measured, because a CPU without bf16 units
emulates it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, SharedDict

log = logging.getLogger(__name__)

FASTER = 2.0
"""A product that takes this much longer in float32 than in bf16 means that a CPU has units for bf16 (AMX: 8 times)."""

SLOWER = 1.5
"""A product that takes this much longer in bf16 than in float32 means that the CPU has no units for it."""


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Inside, new tensors are float32 on the CPU, as torch has it, whatever the caller's program made its defaults.

    A run moves what it makes to its device and computes in its precision; heads and masks that took another type or
    place from the caller's defaults would not go together with the model.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def fitting_precision(device: torch.device) -> str:
    """`bf16` where the device has matrix units for it, measured on a CPU, else `no` (float32)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    paying = device.type == "cpu" and _seconds(torch.float32) > FASTER * _seconds(torch.bfloat16)
    return "bf16" if paying else "no"


def new_accelerator(precision: str, **options: Any) -> Accelerator:
    """An `Accelerator` of this precision, also after one of another in this process, which Accelerate refuses.

    A run may train in bf16 and the next one in float32; the first keeps what it has.
    """
    known: Any = AcceleratorState
    if known._shared_state.get("_mixed_precision", precision) != precision:
        known._shared_state = SharedDict()
    return Accelerator(mixed_precision=precision, **options)


def warn_if_slower(precision: str, device: torch.device) -> float | None:
    """With `bf16` on a CPU: how many times longer one matrix product takes than in float32 (None elsewhere).

    Takes about 20 ms, more where bf16 is emulated; says so in one line, because a run there would take ten times as
    long as it has to.
    """
    if precision != "bf16" or device.type != "cpu":
        return None
    ratio = _seconds(torch.bfloat16) / _seconds(torch.float32)
    if ratio > SLOWER:
        log.warning(
            "bf16 is %.0f times slower than float32 on this CPU, which has no units for it: set train.precision=no",
            ratio,
        )
    return ratio


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of three products [512, 256] × [256, 512]; the first call also builds the kernel."""
    a, b = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
    a @ b
    times = []
    for _ in range(3):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return min(times)
