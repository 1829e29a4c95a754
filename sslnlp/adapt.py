"""What is put in place of parts of a stock model before it trains: same parameters, same functions, same config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

from sslnlp.attention import NAME
from sslnlp.keyed import RowDropout, SharedDropout, drop_by_function
from sslnlp.nn import TanhGELU

SHARED = ("pos_dropout",)
"""What DeBERTa calls the dropout of its embeddings of distances, a table without rows."""


def adapt(model: PreTrainedModel) -> None:
    """In place: dropout keyed by row (modules, functions and attention weights), and the faster of equal kernels.

    * attention: see `sslnlp.attention`;
    * GPT-2's GELU, eight passes over memory as published: PyTorch's fused one of the same formula, or the compiler's;
    * under bf16 autocast on a CPU, embeddings come out in bf16, so that what layers hand on (the residual stream) stays
      in it; otherwise every matrix product would copy its float32 input again.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                kind = SharedDropout if name in SHARED else RowDropout
                setattr(module, name, kind(child.p).train(child.training))
            elif type(child) in (NewGELUActivation, GELUTanh):
                setattr(module, name, TanhGELU().train(child.training))
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_low_precision_stream)
    # Stacks with a config of their own (T5's) are not reached from the whole model in every transformers 5.
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and getattr(module.config, "_attn_implementation", None) == "sdpa":
            module.set_attn_implementation(NAME)
    if any(_drops_by_function(module) for module in model.modules()):
        drop_by_function()


def _drops_by_function(module: nn.Module) -> bool:
    """Whether stock code gives a rate that this module holds to `F.dropout`; to that of weights of attention, the eager
    implementation alone."""
    eager = getattr(getattr(module, "config", None), "_attn_implementation", None) == "eager"
    rates = {name: rate for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)}
    return any(rate > 0 and (eager or name != "attention_dropout") for name, rate in rates.items())


def _low_precision_stream(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    if output.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return output
    return output.to(torch.get_autocast_dtype("cpu"))
