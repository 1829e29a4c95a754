"""Rows of a memory-mapped table, and what labelled and paired rows share: columns found or named, a split by hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Bools, Ints
from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import HashSet
from sslnlp.data.sources import open_source
from sslnlp.data.stream import ByIndex
from sslnlp.errors import UserError, suggest, usual_name
from sslnlp.types import Row


class TableRows(ByIndex):
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

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        where = np.asarray(indices, np.int64)
        found = self.dataset[self.index[where].tolist()]
        values = {ours: found[theirs] for ours, theirs in self.columns.items()}
        values.update({name: column[where].tolist() for name, column in self.extra.items()})
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def take(self, which: Ints) -> TableRows:
        """These of the rows, in this order."""
        extra = {name: column[which] for name, column in self.extra.items()}
        return TableRows(self.dataset, self.index[which], columns=self.columns, extra=extra)


def open_table(config: DataConfig, name: str, cache_dir: str | Path | None) -> tuple[datasets.Dataset, str]:
    spec = getattr(config, name)
    if spec is None:
        raise UserError(f"data.{name} is not set: give a file, glob, folder or hub name")
    cache = str(config.cache or cache_dir or "") or None
    source = open_source(spec, split="validation" if name == "valid" else "train", cache=cache)
    table = source.table()
    if config.limit is not None and name == "train" and len(table) > config.limit:
        table = table.select(range(config.limit))
    return table, source.fingerprint


def find_column(
    table: datasets.Dataset,
    wanted: str | None,
    common: Sequence[str],
    key: str,
    spec: str,
    config: DataConfig,
    needed: bool = True,
) -> str | None:
    """The column `wanted`, or the one of a `common` name (`usual_name`); `key` of `config` is what names it."""
    names = table.column_names
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{spec} has no column {wanted!r} ({config.name_of(key)}).{suggest(wanted, names)}")
        return wanted
    found = usual_name(names, common)
    if found is None and needed:
        ours, say = key.split(".")[-1], config.name_of(key, "NAME")
        raise UserError(f"{spec} has no {ours} column; its columns are {', '.join(names)}: say {say}")
    return found


def set_of(hashes: npt.NDArray[np.uint64]) -> HashSet:
    found = HashSet()
    found.add(hashes)
    return found


def held_out(hashes: npt.NDArray[np.uint64], config: DataConfig) -> Bools:
    """Rows whose hash is among the smallest, `config.valid_fraction` of them but not more than `config.valid_rows`; at
    least one text where there are two and a share is asked for. Rows of one hash stay on one side."""
    if config.valid_fraction == 0 or len(np.unique(hashes)) < 2:
        return np.zeros(len(hashes), bool)
    bound = int(config.valid_fraction * 2.0**64)
    if config.valid_rows is not None and config.valid_rows < len(hashes):
        bound = min(bound, int(np.partition(hashes, config.valid_rows)[config.valid_rows]))
    return np.asarray(hashes < np.uint64(max(bound, int(hashes.min()) + 1)))
