"""Queries, relevance judgements and runs, in the formats of TREC and BEIR."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sslnlp.errors import UserError
from sslnlp.search.documents import ID_COLUMNS, find_column, read_rows, string_of, well_formed
from sslnlp.writing import replacing

Qrels = dict[str, dict[str, int]]
"""Judgements: query id -> document id -> relevance (0: judged and not relevant)."""
Run = dict[str, dict[str, float]]
"""Results: query id -> document id -> score, best first."""

QUERY_COLUMNS = ("text", "query", "question", "title")


def read_queries(path: str | Path) -> dict[str, str]:
    """Query id -> text, from a table (`_id`/`id` and `text`/`query` columns) or a headerless `id<TAB>text` file; any
    file here may end in `.gz`.

    Raises UserError for a missing or empty file, a duplicate id or an empty query.
    """
    path = _existing(path, "queries")
    plain = path.name.removesuffix(".gz").endswith((".tsv", ".txt"))
    pairs = _tab_queries(path) if plain else _table_queries(path)
    queries: dict[str, str] = {}
    for name, text in pairs:
        if name in queries:
            raise UserError(f"{path} has the query id {name!r} twice")
        if not text.strip():
            raise UserError(f"{path}: the query {name!r} is empty")
        queries[name] = text
    if not queries:
        raise UserError(f"{path} holds no queries")
    return queries


def read_qrels(path: str | Path) -> Qrels:
    """Judgements from TREC (`query 0 document relevance`) or BEIR (`query document relevance`, with a header) lines."""
    path = _existing(path, "judgements")
    qrels: Qrels = {}
    for number, line in _lines(path):
        # BEIR separates by tabs, and its ids may hold spaces; TREC separates by any blanks.
        fields = line.split("\t") if line.count("\t") in (2, 3) else line.split()
        if number == 1 and not fields[-1].strip()[-1:].isdigit():
            continue  # BEIR's header; a relevance of 1.0 is none, and no judgement to pass over
        if len(fields) not in (3, 4) or not _is_integer(fields[-1]):
            raise UserError(
                f"{path} line {number} is not 'query [0] document relevance', with a whole number as the relevance"
            )
        judged, grade = qrels.setdefault(fields[0], {}), int(fields[-1])
        if judged.setdefault(fields[-2], grade) != grade:
            raise UserError(
                f"{path} line {number} judges {fields[-2]!r} for query {fields[0]!r} another way than before"
            )
    if not qrels:
        raise UserError(f"{path} holds no judgements")
    return qrels


def read_run(path: str | Path) -> Run:
    """A TREC run: `query Q0 document rank score tag` lines. As trec_eval does, the score decides, not the rank."""
    path = _existing(path, "a run")
    run: Run = {}
    for number, line in _lines(path):
        fields = line.split()
        try:
            query, _, document, _, score, _ = fields
            value = float(score)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not 'query Q0 document rank score tag'") from error
        if math.isnan(value):
            raise UserError(f"{path} line {number}: the score is not a number, so it has no place in a ranking")
        if document in run.setdefault(query, {}):
            raise UserError(f"{path} line {number}: document {document!r} comes twice for query {query!r}")
        run[query][document] = value
    if not run:
        raise UserError(f"{path} holds no results")
    return run


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Write `run` as a TREC run file, aside and renamed.

    Scores keep every digit, so reading the file back changes no measure. Raises UserError for ids with blanks in them:
    the format separates by blanks and has no quoting; and for names of files that are no UTF-8.
    """
    for name in (name for query, found in run.items() for name in (query, *found)):
        if not name or len(name.split()) != 1:
            raise UserError(f"the id {name!r} cannot stand in a TREC run: it holds blanks")
        if name != well_formed(name):
            raise UserError(f"the id {name!r} cannot stand in a TREC run: it is no UTF-8")
    with replacing(path) as file:
        for query, found in run.items():
            for rank, (document, score) in enumerate(found.items(), start=1):
                file.write(f"{query} Q0 {document} {rank} {score!r} {tag}\n")


def _table_queries(path: Path) -> Iterator[tuple[str, str]]:
    for number, row in read_rows(path):
        id_column = find_column(path, row, None, ID_COLUMNS)
        text_column = find_column(path, row, None, QUERY_COLUMNS)
        if id_column is None or text_column is None:
            raise UserError(f"{path} row {number} needs an id and a text column; it has: {', '.join(row)}")
        yield string_of(path, number, row, id_column), string_of(path, number, row, text_column)


def _tab_queries(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path):
        name, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{path} line {number} is not 'id<TAB>query'")
        if number > 1 or name.lower() not in (*ID_COLUMNS, "query-id", "qid"):
            yield name, text


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"no file with {what} at {path}")
    return Path(path)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _is_integer(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit()
