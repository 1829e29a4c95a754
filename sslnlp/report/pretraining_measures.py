"""What the held-out figures of pretraining mean: unit, one sentence, which way is better, what guessing scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sslnlp.report.measure import Measure, always, log_of, one_of, uniform_bits_per_byte

_LN_V, _ONE_OF_V = log_of("vocab_size"), one_of("vocab_size")
_TOKEN_LOSS = "mean cross-entropy of the scored tokens of held-out text"
_BLIND = "the same from a vector of zeros; where it is no higher, the vector says nothing"


def _loss(of: str, unit: str = "nats per token") -> Measure:
    return Measure(unit, f"mean cross-entropy of {of}", "lower", _LN_V)


def _right(of: str) -> Measure:
    return Measure("share", f"{of} whose most probable prediction is right", "higher", _ONE_OF_V)


_MASKED = {
    "masked_loss": _loss("masked tokens, the same masks each time", "nats per masked token"),
    "masked_accuracy": _right("masked tokens"),
}


def _for(objectives: Sequence[str], told: Mapping[str, Measure]) -> dict[tuple[str, str], Measure]:
    return {(objective, figure): measure for objective in objectives for figure, measure in told.items()}


PRETRAINING: Mapping[tuple[str, str], Measure] = {
    ("masked_lm", "loss"): Measure(
        "nats per masked token",
        f"{_TOKEN_LOSS}, the same masks each time; not comparable across tokenizers",
        "lower",
        _LN_V,
    ),
    ("masked_lm", "accuracy"): Measure(
        "share", "masked tokens whose most probable prediction is right", "higher", _ONE_OF_V
    ),
    ("masked_diffusion", "loss"): Measure(
        "nats per token",
        "bound on the code length of held-out text, each token of which is told once; not comparable across tokenizers",
        "lower",
        _LN_V,
    ),
    ("masked_diffusion", "bits_per_byte"): Measure(
        "bits per byte of UTF-8",
        "upper bound on the code length of held-out text whose length is known; comparable with a causal model's",
        "lower",
        uniform_bits_per_byte,
    ),
    ("masked_diffusion", "masked_loss"): Measure(
        "nats per masked token",
        "mean cross-entropy of the masked tokens, at all rates of masking",
        "lower",
        _LN_V,
    ),
    ("masked_diffusion", "accuracy"): Measure(
        "share", "masked tokens predicted right, at all rates of masking", "higher", _ONE_OF_V
    ),
    ("causal_lm", "loss"): Measure(
        "nats per token", f"{_TOKEN_LOSS}; not comparable across tokenizers", "lower", _LN_V
    ),
    ("causal_lm", "accuracy"): Measure("share", "tokens whose most probable prediction is right", "higher", _ONE_OF_V),
    ("causal_lm", "bits_per_byte"): Measure(
        "bits per byte of UTF-8",
        "code length of held-out text; comparable across tokenizers without unknown tokens in it",
        "lower",
        uniform_bits_per_byte,
    ),
    **_for(
        ["hybrid"],
        {
            **_MASKED,
            "causal_loss": _loss("every token, from those before it"),
            "causal_accuracy": _right("tokens, from those before them,"),
            "loss": Measure("nats", "masked_loss and causal_loss, by objective.masked_weight", "lower", _LN_V),
        },
    ),
    **_for(
        ["prefix_lm", "ul2_decoder"],
        {"loss": _loss("what follows the prefix"), "accuracy": _right("tokens behind the prefix")},
    ),
    **_for(
        ["fim"],
        {
            "loss": _loss("texts, some of which have their middle behind their end"),
            "accuracy": _right("tokens"),
            "infill_loss": _loss("middles, both sides of which are known"),
            "infill_accuracy": _right("tokens of middles"),
            "plain_loss": _loss("texts left as they are; beside a causal model's"),
        },
    ),
    **_for(
        ["denoising", "span_corruption", "ul2"],
        {
            "loss": _loss("what is to be written", "nats per target token"),
            "accuracy": _right("target tokens, which the source may hold or sentinels be,"),
            "rebuilt_accuracy": _right("tokens of the text that the source hides"),
        },
    ),
    **_for(
        ["tsdae"],
        {
            "loss": _loss("a text, from its vector and the tokens before"),
            "accuracy": _right("tokens"),
            "loss_without_vector": Measure("nats per token", _BLIND, "above loss", _LN_V),
        },
    ),
    **_for(
        ["retromae"],
        {
            **_MASKED,
            "loss": Measure("nats", "masked_loss + decoder_loss", "lower"),
            "decoder_loss": _loss("a text, from its vector and a sample of its tokens"),
            "decoder_accuracy": _right("tokens that the decoder rebuilds"),
            "decoder_loss_without_vector": Measure("nats per token", _BLIND, "above decoder_loss", _LN_V),
        },
    ),
    ("vae", "loss"): Measure(
        "nats per token",
        "negative evidence lower bound of held-out text; not comparable across tokenizers",
        "lower",
        _LN_V,
    ),
    ("vae", "bits_per_byte"): Measure(
        "bits per byte of UTF-8",
        "upper bound of the code length of held-out text; comparable across tokenizers without unknown tokens in it",
        "lower",
        uniform_bits_per_byte,
    ),
    ("vae", "kl"): Measure("nats per document", "what the latent costs; 0 when it says nothing", "see loss"),
    ("vae", "active_units"): Measure(
        "dimensions", "latent means that vary between documents; 0 is a collapse", "higher", always(0.0)
    ),
    ("vae", "mutual_information"): Measure(
        "nats per document", "what the latent tells of its document", "higher", always(0.0)
    ),
    **_for(
        ["vae"],
        {
            "reconstruction": _loss("a text, from its latent and the tokens before"),
            "accuracy": _right("tokens"),
            "loss_without_vector": Measure("nats per token", _BLIND, "above reconstruction", _LN_V),
            "beta": Measure("factor", "weight of kl in the held-out loss", "fixed at 1"),
            "collapsed": Measure("1 or 0", "1 when no unit is active", "lower"),
        },
    ),
    **_for(
        ["sentence_order", "segment_order"],
        {
            "loss": Measure("nats", "masked_loss and order_loss, by their weights", "lower"),
            "masked_loss": _MASKED["masked_loss"],
            "accuracy": _MASKED["masked_accuracy"],
            "order_loss": Measure("nats per document", "mean cross-entropy of the order of its parts", "lower"),
            "order_accuracy": Measure("share", "documents whose order is told right", "higher"),
        },
    ),
    **_for(
        ["electra"],
        {
            "loss": Measure(
                "weighted sum", "of losses of different kinds; compares with no other objective's", "lower"
            ),
            "auc": Measure(
                "share",
                "pairs of a replaced and another token in which the replaced one has the higher score",
                "higher",
                always(0.5),
            ),
            "discriminator_loss": Measure("nats per token", "mean cross-entropy of replaced or not", "lower"),
            "discriminator_accuracy": Measure(
                "share", "tokens that are judged right; calling none replaced has 1 - replaced", "higher"
            ),
            "replaced": Measure("share", "tokens in whose place the generator put another", "see auc"),
            "replaced_recall": Measure("share", "of these, those that are found out at one half", "higher"),
            "corrective_accuracy": _right("replaced tokens"),
            "generator_loss": _loss("masked tokens, of the generator", "nats per masked token"),
            "generator_accuracy": _right("masked tokens, for the generator,"),
        },
    ),
    ("data2vec", "explained_variance"): Measure(
        "share", "variance of the teacher's targets over masked tokens that is predicted", "higher", always(0.0)
    ),
    ("data2vec", "target_std"): Measure(
        "standard deviations",
        "spread of the teacher's targets over tokens, at most 1; near 0 they have collapsed",
        "see explained_variance",
    ),
    ("data2vec", "loss"): Measure(
        "distance", "from the teacher's targets; it falls in a collapse too", "see explained_variance"
    ),
    **_for(
        ["info_nce", "moco", "byol", "barlow_twins", "vicreg"],
        {
            "effective_rank": Measure(
                "directions", "that vectors of a held-out batch use; 1 when all are one", "higher"
            ),
            "spread": Measure(
                "of an even spread", "standard deviation of a feature over documents; 0 when all are one", "higher"
            ),
            "alignment": Measure(
                "squared distance", "of two views of a document; read it beside uniformity", "lower", always(2.0)
            ),
            "uniformity": Measure(
                "log", "of the mean Gaussian kernel of two documents; 0 when all are one", "lower", always(0.0)
            ),
            "compared_spread": Measure(
                "standard deviation", "of what the projector makes; 0 when all are one", "higher"
            ),
            "accuracy": Measure("share", "documents whose other view is the nearest of its held-out batch", "higher"),
            "temperature": Measure("factor", "what divides the cosine", "see loss"),
        },
    ),
    **_for(
        ["info_nce", "moco"],
        {"loss": Measure("nats per document", "cross-entropy of its other view in its held-out batch", "lower")},
    ),
    ("byol", "loss"): Measure(
        "squared distance", "of a guess from the other view; it falls in a collapse too", "see mrr@10", always(2.0)
    ),
    ("barlow_twins", "loss"): Measure(
        "squared correlation", "what those of a held-out batch are from the identity, summed", "lower"
    ),
    ("vicreg", "loss"): Measure("weighted sum", "of invariance, variance, covariance of a held-out batch", "lower"),
    **_for(
        ["clip", "siglip"],
        {
            "loss": Measure("nats per query", "of pictures and captions among those of a held-out batch", "lower"),
            "chance_loss": Measure("nats per query", "what a model that tells nothing has", "fixed by the data"),
            "accuracy": Measure(
                "share", "pictures and captions whose own is the nearest of its held-out batch", "higher"
            ),
            "temperature": Measure("factor", "what divides the cosine", "see loss"),
        },
    ),
    **_for(
        ["rotation"],
        {
            "loss": Measure("nats per picture", "mean cross-entropy of the four turns", "lower", always(math.log(4))),
            "accuracy": Measure("share", "pictures whose turn is told right", "higher", always(0.25)),
        },
    ),
    **_for(
        ["masked_patches"],
        {
            "loss": Measure("squared error", "mean over the pixels of hidden patches", "lower"),
            "explained_variance": Measure(
                "share", "variance of hidden pixels about their patch's mean that is predicted", "higher", always(0.0)
            ),
        },
    ),
    ("joint", "loss"): Measure("weighted sum", "of the losses of its parts, by objective.weights", "lower"),
}
"""(objective, figure) -> explanation."""
