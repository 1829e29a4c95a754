"""A cross-encoder: query and document are read together, and one logit says how well the one answers the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError, suggest
from sslnlp.objectives.functional import row_count
from sslnlp.objectives.text_head import TextHead, check_one_output
from sslnlp.types import Batch, StepOutput

# B = queries of the batch, K = candidates of a query, its relevant text first.


def pointwise(scores_BK: Tensor, relevance_BK: Tensor) -> Tensor:
    """Binary cross-entropy of each candidate, summed: 0 where the candidate is left out (relevance -100)."""
    counted_BK = relevance_BK >= 0
    return F.binary_cross_entropy_with_logits(scores_BK[counted_BK], relevance_BK[counted_BK].float(), reduction="sum")


def pairwise(scores_BK: Tensor, relevance_BK: Tensor) -> Tensor:
    """RankNet (Burges et al., 2005): `-log sigmoid(s_0 - s_k)` of each irrelevant candidate k, summed."""
    margin_BK = scores_BK[:, :1] - scores_BK
    return -F.logsigmoid(margin_BK[relevance_BK == 0]).sum()


def listwise(scores_BK: Tensor, relevance_BK: Tensor) -> Tensor:
    """Cross-entropy of naming the relevant text among the candidates of its query (the localised contrastive
    estimation of Gao et al., 2021, arXiv:2101.08751), summed over the queries."""
    logits_BK = scores_BK.masked_fill(relevance_BK < 0, float("-inf"))
    return F.cross_entropy(logits_BK, torch.zeros_like(relevance_BK[:, 0]), reduction="sum")


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "pointwise": (pointwise, lambda relevance_BK: (relevance_BK >= 0).sum()),
    "pairwise": (pairwise, lambda relevance_BK: (relevance_BK == 0).sum()),
    "listwise": (listwise, lambda relevance_BK: (relevance_BK[:, 0] == 1).sum()),
}
"""A sum over targets, and how many there are: candidates, irrelevant candidates, queries."""


class Reranking(TextHead):
    """A stock sequence-classification head of one logit, scored on a query's relevant text and its irrelevant ones.

    Slower than the two vectors of a bi-encoder (`ranking`) by a run of the model for each candidate, and better at
    telling near candidates apart: what orders the first hundred results of a search (Nogueira and Cho, 2019,
    arXiv:1901.04085). Every query is compared with its own candidates alone, so the batch may be split.

    Rows: a query, its positive, its negatives: hard ones, from `sslnlp search mine`.

    Options:
        loss: `listwise` (the usual best), `pairwise` or `pointwise`. Only the last makes the logit a probability's
            (sentence-transformers then shows sigmoid(logit)); of the others, only differences within a query count.
    """

    name: ClassVar[str] = "reranking"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "relevance"})
    collator: ClassVar[str] = "reranking"
    measures: ClassVar[tuple[str, ...]] = ("reranking",)
    best: ClassVar[tuple[str, str]] = ("mrr@10", "max")

    def __init__(self, model: PreTrainedModel, *, loss: str = "listwise") -> None:
        super().__init__(model)
        if loss not in LOSSES:
            raise UserError(f"unknown objective.loss={loss!r}.{suggest(loss, LOSSES)}")
        check_one_output(model)
        self.loss = loss
        # What sentence-transformers' CrossEncoder puts on the logit; where nothing is said, a sigmoid.
        activation = "activation.Sigmoid" if loss == "pointwise" else "linear.Identity"
        model.config.sentence_transformers = {"activation_fn": f"torch.nn.modules.{activation}"}

    @classmethod
    def config_fields(cls, label_names: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 1}

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        headed = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
        if headed and config.num_labels != 1:
            return f"its head has {config.num_labels} outputs, and a reranker's has one"
        return super().refuses(config)

    def logits(self, batch: Batch) -> Tensor:
        """The scores float32 [B, K] of each query's candidates."""
        return super().logits(batch["pairs"]).view(batch["relevance"].shape)

    def outcome(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        """The loss, and `accuracy`: the share of queries whose relevant text scores above all others."""
        relevance_BK = batch["relevance"]
        total = LOSSES[self.loss][0](logits_BC, relevance_BK)
        rank_B = _ranks(logits_BC.detach(), relevance_BK)
        accuracy = torch.stack([(rank_B == 1).sum(), row_count(rank_B)])
        return StepOutput(total / self.num_targets(batch).clamp(min=1), {"accuracy": accuracy})

    def num_targets(self, batch: Batch) -> Tensor:
        """What the loss is a mean over: candidates, irrelevant candidates, or queries."""
        return LOSSES[self.loss][1](batch["relevance"])

    def predicted(self, logits_BC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`rank` of the relevant text among the `candidates` of its query, int64 [B] from 1."""
        relevance_BK = batch["relevance"]
        return {"rank": _ranks(logits_BC, relevance_BK), "candidates": (relevance_BK >= 0).sum(1)}


def _ranks(scores_BK: Tensor, relevance_BK: Tensor) -> Tensor:
    """int64 [B]. Equal scores count as above: a model that answers the same to everything ranks it last, and so does
    one whose scores are no numbers."""
    return (~(scores_BK < scores_BK[:, :1]) & (relevance_BK >= 0)).sum(1)
