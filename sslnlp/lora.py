"""Low-rank adapters (LoRA; Hu et al., 2022, arXiv:2106.09685): few new weights learn, those of the checkpoint stay."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sslnlp.errors import UserError, reason_of

SCALE = 2.0
"""alpha / rank."""


def add_lora(model: PreTrainedModel, rank: int, new: Collection[str]) -> None:
    """Put adapters of `rank` beside every linear map of the layers, and freeze all but them and the `new` weights.

    `new` are the weights that the checkpoint does not have (a fresh head): nothing frozen is random. The adapters add
    nothing until they have learnt. Raises `UserError` where peft is not installed, and for models without such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("model.lora_rank needs peft: pip install 'sslnlp[lora]'") from None
    inside = [
        f"{place}.{name}"
        for place, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList)
        for name, part in stack.named_modules()
        if isinstance(part, nn.Linear)
    ]
    targets = sorted(set(inside))
    if not targets:
        raise UserError(f"{type(model).__name__} has no linear maps in layers, which adapters go beside")
    trainable = {name for name, _ in model.named_parameters()} & set(new)
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=int(SCALE * rank), target_modules=targets), model)
    except ValueError as error:  # of models that read weights of their maps past the adapters (Mamba)
        raise UserError(
            f"peft puts no adapters into a {model.config.model_type!r} model ({reason_of(error, 160)}); leave out "
            "model.lora_rank"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name in trainable)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """The stock model that computes the same, each adapter added to the weight it stands beside; `model` itself without
    adapters, else a copy."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for name, part in [*plain.named_modules()]:
        if isinstance(part, LoraLayer):
            layer: Any = part
            with torch.no_grad():
                layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, layer.get_base_layer())
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    return plain
