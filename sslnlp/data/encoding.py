"""Text -> ids, exactly those of `tokenizers`, with each distinct piece of text tokenised once.

A block of texts is cut where cutting changes nothing (`tokenizer.cuts`), the chunks are looked up all together
(`data.chunks`), and only those never seen before are tokenised. Ids are those of the tokenizer without special
tokens, and a special token's string that occurs in the raw text is ordinary text: nobody can inject `[SEP]` through
the corpus.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Bytes, Ints
from sslnlp.data.chunks import ChunkTable, Symbols
from sslnlp.data.texts import Texts
from sslnlp.errors import UserError
from sslnlp.tokenizer.cuts import SEPARATOR, Cutter
from sslnlp.tokenizer.junctions import merges_bytes
from sslnlp.tokenizer.merging import Merger
from sslnlp.tokenizer.specials import spelling, vocabulary_size

log = logging.getLogger(__name__)
T = TypeVar("T")

PIECE_CHARS = 1 << 16
"""What cannot be cut is tokenised in pieces of about this many characters: one huge word costs no huge encoding."""
BATCH_CHARS = 1 << 20
BATCH_DOCUMENTS = 1024
BLOCK_BYTES = 1 << 20
GROUP_BLOCKS = 8
"""Blocks whose new chunks are tokenised together."""
_FEW = 500  # words below which the tokenizer is faster than merging them together
_WORDS, _WORD_CHARS = 1000, 1 << 12
_MARK = bytes([SEPARATOR])
# A cut goes before a single space between words (every pre-tokenizer that splits on spaces splits there too), else
# after a line end or a Chinese/Japanese full stop, else wherever it must.
_CUTS = (re.compile(r"(?<=\S)(?= \w)"), re.compile(r"(?<=\n)(?=\S)"), re.compile(r"(?<=[。！？、，])"))
_PROBE: Final = (
    "The keeper's log isn't long: 3,141 ships (of  them 27)\tcame...\n\n  and 'twas \"late\" -- e.g. at 12:30!\r\n",
    "  Naïve cafés, ÉCOLE ŒUVRE, Straße İzmir ΑΣ. été e\u0301te\u0301; Привет, мир! שלום مرحبا नमस्ते ไทย 한국어 ",
    "灯塔看守人在大雾来临之前，数了17艘船。「你好」世界！　ひらがなカタカナ",
    "🙂👩\u200d👩\u200d👧\ufe0f🇫🇷 \u00a0x\u2003y\u200b",
    "\t\n \n\x0b\x0c\x1c\x85\u2028a\x00b\x7f\ufeff ''s 's'T 'll I'LL 1'2 a'b' _x_ <|x|> [MASK] [SEP]</s>▁a ▁▁ \u0301x",
    "", " ", "'", "\n", "a",
)  # fmt: skip


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the backend that neither truncates, pads, frames, nor reads special tokens out of raw text.

    Making one takes a tenth of a second, so equal tokenizers share a copy: it is not to be changed.
    """
    return _plain(_essence(tokenizer))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex digest of what decides the ids of raw text: framing, padding and truncation do not count."""
    return hashlib.blake2b(_essence(tokenizer).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=2)
def _plain(facts: str) -> Tokenizer:
    copy = Tokenizer.from_str(facts)
    copy.encode_special_tokens = True
    return copy


def _essence(tokenizer: PreTrainedTokenizerBase) -> str:
    return _facts(tokenizer)[0]


def _facts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, dict[str, Any]]:
    """What decides the ids, as text and parsed (not to be changed)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; give one that has a tokenizer.json")
    return _stripped(backend.to_str())


@lru_cache(maxsize=2)
def _stripped(text: str) -> tuple[str, dict[str, Any]]:
    facts = json.loads(text)
    facts.update(truncation=None, padding=None, post_processor=None)
    return json.dumps(facts, sort_keys=True, ensure_ascii=False), facts


def split_long(text: str, limit: int = PIECE_CHARS) -> Iterator[str]:
    """`text` in pieces of at most `limit` characters whose concatenation is `text`.

    The ids equal those of the whole text for tokenizers that keep a space with the word after it (byte-level BPE,
    Metaspace, WordPiece); where there is no space or line end for half a piece, a word at the cut may differ.
    """
    start = 0
    while len(text) - start > limit:
        middle = start + limit // 2
        window = text[middle : start + limit]
        found = (max((m.start() for m in cut.finditer(window) if m.start()), default=None) for cut in _CUTS)
        stop = next((middle + at for at in found if at is not None), start + limit)
        yield text[start:stop]
        start = stop
    yield text[start:] if start else text


class Encoded(NamedTuple):
    """Ids of n texts."""

    ids: Symbols
    """int32 [T]: those of all texts, end to end."""
    lengths: Ints
    """int64 [n]: how many each text has."""
    num_bytes: Ints
    """int64 [n]: UTF-8 bytes of each text."""


