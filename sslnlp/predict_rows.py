"""The texts that `sslnlp predict` reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.search.documents import (
    ID_COLUMNS,
    TABLE_SUFFIXES,
    TEXT_COLUMNS,
    find_column,
    read_rows,
    string_of,
    well_formed,
)


def check_exists(data: Path) -> None:
    """Raises `UserError` where there is nothing."""
    if not data.exists():
        raise UserError(f"there is no file {data}")


def rows_of(
    data: Path, text: str | None, pair: str | None, refused: Sequence[tuple[str, str]], trained: str | None = None
) -> Iterator[dict[str, Any]]:
    """The rows' `text` and `text_pair`, of the columns named, else the `trained` one, else one of a usual name."""
    from sslnlp.data.sources import HEAD_ROWS  # brings datasets

    check_exists(data)
    if data.is_dir():
        raise UserError(f"{data} is a folder: name a file of texts")
    if data.suffix.lower() == ".txt":
        if (column := pair or text) is not None:
            advice = "give pairs as a table" if pair is not None else "leave --text out"
            raise UserError(f"{data} has one text a line and no column {column!r}: {advice}")
        try:
            # A carriage return inside a line ends none, as in training: line n of the answers is of line n of the file.
            with open(data, encoding="utf-8-sig", newline="\n") as lines:
                yield from ({"text": line.rstrip("\r\n")} for line in lines)
        except UnicodeDecodeError as error:
            raise UserError(f"{data} is not UTF-8 text (byte {error.start}): convert it first") from error
        except OSError as error:
            raise UserError(f"cannot read {data}: {error.strerror}") from error
        return
    if Path(data.name.lower().removesuffix(".gz")).suffix not in TABLE_SUFFIXES:  # a search reads folders and no .txt
        kinds = ", ".join([".txt", *sorted(TABLE_SUFFIXES)])
        raise UserError(f"{data}: unknown kind of file; predict reads {kinds}")
    usual = (*((trained,) if trained is not None else ()), *TEXT_COLUMNS, "sentence", "sentence1", "question")
    rows = read_rows(data)
    first = list(islice(rows, HEAD_ROWS))
    # A line of JSON may lack a column that others have: there it has no value, as in training.
    lacking = dict.fromkeys(name for _, row in first for name in row)
    for number, given in chain(first, rows):
        row = {**lacking, **given}
        if text is None and (two := next((two for two in refused if row.keys() >= set(two)), None)):
            raise UserError(
                f"{data} holds two texts a row ({', '.join(two)}), and the model was trained on single ones: say which "
                "to read, --text NAME"
            )
        column = find_column(data, row, text, usual)
        if column is None:
            raise UserError(f"which column of {data} is the text? It has {', '.join(row)}; say --text NAME")
        name = find_column(data, row, None, ID_COLUMNS)
        found = {"id": _id(row[name])} if name is not None else {}
        found["text"] = string_of(data, number, row, column)
        if pair is not None:
            other = find_column(data, row, pair, ())
            assert other is not None
            found["text_pair"] = string_of(data, number, row, other)
        yield found


def _id(value: Any) -> str:
    """What tells a row from others, which is copied and never read; pandas has whole numbers as 7.0 where one of the
    column is missing."""
    if value is None or value != value:
        return ""
    return well_formed(str(int(value) if isinstance(value, float) and value.is_integer() else value))
