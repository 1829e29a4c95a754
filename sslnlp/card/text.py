"""Words of a run as text of a card: cut to what may be published, and nothing in them is Markdown or HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def public(value: Any) -> Any:
    """`value` with every path of this machine cut to its last part: what may leave it in a published file.

    Mappings and sequences are followed; hub names, URLs and relative paths inside the working folder stay.
    """
    if isinstance(value, Mapping):
        return {public(str(k)): public(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [public(v) for v in value]
    if isinstance(value, (str, PurePosixPath, PureWindowsPath)):
        return public_text(str(value))
    return value


_NEXT_PLACE = re.compile(r", (?=/|~|\.\.?/)")
_INNER_PATH = re.compile(r"(?<![\w.:/*?])(?:file://)?(?:/[^\s/,;:'\"]+){2,}/?")


def public_text(text: str) -> str:
    if len(places := _NEXT_PLACE.split(text)) > 1:  # a list of files: each has a last part
        return ", ".join(map(public_text, places))
    bare = text.removeprefix("file://")
    if bare.startswith(("/", "~", "../", "./")) and "\n" not in bare:
        return PurePosixPath(bare).name or bare
    if PureWindowsPath(bare).drive and "\\" in bare:  # `q: ` is a query prefix, `C:\\texts` a place
        return PureWindowsPath(bare).name
    return _INNER_PATH.sub(lambda match: PurePosixPath(match[0]).name, text)


def one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def code(text: str) -> str:
    """A code span, fenced by one backtick more than the text has in a row: nothing inside it is Markdown or HTML."""
    text = one_line(str(text))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def plain(text: str) -> str:
    """Running text: every character that could start Markdown or HTML is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~$])", r"\\\1", one_line(text))


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "unnamed"
