"""From flat tokens that each know their row to a block [B, T]: where rows shrink or grow while targets are made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sslnlp.arrays import Ints
from sslnlp.data.packing import best_fit

MULTIPLE = 8
"""Widths are rounded up to it: few distinct shapes, and the tiles of matrix units are filled."""


def blocks(row_N: Ints, rows: int, *columns: tuple[Ints, int]) -> list[Ints]:
    """Blocks [rows, T] of flat tokens in row order, short rows filled up on the right.

    `row_N`: ascending int64 [N], the row of each token. `columns`: pairs of values int64 [N] and the fill of their
    block. T is the longest row, rounded up to a multiple of 8, and at least 8.
    """
    counts = np.bincount(row_N, minlength=rows)
    width = -(-max(int(counts.max(initial=0)), 1) // MULTIPLE) * MULTIPLE
    place_N = np.arange(len(row_N)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = []
    for values_N, fill in columns:
        block = np.full((rows, width), fill, dtype=np.int64)
        block[row_N, place_N] = values_N
        out.append(block)
    return out


def interleave(*parts: tuple[Ints, Ints]) -> Ints:
    """The order that merges flat parts by their keys: indices into the concatenation of all parts.

    Each part is (key int64 [N], tie int64 [N]): tokens are put in order of key, then of tie. A key is a place in the
    flattened source block, so what is inserted stands where it belongs.
    """
    key = np.concatenate([key for key, _ in parts])
    tie = np.concatenate([tie for _, tie in parts])
    order: Ints = np.lexsort((tie, key)).astype(np.int64)
    return order


def pack_texts(masks: Sequence[Tensor]) -> Tensor:
    """Where the real tokens of padded encodings stand when all their texts share rows: int64 [R, T].

    `masks`: the attention masks [B, S] of the encodings, each of its own shape. The values are places in the
    concatenation of the flattened encodings, -1 where a row is not full. No text is parted. T is the longest text,
    rounded up to a multiple of 8 (wider rows are not fuller); they are filled by best-fit decreasing.
    """
    token_N = np.flatnonzero(np.concatenate([mask.numpy().ravel() for mask in masks]))
    lengths_X = np.concatenate([mask.sum(1).numpy() for mask in masks]).astype(np.int64)
    row_X, rows = best_fit(lengths_X, -(-int(lengths_X.max()) // MULTIPLE) * MULTIPLE)
    row_N = np.repeat(row_X, lengths_X)
    order = np.argsort(row_N, kind="stable")
    (place_RT,) = blocks(row_N[order], rows, (token_N[order], -1))
    return torch.from_numpy(place_RT)
