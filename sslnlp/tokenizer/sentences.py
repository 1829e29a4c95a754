"""Where sentences start in a sequence of token ids, for any fast tokenizer.

As in `tokenizer.words`, each id is looked at once, when the table is built; a block of ids then costs table look-ups
and comparisons with neighbours, and no text.

A sentence ends
- at . ! ? … and their kin in other scripts, with the closing quotes and brackets after them, where a space or a
  character of a script without spaces follows. So neither `3.14` nor `example.com` is cut;
- at 。 ！ ？ with what closes after them, whatever follows;
- at a line break.
A full stop after a single letter (`J. Smith`, `e.g. `) or a title (`Mr. `, `et al. `) ends nothing. WordPiece keeps no
spaces: there a full stop between digits, or before a small letter where the vocabulary is cased, ends nothing.
A token that holds the end of one sentence and the start of the next counts to the next.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Ints
from sslnlp.tokenizer.specials import special_mask, vocabulary_size
from sslnlp.tokenizer.words import character_class, complete_characters, described, token_spelling

Array = TypeVar("Array", bound=npt.NDArray[Any])

SOFT: Final = ".!?…‼⁇⁈⁉؟۔।॥።"
"""Marks that end a sentence where a space or a character of a script without spaces follows."""
HARD: Final = "。！？｡။។"
"""Marks that end a sentence whatever follows."""
CLOSING: Final = "\"'”’»›)]}）」』】》〉］〕"
"""What still belongs to the sentence when it follows its mark without a space."""
ABBREVIATIONS: Final = frozenset(
    {"mr", "mrs", "ms", "dr", "prof", "st", "mt", "jr", "sr", "vs", "cf", "al", "fig", "figs", "eq", "vol", "pp"}
    | {"gen", "col", "lt", "sgt", "capt", "rev", "hon", "sen", "gov", "ca"}
)
"""Words after which a full stop seldom ends a sentence."""

# What a token does to the state "a sentence has ended", and what it needs of its neighbours.
ENDS_SOFT, ENDS_HARD, ENDS_LINE = 1, 2, 3
STATE = 3  # the two low bits
PASSES = 1 << 2  # leaves the state of the token before it: closing marks, the rest of a character
ATTACHES = 1 << 3  # begins with a mark or closing mark without a space: starts no sentence after an end in its line
LEADS = 1 << 4  # begins with a space or a character of a script without spaces: starts a sentence after a soft end
BLANK = 1 << 5  # white space alone
STARTS = 1 << 6  # a sentence starts inside the token
POINT = 1 << 7  # a lone full stop, with what closes after it: the token before decides whether it ends a sentence
ABBREVIATED = 1 << 8  # ends with an abbreviation: a full stop after it ends nothing
MAYBE = 1 << 9  # is an abbreviation, if nothing of a word stands before it
OPEN = 1 << 10  # ends inside a word
DIGIT_LAST = 1 << 11
DIGIT_FIRST = 1 << 12  # in WordPiece: begins with a digit, and whether a space stood before is not known
REST = 1 << 13  # begins inside a character
SPECIAL = 1 << 14
LINE_BREAK = 1 << 15  # begins with a line break

_soft, _hard, _closing = (re.escape(marks) for marks in (SOFT, HARD, CLOSING))
_end = re.compile(rf"(?P<marks>[{_soft}{_hard}]+)[{_closing}]*\s*$").search
_inside = re.compile(rf"[{_hard}][{_closing}]*[^{_soft}{_hard}{_closing}\s]|\n\s*\S").search
_last_word = re.compile(r"[^\W\d_]+$").search


@dataclass(frozen=True)
class SentenceBoundaries:
    """Sentence starts from a table of flags per id, int64 [V], and the bytes of characters cut by tokens."""

    flags: Ints
    heads: Ints
    """int64 [V, 2]: the bytes with which a token goes on with a character, as a number, and how many."""
    tails: Ints
    """int64 [V, 2]: the bytes of the character a token breaks off in, as a number, and how many."""

    def starts(self, input_ids: Ints, opens: Bools) -> Bools:
        """bool [..., S]: this token is the first of a sentence.

        `input_ids` int64 [..., S]; `opens` bool [..., S]: the first tokens of documents (`TokenBlock.opens`). Each of
        those counts, and so does each special token and the token after it (the unknown token is text here): with the
        framing tokens masked out, a document has as many starts as sentences. White space alone is no sentence: it
        goes with the one before.
        """
        flags = self._whole(input_ids)
        opens = opens.copy()
        opens[..., :1] = True
        special = flags & SPECIAL != 0
        forced = opens | special | _before(special)
        state = self._state(flags, opens)
        before = _before(state)
        ended = (before == ENDS_LINE) & (flags & (BLANK | LINE_BREAK) == 0)
        free = flags & (ATTACHES | REST) == 0
        ended |= (before == ENDS_HARD) & free
        ended |= (before == ENDS_SOFT) & free & (flags & LEADS != 0)
        starts = ended | (flags & STARTS != 0) | forced
        starts = (starts & (flags & REST == 0)) | forced
        return _without_blanks(starts, forced, flags & BLANK != 0)

    def _whole(self, input_ids: Ints) -> Ints:
        """The flags of each token, with characters that tokens cut read whole and counted to their first token."""
        flags = self.flags[input_ids]
        tails = self.tails[input_ids]
        if not tails[..., 1].any():
            return flags
        heads = self.heads[input_ids]
        codes, joins = tails[..., 0].copy(), tails[..., 1] > 0
        for ahead in range(1, 4):  # a character has at most four bytes
            head = _after(heads, ahead, axis=-2)
            joins = joins & (head[..., 1] > 0)
            codes = np.where(joins, (codes << (8 * head[..., 1])) | head[..., 0], codes)
            joins = joins & (_after(flags, ahead) & (REST | PASSES) == (REST | PASSES))
        for marks, state in ((SOFT, ENDS_SOFT), (HARD, ENDS_HARD), (CLOSING, PASSES)):
            mark = np.isin(codes, [int.from_bytes(mark.encode(), "big") for mark in marks if ord(mark) >= 128])
            flags = np.where(mark & (tails[..., 1] > 0), flags & ~(STATE | LEADS) | ATTACHES | state, flags)
        return flags

    def _state(self, flags: Ints, opens: Bools) -> Ints:
        """int64 [..., S]: whether and how a sentence has ended with this token."""
        left = np.where(opens, 0, _before(flags))
        left_open = np.where(opens, 0, _before(left)) & OPEN != 0
        short = (left & ABBREVIATED != 0) | ((left & MAYBE != 0) & ~left_open)
        short |= (left & DIGIT_LAST != 0) & (_after(flags, 1) & DIGIT_FIRST != 0)
        state = np.where((flags & POINT != 0) & short, 0, flags & STATE)
        passes = (flags & PASSES != 0) & (flags & STATE == 0) & ~opens
        kept = _carried(state, passes)
        led = (flags & BLANK != 0) & (kept != ENDS_LINE)  # the space is of the sentence it leads
        return _carried(np.where(led, 0, state), passes & ~led)


def sentence_boundaries(tokenizer: PreTrainedTokenizerBase) -> SentenceBoundaries:
    """The table for a fast tokenizer: WordPiece, byte-level BPE, BPE or Unigram with ▁, or whole words. `UserError` for
    one that is not fast."""
    size = vocabulary_size(tokenizer)
    boundaries = SentenceBoundaries(*(np.zeros(shape, dtype=np.int64) for shape in (size, (size, 2), (size, 2))))
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    spelling = token_spelling(tokenizer)
    continuing = described(tokenizer)["model"].get("continuing_subword_prefix") or ""
    cased = any(token[:1].isupper() for token, i in vocabulary.items() if i not in added)
    for token, i in vocabulary.items():
        if spelling is None:
            bare = token.removeprefix(continuing)
            boundaries.flags[i] = _spaceless_flags(bare, continues=bare != token, cased=cased)
            continue
        raw = added[i].content.encode() if i in added else spelling(token)
        body = raw.lstrip(bytes(range(0x80, 0xC0)))
        whole = body.decode("utf-8", "ignore").encode()
        tail = body[len(whole) :] if body.startswith(whole) else b""
        head = raw[: len(raw) - len(body)]
        boundaries.heads[i] = int.from_bytes(head[:3], "big"), len(head[:3])
        boundaries.tails[i] = int.from_bytes(tail, "big"), len(tail)
        flags = _flags(complete_characters(body)) if body else PASSES
        if tail and whole:
            flags &= ~(STATE | PASSES)
        boundaries.flags[i] = (flags & ~(LEADS | ATTACHES) | REST) if head else flags
    boundaries.flags[special_mask(tokenizer)] = SPECIAL
    if tokenizer.unk_token_id is not None:  # stands for a word of the text
        boundaries.flags[tokenizer.unk_token_id] = LEADS | OPEN
    return boundaries


def _flags(text: str) -> int:
    """Bools of a token that says by itself whether a space stands before it."""
    bare = text.strip()
    if not bare:
        return BLANK | PASSES | (ENDS_LINE if "\n" in text else LEADS)
    leads = text[0].isspace() or character_class(text[0]) == "spaceless"
    flags = (LEADS if leads else 0) | _ending(text)
    if "\n" in text[: len(text) - len(text.lstrip())]:
        flags |= LINE_BREAK | STARTS
    if not text[0].isspace() and bare[0] in SOFT + HARD + CLOSING:
        flags |= ATTACHES | (PASSES if all(c in CLOSING for c in text) else 0)
    return flags | (STARTS if _inside(text) else 0)


def _spaceless_flags(text: str, *, continues: bool, cased: bool) -> int:
    """Bools of a token of a vocabulary without spaces, such as WordPiece: a space may stand before any whole word."""
    if text[:1] and text[0] in SOFT + HARD + CLOSING:
        return _ending(text) | ATTACHES | (PASSES if all(c in CLOSING for c in text) else 0)
    flags = _ending(text if continues else " " + text)
    if continues or (cased and text[:1].islower()):
        return flags
    return flags | LEADS | (DIGIT_FIRST | DIGIT_LAST if text[:1].isdigit() else 0)


def _ending(text: str) -> int:
    """The flags that tell what a token does to the tokens after it."""
    if "\n" in text[len(text.rstrip()) :]:
        return ENDS_LINE
    if ended := _end(text):
        body, marks = text[: ended.start()], ended["marks"]
        if marks == "." and _abbreviation(body) == ABBREVIATED:
            return 0
        lone = POINT if marks == "." and not body.strip() and not text[0].isspace() else 0
        return lone | (ENDS_HARD if any(mark in HARD for mark in marks) else ENDS_SOFT)
    return _abbreviation(text) | (OPEN if text and character_class(text[-1]) == "word" else 0)


def _abbreviation(text: str) -> int:
    """`ABBREVIATED` or `MAYBE` where the last word of a token is a single letter of a cased script or a title."""
    word = _last_word(text)
    if word is None or not (
        word[0].lower() in ABBREVIATIONS or (len(word[0]) == 1 and word[0].lower() != word[0].upper())
    ):
        return 0
    return ABBREVIATED if word.start() else MAYBE


def _before(values: Array) -> Array:
    """The left neighbour of each token, 0 at the row's first."""
    moved: Array = np.zeros_like(values)
    moved[..., 1:] = values[..., :-1]
    return moved


