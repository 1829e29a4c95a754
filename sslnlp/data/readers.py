"""Rows out of files and hub data sets through `datasets`; what fails says which file, and where."""

from __future__ import annotations

import csv
import glob
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import datasets

from sslnlp import text_files
from sslnlp.data.columns import SEPARATORS, csv_columns, parquet_columns, with_numbers
from sslnlp.data.files import LOADERS
from sslnlp.errors import UserError, reason_of

_SMALL = 1 << 20  # bytes of a `.json` file that is read whole


@contextmanager
def quiet() -> Iterator[None]:
    """`datasets` without its own bars and logs: the commands print their own."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def options_of(extension: str, files: list[Path]) -> dict[str, Any]:
    """What `datasets` is told of files of one kind and the same columns."""
    if LOADERS[extension] != "csv":
        return {}
    # Everything is text: "007" must not become 7, and "NA" and "null" are words, not missing values.
    texts = datasets.Features({name: datasets.Value("string") for name in column_names(extension, files[0])})
    return {"keep_default_na": False, "sep": _separator(extension, files[0]), "features": texts}


def _separator(extension: str, file: Path) -> str:
    """What stands between the columns of a `.csv` or `.tsv`. Excel writes semicolons where the comma is the decimal
    sign: they are taken where the header, quoted names aside, has some and no comma."""
    if extension != ".csv":
        return "\t"
    header = re.sub('"[^"]*"', "", next(_csv_lines(file), ""))
    return ";" if ";" in header and "," not in header else ","


def _csv_lines(file: Path) -> Iterator[str]:
    """The lines of a `.csv` or `.tsv` that are not blank; they may end as on old Macs."""
    return (row for line in text_files.lines(file) for row in line.split("\r") if row.strip())


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of one `.jsonl` file; `datasets` would refuse rows that gain a key or change a type late in the file."""
    for number, line in enumerate(text_files.lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f'{file} line {number} is not an object such as {{"text": "..."}}')
        yield row


def json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of one `.json` file: `datasets` refuses several in which some column, if only a date, is of another type in
    one than in another, and takes a fifth of a second to set up for each."""
    try:
        with text_files.open_bytes(file) as handle:
            content = handle.read(_SMALL + 1)
        found = json.loads(content.decode("utf-8-sig")) if len(content) <= _SMALL else None
    except Exception:  # lines of JSON, or damaged: reading it for real names the damage
        found = None
    rows: list[Any] = found if isinstance(found, list) else [found]
    yield from rows if any(rows) and all(isinstance(row, dict) for row in rows) else stream_files(".json", [file])


def parquet_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows of `.parquet` files, in bounded memory."""
    for batch in _parquet_batches(files, None):
        yield from batch.to_pylist()


def parquet_column(files: list[Path], column: str) -> Iterator[Any]:
    """One column of `.parquet` files, as Arrow arrays; no other is read. Raises `UserError` where it is missing."""
    for batch in _parquet_batches(files, column):
        yield batch.column(0)


def _parquet_batches(files: list[Path], column: str | None) -> Iterator[Any]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    for file in files:
        try:
            # `datasets` reads far ahead, 256 MB of a file of 300; and all columns.
            with text_files.open_bytes(file) as handle, pyarrow.parquet.ParquetFile(handle, pre_buffer=False) as table:
                if column is not None and column not in table.schema_arrow.names:
                    raise UserError(f"{file} has no column {column!r}; it has {', '.join(table.schema_arrow.names)}")
                columns = None if column is None else [column]
                for batch in table.iter_batches(256, columns=columns, use_threads=False):
                    batch.validate(full=True)  # that text is UTF-8
                    yield batch
        except UserError:
            raise
        except Exception as error:  # damaged, cut short, not parquet at all
            raise UserError(f"cannot read {file} as .parquet: {reason_of(error)}") from None


def stream_files(extension: str, files: list[Path]) -> Iterator[dict[str, Any]]:
    """Rows of files of one kind and the same columns, through a streamed `datasets` reader: nothing is copied, memory
    stays bounded."""
    _check(extension, files)
    options: dict[str, Any] = {"data_files": _exactly(files), "split": "train", "streaming": True}
    try:
        with quiet():
            stream = datasets.load_dataset(LOADERS[extension], **options, **options_of(extension, files))
            for batch in stream.with_format("arrow").iter(batch_size=256):
                # Values of several types in one column of `.json` come as JSON; a stream itself does not decode them.
                features = datasets.Features.from_arrow_schema(batch.schema)
                yield from map(features.decode_example, batch.to_pylist())
    except UserError:
        raise
    except Exception as error:
        raise diagnose(extension, files, error) from None


def load_files(extension: str, files: list[Path], cache: str | None) -> list[tuple[str, datasets.Dataset]]:
    """Files of one kind, but `.txt`, as Arrow tables on disk in the folder `cache`, each with the name of a file. Those
    without a row, on which `datasets` fails, are not among them: other programs write such shards."""
    _check(extension, files)
    tables: list[tuple[str, datasets.Dataset]] = []
    try:
        for run in alike(extension, [file for file in files if _has_rows(extension, file)]):
            options: dict[str, Any] = {"data_files": _exactly(run), "split": "train", "cache_dir": cache}
            table = datasets.load_dataset(LOADERS[extension], **options, **options_of(extension, run))
            tables.append((str(run[0]), with_numbers(table) if LOADERS[extension] == "csv" else table))
    except UserError:
        raise
    except Exception as error:
        raise diagnose(extension, files, error) from error  # a full disk is told by whoever knows its folder
    return tables