class Encoder:
    """Ids of texts, equal to those of `plain_tokenizer(tokenizer)`.

    Fast where the tokenizer is known to be local: its pre-tokenizer, normaliser and model are on the list of
    `tokenizer.cuts`, and a sample of difficult text comes out the same as from `tokenizers`. Otherwise it is
    `tokenizers` that encodes, and a log line says why. A text with the string of an added token that is not special is
    tokenised whole. A single word of more than 65,536 characters is tokenised in pieces, in both cases.

    Memory: about 200 MiB beside a batch of texts and its ids; flat, however long the corpus.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        essence, facts = _facts(tokenizer)
        self.backend = _plain(essence)
        self.vocab_size = vocabulary_size(tokenizer)
        self._added = [token["content"].encode() for token in facts["added_tokens"] if not token["special"]]
        self._cutter, why = self._cutter_of(facts)
        if self._cutter is None:
            log.info("encoding with tokenizers alone: no faster way is known to give this tokenizer's ids (%s)", why)
            return
        self._inner = _plain(_inside(facts)) if self._cutter.glued else self.backend
        merging = self._cutter.spells_bytes and merges_bytes(facts["model"]) and facts["normalizer"] is None
        self._merger = Merger(facts["model"]) if merging else None
        self._table = ChunkTable(self._encode_chunks)
        self._few = 1  # the sample is merged too
        try:
            if why := self._differs():
                log.warning("fast encoding gives other ids for %r: encoding with tokenizers alone", why)
                self._cutter = None
        except UserError:  # it has no unknown token for characters of the sample that it cannot spell
            log.info("this tokenizer cannot spell the sample: encoding with tokenizers alone")
            self._cutter = None
        self._few = _FEW

    @property
    def fast(self) -> bool:
        """Whether distinct chunks are tokenised once."""
        return self._cutter is not None

    def _cutter_of(self, facts: dict[str, Any]) -> tuple[Cutter | None, str]:
        normalized = any(token["normalized"] for token in facts["added_tokens"] if not token["special"])
        if normalized and facts["normalizer"] is not None:
            return None, "added tokens matched after normalisation"
        found = Cutter.of(self.backend, facts)
        return (None, found) if isinstance(found, str) else (found, "")

    def _differs(self) -> str:
        """A sample text that comes out otherwise than from `tokenizers`; none if the two agree."""
        samples = [*_PROBE, " ".join(_PROBE), "x".join(_PROBE)]
        ids, lengths, _ = self.encode(samples)
        ends = np.cumsum(lengths)
        for sample, stop, length in zip(samples, ends, lengths, strict=True):
            if ids[stop - length : stop].tolist() != self.backend.encode(sample, add_special_tokens=False).ids:
                return sample
        return ""

    def encode(self, texts: Sequence[str] | Texts) -> Encoded:
        """The ids of the texts. Raises `UserError` for a text that is not Unicode (it holds half a surrogate pair), or
        that the vocabulary cannot spell."""
        with spelling():
            return self._encode(texts)

    def _encode(self, texts: Sequence[str] | Texts) -> Encoded:
        texts = texts if isinstance(texts, Texts) else Texts.of(texts)
        num_bytes = texts.num_bytes
        if self._cutter is None or not len(texts):
            ids, counts = _encode_whole(self.backend, texts.strings())
            return Encoded(ids, counts, num_bytes)
        raw = texts.raw()
        joined = _MARK.join([b"", *raw, b"", bytes(16)])
        buffer = np.frombuffer(joined, np.uint8)
        marks = np.cumsum(num_bytes + 1) - num_bytes - 1
        whole = self._whole(joined, raw, marks)
        del raw
        parts: list[Symbols] = []
        offsets = np.zeros(len(texts) + 1, np.int64)
        blocks = self._blocks(buffer, len(joined) - 17, whole)
        while group := list(islice(blocks, GROUP_BLOCKS)):
            for (at, _), (ids, ends) in zip(group, self._table(buffer, group), strict=True):
                here = slice(*np.searchsorted(marks, [at[0], at[-1] + 1]).tolist())
                before = np.searchsorted(at, marks[here])
                offsets[:-1][here] = offsets[-1] + np.concatenate([[0], ends])[before]
                offsets[-1] += len(ids)
                parts.append(ids)
        return Encoded(np.concatenate(parts), np.diff(offsets), num_bytes)

    def _blocks(self, buffer: Bytes, stop: int, whole: list[tuple[int, int]]) -> Iterator[tuple[Ints, Ints]]:
        """Where the chunks of each block begin, and their lengths. `stop`: of the last mark but one."""
        assert self._cutter is not None
        start, size = 0, BLOCK_BYTES
        while start < stop:
            end = min(start + size, stop + 1)
            while end <= stop and buffer[end] & 0xC0 == 0x80:  # not inside a character
                end -= 1
            cuts, _ = self._cutter.cuts(buffer[start:end])
            for first, last in whole:
                if first < end and last > start:
                    cuts[max(first + 1 - start, 0) : max(last - start, 0)] = False
                    if first >= start and not self._cutter.glued:
                        cuts[first - start] = True
            cuts[0] = True
            at = start + np.flatnonzero(cuts)
            if end == stop + 1:
                at = np.append(at[at < stop], stop)
            if len(at) == 1:  # nowhere to cut in so much text
                size *= 2
                continue
            yield at[:-1], np.diff(at)
            start, size = int(at[-1]), BLOCK_BYTES

    def _whole(self, joined: bytes, raw: list[memoryview], marks: Ints) -> list[tuple[int, int]]:
        """First and last byte of the texts that hold an added token, which may reach across any cut."""
        if not any(token in joined for token in self._added):
            return []
        held = (n for n, text in enumerate(raw) if any(token in text.tobytes() for token in self._added))
        return [(int(marks[n]) + 1, int(marks[n]) + 1 + len(raw[n])) for n in held]

    def _encode_chunks(self, block: Bytes, lengths: Ints) -> tuple[Symbols, Ints]:
        """The ids of chunks never seen before, by the quickest of three ways. `block`: as `ChunkTable` gives it."""
        assert self._cutter is not None
        counts = np.zeros(len(lengths), np.int64)
        starts = np.cumsum(lengths + 1) - lengths  # of a chunk, behind its mark
        joined, ends = block.tobytes(), starts + lengths
        first = block[starts] == SEPARATOR if self._cutter.glued else np.zeros(len(lengths), np.bool_)
        merged = np.zeros(len(lengths), np.bool_)
        parts: list[tuple[Bools, Symbols]] = []
        if self._merger is not None and len(lengths) >= self._few:
            # One pre-token for certain, and no added token in it: nothing but merging is left to do.
            merged = self._cutter.single(block, starts) & (lengths <= PIECE_CHARS)
            if any(token in joined for token in self._added):
                held = (any(token in joined[a:b] for token in self._added) for a, b in zip(starts, ends, strict=True))
                merged &= ~np.fromiter(held, np.bool_, len(lengths))
            inside = np.repeat(merged, lengths + 1)
            inside[starts[merged] - 1] = False
            ids, counts[merged] = self._merger(block[:-1][inside], lengths[merged])
            parts.append((merged, ids))
        for chosen, backend in ((first, self.backend), (~first & ~merged, self._inner)):
            if chosen.any():
                spans = zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)
                texts = [joined[start:end].strip(_MARK).decode() for start, end in spans]
                ids, counts[chosen] = _encode_words(backend, texts)
                parts.append((chosen, ids))
        ids = np.zeros(int(counts.sum()), np.int32)
        for chosen, own in parts:
            ids[np.repeat(chosen, counts)] = own
        return ids, counts


def _encode_words(backend: Tokenizer, words: list[str]) -> tuple[Symbols, Ints]:
    """As `_encode_whole`, for short texts: a thousand of them cost `tokenizers` one encoding instead of a thousand."""
    if max(map(len, words)) > _WORD_CHARS:
        return _encode_whole(backend, words)
    counts = np.zeros(len(words), np.int64)
    groups = [words[start : start + _WORDS] for start in range(0, len(words), _WORDS)]
    parts: list[Symbols] = []
    for n, encoding in enumerate(backend.encode_batch(groups, is_pretokenized=True, add_special_tokens=False)):
        parts.append(np.array(encoding.ids, np.int32))
        words_of_ids = np.array(encoding.word_ids, np.int64)
        counts[n * _WORDS : (n + 1) * _WORDS] = np.bincount(words_of_ids, minlength=len(groups[n]))
    return np.concatenate(parts), counts


def _inside(facts: dict[str, Any]) -> str:
    """The tokenizer for text that does not stand at the beginning: `Metaspace` puts no space before it."""
    pre_tokenizer = re.sub(r'"prepend_scheme": "\w+"', '"prepend_scheme": "never"', json.dumps(facts["pre_tokenizer"]))
    return json.dumps({**facts, "pre_tokenizer": json.loads(pre_tokenizer)}, ensure_ascii=False)


def _encode_whole(backend: Tokenizer, texts: Sequence[str]) -> tuple[Symbols, Ints]:
    """The ids of the texts end to end and how many each has, by `tokenizers` alone."""
    counts = np.zeros(len(texts), np.int64)
    parts: list[Symbols] = [np.zeros(0, np.int32)]
    for number, ids in encode(backend, texts):
        counts[number] += len(ids)
        parts.append(ids)
    return np.concatenate(parts), counts


def encode(backend: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[int, Symbols]]:
    """Ids of the texts in order by `tokenizers` alone, as (number of the text, ids int32 [L]); a long text comes in
    several parts.

    `tokenizers` runs each batch on its own threads (TOKENIZERS_PARALLELISM).
    """
    pieces = ((number, piece) for number, text in enumerate(texts) for piece in split_long(text))
    for batch in by_size(pieces, lambda pair: len(pair[1])):
        encodings = backend.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (number, _), encoding in zip(batch, encodings, strict=True):
            yield number, np.asarray(encoding.ids, np.int32)


def by_size(
    items: Iterable[T], size: Callable[[T], int], most: int = BATCH_CHARS, many: int = BATCH_DOCUMENTS
) -> Iterator[list[T]]:
    """Batches of bounded number and total size."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= most or len(batch) >= many:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
