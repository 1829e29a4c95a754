"""`.txt` files, plain or compressed, as documents: strict about what is text, with the place of what is not."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from sslnlp.errors import UserError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
SMALL_FILE = 8 << 20
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")


def open_bytes(path: Path) -> IO[bytes]:
    """The file's decompressed bytes."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            if importlib.util.find_spec("zstandard") is None:  # `datasets` needs it, for tables
                raise UserError(f"{path} needs the zstandard package: pip install zstandard")
            # That package takes a file that was cut short for a whole one; Arrow does not.
            import pyarrow as pa  # type: ignore[import-untyped]

            return cast(IO[bytes], io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
        case _:
            return path.open("rb")


def misquoted(path: Path, line: int) -> UserError:
    """What is said of a `.csv` or `.tsv` whose quotes do not fit, in the row that begins in this line."""
    return UserError(
        f"{path} line {line}: a field begins with a quote that does not end where the field does; put the whole field "
        "in quotes and write those inside twice, or save the rows as .jsonl"
    )


def lines(path: Path) -> Iterator[str]:
    """Lines of UTF-8 text without their ends (LF or CRLF) and without a byte-order mark.

    Raises:
        UserError: naming file, line and byte for invalid UTF-8, NUL bytes, or a damaged compressed file.
    """
    offset = 0
    try:
        with open_bytes(path) as file:
            for number, raw in enumerate(file, 1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise UserError(f"{path} is UTF-16, not UTF-8: convert it, e.g. iconv -f UTF-16 -t UTF-8")
                    if raw.startswith(b"\xef\xbb\xbf"):
                        raw, offset = raw[3:], 3
                if (nul := raw.find(0)) >= 0:
                    place = f"line {number}, byte {offset + nul}"
                    raise UserError(
                        f"{path} holds a NUL byte ({place}): is it a binary file? Take it out of the data, or the byte "
                        "out of it"
                    )
                try:
                    end = len(raw) - raw.endswith(b"\n") - raw.endswith(b"\r\n")
                    line = str(memoryview(raw)[:end], "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path} is not UTF-8 text: byte 0x{raw[error.start]:02x} (line {number}, byte "
                        f"{offset + error.start}); convert it, e.g. with iconv, or remove it"
                    ) from None
                offset += len(raw)
                del raw  # a line may be the whole file: never hold it twice while it is worked on
                yield line
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, OSError, RuntimeError) as error:
        raise UserError(f"cannot read {path}: {error or type(error).__name__}") from None
    except zlib.error as error:
        raise UserError(f"cannot read {path}: the compressed file is damaged ({error})") from None


def documents(files: Sequence[Path], split_text: str) -> Iterator[str]:
    """The documents of several `.txt` files, in order."""
    how = resolve(files, split_text)
    for path in files:
        if how == "line":
            yield from lines(path)
        elif how == "block":
            yield from _blocks(path)
        else:
            yield "\n".join(lines(path))


def _blocks(path: Path) -> Iterator[str]:
    block: list[str] = []
    for line in lines(path):
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)


def resolve(files: Sequence[Path], split_text: str) -> str:
    """What `auto` means: several small files are documents; else blocks where there are blank lines; else lines."""
    if split_text != "auto":
        return split_text
    if len(files) > 1 and max(path.stat().st_size for path in files) <= SMALL_FILE:
        return "document"
    try:
        with open_bytes(files[0]) as file:
            # Blank lines at the end part nothing.
            return "block" if _BLANK_LINE.search(file.read(1 << 20).rstrip()) else "line"
    except Exception:  # reading it for real names the damage
        return "line"
