"""A GPU that is pretended: tensors that say they are on `cuda:0` and are computed on the CPU.

Inside `pretended()` an operation over tensors of both devices is refused, as CUDA refuses it, and every place where the
CPU would have to wait for the GPU is written down. So what breaks or stalls on a GPU alone is found without one.
Nothing is learned of its kernels, neither their numbers nor their speed.

Two layers. `_Calls` sees what Python asks for by a device (`to`, `cpu`, factories); `_Operations` sees what is
computed. To the C++ of torch all tensors are on the CPU, so what it makes there by itself (`F.one_hot`) is helped out
by name.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).parent.parent
OWN = str(ROOT / "sslnlp")
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"}
READS |= {"_unique2", "unique_dim", "unique_consecutive", "_linalg_eigh", "_linalg_svd"}
"""Operations whose result, the shape of it, or whether they came to one, the CPU has to know before it goes on."""
MADE_INSIDE = {"one_hot", "pad_sequence"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class OnGPU(Tensor):
    """A tensor said to be on `GPU`; `held` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        made: OnGPU = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=held.device,
        )  # fmt: skip
        made.held = held
        return made

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.clone().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGPU({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, [])


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGPU(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.held if isinstance(grad, OnGPU) else grad


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Tensor:
        return x.held.clone()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return OnGPU(grad)


class _Calls(TorchFunctionMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("__get__", "_parse_to") or func is torch.device:
            return func(*args, **kwargs)
        first = args[0] if args else None
        there = isinstance(first, OnGPU)
        if there and name == "numpy":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if there and name == "tolist":
            self.waits.append(_where(name))
            return first.held.tolist()  # type: ignore[union-attr]
        if there and name in ("storage", "untyped_storage", "data_ptr"):
            return func(first.held)  # type: ignore[union-attr]
        if name in MADE_INSIDE and any(isinstance(x, OnGPU) for x in _leaves(args)):
            return OnGPU(func(*_each(_held, args), **kwargs))
        if name in ("cpu", "cuda"):
            return self._moved(first, torch.device(name), kwargs.get("non_blocking", False))
        if name == "pin_memory":
            return first
        kwargs.pop("pin_memory", None)
        if name == "copy_" and kwargs.get("non_blocking"):
            known = len(self.waits)
            copied = func(*args, **kwargs)
            del self.waits[known:]
            return copied
        if name == "to":
            return self._to(func, args, kwargs)
        asked = kwargs.pop("device", None)
        if asked is None or torch.device(asked).type == "meta":
            return func(*args, **kwargs) if asked is None else func(*args, **kwargs, device=asked)
        # A factory, or one that takes the shape and type of a tensor.
        grad = kwargs.pop("requires_grad", False)
        if name in ("tensor", "as_tensor") and torch.device(asked).type == "cuda" and not there:
            self.waits.append(_where(name))  # from numbers of the host, by a copy
        made = func(*_each(_held, args), **kwargs, device="cpu")
        made = OnGPU(made) if torch.device(asked).type == "cuda" else made
        return made.requires_grad_() if grad else made

    def _to(self, func: Any, args: Any, kwargs: Any) -> Any:
        x, asked, rest = args[0], kwargs.pop("device", None), []
        for arg in args[1:]:
            if isinstance(arg, torch.device | str):
                asked = arg
            elif isinstance(arg, Tensor):
                asked, kwargs["dtype"] = arg.device, arg.dtype
            elif isinstance(arg, bool):
                kwargs.setdefault("non_blocking", arg)
            elif arg is not None:
                rest.append(arg)
        if asked is not None:
            x = self._moved(x, torch.device(asked), kwargs.pop("non_blocking", False))
        return func(x, *rest, **kwargs) if rest or kwargs else x

    def _moved(self, x: Any, asked: torch.device, non_blocking: bool) -> Any:
        if isinstance(x, OnGPU) and asked.type == "cpu":
            if not non_blocking:
                self.waits.append(_where("to the CPU"))
            return _Down.apply(x)  # type: ignore[no-untyped-call]
        if not isinstance(x, OnGPU) and asked.type == "cuda":
            if not non_blocking:
                self.waits.append(_where("to the GPU"))
            return _Up.apply(x)  # type: ignore[no-untyped-call]
        return x


class _Operations(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {}, self.waits)


def _compute(func: Any, args: Any, kwargs: Any, waits: list[str]) -> Any:
    tensors: list[Tensor] = []

    def held(x: Any) -> Any:
        if isinstance(x, Tensor):
            tensors.append(x)
        return _held(x)

    held_args, held_kwargs = _each(held, args), _each(held, kwargs)
    if not any(isinstance(x, OnGPU) for x in tensors):
        return func(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    places = [x for x in _leaves(args[1]) if isinstance(x, Tensor)] if name in INDEXED else []
    if (
        name in READS
        or any(place.dtype == torch.bool or not isinstance(place, OnGPU) for place in places)
        or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        or (name == "copy_" and isinstance(args[1], OnGPU) != isinstance(args[0], OnGPU))
    ):
        waits.append(_where(name))
    if name != "copy_":
        # As in CUDA: a lone number, and places to read or write at, may be on the CPU.
        known = {id(place) for place in places}
        if any(not isinstance(x, OnGPU) and x.dim() and id(x) not in known for x in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func}")
    result = func(*held_args, **held_kwargs)
    own = {id(_held(x)): x for x in tensors}  # what is written in place, and given back
    return _each(lambda x: own[id(x)] if id(x) in own else OnGPU(x) if isinstance(x, Tensor) else x, result)


def _each(f: Callable[[Any], Any], x: Any) -> Any:
    """`f` of everything inside of lists, tuples and dicts; torch's own asks each for its kind, which takes long."""
    kind = type(x)
    if kind is tuple or kind is list:
        return kind([_each(f, y) for y in x])
    return {key: _each(f, y) for key, y in x.items()} if kind is dict else f(x)


def _leaves(x: Any) -> list[Any]:
    found: list[Any] = []
    _each(found.append, x)
    return found


def _held(x: Any) -> Any:
    return x.held if isinstance(x, OnGPU) else x


def _where(what: str) -> str:
    """The operation and the lines of the package that led to it."""
    places = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(sys._getframe()))
    own = ((name, line) for name, line in places if name.startswith(OWN))
    return f"{what}: " + " < ".join(f"{Path(name).relative_to(ROOT)}:{line}" for name, line in itertools.islice(own, 3))


class _Event:
    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...


_CUDA: dict[str, Any] = {
    "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda _: None,
    "is_bf16_supported": lambda **_: False, "get_device_capability": lambda *_: (9, 0), "Event": _Event,
    "synchronize": lambda *_: None, "empty_cache": lambda: None, "manual_seed_all": lambda _: None,
    "reset_peak_memory_stats": lambda *_: None, "max_memory_allocated": lambda *_: 2**30,
    "mem_get_info": lambda *_: (2**37, 2**37), "is_current_stream_capturing": lambda: False,
    "get_rng_state": lambda *_: torch.get_rng_state(), "set_rng_state": lambda *_: None,
}  # fmt: skip


@contextlib.contextmanager
def pretended() -> Iterator[list[str]]:
    """Inside, there is a GPU. Gives the list that the waits are written to."""
    waits: list[str] = []
    calls, run = _Calls(waits), torch.autograd.graph._engine_run_backward
    group = torch._C._group_tensors_by_device_and_dtype

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with calls:  # `Tensor.backward` is a call that the mode saw, and inside of which it is off
            return run(*args, **kwargs)

    def grouped(*args: Any, **kwargs: Any) -> Any:
        return {
            (GPU if isinstance(lists[0][0], OnGPU) else device, dtype): (lists, places)
            for (device, dtype), (lists, places) in group(*args, **kwargs).items()
        }

    with contextlib.ExitStack() as stack:
        for name, value in _CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for place, patch in {
            "torch.accelerator.is_available": lambda: True,
            "torch.accelerator.current_accelerator": lambda *_, **__: GPU,
            "torch.accelerator.current_device_index": lambda: 0,
            "torch.inference_mode": torch.no_grad,  # tensors of a class of their own are refused some calls in there
            "torch.optim.Optimizer._accelerator_graph_capture_health_check": lambda _: None,
            "torch.autograd._engine_run_backward": run_backward,
            "torch._C._group_tensors_by_device_and_dtype": grouped,
        }.items():
            stack.enter_context(mock.patch(place, patch))
        # `Module.to` sets the data of a parameter, which cannot change its class; to swap them keeps ties too.
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.enter_context(calls)
        stack.enter_context(_Operations(waits))
        yield waits


@contextlib.contextmanager
def one_device_a_run() -> Iterator[None]:
    """Inside, Accelerate finds its device anew: it keeps that of the first run of a process."""
    states: tuple[Any, ...] = (PartialState, AcceleratorState)
    kept = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)
