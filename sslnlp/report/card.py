"""The report card of a model: every measure that fits it, with its interval, from nothing but text and given files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sslnlp.errors import UserError
from sslnlp.evaluation.beir import evaluate_queries
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.fixed_mask import fixed_mask_measures
from sslnlp.evaluation.generation import continuations
from sslnlp.evaluation.geometry import geometry_measures
from sslnlp.evaluation.known_item import halves, known_item_figures
from sslnlp.evaluation.likelihood import Scored, log_likelihoods
from sslnlp.evaluation.minimal_pairs import minimal_pair_measures
from sslnlp.evaluation.probes import probe_measures
from sslnlp.evaluation.reconstruction import rebuild
from sslnlp.evaluation.similarity import similarity_measures
from sslnlp.nn import evaluating
from sslnlp.report.material import Material
from sslnlp.report.subject import Subject
from sslnlp.signals import heed

Told = Callable[[str], None]

REBUILT = 32
"""Texts that an encoder-decoder rebuilds."""
MAPPED = 500
"""Texts of the embedding map."""


@dataclass
class Card:
    """What was measured of one model."""

    figures: dict[str, Figure] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)
    """Title -> texts that the model wrote."""
    embedding_map: list[tuple[float, float, str]] = field(default_factory=list)
    """Two principal components of a text's vector, and its label ("" without one)."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Measure -> why it was not made."""
    by_class: dict[str, Figure] = field(default_factory=dict)
    """Zero-shot accuracy of the pictures of each class."""
    found: list[tuple[str, int]] = field(default_factory=list)
    """The captions of the contact sheet from the top, and the place of their own picture among all."""
    sheet: bytes = b""
    """The contact sheet as PNG; a file of its own, so not part of `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        del plain["sheet"]
        return {name: value for name, value in plain.items() if value or name not in ("by_class", "found")}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Card:
        figures, by_class = (
            {name: _figure(figure) for name, figure in plain.get(key, {}).items()} for key in ("figures", "by_class")
        )
        points = [(x, y, label) for x, y, label in plain.get("embedding_map", [])]
        found = [(caption, place) for caption, place in plain.get("found", [])]
        return cls(figures, dict(plain.get("samples", {})), points, dict(plain.get("left_out", {})), by_class, found)


def _figure(written: Mapping[str, Any]) -> Figure:
    # An interval of too few items is not a number, which JSON has only as text (`page.Report`).
    plain: dict[str, Any] = {key: float(x) if isinstance(x, str) else x for key, x in written.items()}
    return Figure(**plain)


def measure(subject: Subject, material: Material, *, tell: Told = lambda name: None, written: bool = True) -> Card:
    """Make every measure that fits. `tell` is called with the name of each before it begins.

    written: also let it write texts, and draw the map. A measure that cannot be made is left out, with the reason.
    """
    card, asked = Card(), MEASURES | WRITTEN if written else MEASURES
    with evaluating(subject.model):
        fill(card, {name: partial(make, card, subject, material) for name, make in asked.items()}, tell)
    return card


def fill(card: Card, asked: Mapping[str, Callable[[], None]], tell: Told) -> None:
    """Call each of `asked`, by its name; `card` notes the reason of one that raises `NotFitting` or `UserError`."""
    for name, make in asked.items():
        heed()
        tell(name)
        with _noting(card, name):
            make()


class NotFitting(Exception):
    """The measure is not for this model, or nothing was given for it."""


@contextmanager
def _noting(card: Card, name: str) -> Iterator[None]:
    try:
        yield
    except NotFitting as reason:
        if str(reason):
            card.left_out[name] = str(reason)
    except UserError as reason:
        card.left_out[name] = str(reason)


# --- what the text itself says ----------------------------------------------------------------------------------------


def _held_out(material: Material) -> list[str]:
    if not material.texts:
        raise NotFitting("no held-out text: give texts=FILE")
    return material.texts


def _bits_per_byte(card: Card, subject: Subject, material: Material) -> None:
    if subject.kind != "causal":
        raise NotFitting
    scored = log_likelihoods(
        subject.model, subject.tokenizer, _held_out(material), max_length=subject.max_length, batch_size=8
    )
    card.figures["bits_per_byte"] = _code_length(subject, scored)


def _code_length(subject: Subject, scored: Sequence[Scored]) -> Figure:
    """Bits per byte of what was scored, texts being cut to what the model reads. Chance: a uniform guess at tokens."""
    num_bytes = [one.bytes for one in scored]
    chance = sum(one.tokens for one in scored) * np.log2(subject.model.config.vocab_size) / max(1, sum(num_bytes))
    return ratio_figure(np.array([-one.nats for one in scored]) / np.log(2), num_bytes, chance=float(chance))


def _fixed_mask(card: Card, subject: Subject, material: Material) -> None:
    if subject.kind != "masked":
        raise NotFitting
    texts = _held_out(material)
    card.figures |= fixed_mask_measures(
        subject.model, subject.tokenizer, texts, max_length=min(128, subject.max_length)
    )


PSEUDO_TOKENS = 32
PSEUDO_TEXTS = 100


def _pseudo_likelihood(card: Card, subject: Subject, material: Material) -> None:
    """A pass of the model for each token: so of the beginnings of a hundred texts."""
    if subject.kind != "masked":
        raise NotFitting
    texts = _held_out(material)[:PSEUDO_TEXTS]
    scored = log_likelihoods(subject.model, subject.tokenizer, texts, max_length=PSEUDO_TOKENS)
    nats, tokens = np.array([-one.nats for one in scored]), [one.tokens for one in scored]
    size = subject.model.config.vocab_size
    card.figures["pseudo_loss"] = ratio_figure(nats, tokens, chance=float(np.log(size)))
    card.figures["pseudo_perplexity"] = ratio_figure(nats, tokens, transform=np.exp, chance=float(size))
    card.figures["pseudo_bits_per_byte"] = _code_length(subject, scored)


def _minimal_pairs(card: Card, subject: Subject, material: Material) -> None:
    if subject.kind not in ("masked", "causal"):
        raise NotFitting
    if not material.pairs:
        raise NotFitting("no minimal pairs: give pairs=FILE")
    card.figures |= minimal_pair_measures(subject.model, subject.tokenizer, material.pairs, limit=material.documents)


# --- what its vectors know --------------------------------------------------------------------------------------------


def _known_item(card: Card, subject: Subject, material: Material) -> None:
    first, second = halves(_held_out(material))
    encoder = subject.encoder
    query, document = encoder.encode(first, "query"), encoder.encode(second, "document")
    card.figures |= known_item_figures(query, document)
    card.figures |= geometry_measures(query, document)


def _similarity(card: Card, subject: Subject, material: Material) -> None:
    if material.similar is None:
        raise NotFitting("no scored sentence pairs: give sts=FILE")
    encoder = subject.encoder
    card.figures |= similarity_measures(lambda texts: encoder.encode(texts, "query"), material.similar)


def _probe(card: Card, subject: Subject, material: Material) -> None:
    if material.probe is None:
        raise NotFitting("no labelled texts: give probe_train=FILE and probe_test=FILE")
    train, test = material.probe
    encoder = subject.encoder
    vectors = encoder.encode(train.texts, "query"), encoder.encode(test.texts, "query")
    card.figures |= probe_measures(vectors[0], train.labels, vectors[1], test.labels)


def _search(card: Card, subject: Subject, material: Material) -> None:
    if material.beir is None:
        raise NotFitting("no search collection: give beir=FOLDER")
    encoder = subject.encoder
    queries = evaluate_queries(
        lambda texts: encoder.encode(texts, "document"),
        material.beir,
        encode_queries=lambda texts: encoder.encode(texts, "query"),
    )
    for name in queries[0]:
        card.figures[f"beir_{name}"] = ratio_figure([query[name] for query in queries])


# --- what is looked at ------------------------------------------------------------------------------------------------


def _samples(card: Card, subject: Subject, material: Material) -> None:
    if subject.kind != "causal":
        raise NotFitting
    card.samples, figures = continuations(subject.model, subject.tokenizer, _held_out(material))
    card.figures |= figures


def _reconstruction(card: Card, subject: Subject, material: Material) -> None:
    if subject.kind != "encoder-decoder":
        raise NotFitting
    card.samples, figures = rebuild(
        subject.model,
        subject.tokenizer,
        _held_out(material),
        collator=material.collator,
        number=REBUILT,
        max_length=min(64, subject.max_length),
    )
    card.figures |= figures


def _map(card: Card, subject: Subject, material: Material) -> None:
    """Labelled test texts where there are some, else held-out ones."""
    from sklearn.decomposition import PCA

    if material.probe is not None:
        texts, labels = material.probe[1].texts, material.probe[1].labels
    else:
        texts, labels = _held_out(material), [""] * len(material.texts)
    step = max(1, len(texts) // MAPPED)
    texts, labels = texts[::step], labels[::step]
    if len(texts) < 3:
        raise NotFitting("too few texts for a map")
    place = PCA(2, random_state=0).fit_transform(subject.encoder.encode(texts, "query"))
    card.embedding_map = [(float(x), float(y), label) for (x, y), label in zip(place, labels, strict=True)]


Make = Callable[[Card, Subject, Material], None]
MEASURES: dict[str, Make] = {
    "bits per byte": _bits_per_byte,
    "fixed masks": _fixed_mask,
    "pseudo-likelihood": _pseudo_likelihood,
    "minimal pairs": _minimal_pairs,
    "known item": _known_item,
    "sentence similarity": _similarity,
    "probes": _probe,
    "search": _search,
}
WRITTEN: dict[str, Make] = {"samples": _samples, "reconstruction": _reconstruction, "embedding map": _map}
