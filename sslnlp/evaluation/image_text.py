"""Retrieval between pictures and their captions, in both directions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

CUTS = (1, 5, 10)
_BLOCK = 1024


def image_text_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """Recall@1, 5 and 10 and the median rank, of pictures by captions and of captions by pictures.

    `image` and `text` float [K, D], a row for each caption, with `image_hash` and `text_hash` int64 [K]. Equal pictures
    are one, and so are equal captions; a query is answered by any that it is paired with. The rank is that of the best
    of these, from 1, ties counted against it. `mean_recall` is the mean of the six (as in Karpathy and Fei-Fei, 2015).
    `chance_median_rank`: of a random order, for queries with one answer.
    """
    image_index, image_of_K = _distinct(predicted["image_hash"])
    text_index, text_of_K = _distinct(predicted["text_hash"])
    images, texts = predicted["image"][image_index], predicted["text"][text_index]
    figures = _direction("text_to_image", texts, images, text_of_K, image_of_K)
    figures |= _direction("image_to_text", images, texts, image_of_K, text_of_K)
    recalls = [value for name, value in figures.items() if "recall@" in name]
    return figures | {"mean_recall": float(np.mean(recalls)), "chance_median_rank": (len(images) + 1) / 2}


def _distinct(hashes: Tensor) -> tuple[Tensor, Tensor]:
    """Where each different one stands first, and for every row which of these it is."""
    values, inverse = torch.unique(hashes, return_inverse=True)
    first = torch.full((len(values),), len(hashes)).scatter_reduce(0, inverse, torch.arange(len(hashes)), "amin")
    return first, inverse


def _direction(name: str, asked: Tensor, found: Tensor, asked_K: Tensor, found_K: Tensor) -> dict[str, float]:
    answers = torch.zeros(len(asked), len(found), dtype=torch.bool)
    answers[asked_K, found_K] = True
    ranks = []
    for start in range(0, len(asked), _BLOCK):
        part = slice(start, start + _BLOCK)
        similarity = asked[part].float() @ found.float().T
        best = similarity.masked_fill(~answers[part], float("-inf")).max(1, keepdim=True).values
        ranks.append(1 + ((similarity >= best) & ~answers[part]).sum(1))
    rank = torch.cat(ranks).numpy()
    figures = {f"{name}_recall@{cut}": float((rank <= cut).mean()) for cut in CUTS}
    return figures | {f"{name}_median_rank": float(np.median(rank))}
