"""The report card of a model of pictures: a dual encoder of pictures and texts, or a vision tower alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sslnlp.arrays import Vectors
from sslnlp.data.hashes import hash_same
from sslnlp.data.pictured import PictureRows
from sslnlp.data.stream import in_runs
from sslnlp.errors import UserError
from sslnlp.evaluation.geometry import geometry_measures
from sslnlp.evaluation.image_text import image_text_figures
from sslnlp.evaluation.probes import probe_measures
from sslnlp.evaluation.zero_shot import class_vectors, zero_shot_measures
from sslnlp.nn import evaluating
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.report.card import Card, NotFitting, Told, fill
from sslnlp.report.contact_sheet import contact_sheet
from sslnlp.report.picture_material import PictureMaterial

_RUN = 256


class PictureSubject:
    """A model that reads pictures, which are turned to vectors once however many measures ask for them."""

    def __init__(self, encoder: PictureEncoder) -> None:
        self.encoder = encoder
        self._known: list[tuple[PictureRows, Vectors]] = []

    def pictures(self, rows: PictureRows) -> Vectors:
        """float32 [N, D] of `rows`."""
        for known, vectors in self._known:
            if known is rows:
                return vectors
        parts = [np.empty((0, self.encoder.dimension), np.float32)]
        parts += [self.encoder.pictures([row["image"] for row in part]) for part in in_runs(rows, _RUN)]
        self._known.append((rows, np.concatenate(parts)))
        return self._known[-1][1]


def reads_pictures(export: Path) -> bool:
    """Whether the model in a folder is one of pictures, by what its configuration says."""
    try:
        config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(export / 'config.json')!r}: {error}") from None
    return "vision_config" in config or "image_size" in config


def measure_pictures(
    subject: PictureSubject, material: PictureMaterial, *, tell: Told = lambda name: None, written: bool = True
) -> Card:
    """Make every measure that fits, as `card.measure` does for models of text; `written`: also the contact sheet."""
    card, asked = Card(), MEASURES | SHOWN if written else MEASURES
    with evaluating(subject.encoder.model):
        fill(card, {name: partial(make, card, subject, material) for name, make in asked.items()}, tell)
    return card


def _held_out(material: PictureMaterial) -> PictureRows:
    if material.held_out is None:
        raise NotFitting("no held-out pictures: give pictures=FILE")
    return material.held_out


def _captioned(subject: PictureSubject, material: PictureMaterial) -> tuple[PictureRows, list[list[str]]]:
    """Held-out pictures, and the captions of each."""
    if not subject.encoder.dual:
        raise NotFitting("the model has no text tower")
    rows = _held_out(material)
    captions = rows.texts(range(len(rows)))
    if sum(map(bool, captions)) < 2:
        raise NotFitting("the held-out pictures have no captions: give pictures=FILE")
    return rows, captions


def _retrieval(card: Card, subject: PictureSubject, material: PictureMaterial) -> None:
    rows, captions = _captioned(subject, material)
    texts = [text for some in captions for text in some]
    picture_of_K = np.repeat(np.arange(len(rows)), [len(some) for some in captions])
    predicted = {
        "image": subject.pictures(rows)[picture_of_K],
        "text": subject.encoder.texts(texts),
        "image_hash": rows.extra["picture"][picture_of_K],
        "text_hash": hash_same(texts).view(np.int64),
    }
    card.figures |= image_text_figures({name: torch.from_numpy(value.copy()) for name, value in predicted.items()})


def _zero_shot(card: Card, subject: PictureSubject, material: PictureMaterial) -> None:
    if not subject.encoder.dual:
        raise NotFitting("the model has no text tower")
    if material.named is None:
        raise NotFitting("no labelled pictures: give probe_train=FILE and probe_test=FILE")
    labels = set(material.named.labels)
    names = sorted(labels if material.probe is None else labels | set(material.probe[0].labels))
    if all(name.lstrip("-").isdecimal() for name in names):
        raise NotFitting("the labels are numbers, which say nothing: give label=NAME, a column of words")
    number = {name: at for at, name in enumerate(names)}
    found = zero_shot_measures(
        subject.pictures(material.named.rows),
        class_vectors(subject.encoder.texts, names, material.templates),
        [number[label] for label in material.named.labels],
        names,
    )
    card.figures |= found.figures
    card.by_class = found.per_class


def _probes(card: Card, subject: PictureSubject, material: PictureMaterial) -> None:
    if material.probe is None:
        raise NotFitting("no labelled pictures: give probe_train=FILE and probe_test=FILE")
    train, test = material.probe
    vectors = subject.pictures(train.rows), subject.pictures(test.rows)
    found = probe_measures(vectors[0], train.labels, vectors[1], test.labels)
    card.figures |= {f"picture_{name}": figure for name, figure in found.items()}


def _geometry(card: Card, subject: PictureSubject, material: PictureMaterial) -> None:
    rows = _held_out(material)
    different = np.unique(rows.extra["picture"], return_index=True)[1]
    found = geometry_measures(subject.pictures(rows)[different])
    card.figures |= {f"picture_{name}": figure for name, figure in found.items()}


def _caption_geometry(card: Card, subject: PictureSubject, material: PictureMaterial) -> None:
    _, captions = _captioned(subject, material)
    texts = list(dict.fromkeys(text for some in captions for text in some))
    found = geometry_measures(subject.encoder.texts(texts))
    card.figures |= {f"caption_{name}": figure for name, figure in found.items()}


def _sheet(card: Card, subject: PictureSubject, material: PictureMaterial) -> None:
    rows, captions = _captioned(subject, material)
    card.sheet, card.found = contact_sheet(rows, captions, subject.pictures(rows), subject.encoder.texts)


Make = Callable[[Card, PictureSubject, PictureMaterial], None]
MEASURES: dict[str, Make] = {
    "retrieval": _retrieval,
    "zero-shot classification": _zero_shot,
    "probes": _probes,
    "geometry of pictures": _geometry,
    "geometry of captions": _caption_geometry,
}
SHOWN: dict[str, Make] = {"contact sheet": _sheet}
