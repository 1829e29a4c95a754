"""Labelled and paired rows: columns found or named, labels as ids, what cannot be used counted and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.sources import open_source, text_column
from sslnlp.errors import UserError, suggest
from sslnlp.rng import Permutation
from sslnlp.types import Row

LABEL_NAMES = ("label", "labels", "class", "category", "intent")
PAIR_NAMES = {
    "query": ("query", "question", "anchor", "summary", "title"),
    "positive": ("positive", "answer", "document", "description", "text"),
    "negative": ("negative", "negatives", "hard_negative", "hard_negatives"),
}

Ints = npt.NDArray[np.int64]


class TableRows:
    """Chosen rows of a memory-mapped `datasets.Dataset` as mappings.

    Args:
        dataset: the table.
        index: which of its rows, in order; all when None. 8 bytes a row are kept.
        columns: our name -> the table's name; all columns under their own names when None.
        extra: further columns, one value for each chosen row.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        index: Ints | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        extra: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        self.columns = dict(columns) if columns is not None else {name: name for name in dataset.column_names}
        self.dataset = dataset.select_columns(list(dict.fromkeys(self.columns.values())))
        self.index: Ints = np.arange(len(dataset)) if index is None else np.asarray(index, np.int64)
        self.extra = dict(extra or {})

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.rows([index % len(self)])[0]

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        """The rows at `indices`, read together."""
        where = np.asarray(indices, np.int64)
        found = self.dataset[self.index[where].tolist()]
        values = {ours: found[theirs] for ours, theirs in self.columns.items()}
        values.update({name: column[where].tolist() for name, column in self.extra.items()})
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def take(self, which: Ints) -> TableRows:
        """These of the rows, in this order."""
        extra = {name: column[which] for name, column in self.extra.items()}
        return TableRows(self.dataset, self.index[which], columns=self.columns, extra=extra)


@dataclass
class Labelled:
    """Rows `{"text": str, "label": int}` with the names of the labels."""

    train: TableRows
    valid: TableRows | None
    label_names: list[str]
    counts: dict[str, int]
    """Training rows of each class, in the order of `label_names`: shows imbalance."""
    facts: dict[str, Any]
    """JSON-able: rows, empty, unlabelled, duplicates, conflicts (same text, other label), overlap, sources, fingerprint."""


@dataclass
class Paired:
    """Rows `{"query": str, "positive": str}`, with `"negative"` where the data has such a column."""

    train: TableRows
    valid: TableRows | None
    facts: dict[str, Any]
    """JSON-able: rows, empty, duplicates, overlap, columns, sources, fingerprint."""


def labelled(config: DataConfig, *, cache_dir: str | Path | None = None) -> Labelled:
    """Rows for classification from `data.train` (and `data.valid`, else split off by the hash of the text).

    The text column is `data.text`, `text`, or the only other column of strings; the label column is `data.label` or one
    of `label labels class category intent`. Labels are strings, integers, or a `ClassLabel`; names are sorted, numbers
    by value. Rows without text or label and exact duplicates are left out and counted.

    Raises:
        UserError: columns not found, one class only, a held-out label that training never sees.
    """
    table, fingerprint = _table(config, "train", cache_dir)
    label = _find(table, config.label or config.columns.get("label"), LABEL_NAMES, "label", str(config.train))
    assert label is not None
    text = _text_beside(table, label, config)
    read = _read_labelled(table, text, label)
    facts: dict[str, Any] = {"read": len(table), **read.facts, "overlap": 0, "sources": {"train": str(config.train)}}
    facts.update(fingerprint=fingerprint, columns={"text": text, "label": label})

    if config.valid is not None:
        held_table, _ = _table(config, "valid", cache_dir)
        for name in (text, label):
            if name not in held_table.column_names:
                raise UserError(f"{config.valid} (data.valid) has no column {name!r}, which data.train has")
        held = _read_labelled(held_table, text, label)
        facts["sources"]["valid"] = str(config.valid)
        leaked = _set_of(held.hashes).contains(read.hashes)
        facts["overlap"] = int(leaked.sum())
        read = read.only(~leaked)
    else:
        mask = _held_out(read.hashes, config.valid_fraction)
        held, held_table, read = read.only(mask), table, read.only(~mask)
    if config.deduplicate:
        fresh = HashSet().add(read.row_hashes)
        facts["duplicates"] = int((~fresh).sum())
        read = read.only(fresh)
    facts["conflicts"] = len(read.hashes) - len(np.unique(read.hashes))

    names = _class_names(set(read.labels), table.features[label])
    if config.valid is None:  # a class whose few rows are all on the held-out side trains instead
        seen = np.isin(held.labels, list(set(read.labels)))
        held, read = held.only(seen), read.join(held.only(~seen))
        names = _class_names(set(read.labels), table.features[label])
    if len(names) < 2:
        raise UserError(f"{config.train} has {len(names)} class in column {label!r}; classification needs at least two")
    unseen = sorted(set(held.labels) - set(read.labels))
    if unseen:
        raise UserError(f"label {unseen[0]!r} of data.valid never occurs in data.train.{suggest(unseen[0], names)}")
    number = {name: i for i, name in enumerate(names)}
    if config.labels_per_class is not None:
        read = read.only(_few(read.labels, config.labels_per_class, config.draw))
    counted = Counter(read.labels)
    counts = {name: counted[name] for name in names}
    train = read.rows(table, text, number)
    valid = held.rows(held_table, text, number) if len(held.labels) else None
    facts.update(rows=len(train), valid_rows=len(valid) if valid else 0)
    return Labelled(train, valid, names, counts, facts)


