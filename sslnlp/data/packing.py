"""Documents -> rows of `seq_length` tokens. Nothing is dropped, and documents in a row stay apart.

A document is cut into pieces that fit a row, each framed by `prefix` (and `suffix`), then pieces are laid into rows by
best-fit decreasing inside windows of the corpus (Ding et al., 2024, "Fewer Truncations Improve Language Modeling").
The plan (which piece stands in which row) is a set of memory-mapped files beside the store.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Ints
from sslnlp.data.store import TokenStore, open_array
from sslnlp.data.stream import ByIndex
from sslnlp.errors import UserError
from sslnlp.locks import in_turn
from sslnlp.types import Row

WINDOW_DOCUMENTS = 1 << 16
WINDOW_PIECES = 1 << 18
_FILES = (("starts", np.int64), ("framed", np.int32), ("ends", np.uint8), ("rows", np.int64))


class _Rows(ByIndex):
    """Rows laid out by a plan: what packed and padded rows share."""

    _kind = ""

    def __init__(
        self,
        store: TokenStore,
        seq_length: int,
        prefix: Sequence[int],
        suffix: Sequence[int],
        pad_id: int = 0,
        *,
        suffix_every_piece: bool = True,
        reserve: int = 0,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.store, self.seq_length, self.pad_id = store, seq_length, pad_id
        self.prefix, self.suffix = tuple(prefix), tuple(suffix)
        self.suffix_every_piece, self.reserve = suffix_every_piece, reserve
        frame = len(self.prefix) + len(self.suffix) + reserve
        if seq_length <= frame:
            raise UserError(f"data.seq_length={seq_length} has no room beside {frame} framing tokens; raise it")
        every = "every" if suffix_every_piece else "last"
        name = f"{self._kind}-{seq_length}-{len(self.prefix)}-{len(self.suffix)}-{every}" + (
            f"-{reserve}" if reserve else ""
        )
        self.path = Path(cache_dir or store.path) / (name if cache_dir is None else f"{store.fingerprint}-{name}")
        if not (self.path / "plan.json").exists():
            with in_turn(self.path.parent, self.path.name):
                if not (self.path / "plan.json").exists():
                    _write_plan(self, self.path)
        self._open()

    def _open(self) -> None:
        facts = json.loads((self.path / "plan.json").read_text())
        self.utilisation: float = facts["utilisation"]
        """Share of a row that is not padding (framing counted), 1 for unpadded rows."""
        self._starts, self._framed, self._ends, self._row_offsets = (
            open_array(self.path / f"{name}.bin", dtype) for name, dtype in _FILES
        )

    def __len__(self) -> int:
        return len(self._row_offsets) - 1

    def _lay(self, index: Ints, width: int) -> tuple[Ints, npt.NDArray[np.int32], Ints]:
        """Ids and document ids [B, width] of the rows `index`, and how many tokens each has [B]."""
        counts = self._row_offsets[index + 1] - self._row_offsets[index]
        piece = ranges(self._row_offsets[index], counts)
        row = np.repeat(np.arange(len(index)), counts)
        framed = self._framed[piece].astype(np.int64)
        closed = np.ones(len(piece), bool) if self.suffix_every_piece else self._ends[piece].astype(bool)
        content = framed - len(self.prefix) - len(self.suffix) * closed

        before = np.cumsum(framed) - framed
        first = np.cumsum(counts) - counts
        at = row * width + before - np.repeat(before[first], counts)  # where each framed piece begins in the flat block

        ids = np.full(len(index) * width, self.pad_id, np.int64)
        document_ids = np.full(len(index) * width, -1, np.int32)
        document_ids[ranges(at, framed)] = np.repeat(ranges(np.zeros(len(index), np.int64), counts), framed)
        for j, token in enumerate(self.prefix):
            ids[at + j] = token
        ids[ranges(at + len(self.prefix), content)] = self.store.gather(
            ranges(self._starts[piece], content), pieces=len(piece)
        )
        for j, token in enumerate(self.suffix):
            ids[(at + framed - len(self.suffix) + j)[closed]] = token
        used = np.add.reduceat(framed, first) if len(first) else framed
        return ids.reshape(-1, width), document_ids.reshape(-1, width), used

    def __getstate__(self) -> dict[str, Any]:
        mapped = {"_starts", "_framed", "_ends", "_row_offsets"}
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @abstractmethod
    def _assign(self, framed: Ints) -> tuple[Ints, int]:
        """Row of each piece of a window, and the number of rows."""


class PackedRows(_Rows):
    """Rows of exactly `seq_length` tokens holding whole documents or pieces of them.

    `rows[i]` is `{"input_ids": int64 [S], "document_ids": int32 [S]}`; document ids count 0, 1, ... inside the row
    and are -1 on padding, so attention and targets can stay inside a document.

    Args:
        store: the corpus.
        seq_length: S, tokens of a row.
        prefix, suffix: ids around each piece. With `suffix_every_piece=False` (a decoder's end-of-text) the suffix
            stands only at the true end of a document; a piece is never the suffix alone.
        reserve: tokens left free beside each piece, for what a collator will add to it.
        pad_id: fills what is left of a row.
        cache_dir: where the plan is kept; beside the store when None.

    Raises:
        UserError: when S leaves no room for text beside the framing.
    """

    _kind = "packed"

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        """The rows at `indices`, assembled together: one gather for all their pieces."""
        ids, document_ids, _ = self._lay(np.asarray(indices, np.int64), self.seq_length)
        return [{"input_ids": a, "document_ids": b} for a, b in zip(ids, document_ids, strict=True)]

    def _assign(self, framed: Ints) -> tuple[Ints, int]:
        return best_fit(framed + self.reserve, self.seq_length)


class PaddedRows(_Rows):
    """One piece of a document a row, unpadded: `{"input_ids": int64 [L], "document_ids": zeros int32 [L]}`, L <= S.

    The arguments are those of `PackedRows`. `lengths` lets a `Stream` put rows of like length into a batch.
    """

    _kind = "padded"

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """L of each row, memory-mapped: int32 [rows]."""
        return self._framed

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        ids, document_ids, used = self._lay(np.asarray(indices, np.int64), self.seq_length)
        cut_off = zip(ids, document_ids, used.tolist(), strict=True)
        return [{"input_ids": a[:n], "document_ids": b[:n]} for a, b, n in cut_off]

    def _assign(self, framed: Ints) -> tuple[Ints, int]:
        return np.arange(len(framed)), len(framed)


def best_fit(sizes: Ints, capacity: int) -> tuple[Ints, int]:
    """Best-fit decreasing: the bin of each size [n] (every size <= capacity), and the number of bins.

    Open bins are kept by the room they have left; a bit mask finds the tightest one that fits in O(1).
    """
    bins = np.empty(len(sizes), np.int64)
    full = sizes == capacity
    n = int(full.sum())
    bins[full] = np.arange(n)
    rest = np.flatnonzero(~full)
    order = rest[np.argsort(-sizes[rest], kind="stable")]
    room: list[list[int]] = [[] for _ in range(capacity + 1)]
    open_mask = 0
    placed = []
    for size in sizes[order].tolist():
        fits = open_mask >> size
        if fits:
            left = size + (fits & -fits).bit_length() - 1
            chosen = room[left].pop()
            if not room[left]:
                open_mask ^= 1 << left
        else:
            left, chosen, n = capacity, n, n + 1
        placed.append(chosen)
        if left > size:
            room[left - size].append(chosen)
            open_mask |= 1 << (left - size)
    bins[order] = placed
    return bins, n


def cut(offsets: Ints, seq_length: int, prefix: int, suffix: int, every: bool) -> tuple[Ints, Ints, Ints]:
    """Cut documents into pieces: starts, framed lengths and end flags (1 = the document ends here), each [P].

    `offsets` [d + 1] are places in the store. Pieces are full but for the last of each document, which always
    holds at least one token of text.
    """
    lengths = np.diff(offsets)
    starts, lengths = offsets[:-1][lengths > 0], lengths[lengths > 0]
    room = seq_length - prefix - (suffix if every else 0)
    tail = 0 if every else suffix
    counts = -(-(lengths + tail) // room)
    document = np.repeat(np.arange(len(counts)), counts)
    within = ranges(np.zeros(len(counts), np.int64), counts)
    # A suffix that would spill alone into a new piece takes the last token of text with it.
    begin = np.minimum(within * room, lengths[document] - 1)
    last = within == counts[document] - 1
    stop = np.where(last, lengths[document], np.minimum((within + 1) * room, lengths[document] - 1))
    framed = stop - begin + prefix + (suffix if every else suffix * last)
    return starts[document] + begin, framed, last.astype(np.int64)


def ranges(starts: Ints, counts: Ints) -> Ints:
    """`concatenate([arange(s, s + n) for s, n in zip(starts, counts)])`, vectorised."""
    ends = np.cumsum(counts)
    out: Ints = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)
    return out


def _windows(rows: _Rows) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Pieces of a bounded number of documents at a time."""
    offsets, start = rows.store.offsets, 0
    while start < len(rows.store):
        stop = min(start + WINDOW_DOCUMENTS, len(rows.store))
        budget = int(offsets[start]) + WINDOW_PIECES * rows.seq_length // 2
        stop = max(start + 1, min(stop, int(np.searchsorted(offsets[: stop + 1], budget, side="right")) - 1))
        yield cut(
            np.asarray(offsets[start : stop + 1]),
            rows.seq_length - rows.reserve,
            len(rows.prefix),
            len(rows.suffix),
            rows.suffix_every_piece,
        )
        start = stop


def _write_plan(rows: _Rows, path: Path) -> None:
    """Lay out every window and write the plan aside, then rename."""
    aside = path.with_name(f".{path.name}.building")
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
    try:
        aside.mkdir()
        total_rows = total_tokens = 0
        files = {name: open(aside / f"{name}.bin", "wb") for name, _ in _FILES}  # noqa: SIM115
        files["rows"].write(np.zeros(1, np.int64).tobytes())
        pieces = 0
        for starts, framed, ends in _windows(rows):
            assigned, n = rows._assign(framed)
            order = np.argsort(assigned, kind="stable")
            for name, array in (("starts", starts), ("framed", framed), ("ends", ends)):
                files[name].write(array[order].astype(dict(_FILES)[name]).tobytes())
            files["rows"].write((pieces + np.cumsum(np.bincount(assigned, minlength=n))).astype(np.int64).tobytes())
            pieces += len(starts)
            total_rows += n
            total_tokens += int(framed.sum())
        for file in files.values():
            file.close()
        space = total_rows * rows.seq_length if rows._kind == "packed" else total_tokens
        facts = {"rows": total_rows, "pieces": pieces, "utilisation": total_tokens / max(1, space)}
        (aside / "plan.json").write_text(json.dumps(facts))
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
