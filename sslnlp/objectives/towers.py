"""What stands around two towers: projections, poolers, and an objective beside them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives import get_objective
from sslnlp.objectives.embedding import Embedding
from sslnlp.vision import begin_as_identity

VIEWS = Embedding.needs
"""What objectives between views read of a batch."""


def between_views(name: str, tower: PreTrainedModel, mini_batch_size: int | None) -> Embedding:
    """The objective of that name between views, on a tower that somebody else owns."""
    found = get_objective(name)
    if not issubclass(found, Embedding) or not found.needs <= VIEWS | {"position"}:
        raise UserError(f"objective.beside={name} does not compare views of a picture; info_nce, moco, byol do")
    part = found(tower, pooling="cls", mini_batch_size=mini_batch_size)
    object.__setattr__(part, "model", part._modules.pop("model"))  # in the state once, where it belongs
    return part


def projection(width: int, dimension: int) -> nn.Linear:
    linear = nn.Linear(width, dimension, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def stock_pooler(config: PreTrainedConfig) -> nn.Module:
    """The pooler that a stock model of this configuration has, beginning as (the tanh of) its first token."""
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config).pooler)
    pooler: nn.Module = kind(config)
    begin_as_identity(pooler)
    return pooler