def paired(config: DataConfig, *, cache_dir: str | Path | None = None) -> Paired:
    """Rows of query, positive and optional negatives, for ranking.

    Columns are those of `data.columns.query=NAME` (`positive`, `negative`), else the common names: query, question,
    anchor, summary or title; positive, answer, document, description or text; negative or negatives.

    Raises:
        UserError: columns not found or not text, no usable row.
    """
    table, fingerprint = _table(config, "train", cache_dir)
    columns: dict[str, str] = {}
    for ours, common in PAIR_NAMES.items():
        found = _find(table, config.columns.get(ours), common, f"columns.{ours}", str(config.train), ours != "negative")
        if found is not None:
            columns[ours] = found
    kept, hashes = _read_pairs(table, columns)
    facts: dict[str, Any] = {"read": len(table), "empty": len(table) - len(kept), "duplicates": 0, "overlap": 0}
    facts.update(columns=columns, fingerprint=fingerprint, sources={"train": str(config.train)})
    valid = None
    if config.valid is not None:
        held_table, _ = _table(config, "valid", cache_dir)
        missing = [name for name in columns.values() if name not in held_table.column_names]
        if missing:
            raise UserError(f"{config.valid} (data.valid) has no column {missing[0]!r}, which data.train has")
        held_kept, held_hashes = _read_pairs(held_table, columns)
        facts["sources"]["valid"] = str(config.valid)
        leaked = _set_of(held_hashes).contains(hashes)
        facts["overlap"] = int(leaked.sum())
        kept, hashes = kept[~leaked], hashes[~leaked]
        valid = TableRows(held_table, held_kept, columns=columns) if len(held_kept) else None
    if config.deduplicate:
        fresh = HashSet().add(hashes)
        facts["duplicates"] = int((~fresh).sum())
        kept, hashes = kept[fresh], hashes[fresh]
    if config.valid is None:
        mask = _held_out(hashes, config.valid_fraction)
        valid = TableRows(table, kept[mask], columns=columns) if mask.any() else None
        kept = kept[~mask]
    if not len(kept):
        raise UserError(f"{config.train} has no row with both {columns['query']!r} and {columns['positive']!r}")
    facts.update(rows=len(kept), valid_rows=len(valid) if valid else 0)
    return Paired(TableRows(table, kept, columns=columns), valid, facts)


@dataclass
class _Read:
    """Usable labelled rows of a table, in parallel arrays."""

    index: Ints
    labels: list[str]
    hashes: npt.NDArray[np.uint64]
    row_hashes: npt.NDArray[np.uint64]
    facts: dict[str, int]

    def only(self, which: npt.NDArray[np.bool_]) -> _Read:
        labels = [label for label, yes in zip(self.labels, which.tolist(), strict=True) if yes]
        return _Read(self.index[which], labels, self.hashes[which], self.row_hashes[which], self.facts)

    def join(self, other: _Read) -> _Read:
        joined = (np.concatenate(pair) for pair in (
            (self.index, other.index), (self.hashes, other.hashes), (self.row_hashes, other.row_hashes)
        ))
        index, hashes, row_hashes = joined
        return _Read(index, self.labels + other.labels, hashes, row_hashes, self.facts)

    def rows(self, table: datasets.Dataset, text: str, number: Mapping[str, int]) -> TableRows:
        ids = np.array([number[label] for label in self.labels], np.int64)
        return TableRows(table, self.index, columns={"text": text}, extra={"label": ids})


def _read_labelled(table: datasets.Dataset, text: str, label: str) -> _Read:
    feature = table.features[label]
    index: list[int] = []
    labels: list[str] = []
    hashes, row_hashes = [], []
    empty = unlabelled = at = 0
    for batch in table.select_columns([text, label]).iter(batch_size=1024):
        kept = []
        for value, mark in zip(batch[text], batch[label], strict=True):
            name = _label_name(mark, feature, label)
            blank = value is None or not str(value).strip()
            empty += blank
            unlabelled += not blank and name is None
            if not blank and name is not None:
                kept.append((str(value), name))
                index.append(at)
            at += 1
        labels.extend(name for _, name in kept)
        hashes.append(hash_texts([value for value, _ in kept]))
        row_hashes.append(hash_texts([f"{value}\x1f{name}" for value, name in kept]))
    if not index:
        raise UserError(f"no row has both a text in {text!r} and a label in {label!r}")
    facts = {"empty": empty, "unlabelled": unlabelled, "duplicates": 0}
    return _Read(np.array(index), labels, np.concatenate(hashes), np.concatenate(row_hashes), facts)


