"""The steps that turn a document into a view of it: crops, sentences, words deleted or moved.

A step is a pure function from tokens to tokens. Everything is flat, for all documents of a block at once.
Shapes: B rows, S columns, C documents of a row at most, D = B·C, N tokens that are left, W words of them.
Document d of row b has number b·C + d, whether or not the row has so many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sslnlp.arrays import Bools, Floats, Ints
from sslnlp.collators.tokens import TokenBlock
from sslnlp.rng import uniform
from sslnlp.tokenizer import SentenceBoundaries, WordBoundaries


def ranks(document: Ints) -> Ints:
    """int64 [N]: the how-manieth of its document each token is, from 0, of documents in ascending order [N]."""
    rank: Ints = np.arange(len(document)) - np.searchsorted(document, document)
    return rank


@dataclass(frozen=True)
class Tokens:
    """The tokens of a view so far: their places in the flattened block, in the order in which the view has them."""

    place: Ints
    """[N]."""
    document: Ints
    """[N]: the number of its document, ascending."""

    def only(self, which: Bools | Ints) -> Tokens:
        return Tokens(self.place[which], self.document[which])


@dataclass(frozen=True)
class Source:
    """The documents of a block, and the draws that belong to them."""

    block: TokenBlock
    special: Bools
    """[V]."""
    words: WordBoundaries
    sentences: SentenceBoundaries | None
    """None where no step asks for sentences."""
    seed: int
    positions: Ints
    """[B]."""

    @cached_property
    def most(self) -> int:
        """C."""
        return max(1, int(self.block.document_ids.max(initial=-1)) + 1)

    @property
    def number(self) -> int:
        """D."""
        return len(self.positions) * self.most

    @cached_property
    def document(self) -> Ints:
        """[B·S]: the number of each token's document; of padding, any."""
        row = np.arange(len(self.positions))[:, None]
        document: Ints = (row * self.most + self.block.document_ids).ravel()
        return document

    @cached_property
    def opening(self) -> Ints:
        """[D]: the place of the first token of each document, framing included; 0 where there is none."""
        opening = np.zeros(self.number, dtype=np.int64)
        first = np.flatnonzero(self.block.opens & self.block.attention)
        opening[self.document[first]] = first
        return opening

    @cached_property
    def text(self) -> Tokens:
        """What stands between the framing tokens: a document from its first to its last token that is not special."""
        present = self.block.attention.ravel()
        plain = np.flatnonzero(present & ~self.special[self.block.input_ids.ravel()])
        first = np.full(self.number, len(present))
        last = np.full(self.number, -1)
        first[self.document[plain[::-1]]] = plain[::-1]  # of equal indices the last one written stays
        last[self.document[plain]] = plain
        at = np.flatnonzero(present)
        whose = self.document[at]
        inside = (at >= first[whose]) & (at <= last[whose])
        return Tokens(at[inside], whose[inside])

    @cached_property
    def word_starts(self) -> Bools:
        """[B·S]."""
        return self.words.starts(self.block.input_ids).ravel()

    @cached_property
    def sentence_starts(self) -> Bools:
        """[B·S]."""
        assert self.sentences is not None
        return self.sentences.starts(self.block.input_ids, self.block.opens).ravel()

    def draws(self, purpose: str) -> Floats:
        """[B·S], in [0, 1): by (seed, purpose, position, column), so neither padding nor neighbours move them."""
        return uniform(self.seed, f"views/{purpose}", self.positions, self.block.input_ids.shape[1]).ravel()

    def lots(self, purpose: str) -> Floats:
        """[D]: one draw a document."""
        return self.draws(purpose)[self.opening]


Step = Callable[[Tokens, Source, str], Tokens]
"""(the view so far, the documents, what the draws are for) -> the view. One of the functions below with its options
bound by `functools.partial`, which workers that are spawned can be sent."""


def crop(
    tokens: Tokens,
    source: Source,
    purpose: str,
    *,
    least: float,
    most: float,
    shortest: int,
    part: float = 1.0,
    tail: bool = False,
) -> Tokens:
    """A span whose length is a share of the document from `least` to `most`, drawn evenly, and so is its place.

    It has `shortest` tokens at least, where there are as many. It lies in the first (`tail`: the last) `part` of the
    document, never out of it, and has a token at least.
    """
    length = np.bincount(tokens.document, minlength=source.number)
    room = np.maximum(np.floor(part * length), 1).astype(np.int64)
    share = least + (most - least) * source.lots(f"{purpose}/length")
    taken = np.clip(np.rint(share * length).astype(np.int64), 1, None)
    taken = np.minimum(np.maximum(taken, np.minimum(shortest, length)), room)
    start = np.floor(source.lots(f"{purpose}/start") * (room - taken + 1)).astype(np.int64)
    start += (length - room) if tail else 0
    ahead = ranks(tokens.document) - start[tokens.document]
    return tokens.only((ahead >= 0) & (ahead < taken[tokens.document]))


def sentence(tokens: Tokens, source: Source, purpose: str, *, behind: int) -> Tokens:
    """A sentence of the document that has another behind it (0), or that other (1): one draw serves both.

    The only sentence of a document is that sentence, and there is none behind it.
    """
    starts = source.sentence_starts[tokens.place] | (ranks(tokens.document) == 0)
    number = np.cumsum(starts) - 1
    first = np.searchsorted(tokens.document, np.arange(source.number))
    count = np.bincount(tokens.document, weights=starts, minlength=source.number)
    chosen = np.floor(source.lots("sentence") * np.maximum(count - 1, 1)).astype(np.int64) + behind
    own = number - number[first[tokens.document]]
    return tokens.only(own == chosen[tokens.document])


def delete(tokens: Tokens, source: Source, purpose: str, *, rate: float) -> Tokens:
    """Without `round(rate × words)` words of each document, drawn evenly; one at least stays."""
    word_N, place_W, document_W = _words(tokens, source)
    draw_W = source.draws(purpose)[place_W]
    count = np.bincount(document_W, minlength=source.number)
    gone = np.minimum(np.rint(rate * count), count - 1)
    order = np.lexsort((draw_W, document_W))  # stable: equal draws stay in the order of the text
    kept_W = np.empty(len(order), dtype=np.bool_)
    kept_W[order] = ranks(document_W) >= gone[document_W]
    return tokens.only(kept_W[word_N])


def reorder(tokens: Tokens, source: Source, purpose: str, *, distance: int) -> Tokens:
    """Words change places: none moves further than `distance` words (Lample et al., 2018, arXiv:1711.00043)."""
    word_N, place_W, document_W = _words(tokens, source)
    key_W = ranks(document_W) + (distance + 1) * source.draws(purpose)[place_W]
    order = np.lexsort((word_N, key_W[word_N], tokens.document))
    return tokens.only(order)


def _words(tokens: Tokens, source: Source) -> tuple[Ints, Ints, Ints]:
    """The word of each token [N], and of each word the place of its first token and its document [W]."""
    starts = source.word_starts[tokens.place] | (ranks(tokens.document) == 0)
    return np.cumsum(starts) - 1, tokens.place[starts], tokens.document[starts]
