"""Measures of what a model wrote, from token ids alone: how much it repeats itself, how near it is to its target."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import numpy as np

from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.local import LocalMetric

ORDERS = (1, 2, 3, 4)


def repeated(ids: Sequence[int], n: int) -> tuple[int, int]:
    """How many n-grams of a text have come before in it, and how many there are."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def repetition_figure(texts: Sequence[Sequence[int]], n: int) -> Figure:
    """`repetition@n`: 1 - distinct n-grams / n-grams, counted in each text and summed over texts.

    For texts of one length this is the mean of seq-rep-n (Welleck et al., 2019, arXiv:1908.04319). It rises with the
    length of a text, also for what people write: compare equal lengths.
    """
    parts, wholes = np.array([repeated(ids, n) for ids in texts] or [(0, 0)]).T
    return ratio_figure(parts, wholes)


class Repetition(LocalMetric):
    """`repetition@1` to `repetition@4` of `predictions`, the ids of a text each; those with no n-gram are left out."""

    describes = "Share of the n-grams of a text that came before in it, n = 1 to 4."
    features_of = datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))})

    def _compute(self, predictions: Sequence[Sequence[int]]) -> dict[str, float]:
        found = {n: np.sum([repeated(ids, n) for ids in predictions], axis=0) for n in ORDERS}
        return {f"repetition@{n}": float(part / whole) for n, (part, whole) in found.items() if whole}


def edit_similarity(a: Sequence[int], b: Sequence[int]) -> float:
    """1 - edits / length of the longer: 1 for equal sequences (also empty ones), 0 where nothing is in place.

    Edits are the fewest insertions, deletions and replacements that make one of the other (Levenshtein, 1966).
    """
    if not a and not b:
        return 1.0
    costs = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, costs[0] = costs[0], i
        for j, y in enumerate(b, 1):
            diagonal, costs[j] = costs[j], min(costs[j] + 1, costs[j - 1] + 1, diagonal + (x != y))
    return 1 - costs[-1] / max(len(a), len(b))


class ReconstructionMeasures(LocalMetric):
    """`exact_match` and `edit_similarity`, means over texts: `predictions` are the ids that were written, `references`
    those that should have been."""

    describes = "Share of texts rebuilt token for token, and mean edit similarity of tokens."
    features_of = datasets.Features(
        {
            "predictions": datasets.Sequence(datasets.Value("int64")),
            "references": datasets.Sequence(datasets.Value("int64")),
        }
    )

    def _compute(self, predictions: Sequence[list[int]], references: Sequence[list[int]]) -> dict[str, float]:
        pairs = list(zip(map(list, predictions), map(list, references), strict=True))
        return {
            "exact_match": float(np.mean([a == b for a, b in pairs])),
            "edit_similarity": float(np.mean([edit_similarity(a, b) for a, b in pairs])),
        }
