"""What people search: documents out of text files, JSONL, CSV, TSV or Parquet files, folders of either, a BEIR folder.

Read here line by line and not through `datasets`, because an id must stay the string it is in the file: type inference
turns "007" into 7, and then no relevance judgement finds its document.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from sslnlp import text_files
from sslnlp.data.files import IMAGE_FILES
from sslnlp.errors import UserError, usual_name

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst", ".tex", ".org", ".adoc"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson"})
TABLE_SUFFIXES = frozenset({*JSON_SUFFIXES, ".csv", ".tsv", ".parquet"})
ID_COLUMNS = ("_id", "id", "docid", "doc_id", "document_id")
TITLE_COLUMNS = ("title", "headline", "subject")
TEXT_COLUMNS = ("text", "body", "content", "contents", "passage", "document", "abstract")


class Document(NamedTuple):
    """One searchable document. `content` is what BM25 and the encoder see."""

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        return f"{self.title} {self.text}".strip()


class Columns(NamedTuple):
    """Column names given by hand; None means: find the usual ones."""

    id: str | None = None
    title: str | None = None
    text: str | None = None
    image: str | None = None
    """Of pictures alone, whose captions are their `text`."""


def read_documents(path: str | Path, columns: Columns = Columns()) -> Iterator[Document]:  # noqa: B008 (immutable)
    """The documents at `path`, one at a time, in the file's order (of a folder: of its files sorted by path).

    `path` is a folder of text files, each a document whose id is its path inside; a BEIR folder (it holds
    `corpus.jsonl`); a `.jsonl`, `.csv`, `.tsv` or `.parquet` file, or a folder of such files of one kind, with a text
    column and, if it has them, an id and a title; or one `.txt` file, in which blank lines part documents, or, where
    there are none, lines do. All but Parquet may be compressed. Rows and documents without an id are numbered from 0,
    through all files. Raises UserError for a path, row or column that cannot be read.
    """
    path, files = _files(path)
    if not (_is_text(files[0]) if path.is_dir() else _suffix(path) == ".txt"):
        return _documents_of_rows(files, columns)
    if any(columns):
        raise UserError(f"{path} holds text without columns: leave out --id-column, --title-column and --text-column")
    return _documents_of_folder(path, files) if path.is_dir() else _documents_of_text(path)


def check_documents(path: str | Path, columns: Columns = Columns()) -> None:  # noqa: B008 (immutable)
    """Raises UserError where `read_documents` cannot read the first document."""
    next(read_documents(path, columns), None)


def unread_tables(path: str | Path) -> list[Path]:
    """The tables in a folder of texts: beside those they are not read."""
    path, files = _files(path)
    if not path.is_dir():
        return []
    return [file for file in _inside(path) if _suffix(file) in TABLE_SUFFIXES] if _is_text(files[0]) else []


def data_fingerprint(path: str | Path) -> str:
    """SHA-256 over the names and contents of the files that `read_documents` reads at `path`, a gigabyte a second."""
    path, files = _files(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode(errors="surrogateescape") + b"\0")
        try:
            with open(file, "rb") as stream:
                size = file.stat().st_size
                digest.update(size.to_bytes(8, "big"))
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()


def _files(path: str | Path) -> tuple[Path, list[Path]]:
    """What `path` means, a folder or a file of its own, and the files that are read: texts, or tables of one kind."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"nothing to index at {path}: no such file or folder")
    corpora = (path / f"corpus.jsonl{compressed}" for compressed in ("", *text_files.COMPRESSED))
    path = next((corpus for corpus in corpora if corpus.is_file()), path)
    if not path.is_dir():
        return path, [path]
    inside = _inside(path)
    if texts := [file for file in inside if _is_text(file)]:
        return path, texts
    tables = [file for file in inside if _suffix(file) in TABLE_SUFFIXES]
    if len(tables) < len(inside):
        _refuse_pictures(path, inside)  # a table beside them holds their captions
    if not tables:
        raise UserError(
            f"{path} holds no corpus.jsonl, no text file ({', '.join(sorted(TEXT_SUFFIXES))}) and no table "
            f"({', '.join(sorted(TABLE_SUFFIXES))})"
        )
    if len(kinds := sorted({_suffix(file) for file in tables})) > 1:
        raise UserError(f"{path} mixes {', '.join(kinds)} files: name one of them, or put those of a kind in a folder")
    return path, tables


def _inside(folder: Path) -> list[Path]:
    """The files in a folder and its sub-folders, but hidden ones, sorted."""
    return sorted(
        file
        for file in folder.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts) and file.is_file()
    )


