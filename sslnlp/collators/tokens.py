"""From rows of tokens to one block [B, S]: what every token collator starts from.

Native rows come from a `Stream`: packed or padded, with document ids and a position. Any other rows are features
as `transformers.Trainer` or a bare `DataLoader` hands them over (`{"input_ids": [...]}`, ragged, no position).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Floats, Ints
from sslnlp.errors import UserError
from sslnlp.rng import key
from sslnlp.types import Batch, Row

IGNORED = -100
"""The label of a token that is not a target."""

_COLUMN_BITS = np.uint64((1 << 20) - 1)  # of a 64-bit draw, given to the column: rows of up to a million tokens


@dataclass(frozen=True)
class TokenBlock:
    """B rows of S tokens. Padding has document id -1; documents of a row are numbered from 0."""

    input_ids: Ints
    """int64 [B, S]."""
    document_ids: Ints
    """int64 [B, S]."""
    positions: Ints | None
    """int64 [B]: each row's place in the run; None in drop-in mode."""

    @property
    def attention(self) -> Bools:
        """bool [B, S]: true where there is text."""
        present: Bools = self.document_ids >= 0
        return present

    @property
    def opens(self) -> Bools:
        """bool [B, S]: the first token of a document piece (or of the padding)."""
        opens = np.ones(self.document_ids.shape, dtype=np.bool_)
        np.not_equal(self.document_ids[:, 1:], self.document_ids[:, :-1], out=opens[:, 1:])
        return opens

    def batch(self, input_ids: Ints, labels: Ints) -> Batch:
        """The batch of these inputs and labels: all that is known natively, only what models take in drop-in mode."""
        batch: Batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
        if self.positions is None:
            batch["attention_mask"] = torch.from_numpy(self.attention.astype(np.int64))
            return batch
        index = np.arange(self.document_ids.shape[1])
        origin = np.maximum.accumulate(np.where(self.opens, index, 0), axis=1)
        batch["attention_mask"] = torch.from_numpy(self.attention)
        batch["document_ids"] = torch.from_numpy(self.document_ids)
        batch["position_ids"] = torch.from_numpy(index - origin)
        batch["position"] = torch.from_numpy(self.positions)
        return batch


def token_block(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> TokenBlock:
    """Stacks rows, padding short ones on the right to the longest. Raises `UserError` for rows without `input_ids`."""
    if not rows or "input_ids" not in rows[0]:
        found = ", ".join(sorted(rows[0])) if rows else "no rows"
        raise UserError(f"a token collator needs rows with 'input_ids', got {found}; tokenize the text first")
    ids = [np.asarray(row["input_ids"]) for row in rows]
    native = "position" in rows[0]
    if "document_ids" in rows[0]:
        documents = [np.asarray(row["document_ids"]) for row in rows]
    elif "attention_mask" in rows[0]:
        documents = [np.asarray(row["attention_mask"], dtype=np.int64) - 1 for row in rows]
    else:
        documents = [np.zeros(len(row), dtype=np.int64) for row in ids]
    return TokenBlock(
        input_ids=_stack(ids, pad_id(tokenizer)),
        document_ids=_stack(documents, -1),
        positions=np.array([row["position"] for row in rows], dtype=np.int64) if native else None,
    )


def lowest(draws: npt.NDArray[np.uint64], able: Bools, count: Ints) -> Bools:
    """bool [B, S]: of the `able` places of each row the `count` [B] with the lowest of the 64-bit draws, exactly."""
    # The column in the low bits makes draws distinct, so the count is exact; the top bit sorts the rest behind.
    # How many bits does not depend on the width: a row gets the same places however far its batch is padded.
    draws = draws >> np.uint64(1)
    draws &= ~_COLUMN_BITS
    draws |= np.arange(draws.shape[1], dtype=np.uint64)
    draws |= (~able).astype(np.uint64) << np.uint64(63)
    last = np.sort(draws, axis=1)[np.arange(len(count)), np.maximum(count - 1, 0)]
    chosen: Bools = (draws <= last[:, None]) & able & (count > 0)[:, None]
    return chosen


def rates(positions: Ints, first: float, last: float | None, horizon: int | None) -> Floats:
    """float64 [B]: the share of its tokens that is taken from each row: `first`, moving linearly to `last`, if given,
    over the `horizon` of the run, in rows."""
    if last is None or not horizon:
        return np.full(len(positions), first)
    moved: Floats = first + (last - first) * np.minimum(positions / horizon, 1.0)
    return moved


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills up short rows. Any id will do, as masks and labels go by length: pad, else eos, else 0."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    return 0


def _stack(rows: Sequence[npt.NDArray[Any]], fill: int) -> Ints:
    """[B, S] with S the longest row; a column of `fill` where no row has a token (blank lines at the end of a file)."""
    lengths = list(map(len, rows))
    width = max(1, *lengths)
    if min(lengths) == width:
        joined: Ints = np.concatenate(rows, dtype=np.int64, casting="unsafe")
        return joined.reshape(len(rows), width)
    block = np.full((len(rows), width), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        block[i, : len(row)] = row
    return block


def carried(rows: Sequence[Row]) -> Batch:
    """`position` int64 [B] of rows that all carry one; else nothing."""
    if not all("position" in row for row in rows):
        return {}
    return {"position": torch.tensor([row["position"] for row in rows], dtype=torch.int64)}


@dataclass
class FreshPositions:
    """Positions for rows that have none: new at every call, in every worker, process and epoch.

    torch gives each worker process of each epoch a seed of its own; a counter tells the calls apart. A collator that
    seeds itself once instead repeats the same masks every epoch.
    """

    calls: int = field(default=0)

    def of(self, rows: Sequence[Row]) -> Ints:
        """int64 [n]: the positions that the rows carry; new ones for all where some carry none."""
        if all("position" in row for row in rows):
            return np.array([row["position"] for row in rows], dtype=np.int64)
        return self.draw(len(rows))

    def of_block(self, block: TokenBlock) -> Ints:
        """int64 [B]: the same of the rows of a block."""
        return block.positions if block.positions is not None else self.draw(len(block.input_ids))

    def draw(self, n: int) -> Ints:
        """int64 [n], distinct from those of any other call."""
        self.calls += 1
        rank = os.environ.get("RANK", "0")  # processes launched together often share their seed
        start = key(torch.initial_seed(), "rows without a position", rank, self.calls) >> 1
        return start + np.arange(n, dtype=np.int64)