def _carried(state: Ints, passes: Bools) -> Ints:
    """The state of each token; where it passes on what it found, that of the last token that does not."""
    origin = np.maximum.accumulate(np.where(passes, 0, np.arange(state.shape[-1])), axis=-1)
    carried: Ints = np.take_along_axis(state, origin, axis=-1)
    return carried


def _after(values: Ints, distance: int, axis: int = -1) -> Ints:
    """The token `distance` places to the right, 0 beyond the row."""
    moved = np.zeros_like(values)
    source = np.moveaxis(values, axis, -1)
    np.moveaxis(moved, axis, -1)[..., :-distance] = source[..., distance:]
    return moved


def _without_blanks(starts: Bools, forced: Bools, blank: Bools) -> Bools:
    """`starts` without sentences of white space alone: they go with the one before, at a document's start the next."""
    if not blank.any():
        return starts
    number = np.cumsum(starts.ravel()) - 1  # the first token of the block always starts
    empty = np.bincount(number[~blank.ravel()], minlength=number[-1] + 1) == 0
    follows = np.zeros_like(empty)
    first = np.flatnonzero(starts.ravel())
    follows[1:] = empty[:-1] & forced.ravel()[first[:-1]]
    kept: Bools = starts.copy()
    kept.ravel()[first[empty | follows]] = False
    return np.logical_or(kept, forced, out=kept)
