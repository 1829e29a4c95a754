"""Word counts of a corpus in bounded memory: what a tokenizer is trained from instead of the text itself.

Text is cut at white space by one regular expression and counted as it streams by; only *distinct* chunks then pass
the tokenizer's own normaliser and pre-tokenizer, so the counts are those of the real pre-tokenizer at the speed of
a dictionary. Two bounds hold memory: chunks are flushed into words when there are too many of them, and when there
are too many distinct words the rarest are dropped and the loss is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from sslnlp.scripts import SPACELESS

_LONGEST_CHUNK = 64
_CHUNK = re.compile(
    rf" ?[{SPACELESS}]{{1,4}}"  # a whole clause would be a word of its own: four characters keep its statistics
    rf"| ?[^\s{SPACELESS}]{{1,{_LONGEST_CHUNK}}}"  # longer ones are data, not words, and would fill the memory
    r"|\s+(?!\S)|\s"
)
_SLICE = 1 << 20  # characters looked at together: one line of 100 MB must not become one list of chunks
_BYTES_PER_CHUNK = 200  # a dictionary entry with a string of ten characters

Split = Callable[[str], Iterable[str]]


@dataclass
class WordCounts:
    """Counts of distinct words.

    `memory_mb` bounds the counter and the trainer that later reads it; `split` turns a chunk of text into words.
    After `add`, call `finish`; then `words` holds the counts and `dropped` the occurrences that were let go.
    """

    split: Split
    memory_mb: int
    bytes_per_word: int = 900
    """What a distinct word takes, measured: its entry here, and its symbols and pairs in the trainer."""
    words: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    """Occurrences of words dropped for lack of memory."""
    _chunks: Counter[str] = field(default_factory=Counter)

    @property
    def max_words(self) -> int:
        return max(1000, (self.memory_mb << 20) // self.bytes_per_word)

    @property
    def max_chunks(self) -> int:
        return max(1000, (self.memory_mb << 20) // 4 // _BYTES_PER_CHUNK)

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            for start in range(0, len(text), _SLICE):
                self._chunks.update(_CHUNK.findall(text, start, start + _SLICE))
                if len(self._chunks) > self.max_chunks:
                    self._flush()

    def finish(self) -> None:
        self._flush()

    def _flush(self) -> None:
        """Moves chunks into words, then halves the words if there are too many."""
        for chunk, count in self._chunks.items():
            for word in self.split(chunk.encode("utf-8", "ignore").decode()):  # a lone surrogate is no text
                self.words[word] += count
        self._chunks = Counter()
        if len(self.words) > self.max_words:
            kept = self.words.most_common(self.max_words // 2)
            total = self.words.total()
            self.words = Counter(dict(kept))
            self.dropped += total - self.words.total()

    def scaled(self, max_words: int, max_symbols: int) -> Iterator[tuple[str, int]]:
        """(word, count) in a fixed order, thinned evenly so that neither total is passed.

        Word i gets floor(s·C_i) − floor(s·C_{i−1}), C the running total: systematic sampling. Each count is right to
        within one, and rare words as a class keep their share, which rounding each up to one would inflate.
        """
        if not self.words:
            return
        ordered = sorted(self.words.items(), key=lambda item: (-item[1], item[0]))
        counts = np.array([count for _, count in ordered], dtype=np.int64)
        symbols = int((counts * np.array([len(word) for word, _ in ordered], dtype=np.int64)).sum())
        scale = min(1.0, max_words / int(counts.sum()), max_symbols / max(1, symbols))
        if scale < 1.0:
            running = np.floor(np.cumsum(counts) * scale).astype(np.int64)
            counts = np.diff(running, prepend=0)
        for (word, _), count in zip(ordered, counts.tolist(), strict=True):
            if count:
                yield word, count
