"""Text -> token store, in bounded memory, in parallel threads, resumable.

Ids are those of the tokenizer without special tokens, and a special token's string that occurs in the raw text is
ordinary text: nobody can inject `[SEP]` through the corpus.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from sslnlp.data.store import TokenStore
from sslnlp.errors import UserError

__all__ = [
    "TokenStore",
    "TokenWriter",
    "build_store",
    "count_tokens",
    "encode",
    "plain_tokenizer",
    "split_long",
    "tokenizer_fingerprint",
]

T = TypeVar("T")

PIECE_CHARS = 1 << 16
"""Longer texts are encoded in pieces of about this many characters, so one huge line costs no huge encoding."""
BATCH_CHARS = 1 << 20
BATCH_DOCUMENTS = 1024
SHARD_TOKENS = 1 << 22
"""Tokens between two commits of a build: what a killed build does again, at most."""
# A cut goes before a single space between words (every pre-tokenizer that splits on spaces splits there too), else
# after a line end or a Chinese/Japanese full stop, else wherever it must.
_CUTS = (re.compile(r"(?<=\S)(?= \w)"), re.compile(r"(?<=\n)(?=\S)"), re.compile(r"(?<=[。！？、，])"))


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A private copy of the backend that neither truncates, pads, frames, nor reads special tokens out of raw text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer; give one that has a tokenizer.json")
    copy = Tokenizer.from_str(_essence(backend))
    copy.encode_special_tokens = True
    return copy


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex digest of what decides the ids of raw text: framing, padding and truncation do not count."""
    return hashlib.blake2b(_essence(tokenizer.backend_tokenizer).encode(), digest_size=16).hexdigest()


def _essence(backend: Tokenizer) -> str:
    facts = json.loads(backend.to_str())
    facts.update(truncation=None, padding=None, post_processor=None)
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)


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


def encode(backend: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Ids of the texts in order, as (number of the text, ids int64 [L]); a long text comes in several parts.

    `tokenizers` runs each batch on its own threads (TOKENIZERS_PARALLELISM).
    """
    pieces = ((number, piece) for number, text in enumerate(texts) for piece in split_long(text))
    for batch in _by_size(pieces, lambda pair: len(pair[1])):
        encodings = backend.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (number, _), encoding in zip(batch, encodings, strict=True):
            yield number, np.asarray(encoding.ids, np.int64)


def count_tokens(backend: Tokenizer, text: str) -> int:
    """Tokens of one text."""
    return sum(len(ids) for _, ids in encode(backend, [text]))


def _by_size(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches of bounded number and total size."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= BATCH_CHARS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class TokenWriter:
    """Writes one store. `commit` makes all written so far durable; an interrupted writer reopens at the last commit.

    Files grow in `directory`; `finish` writes `store.json`, which makes it a store.
    """

    def __init__(self, directory: Path, vocab_size: int) -> None:
        self.directory = directory
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if vocab_size <= 65_535 else np.uint32)
        directory.mkdir(parents=True, exist_ok=True)
        self.documents = self.tokens = self.bytes = 0
        self._files = {name: open(directory / name, "ab") for name in ("tokens.bin", "offsets.bin", "bytes.bin")}  # noqa: SIM115
        self._restore()

    def _restore(self) -> None:
        """Cut the files back to the last commit: what came after it is written again, the same."""
        progress = self.directory / "progress.json"
        if progress.exists():
            facts = json.loads(progress.read_text())
            self.documents, self.tokens, self.bytes = facts["documents"], facts["tokens"], facts["bytes"]
        sizes = {"tokens.bin": self.tokens * self.dtype.itemsize, "bytes.bin": 8 * self.documents}
        sizes["offsets.bin"] = 8 * (self.documents + 1)
        for name, file in self._files.items():
            file.truncate(sizes[name] if progress.exists() else 0)
        if not progress.exists():
            self._files["offsets.bin"].write(np.zeros(1, np.int64).tobytes())

    def add(self, parts: Iterable[tuple[int, npt.NDArray[np.int64]]], num_bytes: Sequence[int]) -> None:
        """Append `len(num_bytes)` documents: their ids as `encode` gives them, and their lengths in UTF-8 bytes."""
        lengths = np.zeros(len(num_bytes), np.int64)
        for number, ids in parts:
            self._files["tokens.bin"].write(ids.astype(self.dtype).tobytes())
            lengths[number] += len(ids)
        self._files["offsets.bin"].write((self.tokens + np.cumsum(lengths)).astype(np.int64).tobytes())
        self._files["bytes.bin"].write(np.array(num_bytes, np.int64).tobytes())
        self.documents += len(num_bytes)
        self.tokens += int(lengths.sum())
        self.bytes += sum(num_bytes)

    def commit(self) -> None:
        """Flush to the disk and note how far we are, so that a killed build goes on from here."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        aside = self.directory / "progress.json.new"
        aside.write_text(json.dumps({"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}))
        os.replace(aside, self.directory / "progress.json")

    def finish(self, fingerprint: str) -> None:
        """Complete the store."""
        self.commit()
        self.close()
        facts = {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "dtype": self.dtype.name,
            "fingerprint": fingerprint,
        }
        (self.directory / "store.json").write_text(json.dumps(facts, indent=1) + "\n")
        (self.directory / "progress.json").unlink()

    def close(self) -> None:
        """Close the files; what was committed stays."""
        for file in self._files.values():
            file.close()


def build_store(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    fingerprint: str,
    advance: Callable[[int], None] = lambda n: None,
) -> TokenStore:
    """Tokenise `documents` into a store in `directory`, or go on with one that was interrupted there.

    Args:
        documents: the texts, in an order that is the same when it is iterated again.
        tokenizer: a fast tokenizer.
        directory: filled in place; the caller renames it when it is whole.
        fingerprint: of the content, kept with the store.
        advance: told the number of documents written, for a progress bar.
    """
    backend = plain_tokenizer(tokenizer)
    writer = TokenWriter(Path(directory), backend.get_vocab_size(with_added_tokens=True))
    try:
        done = writer.documents
        advance(done)
        rest = islice(documents, done, None)
        committed = writer.tokens
        for batch in _by_size(rest, len):
            writer.add(encode(backend, batch), [len(text.encode()) for text in batch])
            advance(len(batch))
            if writer.tokens - committed >= SHARD_TOKENS:
                writer.commit()
                committed = writer.tokens
        writer.finish(fingerprint)
    finally:
        writer.close()
    return TokenStore(directory)
