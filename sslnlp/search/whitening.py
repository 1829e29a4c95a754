"""What all documents share taken out of the vectors of a model that never learnt to compare texts.

A masked or causal language model puts all texts beside each other (mean cosine above 0.9, where a sentence encoder has
0.1 to 0.3), so its vectors rank by what kind of text this is. Whitened (Su et al., 2021, arXiv:2103.15316) they rank
far better, most of all by a map fitted to pieces as short as queries too: how long a text is, then, is one more thing
that is taken out. Measured in `docs/search.md`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslnlp.errors import UserError
from sslnlp.search.encoder import Encoder
from sslnlp.search.loading import MAP, mapped
from sslnlp.search.store import DocumentStore
from sslnlp.types import LinearMap
from sslnlp.vector_map import save_dense, whitener

if TYPE_CHECKING:
    from sslnlp.search.resume import Work
    from sslnlp.search.sources import Progress

DOCUMENTS = 1000
"""Those that a map is fitted to, from all over the collection."""
FEWEST = 16
TOKENS = (4, 16)
"""The shortest and the longest piece that stands for a query."""
ALIKE = 0.5
"""The mean cosine of documents from which on they count as lying beside each other."""
_BLOCK = 64


def fit_once(work: Work, encoder: Any, asked: bool | None, batch_size: int, progress: Progress) -> Any:
    """The encoder of a new index: `encoder`, or that with a map behind its own, which is left in the folder of `work`.
    A run that is stopped in here begins the fit anew: two thousand short encodings.

    `asked`: whether there is to be one; None: where the model does not say how its vectors are made and these lie
    beside each other. Raises UserError where one is asked for and cannot be.
    """
    if "whitened" not in work.done:
        found = None
        if asked or (asked is None and not encoder.described):
            texts = _sample(DocumentStore([work.folder]))
            if asked and len(texts) < FEWEST:
                raise UserError(
                    f"--whiten fits a map to the documents, and {len(texts)} are too few (at least {FEWEST}): leave it "
                    "out"
                )
            if len(texts) >= FEWEST:
                found = _fit(encoder, texts, -1.0 if asked else ALIKE, batch_size, progress)
            if asked and found is None:
                raise UserError(
                    "--whiten takes out what the vectors of the documents share, and these are all the same, or no "
                    "numbers: leave it out"
                )
        shutil.rmtree(work.folder / MAP, ignore_errors=True)  # of a run that was stopped while it wrote it
        if found is not None:
            save_dense(work.folder, MAP, found)
        work.finish("whitened", found is not None)
    return mapped(encoder, work.folder)


def _sample(store: DocumentStore) -> list[str]:
    rows = np.unique(np.linspace(0, len(store) - 1, DOCUMENTS).astype(np.int64))
    return [store[row].content for row in rows.tolist()]


def _fit(encoder: Encoder, texts: Sequence[str], alike: float, batch_size: int, progress: Progress) -> LinearMap | None:
    """None where the mean cosine of the documents is below `alike`, or no two vectors differ."""
    bare = encoder.unscaled()
    pieces = [piece for piece in _pieces(encoder, texts) if piece]
    progress("whitening", 0, len(texts) + len(pieces))

    def advance(done: int) -> None:
        progress("whitening", done, len(texts) + len(pieces))

    document_NH = np.concatenate(list(_encoded(bare, texts, "document", batch_size, advance)))
    if mean_cosine(document_NH) < alike:
        return None
    piece_NH = np.concatenate([document_NH[:0], *_encoded(bare, pieces, "query", batch_size, advance)])
    found = whitener(torch.from_numpy(np.concatenate([document_NH, piece_NH])), 0.5)
    return found if found.bias.any() else None


def _encoded(
    encoder: Encoder, texts: Sequence[str], kind: Any, batch_size: int, advance: Callable[[int], None]
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(texts), _BLOCK):
        some = texts[start : start + _BLOCK]
        yield encoder.encode(some, kind, batch_size=batch_size)
        advance(len(some))


def _pieces(encoder: Encoder, texts: Sequence[str]) -> Iterator[str]:
    """A few tokens in a row of each text, from the first letter of a word on. None where the tokenizer, one in Python,
    does not tell where its tokens stand."""
    if not getattr(encoder.tokenizer, "is_fast", False):
        return
    draw = random.Random(0)
    for text in texts:
        read = encoder.tokenizer(
            text, add_special_tokens=False, truncation=True, max_length=encoder.max_length, return_offsets_mapping=True
        )
        places, words = read["offset_mapping"], read.word_ids()
        length = min(draw.randint(*TOKENS), len(places))
        start = draw.randint(0, len(places) - length)
        while start and words[start] == words[start - 1]:
            start -= 1
        yield text[places[start][0] : places[start + length - 1][1]].strip() if places else ""


def mean_cosine(vector_NH: NDArray[np.floating[Any]]) -> float:
    """Of all pairs of two rows."""
    length_N = np.linalg.norm(vector_NH, axis=1, keepdims=True)
    total_H = (vector_NH / np.maximum(length_N, 1e-12)).sum(0)
    count = len(vector_NH)
    return float((total_H @ total_H - count) / (count * (count - 1)))
