"""The texts that `sslnlp predict` reads, and what is known of a model before it is loaded. Without torch, so that what
is wrong with them is told at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sslnlp.data.names import HEAD_ROWS, TEXT_PAIRS
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
from sslnlp.search.model_folder import read_json, resolve


def check_rows(model: str, data: Path, text: str | None, pair: str | None) -> None:
    """Raises `UserError` where there are no texts, or no classifier is called `model`, or it does not read these."""
    _check_there(data)
    folder = resolve(model)
    is_few_shot(model, folder)
    columns = columns_read(folder)
    if pair is None and "text_pair" in columns:
        read = f"{columns['text']!r} and {columns['text_pair']!r}"
        raise UserError(f"{model} was trained on pairs of texts ({read}): name the column of the second, --pair NAME")
    if pair is not None and columns and "text_pair" not in columns:
        raise UserError(f"{model} was trained on single texts ({columns['text']!r}): leave --pair {pair} out")
    if next(rows_of(data, text, pair, columns), None) is None:
        raise nothing_in(data)


def _check_there(data: Path) -> None:
    if not data.exists():
        raise UserError(f"there is no file {data}")


def nothing_in(data: Path) -> UserError:
    """What to raise where no text is found."""
    return UserError(f"{data} holds no text to classify")


def is_few_shot(name: str, folder: Path) -> bool:
    """Whether the classifier called `name`, in a folder, is a few-shot one; else it is a stock one. Raises `UserError`
    where it is none."""
    if (folder / "3_Dense" / "model.safetensors").is_file():
        return True
    config = read_json(folder / "config.json")
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForTokenClassification"):
        raise UserError(
            f"{name} tags words: read it with the pipeline('token-classification') that its README.md shows"
        )
    if architecture.endswith("ForSequenceClassification"):
        return False
    if "vision_config" in config:
        raise UserError(f"{name} reads pictures: say by which names to classify them, --labels cat,dog")
    raise UserError(f"{name} is a {architecture or 'model'} and no classifier; fine-tune one: finetune_classification")


def columns_read(folder: Path) -> dict[str, str]:
    """Our name -> the column that training read, of the `text` and, for pairs, the `text_pair` of a model; empty where
    the recipe.json in its folder does not say."""
    try:
        columns = dict(json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["data"]["columns"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if "query" in columns:  # a cross-encoder, trained to rank
        return {"text": columns["query"], "text_pair": columns["positive"]}
    return columns if "text" in columns else {}


def rows_of(data: Path, text: str | None, pair: str | None, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The rows' `text` and `text_pair`, of the columns named, else the one that training read (`columns_read`), else
    one of a usual name. `UserError` for what cannot be read, and for two texts a row where training read one."""
    _check_there(data)
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
    trained = [columns["text"]] if columns else []
    refused = TEXT_PAIRS if columns and "text_pair" not in columns else ()
    usual = (*trained, *TEXT_COLUMNS, "sentence", "sentence1", "question")
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
