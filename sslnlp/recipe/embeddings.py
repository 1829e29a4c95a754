"""Where the embeddings of a fresh model start: from what the text of the run says of neighbours."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from sslnlp import rng
from sslnlp.data.cooccurrence import cooccurrences
from sslnlp.data.packing import PackedRows, PaddedRows
from sslnlp.embedding_init import (
    WINDOW,
    Associations,
    associations,
    init_neighbours,
    init_next_token,
    own_head,
    repeated_associations,
)
from sslnlp.models import is_new

_VERSION = 3
"""Of the files kept beside the text: a change of what is counted, or how it is factorised, raises it."""


def start_embeddings(model: PreTrainedModel, text: PackedRows | PaddedRows, *, shifted: bool, seed: int) -> None:
    """In place: what `model.embedding_init=cooccurrence` does to new embeddings, and to nothing that was trained.

    A decoder (`shifted`: labels are predicted from the token before) with a head of its own starts as a bigram model;
    one matrix for both, and an encoder's, from which tokens stand near each other.
    """
    table = model.get_input_embeddings().weight
    if not is_new(model, table):
        return
    vocabulary, width = table.shape
    if shifted and own_head(model):
        init_next_token(model, _associations(text, vocabulary, width - 2, both=False), rng.key(seed, "embeddings"))
    else:
        init_neighbours(model, _associations(text, vocabulary, width, both=True), rng.key(seed, "embeddings"))


def _associations(text: PackedRows | PaddedRows, vocabulary: int, rank: int, *, both: bool) -> Associations:
    """Of pairs in the order of the text, or of neighbours on both sides; kept with the text, and found there again."""
    frame = "-".join(map(str, (*text.prefix, "text", *text.suffix)))
    kept = text.store.path / f"{'neighbours' if both else 'bigrams'}-{vocabulary}-{rank}-{frame}-{_VERSION}.npz"
    if (known := _read(kept)) is not None:
        return known
    window = WINDOW if both else 1
    halves = cooccurrences(text.store, vocabulary, window=window, prefix=text.prefix, suffix=text.suffix)
    rank = min(rank, vocabulary)
    if both:
        counts = halves[0] + halves[1]
        found = associations(counts + counts.T, rank)
    else:
        found = repeated_associations(*halves, rank)
    aside = kept.with_name(f".{kept.name}.{os.getpid()}.npz")
    with contextlib.suppress(OSError):  # a disk that is full, or that cannot be written: it is counted again
        try:
            np.savez(aside, **found._asdict())
            os.replace(aside, kept)
        finally:
            aside.unlink(missing_ok=True)
    return found


def _read(kept: Path) -> Associations | None:
    """What was counted before; None where there is nothing, or what a machine that lost power left of it."""
    try:
        with np.load(kept) as file:
            return Associations(**file)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile):
        return None
