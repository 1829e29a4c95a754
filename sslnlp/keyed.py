"""Draws inside a model keyed on (seed, position): noise and dropout are of the row, not of its batch.

`nn.Dropout` draws from one stream for the whole batch, so splitting a batch for accumulation, or over processes,
changes every mask. Here the draw of an element is a hash of (seed, row position, how many dropouts came before it
in this forward, element), so 1×32 rows, 4×8 and 2 processes × 16 drop the same activations, and a resumed run needs
no generator state.

Shape suffixes: B rows of a batch, R rows that a part of the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sslnlp import rng
from sslnlp.errors import UserError

IN_CACHE = 2**16
"""Draws made at a time on a CPU: 512 KiB."""

_GOLDEN, _M1, _M2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # SplitMix64, as signed int64
# An odd multiplier per axis: a draw depends on the element's indices, never on the padded shape.
_AXES = (_GOLDEN, _M1, _M2)


class _Key:
    """The rows being run, set by `row_keyed_dropout`; None outside training."""

    seed: int = 0
    positions: Tensor | None = None
    calls: int = 0
    again: bool = False
    """A part is run again, as `dropout_from_here` has it."""
    functional: bool = False
    """Some model drops out by `F.dropout` instead of a module (BART)."""


@contextmanager
def row_keyed_dropout(seed: int, positions: Tensor) -> Iterator[None]:
    """Inside, dropout draws for rows at `positions` (int64 [B]) come from (seed, position)."""
    _Key.seed, _Key.positions, _Key.calls = seed, positions, 0
    try:
        with _FunctionalDropout() if _Key.functional else nullcontext():
            yield
    finally:
        _Key.positions = None


def dropout_from_here() -> Callable[[slice], AbstractContextManager[None]]:
    """Makes contexts that draw for a part of the batch, a slice of its rows, what would now be drawn for the whole.

    For code that runs a batch in parts, and runs a part again in the backward pass, wherever and in whatever thread
    that is. Outside `row_keyed_dropout` they do nothing. Behind them as many dropouts have come as behind the whole.
    """
    seed, positions, calls = _Key.seed, _Key.positions, _Key.calls

    @contextmanager
    def rows(part: slice) -> Iterator[None]:
        if positions is None:
            yield
            return
        before = _Key.seed, _Key.positions, _Key.calls, _Key.again
        _Key.seed, _Key.positions, _Key.calls, _Key.again = seed, positions[part], calls, True
        try:
            with _FunctionalDropout() if _Key.functional else nullcontext():
                yield
        finally:
            _Key.seed, _Key.positions, _Key.again = before[0], before[1], before[3]
            _Key.calls = max(before[2], _Key.calls)

    return rows


class _SameAgain:
    """Runs a part of a model by a function that runs it once more in the backward pass, with the dropout it had."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(self, part: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        rows, runs = dropout_from_here(), 0

        def either(*given: Any, **named: Any) -> Any:
            nonlocal runs
            runs += 1
            with nullcontext() if runs == 1 else rows(slice(None)):
                return part(*given, **named)

        return self.run(either, *inputs, **options)


def drop_the_same_again(module: nn.Module) -> None:
    """Stock models in `module` for which gradient checkpointing is on (`gradient_checkpointing_enable`) drop, in the
    parts that they run again in the backward pass, what they dropped in the forward pass."""
    for part in module.modules():
        run = getattr(part, "_gradient_checkpointing_func", None)
        if run is not None and not isinstance(run, _SameAgain):
            part._gradient_checkpointing_func = _SameAgain(run)  # type: ignore[assignment]


def keys_dropout_by_row() -> bool:
    """Whether this is inside `row_keyed_dropout`."""
    return _Key.positions is not None


def drop_by_function() -> None:
    """From here on, `row_keyed_dropout` also keys the calls of `F.dropout` in stock code."""
    _Key.functional = True


def keyed_uniform(position_B: Tensor, *shape: int, purpose: str) -> Tensor:
    """Uniform draws in (0, 1), float32 [B, *shape] (at most three more axes), for the rows at `position_B` int64 [B].

    A pure function of (train seed, position, purpose, indices) while training and of (0, position, ...) elsewhere: a
    draw is the same however the batch was split and padded.
    """
    seed = _Key.seed if _Key.positions is not None else 0
    compute: Any = torch.ops.sslnlp.keyed_uniform if torch.compiler.is_compiling() else _uniform
    drawn: Tensor = compute(position_B, seed, purpose, shape)
    return drawn


def dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of `x` [R, ...] with rate `p`; row-keyed inside `row_keyed_dropout`, else PyTorch's.

    R may be a multiple of the rows of the batch (several views or negatives a row): view v of row b is at index
    b × R/B + v.
    """
    if _Key.positions is None:
        return F.dropout(x, p)
    if not torch.compiler.is_compiling() and not _Key.again and torch._C._current_graph_task_id() != -1:
        raise UserError(
            "gradient checkpointing runs a part of the model again, which would drop something else: call "
            "sslnlp.keyed.drop_the_same_again(objective) before, or train without dropout"
        )
    _Key.calls += 1
    if x.shape[0] % len(_Key.positions):
        raise AssertionError(f"dropout over {x.shape[0]} rows in a batch of {len(_Key.positions)}")
    compute: Any = torch.ops.sslnlp.keyed_dropout if torch.compiler.is_compiling() else _kept
    kept: Tensor = compute(_Key.positions.to(x.device), _Key.seed, _Key.calls, x.shape, p)
    return x * kept / (1.0 - p)


# To torch.compile either draw is one operation. Traced, the hash of a key would break the graph at every dropout, and
# the products that are to wrap around would become indices of a loop: the C++ compiler takes it that those never do,
# and what it makes of them drops other activations at each call.
_LIBRARY = torch.library.Library("sslnlp", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("keyed_uniform(Tensor position, SymInt seed, str purpose, SymInt[] shape) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.define("keyed_dropout(Tensor position, SymInt seed, SymInt call, SymInt[] shape, float p) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.impl(_LIBRARY, "keyed_uniform", "CompositeExplicitAutograd")
def _uniform(position_B: Tensor, seed: int, purpose: str, shape: Sequence[int]) -> Tensor:
    draw = _mix(position_B * _GOLDEN + rng.key(seed, purpose)).view(-1, *[1] * len(shape))
    for axis, size in enumerate(shape):
        view = [1] * (len(shape) + 1)
        view[axis + 1] = -1
        draw = draw + torch.arange(size, device=position_B.device).view(view) * _AXES[axis]
    # 23 bits: with 24 the half added to the largest would round to 1, which has no normal quantile and no logarithm.
    return (((_mix(draw) >> 41) & ((1 << 23) - 1)).float() + 0.5) * 2.0**-23


@torch.library.register_fake("sslnlp::keyed_uniform", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _uniform_shape(position_B: Tensor, seed: int, purpose: str, shape: Sequence[int]) -> Tensor:
    return position_B.new_empty((position_B.shape[0], *shape), dtype=torch.float32)


@torch.library.impl(_LIBRARY, "keyed_dropout", "CompositeExplicitAutograd")
def _kept(position_B: Tensor, seed: int, call: int, shape: Sequence[int], p: float) -> Tensor:
    """bool of `shape` [R, ...]: which elements stay. What is drawn is a hash of the row, the call and the indices."""
    row_R = _mix(position_B * _GOLDEN + rng.key(seed, "dropout", call))
    copies = shape[0] // len(position_B)
    if copies > 1:
        row_R = _mix((row_R[:, None] + torch.arange(copies, device=row_R.device) * _GOLDEN).flatten())
    place = torch.zeros((), dtype=torch.int64, device=row_R.device)
    for axis in range(1, len(shape)):
        view = [1] * len(shape)
        view[axis] = -1
        place = place + torch.arange(shape[axis], device=row_R.device).view(view) * _AXES[axis - 1]

    def above(row: Tensor) -> Tensor:
        return ((_mix(row + place) >> 11) & ((1 << 53) - 1)) >= int(p * (1 << 53))

    row = row_R.view(-1, *[1] * (len(shape) - 1))
    if row_R.device.type != "cpu" or row_R.numel() == 0:
        return above(row)
    # A dozen passes over int64: within the cache they take a third to a fifth of the time.
    return torch.cat([above(some) for some in torch.split(row, max(1, IN_CACHE // max(1, place.numel())))])


@torch.library.register_fake("sslnlp::keyed_dropout", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _kept_shape(position_B: Tensor, seed: int, call: int, shape: Sequence[int], p: float) -> Tensor:
    return position_B.new_empty(tuple(shape), dtype=torch.bool)


def _mix(x: Tensor) -> Tensor:
    # int64 shifts are arithmetic, so the copied sign bits are masked off to get SplitMix64's logical shifts.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _M1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _M2
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class _FunctionalDropout(TorchFunctionMode):
    """Row-keys the calls of `F.dropout` that stock code makes without a module to replace."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        x, p, training, _ = (lambda input, p=0.5, training=True, inplace=False: (input, p, training, inplace))(
            *args, **(kwargs or {})
        )
        return dropout(x, p) if training and p > 0 else x


class RowDropout(nn.Module):
    """In place of `nn.Dropout`; no parameters, so checkpoints are unchanged."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p > 0 else x


class SharedDropout(RowDropout):
    """In place of the `nn.Dropout` of what all rows share, and is none of them: the first row says what is dropped, so
    a run that goes on drops the same, but a batch that is split does not."""

    def forward(self, x: Tensor) -> Tensor:
        with dropout_from_here()(slice(1)):
            return super().forward(x)