def _is_text(file: Path) -> bool:
    return _suffix(file) in TEXT_SUFFIXES


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a table file, each with its line or row number (from 1) for messages."""
    suffix = _suffix(path)
    if suffix not in TABLE_SUFFIXES:
        _refuse_pictures(path, [path])
        kinds = ", ".join(sorted(TABLE_SUFFIXES))
        raise UserError(f"cannot read {path}: give a folder of texts, a .txt file, or {kinds}, one file or a folder")
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        with _open_text(path) as lines:
            yield from _json_rows(path, lines) if suffix in JSON_SUFFIXES else _csv_rows(path, lines, suffix)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def find_column(where: Path | str, present: Iterable[str], wanted: str | None, usual: Iterable[str]) -> str | None:
    """The column to use: the one asked for by name (UserError, which names `where`, when absent), else the one of a
    usual name."""
    names = list(present)
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{where} has no column {wanted!r}; it has: {', '.join(names)}")
        return wanted
    return usual_name(names, usual)


def _documents_of_rows(files: Iterable[Path], columns: Columns) -> Iterator[Document]:
    first: str | None = None
    titled = columns.title is None
    rows = ((path, *numbered) for path in files for numbered in read_rows(path))
    for row_index, (path, number, row) in enumerate(rows):
        where = f"{path} row {number}"
        id_column = find_column(where, row, columns.id, ID_COLUMNS)
        first = id_column if row_index == 0 else first
        if id_column != first:  # a row's number among the ids of others would pass for one of them
            raise UserError(
                f"{path} row {number} names its document by {id_column or 'its number'} and the first row by "
                f"{first or 'its number'}: give every row its id in the same column (--id-column names one)"
            )
        # Lines of JSON leave out what has no value: the column of titles may be missing, but not from all.
        untitled = columns.title is not None and columns.title not in row and _suffix(path) in JSON_SUFFIXES
        titled = titled or not untitled
        title_column = None if untitled else find_column(where, row, columns.title, TITLE_COLUMNS)
        text_column = find_column(where, row, columns.text, TEXT_COLUMNS)
        if text_column is None:
            alone = "" if title_column is None else ", or give a row of a title alone an empty text"
            raise UserError(
                f"{path} row {number} has no text column among {', '.join(TEXT_COLUMNS)}; it has: {', '.join(row)}; "
                f"name one with --text-column{alone}"
            )
        name = str(row_index) if id_column is None else string_of(path, number, row, id_column)
        if not name:
            raise UserError(f"{path} row {number} has an empty {id_column!r}: every document needs an id")
        title = "" if title_column is None else string_of(path, number, row, title_column)
        yield Document(name, title, string_of(path, number, row, text_column))
    if not titled:
        raise UserError(f"no row has a column {columns.title!r}: name that of the titles, or leave --title-column out")


def _documents_of_folder(folder: Path, files: Iterable[Path]) -> Iterator[Document]:
    for file in files:
        try:
            with _open_text(file, newline=None) as lines:
                text = lines.read()
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text (byte {error.start}): convert it or take it out") from error
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise UserError(f"cannot read {file}: {error}") from error
        yield Document(file.relative_to(folder).as_posix(), "", text)


def _documents_of_text(path: Path) -> Iterator[Document]:
    """The parts of one file, as training takes them for documents."""
    for number, text in enumerate(text_files.documents([path], "auto")):
        yield Document(str(number), "", text)


def _refuse_pictures(path: Path, files: Iterable[Path]) -> None:
    """Raises UserError where `files`, which hold no texts, are pictures or may do."""
    if any(file.suffix.lower() in (*IMAGE_FILES, ".tar", ".arrow") for file in files):
        raise UserError(
            f"{path} holds pictures and no texts: to search them, name with --model the export of a `sslnlp train "
            "clip_image_text` run, which reads both"
        )


def string_of(path: Path, number: int, row: Mapping[str, Any], column: str) -> str:
    """The text of one field; an absent one (also NaN, as pandas has it) is "", a whole number keeps its digits.
    UserError for anything else."""
    value = row.get(column)
    if value is None or value != value:
        return ""
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return well_formed(str(value))
    raise UserError(f"{path} row {number}: {column!r} is a {type(value).__name__}, not text")


def well_formed(text: str) -> str:
    """`text` with lone surrogates (JSON and command lines can carry them, no tokenizer takes them) replaced by �."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _suffix(path: Path) -> str:
    """The extension that says how to read a file: `.jsonl` for `a.jsonl.gz`."""
    compressed = path.suffix.lower() in text_files.COMPRESSED
    return Path(path.stem if compressed else path.name).suffix.lower()


def _open_text(path: Path, newline: str | None = "") -> TextIO:
    # newline="" is what the csv module needs; JSON does not mind a trailing carriage return.
    return io.TextIOWrapper(text_files.open_bytes(path), encoding="utf-8-sig", newline=newline)


def _json_rows(path: Path, lines: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is a JSON {type(row).__name__}, not an object with columns")
        yield number, row


def _csv_rows(path: Path, lines: TextIO, suffix: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(sys.maxsize)  # the default refuses a document longer than 128 KiB
    reader = csv.DictReader(lines, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    try:
        names = list(reader.fieldnames or ())
        if suffix == ".csv" and len(names) == 1 and ";" in names[0]:  # Excel's, where the comma is the decimal sign
            lines.seek(0)
            reader = csv.DictReader(lines, delimiter=";", strict=True)
            names = list(reader.fieldnames or ())
        # Of two columns of a name the first counts, and the next is called text.1, as in training.
        reader.fieldnames = [f"{name}.{n}" if (n := names[:i].count(name)) else name for i, name in enumerate(names)]
        for row in reader:
            if None in row or None in row.values():
                sign, header = reader.reader.dialect.delimiter, ", ".join(reader.fieldnames or ())
                raise UserError(
                    f"{path} line {reader.line_num} does not have as many fields as the header ({header}): put texts "
                    f"with {sign!r} in quotes, and separate columns by {sign!r}"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise text_files.misquoted(path, reader.line_num + 1) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        number = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})") from error
