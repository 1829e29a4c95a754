"""Pictures classified by the names of the classes alone (Radford et al., 2021, arXiv:2103.00020, section 3.1).

Shapes: N pictures, C classes, T templates, D width of the space of pictures and texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from sslnlp.arrays import Ints, Vectors
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, drawn_figure, ratio_figure
from sslnlp.evaluation.local import LocalMetric

Encode = Callable[[Sequence[str]], Vectors]
"""Texts to vectors of length 1 [N, D]."""

PLACE = "{}"
TEMPLATES = (
    "{}",
    "this is a {}",
    "a picture with a {} in it",
    "the {}, photographed",
    "somebody took a photo of the {}",
    "a {} seen from near",
    "a drawing that shows a {}",
)
"""What a name is put into where nobody says otherwise: plain English, and the bare name for all other languages."""
TOP = 5


@dataclass(frozen=True)
class ZeroShot:
    """What zero-shot classification reached."""

    figures: dict[str, Figure]
    """`zero_shot_accuracy`, `zero_shot_macro_f1`, `zero_shot_top5` (of more than five classes) and
    `zero_shot_majority`: what answering the largest class always would reach."""
    per_class: dict[str, Figure]
    """Accuracy of the pictures of each class that there are any of."""


def check_templates(templates: Sequence[str]) -> None:
    """Raises `UserError` for none, and for one that leaves no place for a name."""
    if not templates:
        raise UserError("no template to put the names of classes into: give one with {}, or leave them out")
    if wrong := [template for template in templates if PLACE not in template]:
        raise UserError(f"the template {wrong[0]!r} has no place for the name of a class: write {{}} where it stands")


def class_vectors(encode: Encode, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Vectors:
    """float32 [C, D], length 1: of each name the mean of the vectors of length 1 of all templates, scaled back.

    `encode` is called with the C × T texts at once. `_` in a name is read as a space, as folders are named.
    Raises `UserError` for a template without `{}`, and for fewer than two names, or two that are the same.
    """
    check_templates(templates)
    plain = [" ".join(name.replace("_", " ").split()) for name in names]
    if len(plain) < 2:
        raise UserError(f"zero-shot classification needs the names of at least two classes, got {len(plain)}")
    if twice := sorted({name for name in plain if plain.count(name) > 1 or not name}):
        raise UserError(f"the names of classes must differ and not be empty: {twice[0]!r}")
    texts = [template.replace(PLACE, name) for name in plain for template in templates]
    vectors_CTD = _unit(encode(texts)).reshape(len(plain), len(templates), -1)
    return _unit(vectors_CTD.mean(1))


def zero_shot_measures(
    picture_ND: Vectors, class_CD: Vectors, label_N: Sequence[int], names: Sequence[str]
) -> ZeroShot:
    """How often the class whose vector is nearest (cosine) to a picture's is its own.

    `label_N`: index of the right class in `names`; pictures labelled below 0 are left out. Chance of accuracy and top-5
    is one class of C drawn for each picture, that of macro F1 what such draws reach in the limit of many pictures.
    Raises `UserError` where no picture has a label.
    """
    labels = np.asarray(label_N, np.int64)
    known = labels >= 0
    if not known.any():
        raise UserError("none of the pictures has a label")
    labels = labels[known]
    similarity_NC = _unit(picture_ND[known]) @ _unit(class_CD).T
    order_NC = np.argsort(-similarity_NC, axis=1, kind="stable")
    number, predicted = len(names), order_NC[:, 0]
    hits = predicted == labels
    share_C = np.bincount(labels, minlength=number) / len(labels)
    there = np.flatnonzero(share_C)
    chance_f1 = float(np.mean([2 * share_C[c] / number / (share_C[c] + 1 / number) for c in range(number)]))

    def f1(index: Ints) -> float:
        return macro_f1(labels[index], predicted[index], number)

    figures = {
        "zero_shot_accuracy": ratio_figure(hits, chance=1 / number),
        "zero_shot_macro_f1": drawn_figure(f1, len(labels), chance=chance_f1),
    }
    if number > TOP:
        among = (order_NC[:, :TOP] == labels[:, None]).any(1)
        figures["zero_shot_top5"] = ratio_figure(among, chance=TOP / number)
    figures["zero_shot_majority"] = ratio_figure(labels == share_C.argmax())
    per_class = {names[c]: ratio_figure(hits[labels == c], chance=1 / number) for c in there.tolist()}
    return ZeroShot(figures, per_class)


def macro_f1(labels: Ints, predicted: Ints, number: int) -> float:
    """F1 of each of `number` classes that occurs as a label or a prediction, averaged with equal weights."""
    right = np.bincount(labels[labels == predicted], minlength=number)
    together = np.bincount(labels, minlength=number) + np.bincount(predicted, minlength=number)
    return float((2 * right[together > 0] / together[together > 0]).mean())


def _unit(vectors: Vectors) -> Vectors:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)


class ZeroShotClassification(LocalMetric):
    """`zero_shot_accuracy` and the others: `predictions` are vectors of pictures, `references` which class each is of;
    `compute` also takes `class_vectors`, one a class."""

    describes = "How often the class whose vector is nearest to that of a picture is its own."
    features_of = datasets.Features(
        {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
    )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        class_vectors: Sequence[Sequence[float]],
    ) -> dict[str, float]:
        pictures, classes = np.asarray(predictions, np.float32), np.asarray(class_vectors, np.float32)
        found = zero_shot_measures(pictures, classes, references, [str(c) for c in range(len(classes))])
        return {name: figure.value for name, figure in found.figures.items()}
