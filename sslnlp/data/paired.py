"""Paired rows for ranking: a query, its positive, optional negatives and a teacher's scores of them."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from sslnlp.arrays import Ints
from sslnlp.data.config import DataConfig, all_held_out
from sslnlp.data.hashes import Hashes, HashSet, hash_same, hash_texts
from sslnlp.data.table_rows import TableRows, find_column, held_out, open_table, set_of
from sslnlp.errors import UserError

PAIR_NAMES = {
    "query": ("query", "question", "anchor", "summary", "title"),
    "positive": ("positive", "answer", "document", "description", "text"),
    "negative": ("negative", "negatives", "hard_negative", "hard_negatives"),
    "scores": ("scores",),
}
OPTIONAL = ("negative", "scores")
_NUMBERED = re.compile(r"(hard_?)?negatives?_?\d+", re.IGNORECASE)
_LOOKED_AT = 100

log = logging.getLogger(__name__)


@dataclass
class Paired:
    """Rows `{"query": str, "positive": str}`, with `"negative"` and `"scores"` where the data has such columns."""

    train: TableRows
    valid: TableRows | None
    facts: dict[str, Any]
    """JSON-able: rows, empty, duplicates, overlap, columns, sources, fingerprint."""


def paired(config: DataConfig, *, cache_dir: str | Path | None = None) -> Paired:
    """Rows of query, positive, optional negatives and optional scores (a teacher's of positive and negatives).

    Columns are those of `data.columns.query=NAME` (`positive`, `negative`, `scores`), else the common names: query,
    question, anchor, summary or title; positive, answer, document, description or text; negative or negatives; scores,
    where that holds lists of numbers. Held-out data may name its columns otherwise, and need have no negatives.

    Raises:
        UserError: columns not found or not text, no usable row.
    """
    table, fingerprint = open_table(config, "train", cache_dir)
    columns = _columns(table, config, str(config.train))
    kept, hashes, queries = _read_pairs(table, columns, config)
    facts: dict[str, Any] = {"read": len(table), "empty": len(table) - len(kept), "duplicates": 0, "overlap": 0}
    facts.update(columns=columns, fingerprint=fingerprint, sources={"train": str(config.train)})
    valid = None
    if config.valid is not None:
        held_table, facts["valid_fingerprint"] = open_table(config, "valid", cache_dir)
        held_columns = _columns(held_table, config, str(config.valid), like=columns)
        held_kept, held_hashes, _ = _read_pairs(held_table, held_columns, config)
        facts["sources"]["valid"] = str(config.valid)
        leaked = set_of(held_hashes).contains(hashes)
        facts["overlap"] = int(leaked.sum())
        if leaked.size and leaked.all():
            raise all_held_out(config)
        kept, hashes, queries = kept[~leaked], hashes[~leaked], queries[~leaked]
        valid = TableRows(held_table, held_kept, columns=held_columns) if len(held_kept) else None
    if config.deduplicate:
        fresh = HashSet().add(hashes)
        facts["duplicates"] = int((~fresh).sum())
        kept, hashes, queries = kept[fresh], hashes[fresh], queries[fresh]
    if config.valid is None:
        # By the query, so that none is on both sides; where there are too few for a share of them, by the pair.
        several = len(np.unique(queries)) * config.valid_fraction >= 1
        mask = held_out(queries if several else hashes, config)
        valid = TableRows(table, kept[mask], columns=columns) if mask.any() else None
        kept = kept[~mask]
    if not len(kept):
        raise UserError(f"{config.train} has no row with both {columns['query']!r} and {columns['positive']!r}")
    facts.update(rows=len(kept), valid_rows=len(valid) if valid else 0)
    return Paired(TableRows(table, kept, columns=columns), valid, facts)


def _columns(
    table: datasets.Dataset, config: DataConfig, spec: str, like: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our name -> the table's. `like`: the columns of the training rows, looked for first in held-out ones."""
    columns: dict[str, str] = {}
    for ours, common in PAIR_NAMES.items():
        given, needed = config.columns.get(ours), ours not in OPTIONAL
        if like is not None:
            if ours not in like or (given is not None and not needed and given not in table.column_names):
                continue
            common = (like[ours], *common)
        found = find_column(table, given, common, f"columns.{ours}", spec, config, needed)
        if found is None or (ours == "scores" and not _are_scores(table, found, given, columns)):
            continue
        columns[ours] = found
    _check_negatives(table, columns.get("negative"), spec)
    return columns


def _check_negatives(table: datasets.Dataset, column: str | None, spec: str) -> None:
    """Refuse lists that are written as text, and name columns of negatives that nobody reads."""
    if column is not None and getattr(table.features[column], "dtype", None) == "string":
        cells = [cell for cell in table[:_LOOKED_AT][column] if cell]
        if cells and all(_is_list(cell) for cell in cells):
            raise UserError(
                f"column {column!r} of {spec} holds lists written as text, such as {cells[0][:60]!r}: save the rows as "
                ".jsonl or .parquet, where a cell can be a list"
            )
    if unread := [name for name in table.column_names if name != column and _NUMBERED.fullmatch(name)]:
        log.warning(
            "%s: not read of %s; a row has one column of negatives, whose cells may be lists", ", ".join(unread), spec
        )


def _is_list(cell: str) -> bool:
    try:
        return isinstance(ast.literal_eval(cell), list)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _are_scores(table: datasets.Dataset, found: str, given: str | None, columns: Mapping[str, str]) -> bool:
    """Many tables have some column of that name; this one is meant when it was named, or when it holds lists of numbers
    beside negatives."""
    inner = getattr(table.features[found], "feature", None)
    numbers = isinstance(inner, datasets.Value) and inner.dtype.startswith(("float", "int"))
    return given is not None or (numbers and "negative" in columns)


def _read_pairs(table: datasets.Dataset, columns: Mapping[str, str], config: DataConfig) -> tuple[Ints, Hashes, Hashes]:
    """Index of the rows that have query and positive, and the hashes of each such pair and of its query."""
    query, positive = columns["query"], columns["positive"]
    if query == positive:
        say = config.name_of("columns.positive", "NAME")
        raise UserError(f"query and positive are both column {query!r}; name them: {say}")
    index: list[int] = []
    hashes: list[Hashes] = [np.empty(0, np.uint64)]
    queries: list[Hashes] = [np.empty(0, np.uint64)]
    at = 0
    for batch in table.select_columns([query, positive]).iter(batch_size=1024):
        kept, asked = [], []
        for a, b in zip(batch[query], batch[positive], strict=True):
            for name, value in ((query, a), (positive, b)):
                if value is not None and not isinstance(value, str):
                    raise UserError(f"column {name!r} holds {type(value).__name__}, not text; name another")
            if a and b and a.strip() and b.strip():
                kept.append(f"{a}\x1f{b}")
                asked.append(a)
                index.append(at)
            at += 1
        hashes.append(hash_texts(kept))
        queries.append(hash_same(asked))
    return np.array(index, np.int64), np.concatenate(hashes), np.concatenate(queries)
