"""Which columns of a table of pictures hold what, and what they say of each picture, kept as Arrow arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from sslnlp.data.config import DataConfig
from sslnlp.data.label_kinds import KINDS
from sslnlp.data.picture_contents import Contents, JoinedContents
from sslnlp.data.table_rows import find_column
from sslnlp.errors import UserError

CAPTION_NAMES = ("caption", "captions", "text", "sentence", "sentences", "title", "description")
LABEL_NAMES = ("label", "labels", "class", "category")
IMAGE_NAMES = ("image", "img", "picture", "file_name", "path")

_CAPTIONS = pa.large_list(pa.large_string())
_RUN = 1024


@dataclass
class Pictures:
    """Pictures of one or several places, and what is known of each before it is read."""

    contents: Contents
    captions: Any
    """Arrow array of lists of texts, blank ones left out; None where there is no column of captions."""
    labels: list[str | None] | None
    label_feature: Any
    ids: Any
    """Arrow array of strings, or None."""
    columns: dict[str, str]
    """Our name of a column -> its name there."""
    there: list[str]
    """All columns there are."""


class _Names(NamedTuple):
    """What `find_column` asks of a table."""

    column_names: list[str]


def image_column(there: list[str], config: DataConfig, spec: str, typed: Iterable[str] = ()) -> str:
    """The column of pictures: the one named, one that is `typed` as pictures, or one of a usual name."""
    usual = [name for name in IMAGE_NAMES if name in there]
    order = (*(name for name in usual if name in typed), *typed, *usual)
    found = find_column(_Names(there), config.columns.get("image"), order or IMAGE_NAMES, "columns.image", spec, config)
    assert found is not None
    return found


def known_columns(
    there: list[str],
    config: DataConfig,
    spec: str,
    image: str | None,
    captions: tuple[str, ...] = CAPTION_NAMES,
    labels: tuple[str, ...] = LABEL_NAMES,
    ids: tuple[str, ...] = ("id",),
) -> dict[str, str]:
    """Our name -> the name there, of the columns there are: those named in `data.columns`, else of usual names."""
    columns = {} if image is None else {"image": image}
    wanted = {**config.columns, "label": config.label or config.columns.get("label")}
    for ours, common in (("caption", captions), ("label", labels), ("id", ids)):
        common = tuple(name for name in common if name != image)
        found = find_column(_Names(there), wanted.get(ours), common, f"columns.{ours}", spec, config, needed=False)
        if found is not None:
            columns[ours] = found
    return columns


def not_pictures(column: str, spec: str, what: str, config: DataConfig) -> str:
    return f"column {column!r} of {spec} holds {what}, not pictures; say {config.name_of('columns.image', 'NAME')}"


class Seen:
    """What is known of the pictures of one place, gathered row by row."""

    def __init__(
        self, columns: dict[str, str], there: list[str], config: DataConfig, spec: str, feature: Any = None
    ) -> None:
        self.columns, self.there, self.spec, self.feature = dict(columns), list(there), spec, feature
        self.config = config
        self.named = bool(config.label or config.columns.get("label"))
        self.captions: list[Any] = []
        self.labels: list[str | None] = []
        self.ids: list[Any] = []

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Raises `UserError` for captions that are not text, and for labels that were asked for and are none."""
        captions: list[list[str]] = []
        ids: list[str] = []
        for row in rows:
            if "caption" in self.columns:
                captions.append(self._captions(row.get(self.columns["caption"])))
            if "id" in self.columns:
                value = row.get(self.columns["id"])
                ids.append("" if value is None else str(value))
            if "label" in self.columns:
                self._label(row.get(self.columns["label"]))
            if max(len(captions), len(ids)) == _RUN:
                self._flush(captions, ids)
                captions, ids = [], []
        self._flush(captions, ids)

    def pictures(self, contents: Contents) -> Pictures:
        labels = self.labels if "label" in self.columns else None
        captions = pa.concat_arrays(self.captions) if "caption" in self.columns else None
        ids = pa.concat_arrays(self.ids) if "id" in self.columns else None
        return Pictures(contents, captions, labels, self.feature, ids, self.columns, self.there)

    def _captions(self, value: Any) -> list[str]:
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"column {self.columns['caption']!r} of {self.spec} holds {type(text).__name__}, not text; say "
                    + self.config.name_of("columns.caption", "NAME")
                )
        return [text for text in texts if text is not None and text.strip()]

    def _label(self, value: Any) -> None:
        try:
            self.labels.append(KINDS["one"].read(value, self.feature, self.columns["label"]))  # type: ignore[arg-type]
        except UserError:
            if self.named:
                raise
            del self.columns["label"]  # it has the name of a label, but does not hold classes

    def _flush(self, captions: list[list[str]], ids: list[str]) -> None:
        try:
            self.captions.append(pa.array(captions, _CAPTIONS))
            self.ids.append(pa.array(ids, pa.large_string()))
        except UnicodeEncodeError as error:
            raise UserError(f"{self.spec} holds text that is not Unicode ({error.reason}); repair it") from None


def join(parts: list[Pictures]) -> Pictures:
    """The pictures of `parts`; one that lacks captions, labels or ids which another has, has empty ones."""
    first = {ours: theirs for part in reversed(parts) for ours, theirs in part.columns.items()}
    there = list(dict.fromkeys(name for part in parts for name in part.there))
    feature = next((part.label_feature for part in parts if part.label_feature is not None), None)
    labels: list[str | None] | None = None
    if any(part.labels is not None for part in parts):
        labels = [label for part in parts for label in part.labels or [None] * len(part.contents)]
    contents = JoinedContents([part.contents for part in parts])
    captions = _joined([part.captions for part in parts], parts, pa.array([[]], _CAPTIONS))
    ids = _joined([part.ids for part in parts], parts, pa.array([""], pa.large_string()))
    return Pictures(contents, captions, labels, feature, ids, first, there)


def _joined(arrays: list[Any], parts: list[Pictures], empty: Any) -> Any:
    if all(array is None for array in arrays):
        return None
    filled = [
        empty.take(np.zeros(len(part.contents), np.int64)) if array is None else array
        for array, part in zip(arrays, parts, strict=True)
    ]
    return pa.concat_arrays(filled)
