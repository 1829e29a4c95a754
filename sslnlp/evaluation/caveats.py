"""Held-out figures that come out well whatever the model: what is to be said beside them, once, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from sslnlp.evaluation.ranking import LEAST

MORE = ": these figures say little of the model; hold out more (data.valid, data.valid_fraction)"
TWINS = (
    "held out, both views of a text are one and the same and each finds itself: no ranking is measured, and an "
    "accuracy of 1 says nothing of the model"
)

Predicted = Mapping[str, Tensor]


def caveat(measures: Iterable[str], predicted: Predicted, compared: int | None = None) -> str | None:
    """Why the held-out figures say little: too few candidates to go wrong among, or one and the same right answer.

    predicted: what the `measures` (names of `held_out.MEASURES`) were computed from. compared: the most targets of one
    forward pass of a loss that compares them with each other. None where there is nothing to say.
    """
    found = (CAVEATS[name](predicted) for name in measures if name in CAVEATS)
    said = next((line for line in found if line is not None), None)
    if said is None and compared == 1:
        said = "each held-out text was compared with no other"
    return said if said is None or said == TWINS else said + MORE


def _few(candidates: int) -> str | None:
    if candidates >= LEAST:
        return None
    if candidates == 1:
        return "held out there is one candidate and no other, so the right one is always found"
    return f"held out the right one is among {candidates}, and guessing finds it in 1 of {candidates} cases"


def _ranking(predicted: Predicted) -> str | None:
    if torch.equal(predicted["query_hash"], predicted["document_hash"]):
        return TWINS
    return _few(len(torch.unique(predicted["document_hash"])))


def _image_text(predicted: Predicted) -> str | None:
    return _few(min(len(torch.unique(predicted[name])) for name in ("image_hash", "text_hash")))


def _reranking(predicted: Predicted) -> str | None:
    return _few(int(predicted["candidates"].max()))


def _one(answers: Tensor, what: str) -> str | None:
    """Of the right answers [N, ...]."""
    return f"all held-out {what}, so always answering it is right" if len(torch.unique(answers, dim=0)) == 1 else None


def _classes(predicted: Predicted) -> str | None:
    labels = predicted["labels"]
    return _one(labels[labels != -100], "texts are of one class")


def _several(predicted: Predicted) -> str | None:
    return _one(predicted["labels"], "texts have the same classes")


def _number(predicted: Predicted) -> str | None:
    return _one(predicted["labels"], "labels are one number")


def _tags(predicted: Predicted) -> str | None:
    return _one(torch.stack([predicted["label_prefix"], predicted["label_type"]], 1), "words have one tag")


def _latent(predicted: Predicted) -> str | None:
    alone = len(predicted["mean"]) == 1
    return "held out there is one text, so no posterior can differ from another" if alone else None


CAVEATS: dict[str, Callable[[Predicted], str | None]] = {
    "classification": _classes,
    "image_text": _image_text,
    "latent": _latent,
    "multi_label": _several,
    "ranking": _ranking,
    "regression": _number,
    "reranking": _reranking,
    "tagging": _tags,
}
"""By the names of the measures."""
