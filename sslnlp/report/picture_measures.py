"""What each figure of a model of pictures means, wherever it stands: unit, one sentence, which way is better."""

from __future__ import annotations

from collections.abc import Mapping

_ASKED = {
    "text_to_image": "captions whose own picture is among the {k} nearest of all",
    "image_to_text": "pictures one of whose own captions is among the {k} nearest of all",
}
_RANKED = {
    "text_to_image": "median over captions of the place of their own picture among all",
    "image_to_text": "median over pictures of the place of the first of their own captions among all",
}

PICTURES: Mapping[str, tuple[str, str, str]] = {
    **{
        f"{side}_recall@{k}": ("share", meaning.format(k=k), "higher")
        for side, meaning in _ASKED.items()
        for k in (1, 5, 10)
    },
    **{f"{side}_median_rank": ("rank", meaning, "lower") for side, meaning in _RANKED.items()},
    "mean_recall": ("share", "mean of the recalls at 1, 5 and 10 of both directions", "higher"),
    "chance_median_rank": ("rank", "median rank of captions by a random order of the pictures", "fixed by the data"),
    "zero_shot_accuracy": (
        "accuracy", "pictures whose class is the one whose name lies nearest, nothing trained on labels", "higher"
    ),
    "zero_shot_macro_f1": ("share", "F1 of each class by these answers, averaged with equal weight", "higher"),
    "zero_shot_top5": ("share", "pictures whose class is among the five nearest names", "higher"),
    "zero_shot_majority": (
        "accuracy", "of answering the largest class always; what zero_shot_accuracy has to beat", "fixed by the data"
    ),
    "picture_knn": ("accuracy", "label by the ten nearest training pictures, nothing trained", "higher"),
    "picture_linear_probe": ("accuracy", "logistic regression on the frozen vectors of pictures", "higher"),
    **{
        f"{kind}_{name}": (unit, meaning.format(what=f"{kind}s"), better)
        for kind in ("picture", "caption")
        for name, unit, meaning, better in (
            ("effective_rank", "directions", "how many directions the vectors of {what} use", "higher"),
            ("anisotropy", "cosine", "mean cosine of two different {what}; 1 when all are one", "lower"),
            ("uniformity", "log", "how evenly the vectors of {what} are spread; 0 when all are one", "lower"),
        )
    },
}  # fmt: skip
"""Figure -> unit, meaning, which way is better."""
