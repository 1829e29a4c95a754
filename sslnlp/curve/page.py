"""The label curve as a page: a table with intervals, a figure, and the runs that failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sslnlp.curve.cells import ALL, LARGEST, Results
from sslnlp.curve.summary import Summary, summarise
from sslnlp.report.page import Cell, Chart, Report, Section, Table
from sslnlp.report.sections import write_figures

FIGURES = ("accuracy", "macro_f1")
NOTE = (
    "Mean over draws of the training texts, each the mean of its seeds; below it the 95 % interval of that mean "
    "(Student's t; of one draw, over its seeds). Every run is of the same test texts, which chose nothing."
)


def write_page(
    results: Results,
    methods: Sequence[str],
    labels: Sequence[int | None],
    rows: Sequence[int],
    out: Path,
    *,
    largest: Mapping[str, float] | None = None,
) -> Path:
    """Write report.html, report.json and figures/ into `out` and return the page's path. `rows`: of each class.
    `largest`: the figures of always saying the largest class of the test rows."""
    sections, charts = [], []
    for figure in FIGURES:
        found = {(m, n): summarise(results.of(m, n), figure) for m in methods for n in labels}
        table = _table(found, methods, labels, rows, (largest or {}).get(figure))
        sections.append(Section(figure.replace("_", "-"), tables=[table]))
        charts.append(_chart(found, methods, labels, figure))
    sections[0].charts = charts
    if failed := _failed(results, methods, labels):
        sections.append(Section("Runs that failed", tables=[Table(["run and figure"], [[line] for line in failed])]))
    write_figures(charts, out / "figures")
    return Report("How good with how many labels", sections=sections).write(out)


def shown(summary: Summary | None) -> str:
    """A figure times 100 with half of its interval, as a table has it."""
    if summary is None:
        return "–"
    half = (summary.high - summary.low) / 2
    return f"{100 * summary.mean:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")


def _table(
    found: dict[tuple[str, int | None], Summary | None],
    methods: Sequence[str],
    labels: Sequence[int | None],
    rows: Sequence[int],
    largest: float | None,
) -> Table:
    lines: list[list[Cell]] = [[method, *(shown(found[method, n]) for n in labels)] for method in methods]
    if largest is not None:
        lines.append([LARGEST, *(f"{100 * largest:.1f}" for _ in labels)])
    lines.append(["draws (runs)", *(_counted([found[m, n] for m in methods]) for n in labels)])
    return Table(["× 100", *(_head(n, rows) for n in labels)], lines, note=NOTE)


def _head(labels: int | None, rows: Sequence[int]) -> str:
    """How many labels a class were asked for, and where there are fewer: how many there were."""
    head = f"{labels or ALL} a class"
    if labels is None or labels <= min(rows):
        return head
    least, most = min(rows), min(labels, max(rows))
    return f"{head} ({least if least == most else f'{least}–{most}'} there)"


def _counted(summaries: Sequence[Summary | None]) -> str:
    known = [s for s in summaries if s is not None]
    return f"{max(s.draws for s in known)} ({max(s.runs for s in known)})" if known else "–"


def _chart(
    found: dict[tuple[str, int | None], Summary | None],
    methods: Sequence[str],
    labels: Sequence[int | None],
    figure: str,
) -> Chart:
    """Over the logarithm of the labels: each doubling is a step. All labels stand one step behind the last number."""
    numbers = [n for n in labels if n is not None]
    places = {n: math.log2(n) for n in numbers} | {None: (math.log2(numbers[-1]) if numbers else 0) + 2}
    series = {
        method: [(places[n], 100 * s.mean) for n in labels if (s := found[method, n]) is not None] for method in methods
    }
    return Chart(f"{figure} by labels", "log2 of the labels a class (all: at the right end)", f"{figure} × 100", series)


def _failed(results: Results, methods: Sequence[str], labels: Sequence[int | None]) -> list[str]:
    lines: list[str] = []
    for method in methods:
        for number in labels:
            summary = summarise(results.of(method, number), FIGURES[0])
            lines += summary.failed if summary else [f"{m.cell.name}: {m.error}" for m in results.of(method, number)]
    return lines
