"""Classification by names: by hand on small arrays, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sslnlp.errors import UserError
from sslnlp.evaluation import ZeroShotClassification
from sslnlp.evaluation.zero_shot import TEMPLATES, class_vectors, macro_f1, zero_shot_measures

WORDS = {"cat": (1.0, 0.0), "a cat": (0.0, 2.0), "big dog": (-3.0, 0.0), "a big dog": (0.0, -1.0)}


def encode(texts: list[str]) -> np.ndarray:
    return np.array([WORDS[text] for text in texts], np.float32)


def test_a_class_is_the_mean_direction_of_its_templates() -> None:
    """Each vector counts as one of length 1, so (1, 0) and (0, 2) make the diagonal."""
    found = class_vectors(encode, ["cat", "big_dog"], ["{}", "a {}"])
    half = 0.5**0.5
    assert np.allclose(found, [[half, half], [-half, -half]])
    assert np.allclose(class_vectors(encode, ["cat", "big_dog"], ["{}"]), [[1, 0], [-1, 0]])


def test_figures_by_hand() -> None:
    """Two classes, five labelled pictures: three of four cats right, the dog right; one picture has no label."""
    pictures = np.array([(1, 0.1), (2, 0), (0.1, 0), (-1, 0), (-5, 1), (1, 0)], np.float32)
    names = ["cat", "dog"]
    found = zero_shot_measures(pictures, np.array([(1, 0), (-1, 0)], np.float32), [0, 0, 0, 0, 1, -100], names)
    accuracy, f1 = found.figures["zero_shot_accuracy"], found.figures["zero_shot_macro_f1"]
    assert (accuracy.value, accuracy.chance, accuracy.number) == (0.8, 0.5, 5)
    assert f1.value == pytest.approx((6 / 7 + 2 / 3) / 2)
    # Half of all answers are each class: F1 = 2 p r / (p + r) with precision the share of the class and recall 1/2.
    assert f1.chance == pytest.approx((2 * 0.8 * 0.5 / 1.3 + 2 * 0.2 * 0.5 / 0.7) / 2)
    assert found.figures["zero_shot_majority"].value == 0.8
    assert {name: figure.value for name, figure in found.per_class.items()} == {"cat": 0.75, "dog": 1.0}
    assert accuracy.low <= accuracy.value <= accuracy.high
    assert "zero_shot_top5" not in found.figures  # of two classes, both are among the five nearest


def test_the_five_nearest_of_seven() -> None:
    classes = np.array([(np.cos(a), np.sin(a)) for a in np.arange(7) / 7], np.float32)
    # A picture at class 0 has the classes in their order: those of 0 to 4 are found.
    found = zero_shot_measures(np.repeat(classes[:1], 7, 0), classes, list(range(7)), list("abcdefg"))
    assert found.figures["zero_shot_top5"].value == pytest.approx(5 / 7)
    assert found.figures["zero_shot_top5"].chance == pytest.approx(5 / 7)
    assert found.figures["zero_shot_accuracy"].value == pytest.approx(1 / 7)


def test_f1_is_that_of_scikit_learn_also_of_a_class_that_never_occurs() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        labels, predicted = generator.integers(0, 4, 15), generator.integers(1, 6, 15)
        wanted = f1_score(labels, predicted, average="macro", zero_division=0)
        assert macro_f1(labels, predicted, 7) == pytest.approx(wanted)


def test_as_a_module_of_evaluate() -> None:
    found = ZeroShotClassification().compute(
        predictions=[(1.0, 0.0), (0.0, 1.0)], references=[0, 0], class_vectors=[(1.0, 0.0), (0.0, 1.0)]
    )
    assert found["zero_shot_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("names", "templates", "said"),
    [
        (["cat"], ["{}"], "at least two classes"),
        (["big_dog", "big dog"], ["{}"], "must differ"),
        (["cat", " "], ["{}"], "not be empty"),
        (["cat", "big dog"], ["a photo"], "'a photo' has no place"),
        (["cat", "big dog"], [], "no template"),
    ],
)
def test_what_is_refused(names: list[str], templates: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        class_vectors(encode, names, templates)


def test_unlabelled_pictures_measure_nothing() -> None:
    with pytest.raises(UserError, match="none of the pictures has a label"):
        zero_shot_measures(np.ones((2, 2), np.float32), np.eye(2, dtype=np.float32), [-100, -100], ["a", "b"])
    assert "{}" in TEMPLATES
