"""Labelled rows: labels as ids, their names and counts; what cannot be used is counted and left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.sources import text_column
from sslnlp.data.table_rows import Ints, TableRows, find_column, held_out, open_table, set_of
from sslnlp.errors import UserError, suggest
from sslnlp.rng import Permutation

LABEL_NAMES = ("label", "labels", "class", "category", "intent")


@dataclass
class Labelled:
    """Rows `{"text": str, "label": int}` with the names of the labels."""

    train: TableRows
    valid: TableRows | None
    label_names: list[str]
    counts: dict[str, int]
    """Training rows of each class, in the order of `label_names`: shows imbalance."""
    facts: dict[str, Any]
    """JSON-able: rows, empty, unlabelled, duplicates, conflicts (one text, two labels), overlap, sources."""


def labelled(config: DataConfig, *, cache_dir: str | Path | None = None) -> Labelled:
    """Rows for classification from `data.train` (and `data.valid`, else split off by the hash of the text).

    The text column is `data.text`, `text`, or the only other column of strings; the label column is `data.label` or one
    of `label labels class category intent`. Labels are strings, integers, or a `ClassLabel`; names are sorted, numbers
    by value. Rows without text or label and exact duplicates are left out and counted.

    Raises:
        UserError: columns not found, one class only, a held-out label that training never sees.
    """
    table, fingerprint = open_table(config, "train", cache_dir)
    label = find_column(table, config.label or config.columns.get("label"), LABEL_NAMES, "label", str(config.train))
    assert label is not None
    text = _text_beside(table, label, config)
    read = _read_labelled(table, text, label)
    facts: dict[str, Any] = {"read": len(table), **read.facts, "overlap": 0, "sources": {"train": str(config.train)}}
    facts.update(fingerprint=fingerprint, columns={"text": text, "label": label})

    if config.valid is not None:
        held_table, _ = open_table(config, "valid", cache_dir)
        for name in (text, label):
            if name not in held_table.column_names:
                raise UserError(f"{config.valid} (data.valid) has no column {name!r}, which data.train has")
        held = _read_labelled(held_table, text, label)
        facts["sources"]["valid"] = str(config.valid)
        leaked = set_of(held.hashes).contains(read.hashes)
        facts["overlap"] = int(leaked.sum())
        read = read.only(~leaked)
    else:
        mask = held_out(read.hashes, config.valid_fraction)
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
        return _Read(
            np.concatenate([self.index, other.index]),
            self.labels + other.labels,
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.row_hashes, other.row_hashes]),
            self.facts,
        )

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


def _text_beside(table: datasets.Dataset, label: str, config: DataConfig) -> str:
    wanted = config.text or config.columns.get("text")
    strings = {
        name: ""
        for name, kind in table.features.items()
        if name != label and getattr(kind, "dtype", None) in ("string", "large_string")
    }
    if wanted is not None or "text" in table.column_names:
        return text_column(dict.fromkeys(table.column_names), wanted, str(config.train))
    return text_column(strings or dict.fromkeys(table.column_names), None, str(config.train))


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
