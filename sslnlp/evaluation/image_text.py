"""Retrieval between pictures and their captions, in both directions.

Shapes: K captions with their pictures; Q different queries of one direction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslnlp.arrays import Floats, Ints
from sslnlp.evaluation.bootstrap import Figure, drawn_figure, ratio_figure

CUTS = (1, 5, 10)
TEXT_TO_IMAGE, IMAGE_TO_TEXT = "text_to_image", "image_to_text"
_BLOCK = 1024


class Ranks(NamedTuple):
    """One direction."""

    rank: Ints
    """[Q]. Of each different query's best answer, from 1; what is as near as it counts as nearer."""
    answers: Ints
    """[Q]. How many candidates answer the query."""
    candidates: int


def image_text_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """Recall@1, 5 and 10 and the median rank, of pictures by captions and of captions by pictures.

    `image` and `text` float [K, D], a row for each caption, with `image_hash` and `text_hash` int64 [K]. Equal pictures
    are one, and so are equal captions; a query is answered by any that it is paired with. The rank is that of the best
    of these, from 1, ties counted against it. `mean_recall` is the mean of the six (as in Karpathy and Fei-Fei, 2015).
    `chance_median_rank`: of captions by a random order of the pictures, of which a caption may have several.
    """
    ranks = retrieval_ranks(predicted)
    figures: dict[str, float] = {}
    for name, found in ranks.items():
        figures |= {f"{name}_recall@{cut}": float((found.rank <= cut).mean()) for cut in CUTS}
        figures[f"{name}_median_rank"] = float(np.median(found.rank))
    recalls = [value for name, value in figures.items() if "recall@" in name]
    chance = _chance_median(ranks[TEXT_TO_IMAGE].candidates, ranks[TEXT_TO_IMAGE].answers)
    return figures | {"mean_recall": float(np.mean(recalls)), "chance_median_rank": chance}


def image_text_figures(predicted: Mapping[str, Tensor]) -> dict[str, Figure]:
    """The recalls and median ranks of `image_text_measures` with their intervals, queries being drawn anew.

    Chance is a random order of the candidates, in which a query with several answers finds one of them sooner.
    """
    figures = {}
    for name, (rank_Q, answers_Q, candidates) in retrieval_ranks(predicted).items():
        for cut in CUTS:
            chance = float(1 - _all_behind(candidates, answers_Q, cut).mean())
            figures[f"{name}_recall@{cut}"] = ratio_figure((rank_Q <= cut).astype(np.float64), chance=chance)

        def median(index: Ints, rank_Q: Ints = rank_Q) -> float:
            return float(np.median(rank_Q[index]))

        middle = _chance_median(candidates, answers_Q)
        figures[f"{name}_median_rank"] = drawn_figure(median, len(rank_Q), chance=middle)
    return figures


def retrieval_ranks(predicted: Mapping[str, Tensor]) -> dict[str, Ranks]:
    """`text_to_image` and `image_to_text` of what `image_text_measures` reads."""
    image_index, image_of_K = _distinct(predicted["image_hash"])
    text_index, text_of_K = _distinct(predicted["text_hash"])
    images, texts = predicted["image"][image_index], predicted["text"][text_index]
    return {
        TEXT_TO_IMAGE: _direction(texts, images, text_of_K, image_of_K),
        IMAGE_TO_TEXT: _direction(images, texts, image_of_K, text_of_K),
    }


def _distinct(hashes: Tensor) -> tuple[Tensor, Tensor]:
    """Where each different one stands first, and for every row which of these it is."""
    values, inverse = torch.unique(hashes, return_inverse=True)
    first = torch.full((len(values),), len(hashes)).scatter_reduce(0, inverse, torch.arange(len(hashes)), "amin")
    return first, inverse


def _direction(asked: Tensor, found: Tensor, asked_K: Tensor, found_K: Tensor) -> Ranks:
    answers = torch.zeros(len(asked), len(found), dtype=torch.bool)
    answers[asked_K, found_K] = True
    ranks = []
    for start in range(0, len(asked), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity = asked[part].float() @ found.float().T
        best = similarity.masked_fill(~answers[part], float("-inf")).max(1, keepdim=True).values
        # Not below, instead of at or above: what is no number counts against the query too.
        ranks.append(1 + (~(similarity < best) & ~answers[part]).sum(1))
    return Ranks(torch.cat(ranks).numpy(), answers.sum(1).numpy(), len(found))


def _all_behind(candidates: int, answers_Q: Ints, cut: int) -> Floats:
    """Chance that a random order of the candidates has none of a query's answers among the first `cut`: [Q]."""
    behind_Q = np.ones(len(answers_Q))
    for n in range(int(answers_Q.max())):
        factor = max(0, candidates - cut - n) / max(1, candidates - n)
        behind_Q *= np.where(answers_Q > n, factor, 1.0)
    return behind_Q


def _chance_median(candidates: int, answers_Q: Ints) -> float:
    """The median, over queries and random orders, of the rank of the best answer: (candidates + 1) / 2 where each
    query has one."""
    different, counts = np.unique(answers_Q, return_counts=True)
    weights = counts / counts.sum()

    def found(cut: int) -> float:
        return float(1 - _all_behind(candidates, different, cut) @ weights)

    cuts = range(1, candidates + 1)
    lower, upper = (bisect_left(cuts, share, key=found) for share in (0.5 - 1e-9, 0.5 + 1e-9))
    return (lower + upper) / 2 + 1
