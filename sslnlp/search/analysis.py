"""From text to the terms BM25 counts: split, lower-case, drop stop words, stem; and where each term stood in the text.

One class serves indexing, querying and highlighting, so the three can never disagree about what a word is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from typing import NamedTuple

from sslnlp.errors import UserError, suggest
from sslnlp.scripts import SPACELESS

# A run of these is one "word" to any regular expression. Korean has spaces, and words that are built of others.
_UNSPACED = SPACELESS + "\uac00-\ud7af"
# Words of two letters or more (single letters carry nothing in English), or a lone one of those (which does).
_WORD = re.compile(rf"\b\w\w+\b|[{_UNSPACED}]")
_RUNS = re.compile(rf"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_HAS_UNSPACED = re.compile(rf"[{_UNSPACED}]")


@cache
def _marked() -> tuple[frozenset[str], re.Pattern[str]]:
    """The marks that belong to the letter before them, and the words of a text that has some. `\\w` does not know them:
    a word of Hindi would end at each of its vowels. Looked for everywhere this would take four times as long."""
    points = map(chr, (*range(0x300, 0x3000), *range(0xA000, 0xAC00)))
    marks = frozenset(point for point in points if unicodedata.category(point) in ("Mn", "Mc"))
    return marks, re.compile(rf"\w[\w{''.join(sorted(marks))}]+|[{_UNSPACED}]")


def _words(text: str) -> re.Pattern[str]:
    """What finds the words of `text`."""
    return _WORD if text.isascii() or _marked()[0].isdisjoint(text) else _marked()[1]


def has_unspaced(text: str) -> bool:
    """Whether some of it is in a script that puts no spaces between words."""
    return _HAS_UNSPACED.search(text) is not None


class Term(NamedTuple):
    """One counted term and the characters [start, end) of the text it came from."""

    term: str
    start: int
    end: int


def languages() -> list[str]:
    """Every accepted `language`: a Snowball stemmer, a stop-word list, or both, and `none` for neither."""
    import Stemmer

    return sorted({*Stemmer.algorithms(), *_stop_word_lists(), "none"})


def _stop_word_lists() -> dict[str, frozenset[str]]:
    from bm25s import stopwords

    found = {
        name[len("STOPWORDS_") :].lower(): frozenset(getattr(stopwords, name))
        for name in dir(stopwords)
        if name.startswith("STOPWORDS_") and name != "STOPWORDS_EN_PLUS"
    }
    found["english"] = found.pop("en")
    return found


class Analyzer:
    """Splits text into terms for one language.

    `language` names a Snowball stemmer (English by default); where there is none the words stay as they are, and where
    there is no stop-word list nothing is dropped. Runs of Chinese, Japanese, Korean, Thai, Lao, Burmese and Khmer
    become overlapping pairs of characters, the usual choice where no segmenter is at hand.
    """

    def __init__(self, language: str = "english") -> None:
        if language not in languages():
            raise UserError(f"unknown language {language!r}; 'none' works for any.{suggest(language, languages())}")
        self.language = language
        self._stems: dict[str, str] = {}

    @cached_property
    def stop_words(self) -> frozenset[str]:
        return _stop_word_lists().get(self.language, frozenset())

    @cached_property
    def _stem_word(self) -> Callable[[str], str]:
        import Stemmer

        if self.language not in Stemmer.algorithms():
            return str
        stem: Callable[[str], str] = Stemmer.Stemmer(self.language).stemWord
        return stem

    def _stem(self, word: str) -> str:
        stem = self._stems.get(word)
        if stem is None:  # a corpus repeats its words: one dictionary look-up instead of one stemming
            stem = self._stems[word] = self._stem_word(word)
        return stem

    def located(self, text: str) -> Iterator[Term]:
        """The terms of `text`, in order, each with the characters it came from. A letter and its accent should be one
        character (NFC), as `terms` makes them."""
        for match in _words(text).finditer(_lowered(text)):
            word, start = match.group(), match.start()
            if _HAS_UNSPACED.search(word):
                yield from self._pairs(word, start)
            elif word not in self.stop_words:
                yield Term(self._stem(word), start, match.end())

    def terms(self, text: str) -> list[str]:
        """The terms of `text`, in order, repeats included. Empty when the text holds only stop words."""
        text = unicodedata.normalize("NFC", text)  # "ü" is one character or two, and looks the same
        if _HAS_UNSPACED.search(text):
            return [found.term for found in self.located(text)]
        # Indexing needs no offsets, and without them a text is counted three times as fast.
        return [self._stem(word) for word in _words(text).findall(_lowered(text)) if word not in self.stop_words]

    def _pairs(self, word: str, offset: int) -> Iterator[Term]:
        for run in _RUNS.finditer(word):
            part, start = run.group(), offset + run.start()
            if not _HAS_UNSPACED.match(part):
                if len(part) > 1 and part not in self.stop_words:
                    yield Term(self._stem(part), start, start + len(part))
                continue
            for at in range(max(1, len(part) - 1)):
                pair = part[at : at + 2]
                if pair not in self.stop_words:
                    yield Term(pair, start + at, start + at + len(pair))


def _lowered(text: str) -> str:
    """`text` in lower case and of the same length: the few letters that grow (İ) stay as they are."""
    lowered = text.lower()
    if len(lowered) != len(text):
        lowered = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return lowered
