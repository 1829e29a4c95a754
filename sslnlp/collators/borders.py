"""Where a text may be cut so that its parts can change places and only what they say tells their order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.spans import document_numbers, text_mask
from sslnlp.collators.tokens import TokenBlock
from sslnlp.tokenizer import sentence_boundaries, special_mask
from sslnlp.tokenizer.words import token_spelling

LOOK_BACK = 16
"""Tokens at the end of a text that may tell whether its last sentence is whole: a mark and closing quotes, in bytes."""


class Borders(NamedTuple):
    """Where the D documents of a block may be cut. Places are in the flattened [B·S]."""

    opening: Ints
    """[D]: the first token, [CLS] where there is one."""
    number: Ints
    """[D]: borders of each, the two ends of what may move among them."""
    place: Ints
    """[Q]: all borders, each as the place of the token behind it; ascending in each document."""
    document: Ints
    """[Q]: their documents, 0 to D - 1, ascending."""


class SentenceBorders:
    """Finds the borders of sentences that may change places. Raises nothing; a document may have no border.

    A border is the beginning of a sentence, or the end of the text where that ends a sentence: the rest after the last
    whole sentence, cut off by the end of a row, stays behind. Of these the borders of a document are those with the
    same white space around them (the kind that most of its sentences have between them): a space, a line break or
    nothing. Parts between them can change places and the white space does not show it. Texts with special tokens inside
    have no borders.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._text = text_mask(tokenizer)
        self._filling = int(np.flatnonzero(special_mask(tokenizer))[0])
        self._boundaries = sentence_boundaries(tokenizer)
        self._next_sentence = np.array(tokenizer(" A", add_special_tokens=False)["input_ids"], dtype=np.int64)
        self._space_first, self._space_last = _spaces(tokenizer, len(self._text))

    def find(self, block: TokenBlock, *, spare: int) -> Borders:
        """The borders of all documents with text. Of a document with more than `spare`, the beginning of the text is
        none: its first sentence may be the rest of one that began in another row."""
        ids = block.input_ids.ravel()
        text = self._text[ids] & block.attention.ravel()
        at = np.flatnonzero(text)
        piece = document_numbers(block)
        leads = np.flatnonzero(np.diff(piece[at], prepend=-1))
        tokens = np.diff(leads, append=len(at))
        first, stop = at[leads], at[leads + tokens - 1] + 1

        starts = np.flatnonzero(self._boundaries.starts(block.input_ids, block.opens).ravel() & text)
        ended = np.flatnonzero(self._ended(ids, first, stop))
        place = np.concatenate([starts, stop[ended]])
        document = np.concatenate([np.searchsorted(first, starts, side="right") - 1, ended])
        order = np.lexsort((place, document))
        place, document = place[order], document[order]

        begins, ends = place == first[document], place == stop[document]
        before = self._space_last[ids[np.maximum(place - 1, 0)]]
        after = self._space_first[ids[np.minimum(place, len(ids) - 1)]]
        kind = 2 * before + after
        inner = ~begins & ~ends
        kinds = np.bincount(4 * document[inner] + kind[inner], minlength=4 * len(first)).reshape(-1, 4)
        usual = kinds.argmax(axis=1)[document]
        usable = np.where(begins, after == usual % 2, np.where(ends, before == usual // 2, kind == usual))
        usable &= (stop - first == tokens)[document]
        number = np.bincount(document[usable], minlength=len(first))
        usable &= ~(begins & (number > spare)[document])
        number = np.bincount(document[usable], minlength=len(first))
        return Borders(np.flatnonzero(block.opens)[piece[first]], number, place[usable], document[usable])

    def _ended(self, ids: Ints, first: Ints, stop: Ints) -> Bools:
        """bool [D]: would a sentence begin if the text went on after its last token?"""
        place = stop[:, None] - np.arange(LOOK_BACK, 0, -1)
        tail = np.where(place >= first[:, None], ids[np.maximum(place, 0)], self._filling)
        going_on = np.concatenate([tail, np.tile(self._next_sentence, (len(stop), 1))], axis=1)
        starts = self._boundaries.starts(going_on, np.zeros(going_on.shape, dtype=np.bool_))
        ended: Bools = np.any(starts[:, LOOK_BACK:], axis=1)
        return ended


def _spaces(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[Ints, Ints]:
    """Does an id begin with white space, and does it end with it: 0 or 1, two int64 [V]. All 0 where the vocabulary
    spells no spaces (WordPiece)."""
    first, last = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    if (spelling := token_spelling(tokenizer)) is not None:
        for token, i in tokenizer.get_vocab().items():
            spelt = spelling(token)
            first[i], last[i] = spelt[:1].isspace(), spelt[-1:].isspace()
    return first, last
