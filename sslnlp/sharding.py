"""FSDP2: weights, gradients and optimiser state cut over the processes, each layer put together only while it runs.

Asked for as accelerate's users do (`accelerate launch --use_fsdp --fsdp_version 2`, or its configuration file), and set
up by `torch.distributed.fsdp.fully_shard`. accelerate's own set-up is not used: with bf16 it would round all weights
before the forward pass, norms included, where one process keeps them in float32; and on a CPU it ignores the request.
Source: Zhao et al. (2023), "PyTorch FSDP: experiences on scaling fully sharded data parallel".
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sslnlp.distributed import cut_like, rank, whole, world_size
from sslnlp.errors import UserError

log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Sharding:
    """What `accelerate launch` was told about FSDP2."""

    reshard_after_forward: bool = True
    """Drop a layer's weights between its forward and its backward pass: less memory, one more gather."""
    layers: tuple[str, ...] = ()
    """Class names of the layers that are gathered one by one; empty: those the model itself declares."""


def sharding_asked() -> Sharding | None:
    """What the launcher asked for; None without FSDP.

    Raises `UserError` for what is not done here: FSDP1, offloading, activation checkpointing.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError("FSDP is done in its second version only: accelerate launch --use_fsdp --fsdp_version 2")
    for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        if parse_flag_from_env(f"FSDP_{name}"):
            raise UserError(f"--fsdp_{name.lower()} true is not supported: launch without it")
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return Sharding(
        reshard_after_forward=parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True),
        layers=tuple(name for name in named.split(",") if name),
    )


def every_process_loads() -> None:
    """Make `from_pretrained` read the weights on every process, as a fresh model is built on every process.

    accelerate's default has them on rank 0 alone and leaves the others' weights empty until its own set-up runs.
    """
    if "FSDP_CPU_RAM_EFFICIENT_LOADING" in os.environ:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard(module: M, how: Sharding, device: torch.device) -> M:
    """A sharded copy of `module` on `device`, which takes over its parameters: they are left empty (on `meta`).

    The copy's `forward`, `predict` and `scored` gather what they need. Tied weights stay tied. `refill` brings them
    back. Raises `UserError` for a module that cannot be cut.
    """
    # Half a second to import, which only those who shard should wait for.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    numbers = [name for name, p in module.named_parameters() if p.ndim == 0]
    if numbers:
        raise UserError(f"FSDP2 cannot cut a single number ({numbers[0]}) over processes: launch without --use_fsdp")
    # With its parameters in the memo, a deep copy shares them and copies everything else.
    sharded = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    _replace(module, {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()})
    mesh = init_device_mesh(device.type, (world_size(),))
    units = layers(sharded, how.layers)
    if rank() == 0:
        log.info("FSDP2: %d layers and the rest, each cut over %d processes", len(units), world_size())
    parts = [fully_shard(layer, mesh=mesh, reshard_after_forward=how.reshard_after_forward) for layer in units]
    parts.append(fully_shard(sharded, mesh=mesh))
    if device.type == "cpu":
        # Asked for the mean, gloo's reduce-scatter gives the sum as of PyTorch 2.8 (its issue 162338), without a word:
        # a sum is asked for, and FSDP2 divides it.
        for part in parts:
            part.set_force_sum_reduction_for_comms(True)
    for name in ("predict", "scored"):  # what a held-out pass calls
        register_fsdp_forward_method(sharded, name)
    return sharded


def layers(module: nn.Module, names: tuple[str, ...] = ()) -> list[nn.Module]:
    """The repeated layers of the models inside `module`: each is a unit that is gathered, used and dropped.

    Everything else (embeddings, heads, norms) is one unit, so that a tied head shares its matrix. `names` are class
    names; without them every layer that stock models can run again in the backward pass. Raises `UserError` when
    nothing has such a name.
    """
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    parts = [layer for one in lists for layer in one]
    found = [p for p in parts if (type(p).__name__ in names if names else isinstance(p, GradientCheckpointingLayer))]
    if names and not found:
        raise UserError(f"no layer of the model is a {' or '.join(names)} (--fsdp_transformer_layer_cls_to_wrap)")
    return found


def refill(module: nn.Module, sharded: nn.Module, device: torch.device) -> None:
    """Give `module`, which `shard` emptied, the weights and buffers of its sharded copy, whole. All ranks call it."""
    theirs = dict(sharded.named_parameters())
    filled = {}
    for name, p in module.named_parameters():
        filled[id(p)] = nn.Parameter(whole(theirs[name].detach()).to(device, copy=True), p.requires_grad)
    _replace(module, filled)
    module.to(device)
    for mine, other in zip(module.buffers(), sharded.buffers(), strict=True):
        mine.copy_(other)


def gathered(state: Any, *, keep: bool) -> Any:
    """A state dict with every cut tensor put together, on the CPU: the same as that of one process.

    All ranks call it, in step. Ranks without `keep` take part and get empty tensors: one tensor at a time is whole.
    """
    if isinstance(state, Mapping):
        return {key: gathered(value, keep=keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value, keep=keep) for value in state)
    if isinstance(state, Tensor) and (full := whole(state)) is not state:
        return full.cpu() if keep else torch.empty(0)
    return state


def load_whole(module: nn.Module, optimizer: torch.optim.Optimizer, parts: Mapping[str, Any]) -> None:
    """Load the state dicts of one process (`objective`, `optimizer`), each rank taking its own part where cut."""
    mine = module.state_dict()
    # `load_state_dict` says what is missing; only what both have can be cut.
    module.load_state_dict(
        {name: cut_like(t, mine[name]) if name in mine else t for name, t in parts["objective"].items()}
    )
    saved = parts["optimizer"]
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for index, values in saved["state"].items():
        p = params[index]
        state[index] = {
            name: cut_like(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({**saved, "state": state})


def _replace(module: nn.Module, by: Mapping[int, nn.Parameter]) -> None:
    """Put other parameters in the place of those with these ids; tied ones stay tied."""
    for part in module.modules():
        for name, p in list(_own(part)):
            part._parameters[name] = by[id(p)]


def _own(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from ((name, p) for name, p in module._parameters.items() if p is not None)
