"""The documents of a corpus dealt out, a share to each process or machine, and one share read and tokenised.

Whole files are dealt where that is even, else everybody reads everything and takes every n-th block of documents.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp import text_files
from sslnlp.data import joining
from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import HashSet
from sslnlp.data.joining import NOTE, noted
from sslnlp.data.sources import Source, text_column
from sslnlp.data.texts import Texts, regrouped
from sslnlp.data.tokens import TokenStore, build_store
from sslnlp.errors import UserError

UNEVEN = 1.25
"""Files are dealt out whole unless a shard would get this many times its share of the bytes."""
_SPELLING = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `2/8`. Raises `UserError` for anything but 1/n to n/n."""
        match = _SPELLING.fullmatch(text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {text}: write i/n with i from 1 to n, for instance 1/8 ... 8/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"


def read_share(
    config: DataConfig,
    source: Source,
    shard: Shard,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    fingerprint: str,
    advance: Callable[[int], None] = lambda n: None,
) -> TokenStore:
    """Read and tokenise a share of the documents into `folder`, as `joining.Parts` reads it.

    A killed call goes on where it was, and one that was finished is not repeated.
    """
    if not (folder / "pieces.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        dealt = _Dealt(config, source, shard)
        texts = dealt.texts(folder / "notes.npy")
        build_store(texts, tokenizer, folder / "store", fingerprint=fingerprint, advance=advance)
        np.save(folder / "pieces.new.npy", np.array(dealt.pieces, np.int64).reshape(-1, 2))
        os.replace(folder / "pieces.new.npy", folder / "pieces.npy")
    return TokenStore(folder / "store")


class _Dealt:
    """The documents of one shard, in the order of the corpus."""

    def __init__(self, config: DataConfig, source: Source, shard: Shard) -> None:
        self.config, self.source, self.shard = config, source, shard
        self.pieces: list[tuple[int, int]] = []
        """(number of the piece in the whole corpus, documents in it); known when `texts` has been walked through."""

    def texts(self, notes: Path) -> Iterator[Texts]:
        """The documents to tokenise, while `notes` is written about all. A repeat inside the shard is left out."""
        seen = HashSet() if self.config.deduplicate else None
        with notes.open("wb") as file:
            for piece, runs in self._pieces():
                before = file.tell()
                yield from noted(runs, file, seen)
                self.pieces.append((piece, (file.tell() - before) // NOTE.itemsize))

    def _pieces(self) -> Iterator[tuple[int, Iterable[Texts]]]:
        if self.shard.of == 1:
            yield 0, self._runs()
            return
        owners = self._owners()
        if owners is None:
            yield from self._blocks()
            return
        files = [(kind, file) for kind, files in self.source.files.items() for file in files]
        column, how = self._settled()
        for piece, (kind, file) in enumerate(files):
            if owners[piece] == self.shard.number:
                alone = replace(self.source, files={kind: [file]}, hub=[])
                yield piece, alone.runs(None if kind == ".txt" else column, how)

    def _owners(self) -> list[int] | None:
        """Which shard reads which file: the largest first, each to the shard with the least; None where uneven."""
        sizes = [file.stat().st_size for files in self.source.files.values() for file in files]
        if self.source.hub or self.config.limit is not None or len(sizes) < self.shard.of:
            return None
        load, owners = [0] * self.shard.of, [0] * len(sizes)
        for piece in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            least = load.index(min(load))
            load[least] += sizes[piece]
            owners[piece] = least + 1
        return owners if max(load) * self.shard.of <= UNEVEN * sum(sizes) else None

    def _settled(self) -> tuple[str | None, str]:
        """The text column and the way `.txt` files are cut, which are read off all files together."""
        files, config = self.source.files, self.config
        how = text_files.resolve(files[".txt"], config.split_text) if ".txt" in files else config.split_text
        if set(files) == {".txt"}:
            return None, how
        head = next((head for _, head, _ in self.source.headed()), None)
        return (text_column(head, config.text, self.source.spec, config) if head is not None else config.text), how

    def _blocks(self) -> Iterator[tuple[int, Iterable[Texts]]]:
        for piece, block in enumerate(regrouped(self._runs(), joining.BLOCK, sys.maxsize)):
            if piece % self.shard.of == self.shard.number - 1:
                yield piece, [block]

    def _runs(self) -> Iterator[Texts]:
        return self.source.runs(self.config.text, self.config.split_text, self.config.limit)