def _label_name(value: Any, feature: Any, column: str) -> str | None:
    """A label as its name; None where there is none (also -1 of a `ClassLabel`, the hub's mark for a hidden label)."""
    if value is None or value == "":
        return None
    if isinstance(feature, datasets.ClassLabel):
        return None if value < 0 else str(feature.int2str(int(value)))
    if isinstance(value, float) and not value.is_integer():
        raise UserError(f"label column {column!r} holds {value}: labels must be names or whole numbers")
    if isinstance(value, (int, float)):
        return str(int(value))
    if not isinstance(value, str):
        raise UserError(f"label column {column!r} holds {type(value).__name__}: labels must be names or whole numbers")
    return value


def _class_names(labels: set[str], feature: Any) -> list[str]:
    """The classes that occur: in the order of a `ClassLabel`, numbers by value, names by alphabet."""
    if isinstance(feature, datasets.ClassLabel):
        return [name for name in feature.names if name in labels]
    if all(label.lstrip("-").isdecimal() for label in labels):
        return sorted(labels, key=int)
    return sorted(labels)


def _read_pairs(table: datasets.Dataset, columns: Mapping[str, str]) -> tuple[Ints, npt.NDArray[np.uint64]]:
    """Index of the rows that have query and positive, and the hash of each such pair."""
    query, positive = columns["query"], columns["positive"]
    if query == positive:
        raise UserError(f"query and positive are both column {query!r}; name them: data.columns.positive=NAME")
    index: list[int] = []
    hashes: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    at = 0
    for batch in table.select_columns([query, positive]).iter(batch_size=1024):
        kept = []
        for a, b in zip(batch[query], batch[positive], strict=True):
            for name, value in ((query, a), (positive, b)):
                if value is not None and not isinstance(value, str):
                    raise UserError(f"column {name!r} holds {type(value).__name__}, not text; name another")
            if a and b and a.strip() and b.strip():
                kept.append(f"{a}\x1f{b}")
                index.append(at)
            at += 1
        hashes.append(hash_texts(kept))
    return np.array(index, np.int64), np.concatenate(hashes)


def _table(config: DataConfig, name: str, cache_dir: str | Path | None) -> tuple[datasets.Dataset, str]:
    spec = getattr(config, name)
    if spec is None:
        raise UserError(f"data.{name} is not set: give a file, glob, folder or hub name")
    cache = str(config.cache or cache_dir or "") or None
    source = open_source(spec, split="train" if name == "train" else "validation", cache=cache)
    table = source.table()
    if config.limit is not None and name == "train" and len(table) > config.limit:
        table = table.select(range(config.limit))
    return table, source.fingerprint


def _find(
    table: datasets.Dataset, wanted: str | None, common: Sequence[str], what: str, spec: str, needed: bool = True
) -> str | None:
    """The column `wanted`, or the first of the `common` names."""
    names = table.column_names
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{spec} has no column {wanted!r} (data.{what}).{suggest(wanted, names)}")
        return wanted
    found = next((name for name in common if name in names), None)
    if found is None and needed:
        raise UserError(f"{spec} has no {what.split('.')[-1]} column; its columns are {', '.join(names)}: say data.{what}=NAME")
    return found


def _text_beside(table: datasets.Dataset, label: str, config: DataConfig) -> str:
    wanted = config.text or config.columns.get("text")
    strings = {
        name: "" for name, kind in table.features.items()
        if name != label and getattr(kind, "dtype", None) in ("string", "large_string")
    }
    if wanted is not None or "text" in table.column_names:
        return text_column(dict.fromkeys(table.column_names), wanted, str(config.train))
    return text_column(strings or dict.fromkeys(table.column_names), None, str(config.train))


def _set_of(hashes: npt.NDArray[np.uint64]) -> HashSet:
    found = HashSet()
    found.add(hashes)
    return found


def _held_out(hashes: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Rows whose hash is among the smallest; at least one text where there are two and a share is asked for."""
    if fraction == 0 or len(np.unique(hashes)) < 2:
        return np.zeros(len(hashes), bool)
    bound = max(int(fraction * 2.0**64), int(hashes.min()) + 1)
    return np.asarray(hashes < np.uint64(bound))


def _few(labels: list[str], per_class: int, draw: int) -> npt.NDArray[np.bool_]:
    """`per_class` rows of each class, drawn by number `draw`; smaller draws of one number are part of larger ones."""
    order = Permutation(len(labels), draw, "labels_per_class")(np.arange(len(labels)))
    taken: Counter[str] = Counter()
    mask = np.zeros(len(labels), bool)
    for i in order.tolist():
        if taken[labels[i]] < per_class:
            taken[labels[i]] += 1
            mask[i] = True
    return mask
