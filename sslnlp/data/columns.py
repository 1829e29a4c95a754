"""Columns of tables: what they are called file by file, and one type for each where several kinds of files are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from sslnlp.errors import UserError
from sslnlp.text_files import open_bytes

_CHANGES_AS_NUMBER = r"^[-+]?(0\d|\d{19})"
"""Text that a number does not give back: 007, and more digits than 64 bits are sure to hold."""

SEPARATORS = (";", "\t", "|", ",")
"""What programs put between the columns of a `.csv` or `.tsv` in the place of the comma or the tab."""


def csv_columns(file: Path, separator: str) -> list[str]:
    """The header, as `datasets` reads it; raises what pandas raises where there is none, and `UserError` where it names
    fewer columns than there are: pandas takes the first values for names of rows then, and the text would be lost."""
    import pandas  # type: ignore[import-untyped]

    table = pandas.read_csv(file, sep=separator, nrows=1, dtype=str)
    if not isinstance(table.index, pandas.RangeIndex):
        other = next((sign for sign in SEPARATORS if sign != separator and sign in table.columns[0]), None)
        if len(table.columns) == 1 and other is not None:  # the values hold more of ours: decimal commas, sentences
            raise UserError(
                f"the header of {file} is one column, {table.columns[0]!r}: its separator seems to be {other!r}; put "
                f"texts with {separator!r} in quotes, and separate columns by {separator!r} instead"
            )
        raise UserError(
            f"{file} has more values in its first row than names in its header ({', '.join(table.columns)}): name "
            f"every column, put texts with {separator!r} in quotes, and separate columns by {separator!r}"
        )
    return list(table.columns)


def parquet_columns(file: Path) -> list[str]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    with open_bytes(file) as handle:
        names: list[str] = pyarrow.parquet.read_schema(handle).names
    return names


def with_numbers(table: datasets.Dataset) -> datasets.Dataset:
    """A table of text with its columns of numbers as such, but for those that would read otherwise then (`007`)."""
    features = table.features.copy()
    for name in table.column_names if len(table) else ():
        chunks = table.data.column(name).chunks
        for kind in ("int64", "float64"):
            if all(_is_number(chunk, kind) for chunk in chunks):
                features[name] = datasets.Value(kind)
                break
    return table if features == table.features else table.cast(features)


def _is_number(values: Any, kind: str) -> bool:
    try:
        values.cast(kind)
    except pa.ArrowInvalid:
        return False
    return not pc.any(pc.match_substring_regex(values, _CHANGES_AS_NUMBER)).as_py()


def joined(parts: Sequence[tuple[str, datasets.Dataset]], spec: str) -> datasets.Dataset:
    """The tables, each with the name of its file, one below the other; a column that one lacks has no values there.

    Raises `UserError` where two each have columns that the other lacks (the rows of one would pass for rows without a
    value), and for types that do not go together.
    """
    tables = [table for _, table in parts]
    if len(tables) == 1:
        return tables[0]
    most, widest = max(parts, key=lambda part: len(part[1].column_names))
    for place, table in parts:
        if set(table.column_names) - set(widest.column_names):
            raise UserError(
                f"the files of {spec} have different columns: {most} has {', '.join(widest.column_names)}; {place} has "
                f"{', '.join(table.column_names)}; name them alike"
            )
    features: dict[str, Any] = {}
    for name in widest.column_names:
        found = [table.features[name] for table in tables if name in table.features]
        features[name] = _common_type(found)
        if features[name] is None:
            kinds = " and ".join(dict.fromkeys(str(feature) for feature in found))
            raise UserError(f"column {name!r} of {spec} has types that do not go together ({kinds}); write it alike")
    alike = [table.cast(datasets.Features({name: features[name] for name in table.features})) for table in tables]
    return datasets.concatenate_datasets(alike)


def _common_type(found: Sequence[Any]) -> Any:
    """The feature that holds the values of all; None where there is none. Text beside whole numbers is text."""
    found = [feature for feature in found if feature != datasets.Value("null")] or found[:1]
    if all(feature == found[0] for feature in found):
        return found[0]
    if all(type(feature) is datasets.List for feature in found):
        inner = _common_type([feature.feature for feature in found])
        return None if inner is None else datasets.List(inner)
    if not all(type(feature) is datasets.Value for feature in found):  # classes by number, pictures
        return None
    types = [feature.pa_type for feature in found]
    if any(map(_is_text, types)):
        types = [pa.large_string() if pa.types.is_integer(kind) else kind for kind in types]
    try:
        unified = pa.unify_schemas([pa.schema([("it", kind)]) for kind in types], promote_options="permissive")
    except pa.ArrowException:
        return None
    return datasets.Features.from_arrow_schema(unified)["it"]


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
