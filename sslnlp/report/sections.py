"""Report cards as sections of a page, as files, and as the short form of a model card."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sslnlp.card import ReportRow
from sslnlp.evaluation.bootstrap import Figure
from sslnlp.report.card import Card
from sslnlp.report.measures import card_measure
from sslnlp.report.page import Cell, Chart, Picture, Section, Table
from sslnlp.report.svg import OTHER

log = logging.getLogger(__name__)

SHOWN_LABELS = 5
GROUPED = "minimal_pairs/"
NOTE = (
    "Below each figure the interval that 95 of 100 repetitions on other items of the kind would fall into (bootstrap). "
    "Chance is what a model that knows nothing scores; a dash where it is not known."
)


def card_sections(cards: Mapping[str, Card], *, named: bool) -> list[Section]:
    """The sections of the report cards of one run, or of several side by side.

    named: say which run each is of, also where there is one: of several runs perhaps one alone could be measured.
    """
    if not cards:
        return []
    maps = [
        Chart(f"Vectors of texts, two principal components ({name})", "first", "second", _by_label(card), points=True)
        for name, card in cards.items()
        if card.embedding_map
    ]
    samples = {
        f"{name}: {title}" if named else title: lines
        for name, card in cards.items()
        for title, lines in card.samples.items()
    }
    made = [
        Section("Report card", tables=[*_figures(cards, named), *_by_class(cards, named), *_left_out(cards, named)]),
        *(_finds(name if named else "", card, sheet_file(name)) for name, card in cards.items()),
        Section("Map of the vectors", charts=maps),
        Section("What it writes", lists=samples),
    ]
    return [section for section in made if section.tables or section.charts or section.lists]


def sheet_file(name: str) -> str:
    """The contact sheet of a run of this name, below figures/."""
    return f"contact-sheet-{_stem(name)}.png"


def _finds(name: str, card: Card, file: str) -> Section:
    """What the captions of the contact sheet find; nothing of a model that none was made of."""
    title = "The nearest pictures of some held-out captions, those a caption was written for in a frame"
    rows: list[list[Cell]] = [list(row) for row in card.found]
    return Section(
        f"What it finds ({name})" if name else "What it finds",
        tables=[Table(["caption", "place of its own picture"], rows, "The captions, from the top", folded=True)]
        if rows
        else [],
        pictures=[Picture(title, file, card.sheet)] if card.sheet else [],
    )


def _by_class(cards: Mapping[str, Card], named: bool) -> list[Table]:
    classes = {run: Card(figures=card.by_class) for run, card in cards.items()}
    if not any(card.by_class for card in cards.values()):
        return []
    names = sorted({name for card in classes.values() for name in card.figures})
    table = _table(classes, names, named, meanings=False)
    table.title, table.folded = "Zero-shot accuracy by class", True
    return [table]


def _figures(cards: Mapping[str, Card], named: bool) -> list[Table]:
    """The main figures, and those of groups (`minimal_pairs/GROUP`) folded up below them."""
    names = list(dict.fromkeys(name for card in cards.values() for name in card.figures))
    groups = [name for name in names if name.startswith(GROUPED)]
    tables = [_table(cards, [name for name in names if name not in groups], named, meanings=True)]
    tables[0].note = NOTE
    if groups:
        tables.append(_table(cards, groups, named, meanings=False))
        tables[1].title, tables[1].folded = "Minimal pairs by group", True
    return tables


def _table(cards: Mapping[str, Card], names: Sequence[str], named: bool, *, meanings: bool) -> Table:
    rows: list[list[Cell]] = []
    for name in names:
        figures = [card.figures.get(name) for card in cards.values()]
        known = [figure for figure in figures if figure is not None]
        # Of another vocabulary chance is another, and of another reader the texts that are long enough.
        chances = [_short(figure.chance, 2) for figure in sorted(known, key=lambda f: f.chance or 0.0)]
        numbers = sorted(figure.number for figure in known)
        rows.append([name.removeprefix(GROUPED), *map(_with_interval, figures), _range(chances), _range(numbers)])
    runs = list(cards) if named else ["value"]
    explained = [_explained(name) for name in names] if meanings else []
    return Table(["measure", *runs, "chance", "items"], rows, meanings=explained)


def _range(values: Sequence[Cell]) -> Cell:
    """The one value of all runs, or from the least of them, which are in order, to the largest."""
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def _explained(name: str) -> str:
    told = card_measure(name)
    return f"{told.meaning} ({told.unit}; better: {told.better})" if told else ""


def _with_interval(figure: Figure | None) -> Cell:
    if figure is None:
        return None
    if not math.isfinite(figure.low):
        return _short(figure.value)
    return f"{_short(figure.value)}\n{_short(figure.low)} to {_short(figure.high)}"


def _short(value: float | None, digits: int = 3) -> Cell:
    """Three significant digits: the intervals are wider than that."""
    return value if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def _left_out(cards: Mapping[str, Card], named: bool) -> list[Table]:
    rows: list[list[Cell]] = [
        [*([run] if named else []), name, reason]
        for run, card in cards.items()
        for name, reason in card.left_out.items()
    ]
    columns = [*(["run"] if named else []), "measure", "why not"]
    return [Table(columns, rows, title="Not measured, and why", folded=True)] if rows else []


def _by_label(card: Card) -> dict[str, list[tuple[float, float]]]:
    """The points of the most frequent labels apart, of all others together."""
    frequent = [label for label, _ in Counter(label for *_, label in card.embedding_map).most_common(SHOWN_LABELS)]
    series: dict[str, list[tuple[float, float]]] = {label: [] for label in frequent}
    for x, y, label in card.embedding_map:
        series.setdefault(label if label in frequent else OTHER, []).append((x, y))
    return series


def short_form(card: Card) -> list[ReportRow]:
    """The figures of a card for the model card (`card.report_section`)."""
    rows = []
    for name, figure in card.figures.items():
        told = card_measure(name)
        meaning = f"{told.unit}: {told.meaning}" if told else ""
        rows.append(ReportRow(name, figure.value, figure.low, figure.high, figure.chance, figure.number, meaning))
    return rows


def write_figures(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Every chart as PNG and SVG files in `folder`, where matplotlib is installed; else a line that says so."""
    try:
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        log.warning("no figures/: they are drawn by matplotlib, which is not installed (pip install 'sslnlp[report]')")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in charts:
        series = {name: points for name, points in chart.series.items() if points}
        if not series:
            continue
        drawing = Drawing(figsize=(7, 4))  # its margins are wide enough; to compute them would take half of the time
        axes = drawing.subplots()
        drawn = []
        for points in series.values():
            x, y = zip(*points, strict=True)
            drawn += axes.plot(x, y, "." if chart.points or len(points) == 1 else "-")
        axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
        # As arguments: of labels that `plot` is given, it leaves out those that begin with an underscore.
        legend = axes.legend(drawn, [name or "texts" for name in series], fontsize="small")
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *legend.get_texts()):
            text.set_parse_math(False)  # names of runs and of labels: a $ in them is no formula
        for ending in ("png", "svg"):
            written.append(folder / f"{_stem(chart.title)}.{ending}")
            drawing.savefig(written[-1], dpi=150, metadata={"Date": None} if ending == "svg" else None)
    return written


def write_pictures(pictures: Sequence[Picture], folder: Path) -> None:
    """Every picture of the page as a file of its own in `folder`."""
    for picture in pictures:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / picture.file).write_bytes(picture.png)


def _stem(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
