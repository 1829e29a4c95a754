"""Documents -> token store, in bounded memory, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Ints
from sslnlp.data.encoding import Encoder, by_size
from sslnlp.data.store import TokenStore
from sslnlp.data.texts import Texts, regrouped

__all__ = ["TokenStore", "TokenWriter", "build_store"]

BATCH_BYTES = 1 << 23
BATCH_DOCUMENTS = 1 << 15
SHARD_TOKENS = 1 << 22
"""Tokens between two commits of a build: what a killed build does again, at most."""


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
        notes = [self.directory / "progress.json", self.directory / "store.json"]  # the latter where it was finished
        progress = next((note for note in notes if note.exists()), notes[0])
        if progress.exists():
            facts = json.loads(progress.read_text())
            self.documents, self.tokens, self.bytes = facts["documents"], facts["tokens"], facts["bytes"]
        sizes = {"tokens.bin": self.tokens * self.dtype.itemsize, "bytes.bin": 8 * self.documents}
        sizes["offsets.bin"] = 8 * (self.documents + 1)
        for name, file in self._files.items():
            file.truncate(sizes[name] if progress.exists() else 0)
        if not progress.exists():
            self._files["offsets.bin"].write(np.zeros(1, np.int64).tobytes())

    def add(self, ids: npt.NDArray[np.integer[Any]], lengths: Ints, num_bytes: Ints) -> None:
        """Append documents: their ids end to end, and for each its number of ids and of UTF-8 bytes."""
        self._files["tokens.bin"].write(ids.astype(self.dtype).data)
        self._files["offsets.bin"].write((self.tokens + np.cumsum(lengths)).astype(np.int64).data)
        self._files["bytes.bin"].write(np.asarray(num_bytes, np.int64).data)
        self.documents += len(num_bytes)
        self.tokens += len(ids)
        self.bytes += int(num_bytes.sum())

    def commit(self, fingerprint: str = "") -> None:
        """Flush to the disk and note how far we are, so that a killed build goes on from here."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        facts = {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "dtype": self.dtype.name,
            "fingerprint": fingerprint,
        }
        aside = self.directory / "progress.json.new"
        aside.write_text(json.dumps(facts, indent=1) + "\n")
        os.replace(aside, self.directory / "progress.json")

    def finish(self, fingerprint: str) -> None:
        """Complete the store: its last note becomes `store.json`, which so is whole or not there."""
        self.commit(fingerprint)
        self.close()
        os.replace(self.directory / "progress.json", self.directory / "store.json")

    def close(self) -> None:
        """Close the files; what was committed stays."""
        for file in self._files.values():
            file.close()


def build_store(
    documents: Iterable[str] | Iterable[Texts],
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    fingerprint: str,
    advance: Callable[[int], None] = lambda n: None,
) -> TokenStore:
    """Tokenise `documents` into a store in `directory`, or go on with one that was interrupted there.

    Args:
        documents: the texts, or runs of them, in an order that is the same when it is iterated again.
        tokenizer: a fast tokenizer.
        directory: filled in place; the caller renames it when it is whole.
        fingerprint: of the content, kept with the store.
        advance: told the number of documents written, for a progress bar.
    """
    encoder = Encoder(tokenizer)
    writer = TokenWriter(Path(directory), encoder.vocab_size)
    try:
        done = writer.documents
        advance(done)
        committed = writer.tokens
        for batch in regrouped(_runs(documents), BATCH_DOCUMENTS, BATCH_BYTES, done):
            writer.add(*encoder.encode(batch))
            advance(len(batch))
            if writer.tokens - committed >= SHARD_TOKENS:
                writer.commit()
                committed = writer.tokens
        writer.finish(fingerprint)
    finally:
        writer.close()
    return TokenStore(directory)


def _runs(documents: Iterable[str] | Iterable[Texts]) -> Iterator[Texts]:
    rest = iter(documents)
    for first in rest:
        if isinstance(first, Texts):
            yield first
        else:
            texts = cast(Iterable[str], chain([first], rest))
            yield from map(Texts.of, by_size(texts, len, BATCH_BYTES, BATCH_DOCUMENTS))
