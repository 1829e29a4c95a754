"""Measures: one file each, and the held-out pass that joins them.

`MEASURES` maps the names that an objective lists in `measures` to functions from what its `predict` returned (CPU
tensors, one row per held-out example or token) to figures.
"""

from __future__ import annotations

from sslnlp.evaluation.classification import Accuracy, MacroF1
from sslnlp.evaluation.detection import AUC
from sslnlp.evaluation.held_out import MEASURES, evaluate_held_out
from sslnlp.evaluation.ranking import RankingMeasures

__all__ = ["AUC", "MEASURES", "Accuracy", "MacroF1", "RankingMeasures", "evaluate_held_out"]
