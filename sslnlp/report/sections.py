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
from sslnlp.report.page import Cell, Chart, Section, Table, format_cell

log = logging.getLogger(__name__)

SHOWN_LABELS = 5
NOTE = (
    "In brackets the interval that 95 of 100 repetitions on other items of the kind would fall into (bootstrap). "
    "Chance is what a model that knows nothing scores; a dash where it is not known."
)


def card_sections(cards: Mapping[str, Card]) -> list[Section]:
    """The sections of the report cards of one run, or of several side by side."""
    if not cards:
        return []
    maps = [
        Chart(f"Vectors of texts, two principal components ({name})", "first", "second", _by_label(card), points=True)
        for name, card in cards.items()
        if card.embedding_map
    ]
    samples = {
        title if len(cards) == 1 else f"{name}: {title}": lines
        for name, card in cards.items()
        for title, lines in card.samples.items()
    }
    made = [
        Section("Report card", tables=[_figures(cards), *_left_out(cards)]),
        Section("Map of the vectors", charts=maps),
        Section("What it writes", lists=samples),
    ]
    return [section for section in made if section.tables or section.charts or section.lists]


def _figures(cards: Mapping[str, Card]) -> Table:
    names = list(dict.fromkeys(name for card in cards.values() for name in card.figures))
    rows: list[list[Cell]] = []
    for name in names:
        figures = [card.figures.get(name) for card in cards.values()]
        told = card_measure(name)
        known = next(figure for figure in figures if figure is not None)
        explained: list[Cell] = [told.unit, told.better, told.meaning] if told else ["", "", ""]
        rows.append([name, *map(_with_interval, figures), known.chance, known.number, *explained])
    runs = list(cards) if len(cards) > 1 else ["value"]
    return Table(["measure", *runs, "chance", "items", "unit", "better", "meaning"], rows, note=NOTE)


def _with_interval(figure: Figure | None) -> Cell:
    if figure is None:
        return None
    if not math.isfinite(figure.low):
        return figure.value
    return f"{format_cell(figure.value)} ({format_cell(figure.low)} to {format_cell(figure.high)})"


def _left_out(cards: Mapping[str, Card]) -> list[Table]:
    rows: list[list[Cell]] = [
        [*([run] if len(cards) > 1 else []), name, reason]
        for run, card in cards.items()
        for name, reason in card.left_out.items()
    ]
    columns = [*(["run"] if len(cards) > 1 else []), "measure", "why not"]
    return [Table(columns, rows, title="Not measured")] if rows else []


def _by_label(card: Card) -> dict[str, list[tuple[float, float]]]:
    """The points of the most frequent labels apart, of all others together."""
    frequent = [label for label, _ in Counter(label for *_, label in card.embedding_map).most_common(SHOWN_LABELS)]
    series: dict[str, list[tuple[float, float]]] = {label: [] for label in frequent}
    for x, y, label in card.embedding_map:
        series.setdefault(label if label in frequent else "other labels", []).append((x, y))
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
        import matplotlib
    except ImportError:
        log.warning("no figures/: they are drawn by matplotlib, which is not installed (pip install 'sslnlp[report]')")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in charts:
        series = {name: points for name, points in chart.series.items() if points}
        if not series:
            continue
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for name, points in series.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "." if chart.points or len(points) == 1 else "-", label=name or "texts")
        axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
        axes.legend(fontsize="small")
        stem = "".join(c if c.isalnum() else "-" for c in chart.title.lower()).strip("-")
        for ending in ("png", "svg"):
            written.append(folder / f"{stem}.{ending}")
            figure.savefig(written[-1], dpi=150, metadata={"Date": None} if ending == "svg" else None)
        pyplot.close(figure)
    return written
