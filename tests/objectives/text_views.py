"""Small objectives between views of texts, and batches for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModel

from sslnlp.collators.views import ViewsCollator
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.objectives.embedding import Documents, Embedding, views
from tests.contract import LENGTH, corpus, make_collator, small_tokenizer


def encoder(architecture: str = "bert", dropout: float = 0.0, auto: Any = AutoModel) -> Any:
    config = ModelConfig(architecture=architecture, size="nano", dropout=dropout)
    return build_model(config, small_tokenizer(), auto, max_length=LENGTH, seed=0)


def make(name: str, architecture: str = "bert", **options: Any) -> Any:
    torch.manual_seed(0)
    return get_objective(name)(encoder(architecture), **options)


def collator(**options: Any) -> ViewsCollator:
    return ViewsCollator(tokenizer=make_collator("info_nce").tokenizer, **options)


def rows(n: int = 6, start: int = 0) -> Any:
    """Rows of one or two documents of the corpus, each another one."""
    return [framed(corpus()[5 * i + 1], i, *[corpus()[5 * i]][: i % 2]) for i in range(start, start + n)]


def batch_of(n: int = 6, start: int = 0, **options: Any) -> Any:
    """A batch in which every document is a negative of every other."""
    batch = collator(**options)(rows(n, start))
    read = torch.cat([view["hashes"][batch["present"]] for view in views(batch)], dim=1)
    assert all(len(texts.unique()) == len(read) > n for texts in read.T)
    return batch


def framed(text: str, position: int, *others: str) -> dict[str, Any]:
    ids = [make_collator("info_nce").tokenizer(one)["input_ids"] for one in (text, *others)]
    document_ids = np.repeat(np.arange(len(ids), dtype=np.int32), [len(one) for one in ids])
    return {"input_ids": np.concatenate(ids), "document_ids": document_ids, "position": position}


def unit(objective: Embedding, batch: Any, view: int, width: int | None = None) -> torch.Tensor:
    vectors = objective.vectors(batch[f"view_{view}"], Documents.of(batch))
    return F.normalize(vectors[:, :width], dim=-1)
