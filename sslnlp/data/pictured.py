"""Rows of pictures with captions, for image-text training: what cannot be used is counted and left out."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc  # type: ignore[import-untyped]

from sslnlp.arrays import Bools, Ints
from sslnlp.data.config import DataConfig
from sslnlp.data.hashes import Hashes, HashSet, hash_texts
from sslnlp.data.label_kinds import class_names
from sslnlp.data.picture_check import check
from sslnlp.data.picture_columns import Pictures
from sslnlp.data.picture_contents import Contents, in_short
from sslnlp.data.picture_sources import open_pictures
from sslnlp.data.stream import ByIndex
from sslnlp.data.table_rows import held_out, set_of
from sslnlp.errors import UserError
from sslnlp.pictures import BrokenPicture
from sslnlp.types import Row

log = logging.getLogger(__name__)

NAMED = 5
"""Broken pictures that the log names."""
NO_LABEL = -100


class PictureRows(ByIndex):
    """Chosen pictures as rows `{"image": bytes, "captions": list[str], "picture": int}`, read when asked for.

    `captions` holds at least one text, but where pictures without captions were asked for; `picture` is the 64-bit hash
    of the bytes, the same for equal pictures. `label` (int, -100 for none) and `id` (str) are there where the data has
    them.

    Args:
        contents: the pictures.
        index: which of them, in order.
        captions: an Arrow array of lists of texts, one for each of `contents`; None for none.
        ids: an Arrow array of strings, likewise.
        extra: further columns, one value for each chosen row.
    """

    def __init__(
        self, contents: Contents, index: Ints, captions: Any, ids: Any, extra: dict[str, npt.NDArray[Any]]
    ) -> None:
        self.contents, self.index, self.captions, self.ids, self.extra = contents, index, captions, ids, extra

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        """The rows at `indices`, in their order. Raises `UserError` when a picture has gone since it was looked at."""
        where = np.asarray(indices, np.int64)
        at = self.index[where]
        values: dict[str, list[Any]] = {"image": self._read(at), "captions": self.texts(where)}
        if self.ids is not None:
            values["id"] = self.ids.take(at).to_pylist()
        values.update({name: column[where].tolist() for name, column in self.extra.items()})
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def _read(self, at: Ints) -> list[bytes]:
        try:
            return self.contents.read(at)
        except BrokenPicture:
            if len(at) > 1:  # which one is it?
                return [content for i in range(len(at)) for content in self._read(at[i : i + 1])]
            name = self.contents.name(int(at[0]))
            raise UserError(f"{name} was there and is gone; put it back, or run again without it") from None

    def texts(self, indices: Sequence[int] | Ints) -> list[list[str]]:
        """The captions of the rows at `indices`; no picture is read."""
        at = self.index[np.asarray(indices, np.int64)]
        return [[] for _ in at] if self.captions is None else list(self.captions.take(at).to_pylist())

    def take(self, which: Ints) -> PictureRows:
        """These of the rows, in this order."""
        extra = {name: column[which] for name, column in self.extra.items()}
        return PictureRows(self.contents, self.index[which], self.captions, self.ids, extra)


@dataclass
class Pictured:
    """Rows `{"image": bytes, "captions": list[str], "picture": int}`, with `"label"` and `"id"` where there are any."""

    train: PictureRows
    valid: PictureRows | None
    label_names: list[str]
    """Empty where the data has no labels."""
    facts: dict[str, Any]
    """JSON-able: read, broken, broken_reasons, no_caption, overlap, duplicates, rows, valid_rows, pictures (different
    ones), captions, classes (training rows of each), columns, sources, fingerprint."""


def pictured(config: DataConfig, *, cache_dir: str | Path | None = None, captions_needed: bool = True) -> Pictured:
    """Rows of pictures and their captions from `data.train` (and `data.valid`, else split off by hash of the picture).

    Read are tables with a column of pictures (parquet, arrow, the hub), a `.csv` or `.jsonl` of file names or a folder
    that has one, a folder of pictures in folders named after their label, and tar shards as WebDataset writes them;
    several of them in a list. Columns are those of `data.columns.image=NAME` (`caption`, `label`, `id`), else of usual
    names. A caption column holds a text or a list of texts.

    Every picture is decoded once, and what was found is kept in `cache_dir`. Broken pictures, pictures without a
    caption, exact copies (picture and captions), and training pictures that are held out are left out and counted.

    Args:
        config: what to read.
        cache_dir: where tables and verdicts are kept; None keeps none.
        captions_needed: False also takes data, and pictures, without captions; such a row has an empty list.

    Raises:
        UserError: nothing there, no column of pictures or captions, one of the wrong type, no usable row.
    """
    cache = config.cache or cache_dir
    read = _read(config, "train", cache, captions_needed)
    facts: dict[str, Any] = {**read.facts, "overlap": 0, "duplicates": 0, "columns": read.pictures.columns}
    facts["sources"] = {"train": _spec(config.train)}
    if config.valid is not None:
        held = _read(config, "valid", cache, captions_needed)
        facts["sources"]["valid"] = _spec(config.valid)
        facts["valid_fingerprint"] = held.fingerprint()
        leaked = set_of(held.hashes).contains(read.hashes)
        facts["overlap"] = int(leaked.sum())
        read = read.only(~leaked)
    else:
        mask = held_out(read.hashes, config)
        held, read = read.only(mask), read.only(~mask)
    if config.deduplicate:
        fresh = HashSet().add(read.row_hashes())
        facts["duplicates"] = int((~fresh).sum())
        read = read.only(fresh)
    if not len(read.index):
        raise UserError(f"{_spec(config.train)} leaves no picture to train on: all of them are in data.valid too")
    labels, held_labels = read.labels(), held.labels()
    feature = read.pictures.label_feature
    names = class_names({name for name in (*labels, *held_labels) if name is not None}, feature)
    number = {name: i for i, name in enumerate(names)}
    train = read.rows(number)
    valid = held.rows(number) if len(held.index) else None
    facts.update(rows=len(train), valid_rows=len(valid) if valid else 0, pictures=len(np.unique(read.hashes)))
    facts.update(captions=read.num_captions(), fingerprint=read.fingerprint())
    if names:
        counted = Counter(labels)
        facts["classes"] = {name: counted[name] for name in names}
    return Pictured(train, valid, names, facts)


def every_picture(
    config: DataConfig, name: str, *, cache_dir: str | Path | None = None
) -> tuple[PictureRows, list[str]]:
    """All usable pictures of `data.train` or `data.valid` (`name`), copies too, with captions and labels where there
    are any; and the names of the labels.

    Raises `UserError` as `pictured` does.
    """
    read = _read(config, name, config.cache or cache_dir, captions_needed=False)
    names = class_names({label for label in read.labels() if label is not None}, read.pictures.label_feature)
    return read.rows({label: i for i, label in enumerate(names)}), names


@dataclass
class _Read:
    """The usable pictures of one spec."""

    pictures: Pictures
    index: Ints
    hashes: Hashes
    facts: dict[str, Any]

    def only(self, which: Bools) -> _Read:
        return _Read(self.pictures, self.index[which], self.hashes[which], self.facts)

    def labels(self) -> list[str | None]:
        """Empty where there are none."""
        labels = self.pictures.labels
        return [] if labels is None else [labels[i] for i in self.index.tolist()]

    def row_hashes(self) -> Hashes:
        """Of the picture and its captions together."""
        found = [np.empty(0, np.uint64)]
        for start in range(0, len(self.index), 1024):
            part = slice(start, start + 1024)
            texts = self._captions(self.index[part])
            pairs = zip(self.hashes[part].tolist(), texts, strict=True)
            found.append(hash_texts(["\x1f".join([str(number), *captions]) for number, captions in pairs]))
        return np.concatenate(found)

    def fingerprint(self) -> str:
        """Of pictures and captions, in order; where they lie does not count."""
        return hashlib.blake2b(self.row_hashes().tobytes(), digest_size=16).hexdigest()

    def num_captions(self) -> int:
        captions = self.pictures.captions
        return 0 if captions is None else int(pc.sum(pc.list_value_length(captions.take(self.index))).as_py() or 0)

    def rows(self, number: dict[str, int]) -> PictureRows:
        extra: dict[str, npt.NDArray[Any]] = {"picture": self.hashes.view(np.int64)}
        if number:
            labels = self.labels() or [None] * len(self.index)
            extra["label"] = np.array([NO_LABEL if name is None else number[name] for name in labels], np.int64)
        return PictureRows(self.pictures.contents, self.index, self.pictures.captions, self.pictures.ids, extra)

    def _captions(self, index: Ints) -> list[list[str]]:
        captions = self.pictures.captions
        return [[] for _ in index] if captions is None else list(captions.take(index).to_pylist())


def _read(config: DataConfig, name: str, cache: str | Path | None, captions_needed: bool) -> _Read:
    """The pictures of `data.train` or `data.valid` that can be used, and what the others lack."""
    spec = _spec(getattr(config, name))
    pictures = open_pictures(config, name, cache)
    contents, captions = pictures.contents, pictures.captions
    if captions is None and captions_needed:
        there = f"its columns are {', '.join(pictures.there)}" if pictures.there else "it has pictures only"
        raise UserError(f"{spec} has no caption column, {there}: say {config.name_of('columns.caption', 'NAME')}")
    count = len(contents)
    if config.limit is not None and name == "train":
        count = min(count, config.limit)
    verdict = check(contents, count, cache)
    good = verdict.good
    captioned = np.ones(count, bool)
    if captions is not None and captions_needed:
        captioned = pc.list_value_length(captions.slice(0, count)).to_numpy() > 0
    reasons = verdict.counts()
    facts: dict[str, Any] = {"read": count, "broken": sum(reasons.values()), "broken_reasons": reasons}
    facts["no_caption"] = int((good & ~captioned).sum())
    named = [
        f"{in_short(contents.name(i))}: {verdict.reasons[verdict.numbers[i]]}"
        for i in np.flatnonzero(~good)[:NAMED].tolist()
    ]
    index = np.flatnonzero(good & captioned)
    if not len(index):
        lacking = f", {facts['no_caption']} have no caption" if facts["no_caption"] else ""
        example = f" ({named[0]})" if named else ""
        raise UserError(f"{spec} has no usable row: of {count}, {facts['broken']} are broken{example}{lacking}")
    if named:
        log.warning("%s: %d of %d pictures are broken and left out: %s%s", spec, facts["broken"], count,
                    "; ".join(named), "; ..." if facts["broken"] > NAMED else "")  # fmt: skip
    return _Read(pictures, index, verdict.hashes[index], facts)


def _spec(spec: str | list[str] | None) -> str:
    return ", ".join(spec) if isinstance(spec, list) else str(spec)
