"""The maths of the objectives against the papers' formulas, written out once more in plain loops of float64 numbers.

Values are compared on random inputs, and gradients with differences of the formulas: nothing here calls the package
but for what is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslnlp.objectives import functional
from sslnlp.objectives.data2vec import Data2Vec
from sslnlp.objectives.electra import corrective_losses
from sslnlp.objectives.late_interaction import max_sim
from sslnlp.objectives.linear_cross_entropy import linear_cross_entropy
from sslnlp.objectives.reranking import LOSSES

Array = NDArray[np.float64]

CLASSES = np.array([0, 1, 0, 2, 1, 0])  # one text is the only one of its class
OUT = np.zeros((4, 7), bool)
OUT[0, 3] = OUT[1, 1] = OUT[3, 6] = True  # of these the second is a query's own
TARGET = np.array([2, 1, 0, 5])
SCORED = np.array([2, -100, 0, 5])
RELEVANCE = np.array([[1, 0, 0, -100], [1, 0, 0, 0], [1, -100, -100, 0]])
SEEN = np.array([[1, 1, 0], [1, 1, 1]])
REPLACED = np.array([True, False, False, True])


def log_softmax(x: Array) -> Array:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def info_nce(query: Array, document: Array, temperature: Array) -> float:
    total = 0.0
    for i, own in enumerate(TARGET):
        kept = [j for j in range(len(document)) if j == own or not OUT[i, j]]
        total -= np.log(
            np.exp(query[i] @ document[own] / temperature[0])
            / sum(np.exp(query[i] @ document[j] / temperature[0]) for j in kept)
        )
    return total / len(query)


def supervised_contrastive(vector: Array) -> float:
    """L_out of Khosla et al., equation 2, over all vectors; without another of its class a vector counts 0."""
    total = 0.0
    for i, kind in enumerate(CLASSES):
        others = [a for a in range(len(vector)) if a != i]
        same = [p for p in others if CLASSES[p] == kind]
        denominator = sum(np.exp(vector[i] @ vector[a] / 0.3) for a in others)
        total += sum(-np.log(np.exp(vector[i] @ vector[p] / 0.3) / denominator) for p in same) / max(1, len(same))
    return total / len(vector)


def byol(a: Array, b: Array) -> float:
    """Equation 2 of Grill et al.: the squared distance of both at length one."""
    return float(
        np.mean([np.sum((x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2) for x, y in zip(a, b, strict=True)])
    )


def barlow_twins(a: Array, b: Array) -> float:
    width, total = a.shape[1], 0.0
    for i in range(width):
        for j in range(width):
            c = np.corrcoef(a[:, i], b[:, j])[0, 1]
            total += (1 - c) ** 2 if i == j else 0.01 * c**2
    return total


def vicreg(a: Array, b: Array) -> float:
    """Algorithm 1 of Bardes et al., with the weights 2, 3 and 5."""
    invariance = np.mean((a - b) ** 2)
    variance = sum(np.mean(np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4))) for x in (a, b)) / 2
    covariance = 0.0
    for x in (a, b):
        c = np.cov(x, rowvar=False)
        covariance += sum(c[i, j] ** 2 for i in range(len(c)) for j in range(len(c)) if i != j) / len(c)
    return float(2 * invariance + 3 * variance + 5 * covariance)


def margin_mse(student: Array, teacher: Array) -> float:
    rows, documents = student.shape
    return float(
        np.mean(
            [
                ((student[i, 0] - student[i, k]) - (teacher[i, 0] - teacher[i, k])) ** 2
                for i in range(rows)
                for k in range(1, documents)
            ]
        )
    )


def listwise_kl(student: Array, teacher: Array) -> float:
    s, t = log_softmax(student), log_softmax(teacher)
    return float(np.mean(np.sum(np.exp(t) * (t - s), axis=1)))


def smoothed(logits: Array, smoothing: float) -> float:
    total = 0.0
    for row, target in zip(log_softmax(logits), SCORED, strict=True):
        if target >= 0:
            wanted = np.full(len(row), smoothing / len(row))
            wanted[target] += 1 - smoothing
            total -= wanted @ row
    return total / 3


def gaussian_kl(mean: Array, log_variance: Array) -> float:
    """By integration of q ln(q / p) over a fine grid."""
    x = np.linspace(-25, 25, 200_001)
    total = 0.0
    for m, v in zip(mean.flat, np.exp(log_variance).flat, strict=True):
        log_q = -((x - m) ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2
        log_p = -(x**2) / 2 - np.log(2 * np.pi) / 2
        total += np.sum(np.exp(log_q) * (log_q - log_p)) * (x[1] - x[0])
    return total


def corrective(logits: Array, score: Array) -> float:
    """COCO-LM, section 3.2: the token that is read with the probability of a copy, else one of the softmax."""
    total = 0.0
    for i, target in enumerate(TARGET):
        copied = 1 - sigmoid(score[i])
        chance = (1 - copied) * np.exp(log_softmax(logits[i]))[target] + (0 if REPLACED[i] else copied)
        total -= np.log(chance)
    return total


def ranked_probability(logits: Array) -> float:
    total = 0.0
    for row, target in zip(np.exp(log_softmax(logits)), TARGET, strict=True):
        total += sum((row[: c + 1].sum() - float(target <= c)) ** 2 for c in range(len(row)))
    return total


def reranked(kind: str, scores: Array) -> float:
    total = 0.0
    for row, relevance in zip(scores, RELEVANCE, strict=True):
        others = [k for k in range(1, len(row)) if relevance[k] == 0]
        if kind == "pointwise":
            total -= np.log(sigmoid(row[0])) + sum(np.log(1 - sigmoid(row[k])) for k in others)
        elif kind == "pairwise":
            total -= sum(np.log(sigmoid(row[0] - row[k])) for k in others)
        else:
            total -= np.log(np.exp(row[0]) / (np.exp(row[0]) + sum(np.exp(row[k]) for k in others)))
    return total


def late(query: Array, document: Array) -> float:
    """Equation 3 of Khattab and Zaharia, summed over all pairs with a weight of its own for each."""
    total = 0.0
    for i, q in enumerate(query):
        for j, d in enumerate(document):
            best = [max(float(token @ other) for other in d) for token, seen in zip(q, SEEN[i], strict=True) if seen]
            total += (1 + i + 2 * j) * sum(best)
    return total


def smooth_l1(predicted: Array, target: Array) -> float:
    """Section 3.3 of Baevski et al., with beta 0.5."""
    far = np.abs(predicted - target)
    return float(np.mean(np.where(far <= 0.5, 0.5 * far**2 / 0.5, far - 0.25), axis=-1).sum())


def uniformity(x: Array) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return float(np.log(np.mean([np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i, j in pairs])))


def ours_info_nce(query: Tensor, document: Tensor, temperature: Tensor) -> Tensor:
    target, out = torch.tensor(TARGET), torch.tensor(OUT)
    return functional.info_nce(query, document, target, temperature=temperature, excluded_QD=out)[0]


def ours_supervised(vector: Tensor) -> Tensor:
    kinds, own = torch.tensor(CLASSES), torch.arange(len(vector))
    parts = [
        functional.supervised_contrastive(vector[i], vector, kinds[i], kinds, own[i], temperature=0.3)[0]
        for i in (slice(0, 3), slice(3, 6))  # as two processes would
    ]
    return (parts[0] + parts[1]) / 2


def ours_vicreg(a: Tensor, b: Tensor) -> Tensor:
    invariance, variance, covariance = functional.vicreg(a, b)
    return 2 * invariance + 3 * variance + 5 * covariance


def ours_late(query: Tensor, document: Tensor) -> Tensor:
    weight = torch.tensor([[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]])
    return (max_sim(query, torch.tensor(SEEN), document, torch.ones(3, 4)) * weight).sum()


def ours_linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear_cross_entropy(features, weight, bias, torch.tensor(SCORED), label_smoothing=0.1).loss


def ours_distance(predicted: Tensor, target: Tensor) -> Tensor:
    return Data2Vec.distance(SimpleNamespace(beta=0.5), predicted, target).sum()  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], list[tuple[int, ...]]]] = {
    # what is looked at, the formula, the shapes of its arguments
    "info_nce": (ours_info_nce, info_nce, [(4, 5), (7, 5), (1,)]),
    "supervised_contrastive": (ours_supervised, supervised_contrastive, [(6, 5)]),
    "byol": (functional.cosine_distance, byol, [(4, 5), (4, 5)]),
    "barlow_twins": (lambda a, b: functional.barlow_twins(a, b, off_diagonal=0.01), barlow_twins, [(6, 3), (6, 3)]),
    "vicreg": (ours_vicreg, vicreg, [(6, 3), (6, 3)]),
    "margin_mse": (functional.margin_mse, margin_mse, [(3, 4), (3, 4)]),
    "listwise_kl": (functional.listwise_kl, listwise_kl, [(3, 4), (3, 4)]),
    "gaussian_kl": (lambda m, v: functional.gaussian_kl(m, v).sum(), gaussian_kl, [(2, 2), (2, 2)]),
    "corrective": (
        lambda logits, score: corrective_losses(logits, torch.tensor(TARGET), torch.tensor(REPLACED), score).sum(),
        corrective, [(4, 6), (4,)],
    ),
    "ranked_probability": (
        lambda x: functional.ranked_probability_score(x, torch.tensor(TARGET)).sum(), ranked_probability, [(4, 6)]
    ),
    "smooth_l1": (ours_distance, smooth_l1, [(3, 5), (3, 5)]),
    "max_sim": (ours_late, late, [(2, 3, 5), (3, 4, 5)]),
    "smoothed": (
        lambda x: functional.cross_entropy(x, torch.tensor(SCORED), 0.1), lambda x: smoothed(x, 0.1), [(4, 6)]
    ),
    "linear": (ours_linear, lambda x, w, b: smoothed(x @ w.T + b, 0.1), [(4, 3), (6, 3), (6,)]),
    "uniformity": (functional.uniformity, uniformity, [(5, 3)]),
} | {
    kind: (
        lambda x, kind=kind: LOSSES[kind][0](x, torch.tensor(RELEVANCE)), lambda x, kind=kind: reranked(kind, x),
        [(3, 4)],
    )
    for kind in LOSSES
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name: str) -> None:
    ours, formula, shapes = CASES[name]
    draws = np.random.default_rng(7)
    inputs = [draws.normal(size=shape) if shape != (1,) else np.array([0.3]) for shape in shapes]
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    found = ours(*tensors)
    assert found.item() == pytest.approx(formula(*inputs), rel=1e-5)
    for x, gradient in zip(inputs, torch.autograd.grad(found, tensors), strict=True):
        for place in np.ndindex(x.shape):
            was = x[place]
            sides = []
            for step in (1e-5, -1e-5):
                x[place] = was + step
                sides.append(formula(*inputs))
            x[place] = was
            assert gradient[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-3, abs=1e-5)
