"""Labelled rows: labels as ids, their names and counts; what cannot be used is counted and left out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Bools, Ints
from sslnlp.data.config import DataConfig, all_held_out
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.label_kinds import KINDS, SEPARATOR, Label, class_names, few
from sslnlp.data.names import TEXT_PAIRS
from sslnlp.data.sources import text_column
from sslnlp.data.stream import in_runs
from sslnlp.data.table_rows import TableRows, find_column, held_out, open_table, set_of
from sslnlp.errors import UserError, suggest, usual_name
from sslnlp.rng import Permutation

log = logging.getLogger(__name__)
LABEL_NAMES = ("label", "labels", "class", "category", "intent", "score", "target")


@dataclass
class Labelled:
    """Rows `{"text": str, "label": ...}`, with `"text_pair"` where two texts share a label.

    A label is the number of its class (int), those of all its classes (a list), or a measurement (float).
    """

    train: TableRows
    valid: TableRows | None
    label_names: list[str]
    """Empty for measurements."""
    counts: dict[str, int]
    """Training rows of each class, in the order of `label_names`: shows imbalance."""
    facts: dict[str, Any]
    """JSON-able: rows, empty, unlabelled, duplicates, conflicts (one text, two labels), overlap, sources; of numbers
    also `label_mean` and `label_std`."""


def labelled(
    config: DataConfig,
    *,
    kind: str = "one",
    names: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
) -> Labelled:
    """Rows for classification from `data.train` (and `data.valid`, else split off by the hash of the text).

    The text column is `data.text`, `text`, or the only other column of strings; two columns of usual names
    (`sentence1`, `sentence2`; `premise`, `hypothesis`) or `data.columns.text_pair` are two texts with one label. The
    label column is `data.label` or one of `label labels class category intent score target`. `kind`: `one` class a row
    (strings, integers, a `ClassLabel`), `several` (lists, or text with `|` between them), or a `number`. Names are
    sorted, numbers by value, unless `names` gives their order. Rows without text or label and exact duplicates are left
    out and counted.

    Raises:
        UserError: columns not found, one class only, a held-out label that training never sees, a label that is not
            among `names`.
    """
    table, fingerprint = open_table(config, "train", cache_dir)
    label = find_column(
        table, config.label or config.columns.get("label"), LABEL_NAMES, "label", str(config.train), config
    )
    assert label is not None
    columns = _texts_beside(table, label, config)
    read = _read_labelled(table, columns, label, kind)
    facts: dict[str, Any] = {"read": len(table), **read.facts, "overlap": 0, "sources": {"train": str(config.train)}}
    facts.update(fingerprint=fingerprint, columns={**columns, "label": label})

    if config.valid is not None:
        held_table, facts["valid_fingerprint"] = open_table(config, "valid", cache_dir)
        for name in (*columns.values(), label):
            if name not in held_table.column_names:
                raise UserError(f"{config.valid} (data.valid) has no column {name!r}, which data.train has")
        held = _read_labelled(held_table, columns, label, kind)
        facts["sources"]["valid"] = str(config.valid)
        leaked = set_of(held.hashes).contains(read.hashes)
        facts["overlap"] = int(leaked.sum())
        if leaked.all():
            raise all_held_out(config)
        read = read.only(~leaked)
    else:
        mask = held_out(read.hashes, config)
        held, held_table, read = read.only(mask), table, read.only(~mask)
    if config.deduplicate:
        fresh = HashSet().add(read.row_hashes)
        facts["duplicates"] = int((~fresh).sum())
        read = read.only(fresh)
    facts["conflicts"] = len(read.hashes) - len(np.unique(read.hashes))

    if config.valid is None and kind != "number":
        read, held = _with_every_class(read, held)
    left_out = f" ({facts['overlap']} of its rows are in data.valid too and were left out)" if facts["overlap"] else ""
    known = set().union(*read.classes())
    ordered = _ordered(known, names, table.features[label], config, left_out) if kind != "number" else []
    if kind == "one":
        _tell_joined(ordered)
    if kind == "several" and max(map(len, read.classes()), default=0) < 2:
        _tell_unparted(ordered)
    unseen = sorted(set().union(*held.classes()) - set(ordered))
    if unseen:
        raise UserError(
            f"label {unseen[0]!r} of data.valid never occurs in data.train{left_out}.{suggest(unseen[0], ordered)}"
        )
    read = _few(read, config)
    counted = Counter(name for names in read.classes() for name in names)
    counts = {name: counted[name] for name in ordered}
    number = {name: i for i, name in enumerate(ordered)}
    train = read.rows(table, columns, number)
    valid = held.rows(held_table, columns, number) if len(held.labels) else None
    facts.update(rows=len(train), valid_rows=len(valid) if valid else 0)
    if kind == "number":
        facts.update(_spread(read.labels, str(config.train)))
    return Labelled(train, valid, ordered, counts, facts)


def unlabelled(
    config: DataConfig, tables: Labelled, *, cache_dir: str | Path | None = None
) -> tuple[TableRows | None, int]:
    """The texts of `data.unlabelled` as rows `{"text": str, "label": -100}`, and how many were left out.

    Left out are blank ones, repeats, and texts that the training rows have already or the held-out rows hold: what is
    measured may not be learnt from. None when nothing is left, or nothing was asked for.
    """
    if config.unlabelled is None:
        return None, 0
    table, _ = open_table(config, "unlabelled", cache_dir)
    names = table.column_names
    if len(names) == 1:  # as of a .txt file, which has no names of its own
        text = names[0]
    elif "text" in names:
        text = text_column(dict.fromkeys(names), config.text, str(config.unlabelled), config)
    else:
        text = tables.facts["columns"]["text"]
        if text not in names:
            raise UserError(f"{config.unlabelled} (data.unlabelled) has no column {text!r}, which data.train has")
    columns = {"text": text}
    if set(tables.train.columns.values()) <= set(names):  # of pairs both texts, where the table has them
        columns = tables.train.columns
    taken = HashSet()
    for rows in filter(None, (tables.train, tables.valid)):
        for found in in_runs(rows):
            taken.add(hash_texts(["\x1f".join(str(row[name]) for name in rows.columns) for row in found]))
    index, at = [], 0
    for batch in table.select_columns(list(dict.fromkeys(columns.values()))).iter(batch_size=1024):
        beside = zip(*(batch[name] for name in columns.values()), strict=True)
        values = [["" if value is None else str(value) for value in row] for row in beside]
        told = np.array([all(value.strip() for value in row) for row in values])
        fresh = taken.add(hash_texts(["\x1f".join(row) for row in values])) & told
        index.append(at + np.flatnonzero(fresh))
        at += len(values)
    kept = np.concatenate(index) if index else np.empty(0, np.int64)
    if not len(kept):
        return None, at
    marks = np.full(len(kept), -100, np.int64)
    return TableRows(table, kept, columns=columns, extra={"label": marks}), at - len(kept)


def out_of_scope(config: DataConfig, tables: Labelled, *, cache_dir: str | Path | None = None) -> TableRows | None:
    """The texts of `data.out_of_scope` that are not blank, as rows like the held-out ones with the label -100.

    None when nothing was asked for. Raises `UserError` for a file that is not like `data.train` or has no text, and
    where nothing is held out to tell them from.
    """
    if config.out_of_scope is None:
        return None
    if tables.valid is None:
        raise UserError("data.out_of_scope is told from held-out texts, and none are held out: give data.valid=FILE")
    table, _ = open_table(config, "out_of_scope", cache_dir)
    columns = tables.train.columns
    for name in columns.values():
        if name not in table.column_names:
            raise UserError(f"{config.out_of_scope} (data.out_of_scope) has no column {name!r}, which data.train has")
    texts = zip(*(table[name] for name in columns.values()), strict=True)
    kept = [i for i, row in enumerate(texts) if all(text is not None and str(text).strip() for text in row)]
    if not kept:
        raise UserError(f"{config.out_of_scope} (data.out_of_scope) holds no text")
    return TableRows(table, np.array(kept), columns=columns, extra={"label": np.full(len(kept), -100, np.int64)})


@dataclass
class _Read:
    """Usable labelled rows of a table, in parallel arrays."""

    kind: str
    index: Ints
    labels: list[Label]
    hashes: npt.NDArray[np.uint64]
    row_hashes: npt.NDArray[np.uint64]
    facts: dict[str, int]

    def classes(self) -> list[tuple[str, ...]]:
        return [KINDS[self.kind].classes(label) for label in self.labels]

    def only(self, which: Bools) -> _Read:
        labels = [label for label, yes in zip(self.labels, which.tolist(), strict=True) if yes]
        return _Read(self.kind, self.index[which], labels, self.hashes[which], self.row_hashes[which], self.facts)

    def join(self, other: _Read) -> _Read:
        return _Read(
            self.kind,
            np.concatenate([self.index, other.index]),
            self.labels + other.labels,
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.row_hashes, other.row_hashes]),
            self.facts,
        )

    def rows(self, table: datasets.Dataset, columns: Mapping[str, str], number: dict[str, int]) -> TableRows:
        encoded = KINDS[self.kind].encode(self.labels, number)
        return TableRows(table, self.index, columns=columns, extra={"label": encoded})


def _tell_joined(names: Sequence[str]) -> None:
    """Say so where classes look like several labels in a cell each: fewer stand between the signs than there are."""
    joined = [name for name in names if SEPARATOR in name.strip(SEPARATOR)]
    if joined and len({part.strip() for name in names for part in name.split(SEPARATOR)}) < len(names):
        log.warning(
            "each label such as %r counts as a class of its own: for texts of several classes take "
            "objective.name=multi_label",
            joined[0],
        )


def _tell_unparted(names: Sequence[str]) -> None:
    """Say so where no text has several classes and some look like several, parted otherwise."""
    if looks := [name for name in names if name.startswith("[") or any(sign in name for sign in ",;")]:
        log.warning(
            "no text has more than one class, and %r counts as one: put %s between those of a cell (or use lists)",
            *(looks[0], SEPARATOR),
        )


def _read_labelled(table: datasets.Dataset, columns: Mapping[str, str], label: str, kind: str) -> _Read:
    for name in columns.values():
        holds = getattr(table.features[name], "dtype", None)  # None: values of several types, which are looked at
        if holds is not None and "string" not in holds and holds != "null":
            raise UserError(f"column {name!r} must hold text, found {holds}; name the right one: data.text=NAME")
    feature, read = table.features[label], KINDS[kind].read
    index: list[int] = []
    labels: list[Label] = []
    hashes, row_hashes = [], []
    empty = unlabelled = at = 0
    for batch in table.select_columns(list(dict.fromkeys([*columns.values(), label]))).iter(batch_size=1024):
        kept = []
        for *values, mark in zip(*(batch[name] for name in columns.values()), batch[label], strict=True):
            value = read(mark, feature, label)
            for name, text in zip(columns.values(), values, strict=True):
                if text is not None and not isinstance(text, str):
                    found = f"{type(text).__name__} in row {at + 1}"
                    raise UserError(
                        f"column {name!r} must hold text, found {found}; name the right one: data.text=NAME"
                    )
            blank = any(text is None or not text.strip() for text in values)
            empty += blank
            unlabelled += not blank and value is None
            if not blank and value is not None:
                kept.append(("\x1f".join(map(str, values)), value))
                index.append(at)
            at += 1
        labels.extend(value for _, value in kept)
        hashes.append(hash_texts([text for text, _ in kept]))
        row_hashes.append(hash_texts([f"{text}\x1f{value}" for text, value in kept]))
    if not index:
        raise UserError(f"no row has both a text in {', '.join(map(repr, columns.values()))} and a label in {label!r}")
    facts = {"empty": empty, "unlabelled": unlabelled, "duplicates": 0}
    return _Read(kind, np.array(index), labels, np.concatenate(hashes), np.concatenate(row_hashes), facts)


def _with_every_class(read: _Read, held: _Read) -> tuple[_Read, _Read]:
    """Training and held-out rows: those of a class whose few rows were all held out train instead."""
    known = set().union(*read.classes())
    seen = np.array([set(names) <= known for names in held.classes()], bool)
    return read.join(held.only(~seen)), held.only(seen)


def _few(read: _Read, config: DataConfig) -> _Read:
    """The rows of `data.labels_per_class`, chosen by `data.draw`."""
    if config.labels_per_class is None:
        return read
    if read.kind == "number":
        raise UserError("data.labels_per_class takes classes, and the labels are numbers; use data.limit")
    found = read.classes()
    order = Permutation(len(found), config.draw, "labels_per_class")(np.arange(len(found)))
    return read.only(few(found, order.tolist(), config.labels_per_class))


def _spread(labels: Sequence[Label], spec: str) -> dict[str, float]:
    """Mean and standard deviation of measurements, which are not all the same."""
    values = np.array(labels, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if not np.isfinite(values.std()):
            raise UserError(
                f"labels of {spec} reach {np.abs(values).max():g}, too far for their spread: scale them down"
            )
    if values.std() == 0:
        raise UserError(f"every label of {spec} is {values[0]:g}: there is nothing to learn")
    return {"label_mean": float(values.mean()), "label_std": float(values.std())}


def _ordered(
    found: set[str], names: Sequence[str] | None, feature: Any, config: DataConfig, left_out: str
) -> list[str]:
    """The classes in order: as given, else as the data has them. `left_out`: of which rows they are not."""
    ordered = class_names(found, feature) if names is None else list(names)
    if unknown := sorted(found - set(ordered)):
        raise UserError(
            f"label {unknown[0]!r} of {config.train} is not in collator.label_names.{suggest(unknown[0], ordered)}"
        )
    if len(ordered) < 2:
        raise UserError(
            f"{config.train} has {len(ordered)} class among its labels{left_out}; classification needs at least two"
        )
    return ordered


def _texts_beside(table: datasets.Dataset, label: str, config: DataConfig) -> dict[str, str]:
    """Our name -> the table's name, of the text or the two texts."""
    there, pair = table.column_names, config.columns.get("text_pair")
    wanted = config.text or config.columns.get("text")
    if pair is not None and pair not in there:
        raise UserError(f"{config.train} has no column {pair!r} (data.columns.text_pair).{suggest(pair, there)}")
    two = _two_texts({name: name for name in there}, label) if wanted is None and pair is None else {}
    if two:
        return two
    strings = {
        name: ""
        for name, kind in table.features.items()
        if name not in (label, pair) and getattr(kind, "dtype", None) in ("string", "large_string")
    }
    if wanted is None and pair is None and "text" not in there and len(strings) != 1:
        found = {name: usual_name(there, (name,)) for names in TEXT_PAIRS for name in names}
        if two := _two_texts({name: column for name, column in found.items() if column is not None}, label):
            return two
    if wanted is not None or "text" in there:
        text = text_column(dict.fromkeys(there), wanted, str(config.train), config)
    else:
        text = text_column(strings or dict.fromkeys(there), None, str(config.train), config)
    return {"text": text} | ({"text_pair": pair} if pair is not None else {})


def _two_texts(there: Mapping[str, str], label: str) -> dict[str, str]:
    """The columns of usual names for two texts, as `there` (usual name -> column) has them; empty where none are."""
    for first, second in TEXT_PAIRS:
        if first in there and second in there and label not in (there[first], there[second]):
            return {"text": there[first], "text_pair": there[second]}
    return {}
