"""Measures: one file each, and the held-out pass that joins them.

`MEASURES` maps the names that an objective lists in `measures` to functions from what its `predict` returned (CPU
tensors, one row per held-out example or token) to figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.registry import on_first_use

if TYPE_CHECKING:
    from sslnlp.evaluation.classification import Accuracy, MacroF1
    from sslnlp.evaluation.detection import AUC
    from sslnlp.evaluation.geometry import Geometry
    from sslnlp.evaluation.held_out import MEASURES, evaluate_held_out
    from sslnlp.evaluation.known_item import KnownItem
    from sslnlp.evaluation.likelihood import BitsPerByte, PseudoPerplexity
    from sslnlp.evaluation.minimal_pairs import MinimalPairAccuracy
    from sslnlp.evaluation.probes import Probes
    from sslnlp.evaluation.ranking_metric import RankingMeasures
    from sslnlp.evaluation.similarity import Spearman
    from sslnlp.evaluation.written import ReconstructionMeasures, Repetition
    from sslnlp.evaluation.zero_shot import ZeroShotClassification
else:  # a search is measured without torch
    __getattr__ = on_first_use(
        __name__,
        {
            "classification": ("Accuracy", "MacroF1"),
            "detection": ("AUC",),
            "geometry": ("Geometry",),
            "held_out": ("MEASURES", "evaluate_held_out"),
            "known_item": ("KnownItem",),
            "likelihood": ("BitsPerByte", "PseudoPerplexity"),
            "minimal_pairs": ("MinimalPairAccuracy",),
            "probes": ("Probes",),
            "ranking_metric": ("RankingMeasures",),
            "similarity": ("Spearman",),
            "written": ("ReconstructionMeasures", "Repetition"),
            "zero_shot": ("ZeroShotClassification",),
        },
    )

__all__ = [
    "AUC",
    "MEASURES",
    "Accuracy",
    "BitsPerByte",
    "Geometry",
    "KnownItem",
    "MacroF1",
    "MinimalPairAccuracy",
    "Probes",
    "PseudoPerplexity",
    "RankingMeasures",
    "ReconstructionMeasures",
    "Repetition",
    "Spearman",
    "ZeroShotClassification",
    "evaluate_held_out",
]
