"""How far a classifier's probabilities can be believed, and what makes them so: temperature, thresholds."""

from __future__ import annotations

import numpy as np

from sslnlp.arrays import Bools, Floats, Ints

BINS = 15
KEPT = 0.95
"""Share of the texts of known classes that a threshold for unknown ones lets through."""
_LOG_TEMPERATURES = (np.log(0.05), np.log(20.0))


def calibration_error(probability_N: Floats, right_N: Bools, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., 2017, arXiv:1706.04599): |accuracy - mean probability| of the predictions
    in each of `bins` equal ranges of probability, weighted by how many fall into it. 0 at best."""
    rows = reliability(probability_N, right_N, bins)
    return float(sum(abs(share - mean) * count for mean, share, count in rows) / max(1, len(probability_N)))


def reliability(probability_N: Floats, right_N: Bools, bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean probability, share that is right, number) of each range of probability that holds predictions."""
    place_N = np.minimum((probability_N * bins).astype(int), bins - 1)
    found = []
    for place in np.unique(place_N):
        inside = place_N == place
        found.append((float(probability_N[inside].mean()), float(right_N[inside].mean()), int(inside.sum())))
    return found


def fit_temperature(logits_NC: Floats, label_N: Ints) -> float:
    """What the logits are to be divided by so that the labels are most probable; between 0.05 and 20."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return cross_entropy(logits_NC / np.exp(log_temperature), label_N)

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def cross_entropy(logits_NC: Floats, label_N: Ints) -> float:
    """Mean negative log-probability of the labels, in nats."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits_NC, axis=-1)[np.arange(len(label_N)), label_N].mean())


def calibration_figures(logits_NC: Floats, label_N: Ints) -> dict[str, float]:
    """`calibration_error` as trained; `temperature`; and with one, `calibrated_error` and `calibrated_loss`.

    The latter two are of halves of the rows, each under the temperature of the other: what it does for new texts. Where
    that makes their loss no lower (few rows, nearly all of them right) it is 1, and where all are right, since then the
    surest answers fit them best, and nothing tells how sure is too sure.
    """
    even = np.arange(len(label_N)) % 2 == 0
    scaled_NC = logits_NC.copy()
    for fitted, measured in ((even, ~even), (~even, even)):
        if fitted.any() and measured.any():
            scaled_NC[measured] /= fit_temperature(logits_NC[fitted], label_N[fitted])
    wrong = bool((logits_NC.argmax(-1) != label_N).any())
    helps = wrong and cross_entropy(scaled_NC, label_N) < cross_entropy(logits_NC, label_N)
    after_NC = scaled_NC if helps else logits_NC
    return {
        "calibration_error": _error(logits_NC, label_N),
        "calibrated_error": _error(after_NC, label_N),
        "calibrated_loss": cross_entropy(after_NC, label_N),
        "temperature": fit_temperature(logits_NC, label_N) if helps else 1.0,
    }


def _error(logits_NC: Floats, label_N: Ints) -> float:
    from scipy.special import softmax

    return calibration_error(softmax(logits_NC, axis=-1).max(-1), logits_NC.argmax(-1) == label_N)


def f1_thresholds(probability_NC: Floats, label_NC: Bools) -> list[float]:
    """For each class the probability from which on saying yes gives the best F1; 0.5 for a class without examples."""
    found = []
    for probability_N, label_N in zip(probability_NC.T, label_NC.T, strict=True):
        if not label_N.any():
            found.append(0.5)
            continue
        order = np.argsort(-probability_N, kind="stable")
        hits = np.cumsum(label_N[order])
        f1 = 2 * hits / (np.arange(1, len(order) + 1) + label_N.sum())
        sorted_N = probability_N[order]
        last = np.append(sorted_N[1:] < sorted_N[:-1], True)  # equal probabilities are answered alike
        best = int(np.where(last, f1, -1.0).argmax())
        below = sorted_N[best + 1] if best + 1 < len(order) else 0.0
        found.append(float((sorted_N[best] + below) / 2))
    return found


def unknown_figures(known_N: Floats, unknown_M: Floats) -> dict[str, float]:
    """How well the probability of the likeliest class tells texts of known classes [N] from others [M].

    `unknown_auroc`; `unknown_below`, the threshold under which a text counts as unknown, so that 95 % of the known ones
    stay above; and `unknown_found`, the share of the unknown ones that fall below it.
    """
    from sklearn.metrics import roc_auc_score

    below = float(np.quantile(known_N, 1 - KEPT))
    truth = np.concatenate([np.ones(len(known_N)), np.zeros(len(unknown_M))])
    return {
        "unknown_auroc": float(roc_auc_score(truth, np.concatenate([known_N, unknown_M]))),
        "unknown_below": below,
        "unknown_found": float((unknown_M < below).mean()),
    }
