"""Calibration by closed forms, and thresholds by what they must do."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sslnlp.evaluation.calibration import (
    calibration_error,
    calibration_figures,
    cross_entropy,
    f1_thresholds,
    fit_temperature,
    reliability,
    unknown_figures,
)


def test_error_is_the_gap_between_what_is_said_and_what_is_right() -> None:
    sure = np.array([0.95] * 10 + [0.55] * 10)
    right = np.array([True] * 9 + [False] + [True] * 2 + [False] * 8)
    # |0.9 - 0.95| of one half of them, |0.2 - 0.55| of the other.
    assert calibration_error(sure, right) == pytest.approx((0.05 + 0.35) / 2)
    assert reliability(sure, right) == [(pytest.approx(0.55), 0.2, 10), (pytest.approx(0.95), 0.9, 10)]
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0


def drawn(count: int = 20_000, temperature: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times too sure, and labels drawn from the right probabilities."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(count, 4)) * 2
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(1)  # the Gumbel-max draw of a softmax
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_figures_say_what_the_temperature_does_for_new_texts() -> None:
    logits, labels = drawn(temperature=3.0)
    figures = calibration_figures(logits, labels)
    assert figures["calibration_error"] > 0.1
    assert figures["calibrated_error"] < 0.02
    assert figures["calibrated_loss"] < cross_entropy(logits, labels) - 0.1
    assert figures["calibrated_loss"] == pytest.approx(cross_entropy(logits / 3, labels), abs=0.002)


def test_a_temperature_that_makes_new_texts_worse_is_not_taken() -> None:
    # All but one of 60 are right: the half without the wrong one would have any confidence, and the other one pays.
    logits, labels = np.tile([2.0, 0.0], (60, 1)), np.zeros(60, int)
    labels[7] = 1
    figures = calibration_figures(logits, labels)
    assert figures["temperature"] == 1
    assert figures["calibrated_error"] == figures["calibration_error"]
    assert figures["calibrated_loss"] == cross_entropy(logits, labels)


def test_answers_that_are_all_right_do_not_make_a_model_boundlessly_sure() -> None:
    logits, labels = np.tile([2.0, 0.0], (60, 1)), np.zeros(60, int)
    figures = calibration_figures(logits, labels)
    assert figures["temperature"] == 1
    assert figures["calibrated_loss"] == cross_entropy(logits, labels)


def test_thresholds_have_the_best_f1_of_all() -> None:
    generator = np.random.default_rng(1)
    labels = generator.random((300, 3)) < [0.5, 0.1, 0.02]
    probability = np.clip(0.3 * labels + generator.random((300, 3)) * 0.6, 0, 1).round(2)
    for c, threshold in enumerate(f1_thresholds(probability, labels)):
        reached = f1_score(labels[:, c], probability[:, c] >= threshold)
        others = [f1_score(labels[:, c], probability[:, c] >= t, zero_division=0) for t in np.linspace(0, 1, 101)]
        assert reached >= max(others) - 1e-12
    assert f1_thresholds(probability, np.zeros((300, 3), bool)) == [0.5] * 3


def test_unknown_texts_fall_below_what_keeps_nineteen_of_twenty() -> None:
    known, unknown = np.linspace(0.5, 1, 1001), np.linspace(0.2, 0.6, 1001)
    figures = unknown_figures(known, unknown)
    assert (known >= figures["unknown_below"]).mean() == pytest.approx(0.95, abs=0.002)
    assert figures["unknown_found"] == pytest.approx((unknown < 0.525).mean())
    # P(known > unknown) of two uniforms: only [0.5, 0.6] is shared, a fifth of the one and a quarter of the other.
    assert figures["unknown_auroc"] == pytest.approx(1 - 0.2 * 0.25 / 2, abs=1e-3)
