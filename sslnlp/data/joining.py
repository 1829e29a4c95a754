"""What is tokenised first and decided upon afterwards: text read once, then joined into the stores of a preparation.

Which copy of a duplicate is the first and which documents of small hash are held out is known when all of the text
has been read. So everything but repeats is tokenised as it comes, with a note about each document; then it is decided,
and what was decided is copied. A folder of documents: `store/`, `notes.npy` (NOTE, one a document) and `pieces.npy`
(number of each piece in the whole corpus, documents in it).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Bytes, Ints
from sslnlp.data import split
from sslnlp.data.hashes import HashSet
from sslnlp.data.store import TokenStore, open_array
from sslnlp.data.texts import Texts, regrouped
from sslnlp.data.tokens import TokenWriter
from sslnlp.errors import UserError
from sslnlp.tokenizer.specials import vocabulary_size

NOTE = np.dtype([("hash", "<u8"), ("chars", "<i8"), ("stored", "?")])
"""Of a document: its hash, its characters (-1: only white space), whether its tokens are in the folder's store."""
BLOCK = 1024
"""Documents noted, decided upon, or dealt to a shard at a time."""
COPIED_TOKENS = 1 << 22
"""Tokens read at a time when they are copied."""
_NOTED_BYTES = 1 << 22


def noted(runs: Iterable[Texts], notes: BinaryIO, seen: HashSet | None) -> Iterator[Texts]:
    """The documents to tokenise, while a note about each of all is written. A repeat of what was `seen` is left out."""
    for run in regrouped(runs, BLOCK, _NOTED_BYTES):
        note = np.zeros(len(run), NOTE)
        note["hash"], note["chars"] = run.hashes(), run.characters()
        stored = note["chars"] >= 0
        if seen is not None:
            stored[stored] = seen.add(note["hash"][stored])
        note["stored"] = stored
        notes.write(note.tobytes())
        yield run.select(stored)


@dataclass
class _Piece:
    """A run of documents that lie together in one shard."""

    folder: Path
    notes: slice
    first: int
    """Number, in the shard's store, of its first stored document."""


class Parts:
    """Documents that were read and tokenised into one or several folders, in the order of the corpus."""

    def __init__(self, folders: list[Path]) -> None:
        self._notes = {folder: open_array(folder / "notes.npy", NOTE) for folder in folders}
        self._stores = {folder: TokenStore(folder / "store") for folder in folders}
        pieces: dict[int, _Piece] = {}
        for folder, notes in self._notes.items():
            at = first = 0
            for number, documents in np.load(folder / "pieces.npy").tolist():
                span = slice(at, at + documents)
                pieces[number] = _Piece(folder, span, first)
                at += documents
                first += int(notes["stored"][span].sum())
            if at != len(notes) or first != len(self._stores[folder]):
                raise UserError(f"the shard {folder} is damaged: remove it and make it again")
        if sorted(pieces) != list(range(len(pieces))):
            raise UserError(f"the shards in {folders[0].parent} overlap or leave gaps: remove them and make them again")
        self._pieces = [pieces[number] for number in range(len(pieces))]

    def documents(self) -> Iterator[split.Documents]:
        """What `split.scan` decides on."""
        for piece in self._pieces:
            notes, offsets = self._notes[piece.folder][piece.notes], self._stores[piece.folder].offsets
            index = piece.first + np.cumsum(notes["stored"]) - 1  # in the store, where stored
            for start in range(0, len(notes), BLOCK):
                block, own = notes[start : start + BLOCK], index[start : start + BLOCK]

                def count(i: int, own: npt.NDArray[Any] = own, offsets: npt.NDArray[Any] = offsets) -> int:
                    return int(offsets[own[i] + 1] - offsets[own[i]])

                yield split.Documents(block["hash"], block["chars"], count)

    def copy(
        self,
        decisions: Bytes,
        wanted: int,
        directory: Path,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        advance: Callable[[int], None],
    ) -> None:
        """Write the store of all documents about which `wanted` was decided."""
        shutil.rmtree(directory, ignore_errors=True)  # of a join that was killed
        if self._linked(decisions, wanted, directory, name):
            return
        writer = TokenWriter(directory, vocabulary_size(tokenizer))
        at = 0
        try:
            for piece in self._pieces:
                stored = self._notes[piece.folder][piece.notes]["stored"]
                mine = decisions[at : at + len(stored)][stored] == wanted
                at += len(stored)
                for ids, lengths, num_bytes in _chosen(self._stores[piece.folder], piece.first, mine):
                    writer.add(ids, lengths, num_bytes)
                    advance(len(lengths))
            writer.finish(name)
        finally:
            writer.close()

    def _linked(self, decisions: Bytes, wanted: int, directory: Path, name: str) -> bool:
        """Where all that one folder stores is wanted, its files become those of `directory`, and nothing is copied."""
        if len(self._notes) > 1 or len(self._pieces) > 1:
            return False
        (folder,) = self._notes
        if not (decisions[self._notes[folder]["stored"]] == wanted).all():
            return False
        directory.mkdir()
        facts = json.loads((folder / "store" / "store.json").read_text())
        try:
            for file in ("tokens.bin", "offsets.bin", "bytes.bin"):
                os.link(folder / "store" / file, directory / file)
        except OSError:  # a file system without links; what is written next must not go into a file of the folder
            shutil.rmtree(directory)
            return False
        (directory / "store.json").write_text(json.dumps(facts | {"fingerprint": name}, indent=1) + "\n")
        return True


def _chosen(store: TokenStore, first: int, mine: Bools) -> Iterator[tuple[npt.NDArray[Any], Ints, Ints]]:
    """Of the documents of `store` from `first` on, those that are `mine`, in batches: ids, and of each its number of
    ids and of bytes."""
    start, end = first, first + len(mine)
    while start < end:
        # As many documents as fit the batch, at least one.
        limit = int(np.searchsorted(store.offsets, store.offsets[start] + COPIED_TOKENS, "right")) - 1
        stop = min(max(start + 1, limit), end)
        offsets, wanted = store.offsets[start : stop + 1], mine[start - first : stop - first]
        lengths = np.diff(offsets)
        ids = store.run(int(offsets[0]), int(offsets[-1]))[np.repeat(wanted, lengths)]
        yield ids, lengths[wanted], store.byte_counts[start:stop][wanted]
        start = stop
