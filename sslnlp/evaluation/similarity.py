"""Semantic textual similarity: whether near vectors are what people call similar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Floats
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, drawn_figure
from sslnlp.evaluation.local import LocalMetric

COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class Similar:
    """Pairs of sentences and how similar people find them, on any scale that rises."""

    first: list[str]
    second: list[str]
    score: Floats


def read_similar(rows: Iterable[Mapping[str, Any]], source: str) -> Similar:
    """Pairs from rows with `sentence1`, `sentence2` and `score`. `UserError` names the column or row that is wrong."""
    first, second, score = [], [], []
    for number, row in enumerate(rows):
        if missing := [name for name in COLUMNS if row.get(name) is None]:
            raise UserError(
                f"{source}, row {number}: no {missing[0]!r}; pairs need the columns {', '.join(COLUMNS)}, here are "
                f"{', '.join(row)}"
            )
        first.append(str(row["sentence1"]))
        second.append(str(row["sentence2"]))
        try:
            score.append(float(row["score"]))
        except ValueError:
            raise UserError(f"{source}, row {number}: score {row['score']!r} is not a number") from None
    if len(set(score)) < 2:
        raise UserError(f"{source} has {len(score)} pairs of {len(set(score))} different scores: nothing to compare")
    return Similar(first, second, np.array(score))


def similarity_measures(encode: Callable[[list[str]], npt.NDArray[np.float32]], pairs: Similar) -> dict[str, Figure]:
    """`sts_spearman`: rank correlation of the cosine of the two vectors with people's score; chance is 0."""
    first, second = (_unit(encode(texts)) for texts in (pairs.first, pairs.second))
    cosine = (first * second).sum(-1)
    return {
        "sts_spearman": drawn_figure(lambda index: spearman(cosine[index], pairs.score[index]), len(cosine), chance=0.0)
    }


def spearman(a_N: Floats, b_N: Floats) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; NaN where one side does not vary."""
    from scipy.stats import rankdata

    a, b = (rankdata(x) - (len(x) + 1) / 2 for x in (a_N, b_N))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else float("nan")


def _unit(vectors: npt.NDArray[np.float32]) -> Floats:
    wide = vectors.astype(np.float64)
    unit: Floats = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)
    return unit


class Spearman(LocalMetric):
    """`{"spearman": ...}`: rank correlation of `predictions` with `references`."""

    describes = "Spearman's rank correlation."
    features_of = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"spearman": spearman(np.asarray(predictions, np.float64), np.asarray(references, np.float64))}
