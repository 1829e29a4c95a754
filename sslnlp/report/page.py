"""A report as data: sections of text, tables and charts, written as report.json and as one self-contained page."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sslnlp.report.svg import line_chart, point_chart
from sslnlp.writing import replacing, write_json

Cell = str | int | float | bool | None


@dataclass
class Table:
    """Rows under named columns; numbers stay numbers, so report.json can be read by a program."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    meanings: Sequence[str] = ()
    """Of each row, what stands in small letters below it."""
    folded: bool = False
    """Shown when its title is clicked."""


@dataclass
class Chart:
    """Named series [(x, y), ...]: lines over one axis, or points of a plane."""

    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    points: bool = False

    @property
    def svg(self) -> str:
        return (point_chart if self.points else line_chart)(self.title, self.x, self.y, self.series)


@dataclass
class Picture:
    """A PNG that stands in the page itself, and in `file` below figures/."""

    title: str
    file: str
    png: bytes

    @property
    def source(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass
class Section:
    """One heading of the report."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Title -> texts that stand below each other, as they are."""
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Report:
    """Everything the two files show."""

    title: str
    subtitle: str = ""
    sections: list[Section] = field(default_factory=list)
    cards: Mapping[str, Any] = field(default_factory=dict)
    """Run -> its report card (`card.Card`) as plain data, for programs; the page shows it in the sections."""

    def write(self, folder: Path) -> Path:
        """Write `report.json` and `report.html` into `folder`, each whole or not at all; returns the page's path."""
        write_json(folder / "report.json", _plain(asdict(self)))
        with replacing(folder / "report.html") as file:
            file.write(self.html())
        return folder / "report.html"

    def html(self) -> str:
        """The page: no script, nothing fetched, light or dark as the reader's device is set."""
        environment = Environment(
            loader=PackageLoader("sslnlp", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        environment.filters["cell"] = lambda value: re.sub(
            r"([_/@])", "\\1\u200b", format_cell(value)
        )  # may break there
        environment.globals["chart"] = lambda c: Markup(c.svg)  # svg.py escapes
        return environment.get_template("report.html.jinja").render(report=self, is_number=is_number)


def is_number(value: Cell) -> bool:
    """Whether a cell is set flush right."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_cell(value: Cell) -> str:
    """A cell for people: thousands separated, four significant digits, yes or no, and a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return value


def _plain(value: Any) -> Any:
    # JSON has no NaN or infinity; a strict reader would refuse the whole file.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if not isinstance(v, bytes)}  # a picture has its own file
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
