"""Accuracy and macro-F1 by hand, as `evaluate` modules that need no hub."""

import evaluate
import pytest
import torch

from sslnlp.evaluation import Accuracy, MacroF1
from sslnlp.evaluation.classification import classification_measures, multi_label_measures, ordinal_measures

# Class 0: precision 2/3, recall 1, F1 4/5. Class 1: nothing right, F1 0. Class 2: 1/1, 1/1, F1 1.
PREDICTIONS, REFERENCES = [0, 0, 0, 2], [0, 0, 1, 2]


def test_by_hand() -> None:
    assert Accuracy().compute(predictions=PREDICTIONS, references=REFERENCES) == {"accuracy": 0.75}
    f1 = MacroF1().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert f1 == {"macro_f1": pytest.approx((4 / 5 + 0 + 1) / 3)}


def test_modules_add_batches_and_combine() -> None:
    both = evaluate.combine([Accuracy(), MacroF1()])
    both.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    both.add_batch(predictions=PREDICTIONS[2:], references=REFERENCES[2:])
    assert both.compute() == {"accuracy": 0.75, "macro_f1": pytest.approx(0.6)}


def test_logits_and_unlabelled_rows() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([*PREDICTIONS, 1]), 3).float()
    labels = torch.tensor([*REFERENCES, -100])
    figures = classification_measures({"logits": logits, "labels": labels})
    assert figures == {"accuracy": 0.75, "macro_f1": pytest.approx(0.6)}


def test_steps_of_a_scale_by_hand() -> None:
    """Two of four are one step off: 1/2 in the mean of the squares, 22/16 over all pairs of a label and an answer."""
    logits = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 1, 0]), 3).float()
    figures = ordinal_measures({"logits": logits, "labels": torch.tensor([0, 1, 2, 2, -100])})
    assert figures == {"mean_distance": 0.5, "weighted_kappa": pytest.approx(1 - 0.5 / (22 / 16))}


@pytest.mark.filterwarnings("error")
def test_agreement_on_one_step_alone_is_no_figure() -> None:
    """Chance would agree on all of it too: the kappa is 0/0, and JSON knows no such number."""
    logits, labels = torch.tensor([[1.0, 0.0, 0.0]] * 3), torch.zeros(3, dtype=torch.long)
    assert ordinal_measures({"logits": logits, "labels": labels}) == {"mean_distance": 0.0}


def test_texts_without_a_class_are_ranked_by_nobody() -> None:
    """scikit-learn counts them as 1: where most texts have no class, any model would look good."""
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    logits = torch.tensor([[-2.0, -1, 3], [-1, -2, -3], [-1, -2, -3], [1, 2, 3], [-2, -3, 1]])
    figures = multi_label_measures({"logits": logits, "labels": labels})
    assert figures["ranking_precision"] == pytest.approx(1 / 3)  # the one class of either stands last of three
    assert "ranking_precision" not in multi_label_measures({"logits": logits[1:4], "labels": labels[1:4]})


def test_a_class_that_does_not_occur_lowers_no_mean() -> None:
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    logits = 4 * labels - 2
    assert multi_label_measures({"logits": logits, "labels": labels})["macro_f1"] == 1
    logits[0, 2] = 1  # said, and never right
    assert multi_label_measures({"logits": logits, "labels": labels})["macro_f1"] == pytest.approx(2 / 3)
    nothing = {"logits": torch.full((2, 3), -1.0), "labels": torch.zeros(2, 3)}
    assert multi_label_measures(nothing)["macro_f1"] == 0
