"""A corpus as one memory-mapped run of token ids.

On disk, a folder: `tokens.bin` (uint16, or uint32 when the vocabulary has more than 65,535 ids), `offsets.bin`
(int64 [D + 1], where each document begins), `bytes.bin` (int64 [D], UTF-8 bytes of each document) and `store.json`.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Ints
from sslnlp.errors import UserError

RELEASE_BYTES = 256 << 20
"""Touched pages are handed back after about this much, so resident memory stays flat however large the corpus."""
_FAULT_BYTES = 64 << 10  # one page fault maps about this much around it (Linux fault-around)


def open_array(path: Path, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A read-only memory map of a whole file; an ordinary empty array when the file is empty."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


class TokenStore:
    """Token ids of D documents, without special tokens. Opening costs nothing; pickling carries the path only.

    Raises:
        UserError: when `path` is not a complete store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            facts = json.loads((self.path / "store.json").read_text())
            self.num_documents, self.num_tokens = int(facts["documents"]), int(facts["tokens"])
            self.num_bytes, self.fingerprint = int(facts["bytes"]), str(facts["fingerprint"])
            self._flat = open_array(self.path / "tokens.bin", np.dtype(facts["dtype"]))
            self.offsets: Ints = open_array(self.path / "offsets.bin", np.int64)
            self.byte_counts: Ints = open_array(self.path / "bytes.bin", np.int64)
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.path} is not a complete token store ({error}); remove it and run again") from None
        if len(self._flat) != self.num_tokens or len(self.offsets) != self.num_documents + 1:
            raise UserError(f"the token store {self.path} is damaged (sizes differ); remove it and run again")
        self._touched = 0

    def __len__(self) -> int:
        return self.num_documents

    @property
    def lengths(self) -> Ints:
        """Tokens of each document: int64 [D] (computed: 8 bytes a document)."""
        return np.diff(self.offsets)

    def tokens(self, index: int) -> Ints:
        """The ids of document `index`: int64 [L]."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.gather(np.arange(start, stop, dtype=np.int64), pieces=1)

    def counts(self, vocab_size: int, limit: int = 1 << 24) -> Ints:
        """How often each id occurs among the first `limit` tokens: int64 [vocab_size]."""
        counted: Ints = np.bincount(self._flat[:limit], minlength=vocab_size)
        return counted

    def run(self, start: int, stop: int) -> npt.NDArray[Any]:
        """The ids of [start, stop) of the whole run, as they are stored; read, not mapped, so memory stays bounded."""
        dtype = self._flat.dtype
        read = np.fromfile(self.path / "tokens.bin", dtype, stop - start, offset=start * dtype.itemsize)
        if len(read) != stop - start:
            raise UserError(f"the token store {self.path} ends at token {start + len(read)}; remove it and run again")
        return read

    def gather(self, where: Ints, pieces: int) -> Ints:
        """The ids at the places `where` of the run, which form about `pieces` contiguous pieces: int64, same shape."""
        ids = self._flat[where].astype(np.int64)
        self._touched += pieces * _FAULT_BYTES + 2 * len(where)
        if self._touched > RELEASE_BYTES:
            self._touched = 0
            mapped = getattr(self._flat, "_mmap", None)
            if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)  # clean file pages: they stay in the page cache, not in our RSS
        return np.asarray(ids)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]  # a memory map must be opened again, not copied
