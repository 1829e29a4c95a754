"""Tagged rows: the words of a text, each with a tag (entities, parts of speech)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from sslnlp.data.config import DataConfig, all_held_out
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.label_kinds import KINDS, UNKNOWN, class_names
from sslnlp.data.table_rows import TableRows, find_column, held_out, open_table, set_of
from sslnlp.errors import UserError, suggest

WORD_COLUMNS = ("tokens", "words", "text")
TAG_COLUMNS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "label")


@dataclass
class Tagged:
    """Rows `{"words": list of str, "label": list of tag numbers}`, one tag a word."""

    train: TableRows
    valid: TableRows | None
    label_names: list[str]
    counts: dict[str, int]
    """Training words of each tag."""
    facts: dict[str, Any]


def tagged(config: DataConfig, *, names: list[str] | None = None, cache_dir: str | Path | None = None) -> Tagged:
    """Rows for tagging from `data.train` (and `data.valid`, else split off by the hash of the text).

    The words are `data.text`, `tokens` or `words`, a list of strings; the tags `data.label`, `tags`, `ner_tags` or
    `labels`, a list of as many names, numbers or `ClassLabel`s; -100, and -1 of a `ClassLabel`, is no tag. Rows without
    words and exact duplicates are left out and counted. Rows with a tag that would else be held out alone train.

    Raises:
        UserError: columns not found or not lists, unlike numbers of words and tags, a word that is no text or has no
            tag, a tag in `data.valid` that training never sees.
    """
    table, fingerprint = open_table(config, "train", cache_dir)
    words = find_column(
        table, config.text or config.columns.get("words"), WORD_COLUMNS, "text", str(config.train), config
    )
    tags = find_column(
        table, config.label or config.columns.get("label"), TAG_COLUMNS, "label", str(config.train), config
    )
    assert words is not None
    assert tags is not None
    rows, labels, hashes, row_hashes = _read(table, words, tags, str(config.train))
    facts: dict[str, Any] = {"read": len(table), "empty": len(table) - len(rows), "duplicates": 0, "overlap": 0}
    facts |= {"fingerprint": fingerprint, "columns": {"words": words, "label": tags}}
    facts["sources"] = {"train": str(config.train)}
    if config.valid is not None:
        held_table, facts["valid_fingerprint"] = open_table(config, "valid", cache_dir)
        for name in (words, tags):
            if name not in held_table.column_names:
                raise UserError(f"{config.valid} (data.valid) has no column {name!r}, which data.train has")
        held_rows, held_labels, held_hashes, _ = _read(held_table, words, tags, str(config.valid))
        facts["sources"]["valid"] = str(config.valid)
        kept = ~set_of(held_hashes).contains(hashes)
        facts["overlap"] = int((~kept).sum())
        if len(rows) and not kept.any():
            raise all_held_out(config)
    else:
        mask = held_out(hashes, config)
        seen = {tag for row in labels[~mask] for tag in row}
        mask &= np.array([seen.issuperset(row) for row in labels], bool)
        held_table, held_rows, held_labels, kept = table, rows[mask], labels[mask], ~mask
    rows, labels, row_hashes = rows[kept], labels[kept], row_hashes[kept]
    if config.deduplicate:
        fresh = HashSet().add(row_hashes)
        facts["duplicates"] = int((~fresh).sum())
        rows, labels = rows[fresh], labels[fresh]
    if not len(rows):
        raise UserError(f"{config.train} has no row with words and tags in {words!r} and {tags!r}")
    counted = Counter(tag for row in labels for tag in row if tag is not None)
    ordered = list(names) if names is not None else class_names(set(counted), _inner(table, tags))
    unseen = sorted(({tag for row in held_labels for tag in row} - {None}) | set(counted) - set(ordered))
    if unseen := [tag for tag in unseen if tag not in ordered]:
        raise UserError(f"tag {unseen[0]!r} never occurs in data.train, or is not named.{suggest(unseen[0], ordered)}")
    if len(ordered) < 2:
        raise UserError(f"{config.train} has one tag alone in {tags!r}: there is nothing to learn")
    number = {name: i for i, name in enumerate(ordered)}
    facts |= {"rows": len(rows), "valid_rows": len(held_rows), "words": sum(counted.values())}
    return Tagged(
        _table(table, rows, labels, words, number),
        _table(held_table, held_rows, held_labels, words, number) if len(held_rows) else None,
        ordered,
        {name: counted[name] for name in ordered},
        facts,
    )


def _inner(table: datasets.Dataset, column: str) -> Any:
    feature = table.features[column]
    return getattr(feature, "feature", feature)


def _read(table: datasets.Dataset, words: str, tags: str, spec: str) -> tuple[Any, Any, Any, Any]:
    """Indices of the usable rows, their tags by name (an array of tuples, None for no tag), the hashes of their words,
    which decide what is held out, and those of words and tags, which tell duplicates."""
    inner, read = _inner(table, tags), KINDS["one"].read
    index: list[int] = []
    found = []
    texts, rows, at = [], [], 0
    for batch in table.select_columns([words, tags]).iter(batch_size=1024):
        for said, marks in zip(batch[words], batch[tags], strict=True):
            at += 1
            if said is None:
                continue
            if not isinstance(said, list) or not isinstance(marks, list):
                raise UserError(f"{spec}: {words!r} and {tags!r} must hold lists, one tag a word; name others")
            if len(said) != len(marks):
                raise UserError(f"{spec} row {at} has {len(said)} words and {len(marks)} tags; it needs as many")
            if any(word is not None and str(word).strip() for word in said):
                names = tuple(None if mark == UNKNOWN else read(mark, inner, tags) for mark in marks)
                for word, mark, name in zip(said, marks, names, strict=True):
                    if not isinstance(word, str):
                        raise UserError(f"{spec} row {at} has {word!r} among its words; write every word as text")
                    if name is None and not isinstance(mark, int):
                        raise UserError(f"{spec} row {at} has no tag for {word!r}; name one for words outside, e.g. O")
                index.append(at - 1)
                found.append(names)
                texts.append("\x1f".join(said))
                rows.append("\x1f".join(map(str, (*said, "", *marks))))
    labels = np.empty(len(found), object)
    labels[:] = found
    return np.array(index, np.int64), labels, hash_texts(texts), hash_texts(rows)


def _table(table: datasets.Dataset, rows: Any, labels: Any, words: str, number: dict[str, int]) -> TableRows:
    encoded = np.empty(len(labels), object)
    for i, row in enumerate(labels):
        encoded[i] = [UNKNOWN if tag is None else number[tag] for tag in row]
    return TableRows(table, rows, columns={"words": words}, extra={"label": encoded})