def _check(extension: str, files: list[Path]) -> None:
    """Refuse what the parsers do not tell well."""
    for file in files if extension != ".parquet" else ():
        if LOADERS[extension] == "csv":
            _check_quotes(extension, file)
        else:
            for _ in text_files.lines(file):  # names the line of bad bytes
                pass
        if extension == ".json" and _head(file).startswith("null"):  # Arrow's reader would end the process
            raise UserError(f"{file} begins with null where a row belongs; take it out")


def _check_quotes(extension: str, file: Path) -> None:
    """Refuse a field that begins with a quote and goes on behind the next one: pandas would take all rows between two
    such fields for one text."""
    lines = (row for line in text_files.lines(file) for row in line.split("\r"))  # they may end as on old Macs
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, delimiter=_separator(extension, file), strict=True)
    read = 0
    try:
        for _ in reader:
            read = reader.line_num
    except csv.Error:
        raise text_files.misquoted(file, read + 1) from None


def _has_rows(extension: str, file: Path) -> bool:
    match extension:
        case ".jsonl":
            return next(json_lines(file), None) is not None
        case ".csv" | ".tsv":  # more than a header; one without even that is for the reader to refuse
            return len(list(islice(_csv_lines(file), 2))) != 1
        case ".parquet":
            return next(parquet_rows([file]), None) is not None
        case _:
            return bool(column_names(extension, file))


def _exactly(files: list[Path]) -> list[str]:
    """The files as `datasets` is told them: it takes a name for a pattern, `a[1].csv` for `a1.csv`, and what matches
    nothing it leaves out silently."""
    return [glob.escape(str(file)) for file in files]


def alike(extension: str, files: list[Path]) -> Iterator[list[Path]]:
    """The files in runs of the same columns: `datasets` reads no others together, or loses what the first lacks."""
    if len(files) == 1:
        yield files
        return
    for _, run in groupby(files, lambda file: (_separator(extension, file), sorted(column_names(extension, file)))):
        yield list(run)


def column_names(extension: str, file: Path) -> list[str]:
    """The columns of a table: of `.json` and `.jsonl` those of the first row."""
    match extension:
        case ".csv" | ".tsv":
            separator = _separator(extension, file)
            try:
                names = csv_columns(file, separator)
            except Exception as error:
                raise diagnose(extension, [file], error) from None
            other = next((sign for sign in SEPARATORS if sign != separator and sign in names[0]), None)
            if len(names) == 1 and other is not None:  # taken for one column, labels would be read as text
                raise UserError(
                    f"{file} has one column, {names[0]!r}: its separator seems to be {other!r}; "
                    f"save it with {separator!r} instead"
                )
            return names
        case ".parquet":
            return parquet_columns(file)
        case ".jsonl":
            return list(next(json_lines(file), {}))
        case _:
            return list(_first_object(file) or next(stream_files(extension, [file]), {}))


def _first_object(file: Path) -> dict[str, Any]:
    """The first row of a `.json` file, when it ends within a megabyte; else nothing. A reader of `datasets` takes a
    fifth of a second to set up, and folders have thousands of files."""
    try:
        found, _ = json.JSONDecoder().raw_decode(_head(file))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _head(file: Path) -> str:
    """The beginning of a `.json` file, from its first row on."""
    with text_files.open_bytes(file) as handle:
        return handle.read(2**20).decode("utf-8-sig", errors="replace").lstrip().removeprefix("[").lstrip()


def diagnose(extension: str, files: list[Path], error: Exception) -> UserError:
    """Which file, and where in it, made a reader fail."""
    if isinstance(error, UserError):
        return error
    for file in files:
        try:
            if extension == ".parquet":
                import pyarrow.parquet

                with text_files.open_bytes(file) as handle:
                    pyarrow.parquet.ParquetFile(handle).schema_arrow  # noqa: B018
            elif extension == ".jsonl":
                for _ in json_lines(file):
                    pass
            elif extension == ".json":
                json.loads("\n".join(text_files.lines(file)))
            else:
                for _ in text_files.lines(file):
                    pass
        except UserError as bad:
            return bad
        except Exception as bad:
            return UserError(f"cannot read {file} as {extension}: {reason_of(bad)}")
    cause = error.__cause__ or error
    return UserError(f"cannot read {', '.join(str(file) for file in files[:3])} as {extension}: {reason_of(cause)}")


def hub_revision(name: str) -> str:
    """The commit a hub data set stands at; fails fast and in one line where there is no network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    repo = name.split(":")[0]
    try:
        return HfApi().dataset_info(repo, timeout=10).sha or "main"
    except OfflineModeIsEnabled:
        return "cached"  # `datasets` then reads only what an earlier run has left in its cache
    except RepositoryNotFoundError:
        raise UserError(f"{name!r} is no file or folder here, and no data set on the hub (or a private one)") from None
    except HfHubHTTPError as error:
        raise UserError(f"the hub refused {name!r}: {reason_of(error)}") from None
    except Exception as error:
        raise UserError(
            f"{name!r} is no file or folder here, and the hub cannot be reached ({type(error).__name__}); check the "
            "path, or set HF_HUB_OFFLINE=1 to use a cached copy"
        ) from None


def load_hub(name: str, split: str, streaming: bool, cache: str | None) -> Any:
    hub_revision(name)
    repo, _, config = name.partition(":")
    try:
        return datasets.load_dataset(
            repo, config or None, split=split, streaming=streaming, cache_dir=None if streaming else cache
        )
    except Exception as error:
        raise UserError(
            f"{name!r} is no file or folder here, and the hub gives no split {split!r} of it: {reason_of(error)}"
        ) from None
