"""What each held-out figure means: its unit, one sentence, and what a model that knows nothing would score."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

from sslnlp.report.measure import Facts, Measure, always, log_of, one_of
from sslnlp.report.picture_measures import PICTURES
from sslnlp.report.pretraining_measures import PRETRAINING

MEASURES: Mapping[tuple[str, str], Measure] = {
    **PRETRAINING,
    ("classification", "loss"): Measure(
        "nats per text", "mean cross-entropy of the labels", "lower", log_of("num_labels")
    ),
    **{
        (objective, "accuracy"): Measure("share", "texts whose label is predicted", "higher", one_of("num_labels"))
        for objective in ("classification", "few_shot")
    },
    **{
        (objective, "macro_f1"): Measure(
            "share", "F1 of each class, averaged with equal weight", "higher", one_of("num_labels")
        )
        for objective in ("classification", "few_shot")
    },
    ("few_shot", "loss"): Measure(
        "nats per text", "mean cross-entropy of the labels under the fitted head", "lower", log_of("num_labels")
    ),
    ("multi_label", "loss"): Measure(
        "nats per class", "mean binary cross-entropy of a class of a text", "lower", always(math.log(2))
    ),
    ("multi_label", "accuracy"): Measure("share", "classes of texts whose yes or no is right at one half", "higher"),
    ("multi_label", "micro_f1"): Measure("share", "F1 of all answers yes together, at one half", "higher"),
    ("multi_label", "macro_f1"): Measure("share", "F1 of each class at one half, averaged with equal weight", "higher"),
    ("multi_label", "exact_match"): Measure("share", "texts all of whose classes are right, at one half", "higher"),
    ("multi_label", "ranking_precision"): Measure(
        "share",
        "label ranking average precision, of texts with a class: how high the true ones stand among all",
        "higher",
    ),
    ("regression", "loss"): Measure(
        "variances of the labels", "mean squared error; predicting the training mean gives about 1", "lower"
    ),
    ("regression", "mean_absolute_error"): Measure("unit of the labels", "mean distance from the label", "lower"),
    ("regression", "r2"): Measure(
        "share", "variance that is explained, 1 - squared error over variance", "higher", always(0.0)
    ),
    ("regression", "pearson"): Measure("correlation", "of predictions and labels", "higher", always(0.0)),
    ("regression", "spearman"): Measure("rank correlation", "of predictions and labels", "higher", always(0.0)),
    ("tagging", "loss"): Measure("nats per word", "mean cross-entropy of the tags", "lower", log_of("num_labels")),
    ("tagging", "accuracy"): Measure("share", "words whose tag is predicted", "higher", one_of("num_labels")),
    ("tagging", "entity_f1"): Measure("share", "F1 of entities whose type and both ends are right", "higher"),
    ("tagging", "entity_precision"): Measure("share", "predicted entities that are right", "higher"),
    ("tagging", "entity_recall"): Measure("share", "entities that are found", "higher"),
    ("tagging", "entity_macro_f1"): Measure("share", "entity F1 of each type, averaged with equal weight", "higher"),
    ("ranking", "loss"): Measure("nats per query", "InfoNCE among the documents of a held-out batch", "lower"),
    ("ranking", "accuracy"): Measure(
        "share", "queries whose own document is the nearest of its held-out batch", "higher"
    ),
    ("ranking", "positive_similarity"): Measure(
        "cosine", "mean similarity of a query and its own document", "see loss"
    ),
    ("ranking", "distillation"): Measure(
        "of objective.distill", "the teacher's part of the loss, before its weight", "lower"
    ),
    ("reranking", "loss"): Measure("nats per target", "of objective.loss, over each query's own candidates", "lower"),
    ("reranking", "accuracy"): Measure("share", "queries whose relevant text is above its other candidates", "higher"),
    ("reranking", "chance_mrr@10"): Measure("mean over queries", "mrr@10 of a random order", "fixed by the data"),
    ("reranking", "chance_ndcg@10"): Measure("mean over queries", "ndcg@10 of a random order", "fixed by the data"),
    ("late_interaction", "loss"): Measure("nats per query", "cross-entropy among texts of a held-out batch", "lower"),
    ("late_interaction", "accuracy"): Measure(
        "share", "queries whose own text scores above all others of its held-out batch", "higher"
    ),
    ("late_interaction", "positive_similarity"): Measure(
        "cosine", "mean over the tokens of a query of the best match in its own text", "see loss"
    ),
}
"""(objective, figure) -> explanation. A figure that is not here is shown without one."""

_HELD = "held-out text"
CARD: Mapping[str, Measure] = {
    "bits_per_byte": Measure(
        "bits per byte of UTF-8",
        f"code length of {_HELD}, cut to what the model reads; compares across tokenizers",
        "lower",
    ),
    "mask_loss": Measure(
        "nats per masked token",
        f"mean cross-entropy of 15 % masked tokens of {_HELD}, the same for all models of one tokenizer",
        "lower",
    ),
    "mask_accuracy": Measure("share", "of these tokens, those whose most probable prediction is right", "higher"),
    "pseudo_loss": Measure(
        "nats per token",
        f"pseudo-log-likelihood of {_HELD}: each token is predicted with itself and the rest of its word masked",
        "lower",
    ),
    "pseudo_perplexity": Measure(
        "tokens", "exp of pseudo_loss; not comparable across tokenizers, nor with a causal perplexity", "lower"
    ),
    "pseudo_bits_per_byte": Measure(
        "bits per byte of UTF-8", "pseudo_loss over bytes; no code length: each token sees what follows", "lower"
    ),
    "minimal_pairs": Measure(
        "share", "pairs whose acceptable sentence has the higher (pseudo-)likelihood; ties count half", "higher"
    ),
    "known_item_recall@1": Measure(
        "share", "texts whose first half is nearest to its own second half, among those of all texts", "higher"
    ),
    "known_item_mrr": Measure("mean over texts", "reciprocal rank of the own second half", "higher"),
    "effective_rank": Measure(
        "directions", "how many directions the vectors of texts use (exp of the entropy of singular values)", "higher"
    ),
    "anisotropy": Measure("cosine", "mean cosine of two different texts; 1 when all are one", "lower"),
    "uniformity": Measure(
        "log",
        "how evenly vectors are spread: log of the mean Gaussian kernel of two texts; 0 when all are one",
        "lower",
    ),
    "alignment": Measure(
        "squared distance", "mean squared distance of the two halves of a text; read it beside uniformity", "lower"
    ),
    "sts_spearman": Measure(
        "rank correlation", "of the cosine of two sentences with how similar people find them", "higher"
    ),
    "knn": Measure("accuracy", "label by the ten nearest training texts, nothing trained", "higher"),
    "linear_probe": Measure("accuracy", "logistic regression on the frozen vectors", "higher"),
    **{name: Measure(*told) for name, told in PICTURES.items()},
    "reconstruction_exact": Measure("share", "corrupted texts that are rebuilt token for token", "higher"),
    "reconstruction_similarity": Measure(
        "share",
        "1 - edit distance over length, of a rebuilt text and the original; chance copies what is left",
        "higher",
    ),
    "repetition@4": Measure(
        "share", "4-grams of sampled text that came before in it; read it beside that of people", "near people's"
    ),
}
"""Figure of the report card -> explanation."""


_OF_CLASSES: Mapping[str, Measure] = {
    "calibration_error": Measure(
        "share", "expected gap between how sure an answer is and how often such answers are right", "lower"
    ),
    "calibrated_error": Measure(
        "share", "the same with a temperature that was fitted on other held-out texts", "lower"
    ),
    "calibrated_loss": Measure("nats per text", "cross-entropy with such a temperature", "lower", log_of("num_labels")),
    "temperature": Measure(
        "factor", "what the logits are divided by in the export; above 1: it was too sure", "near 1"
    ),
    "unknown_auroc": Measure(
        "share",
        "pairs of a known and an unknown text in which the known one has the surer answer",
        "higher",
        always(0.5),
    ),
    "unknown_below": Measure("probability", "an answer less sure than this is called unknown", "see unknown_found"),
    "unknown_found": Measure(
        "share", "unknown texts that are called so, where 5 % of the known ones are", "higher", always(0.05)
    ),
    "mean_distance": Measure("steps", "how far the predicted step of the scale is from the right one", "lower"),
    "weighted_kappa": Measure("agreement", "beyond chance, with quadratic weights (Cohen)", "higher", always(0.0)),
}
"""Figure of a classifier, under any objective -> explanation."""
_RANKED = {
    "ndcg": "discounted gain of the relevant documents among the first {k}, over the best possible",
    "mrr": "reciprocal rank of the first relevant document, 0 beyond rank {k}",
    "recall": "share of the relevant documents among the first {k}",
    "map": "average precision: precision at the place of each relevant document, averaged",
}


def measure(objective: str, figure: str) -> Measure | None:
    """The explanation of a held-out figure of an objective, or of a part of it (`part/figure`); None without one."""
    part, inner, bare = figure.rpartition("/")
    if inner:
        return measure(part, bare) or measure(objective, bare)
    if (told := MEASURES.get((objective, figure))) is not None:
        return told
    if figure in _OF_CLASSES:
        return _OF_CLASSES[figure]
    name, _, depth = figure.removeprefix("beir_").partition("@")
    if name in _RANKED:
        chance = functools.partial(_chance_at, name, depth)
        return Measure("mean over queries", _RANKED[name].format(k=depth), "higher", chance)
    return Measure(*PICTURES[figure]) if figure in PICTURES else None


def card_measure(figure: str) -> Measure | None:
    """The explanation of a figure of the report card; None when there is none."""
    return CARD.get(figure) or CARD.get(figure.partition("/")[0]) or measure("", figure)


def _chance_at(name: str, depth: str, facts: Facts) -> float | None:
    """Expected value of a random order when each query has one relevant document among `num_documents`."""
    documents = facts.get("num_documents")
    if not documents:
        return None
    gain = _GAINS[name]
    return sum(gain(place) for place in range(1, min(int(depth or documents), documents) + 1)) / int(documents)


_GAINS: Mapping[str, Callable[[int], float]] = {
    "mrr": lambda place: 1 / place,
    "map": lambda place: 1 / place,
    "ndcg": lambda place: 1 / math.log2(place + 1),
    "recall": lambda place: 1.0,
}
