"""How high a reranker puts the relevant text among a query's own candidates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

DEPTH = 10


def reranking_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """`mrr@10` and `ndcg@10`, with what a random order would have of each: of `rank` and `candidates`, int64 [Q].

    The one relevant text is at place `rank` (from 1) of `candidates`.
    """
    rank_Q, candidates_Q = predicted["rank"], predicted["candidates"]
    place = torch.arange(1, DEPTH + 1, dtype=torch.float64)
    figures: dict[str, float] = {}
    for name, gain in (("mrr@10", 1 / place), ("ndcg@10", 1 / torch.log2(1 + place))):
        found_Q = torch.where(rank_Q <= DEPTH, gain[rank_Q.clamp(max=DEPTH) - 1], 0.0)
        # In a random order each place is as likely as another.
        summed = gain.cumsum(0)
        chance_Q = summed[candidates_Q.clamp(max=DEPTH) - 1] / candidates_Q
        figures |= {name: float(found_Q.mean()), f"chance_{name}": float(chance_Q.mean())}
    return figures
