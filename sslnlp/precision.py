"""The precision of a run: whether half of it pays on this machine, which is measured, because a CPU without bf16 units
emulates it."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, SharedDict

from sslnlp.distributed import trains_on_cpu

log = logging.getLogger(__name__)

GAIN = 1.5
"""A product that takes this much longer in one type than in the other: clear of noise, and a training step follows it.
AMX takes an eighth of the time in bf16, AVX512-BF16 0.41 to 0.48 of it (the step of `benchmarks.step` half, with both);
a CPU without either emulates bf16 and takes 9 to 16 times as long."""


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
    return "bf16" if device.type == "cpu" and _gain() > GAIN else "no"


def new_accelerator(precision: str, **options: Any) -> Accelerator:
    """An `Accelerator` of this precision, also after one of another in this process, which Accelerate refuses.

    A run may train in bf16 and the next one in float32; the first keeps what it has.
    """
    known: Any = AcceleratorState
    if known._shared_state.get("_mixed_precision", precision) != precision:
        known._shared_state = SharedDict()
    return Accelerator(cpu=trains_on_cpu(), mixed_precision=precision, **options)


def warn_if_slower(precision: str, device: torch.device) -> float | None:
    """With `bf16` on a CPU: how many times longer one matrix product takes than in float32 (None elsewhere).

    Takes about 20 ms, 0.2 s where bf16 is emulated; says so in one line, because a run there would take ten times as
    long as it has to.
    """
    if precision != "bf16" or device.type != "cpu":
        return None
    ratio = 1 / _gain()
    if ratio > GAIN:
        log.warning(
            "bf16 is %.0f times slower than float32 on this CPU, which has no units for it: set train.precision=no",
            ratio,
        )
    return ratio


@functools.cache
def _gain() -> float:
    """How many times as long a product [512, 256] × [256, 512] takes in float32 as in bf16: the shortest of five each.

    In turn, so that a moment in which the machine is busy does not fall on one of the two alone. Once a process: a
    search engine or a label curve is many runs, and the units of the CPU stay what they are.
    """
    pairs = {
        dtype: (torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    shortest = dict.fromkeys(pairs, float("inf"))
    for turn in range(6):
        for dtype, (a, b) in pairs.items():
            began = perf_counter()
            a @ b
            took = perf_counter() - began
            if turn:  # the first also builds the kernel
                shortest[dtype] = min(shortest[dtype], took)
    return shortest[torch.float32] / shortest[torch.bfloat16]
