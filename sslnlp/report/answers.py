"""What a classifier said of the held-out texts: what it confuses, where it was sure and wrong, how sure it may be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslnlp.errors import UserError
from sslnlp.evaluation.calibration import reliability
from sslnlp.report.page import Cell, Chart, Section, Table

FILE = "held_out.jsonl"
WHOLE, PAIRS, MISTAKES = 20, 20, 20
"""Classes up to which the confusion matrix is shown whole; of more, the most frequent confusions. Mistakes shown."""
_LONGEST = 200


def answer_sections(name: str, run: Path) -> list[Section]:
    """The sections of one run with a class or several a text; none where it left no answers."""
    path = run / FILE
    if not path.is_file():
        return []
    try:
        with open(path, encoding="utf-8") as lines:  # `splitlines` would cut a text at U+2028, which JSON keeps
            answers = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not answers or isinstance(answers[0]["label"], float):
        return []
    single = isinstance(answers[0]["label"], str)
    tables = [_confusion(answers)] if single else [_by_class(answers)]
    charts: list[Chart] = []
    if single and "probability" in answers[0]:
        tables.append(_mistakes(answers))
        charts.append(_calibration(answers))
    return [Section(f"What it answers ({name})", tables=tables, charts=charts)]


def _confusion(answers: Sequence[dict[str, Any]]) -> Table:
    pairs = Counter((a["label"], a["predicted"]) for a in answers)
    names = sorted({name for pair in pairs for name in pair})
    if len(names) <= WHOLE:
        rows: list[list[Cell]] = [[name, *(pairs[name, other] for other in names)] for name in names]
        return Table(["is, down; called, across", *names], rows, title="Confusion matrix")
    of = Counter(a["label"] for a in answers)
    wrong = [(pair, number) for pair, number in pairs.most_common() if pair[0] != pair[1]][:PAIRS]
    rows = [[label, called, number, of[label]] for (label, called), number in wrong]
    return Table(["is", "called", "texts", "of"], rows, title=f"Most frequent confusions of {len(names)} classes")


def _by_class(answers: Sequence[dict[str, Any]]) -> Table:
    names = sorted({name for a in answers for name in (*a["label"], *a["predicted"])})
    rows: list[list[Cell]] = []
    for name in names:
        true = [name in a["label"] for a in answers]
        said = [name in a["predicted"] for a in answers]
        both = sum(t and s for t, s in zip(true, said, strict=True))
        rows.append([name, sum(true), sum(said), _share(both, sum(said)), _share(both, sum(true))])
    return Table(["class", "texts", "said of", "precision", "recall"], rows, title="Class by class")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mistakes(answers: Sequence[dict[str, Any]]) -> Table:
    wrong = [a for a in answers if a["label"] != a["predicted"]]
    rows: list[list[Cell]] = [
        [f"{a['probability']:.2f}", a["predicted"], a["label"], " ⟂ ".join(_texts(a))]
        for a in sorted(wrong, key=lambda a: -a["probability"])[:MISTAKES]
    ]
    note = "Labels that people got wrong are found here first."
    return Table(["sure", "called", "is", "text"], rows, title="Most confident mistakes", note=note)


def _texts(answer: dict[str, Any]) -> list[str]:
    found = [str(answer[name]) for name in ("text", "text_pair") if name in answer]
    return [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in found]


def _calibration(answers: Sequence[dict[str, Any]]) -> Chart:
    sure = np.array([a["probability"] for a in answers])
    right = np.array([a["label"] == a["predicted"] for a in answers])
    points = [(mean, share) for mean, share, _ in reliability(sure, right)]
    series = {"of the held-out texts": points, "as it should be": [(0.0, 0.0), (1.0, 1.0)]}
    return Chart("How often it is right when it is so sure", "probability of the answer", "share that is right", series)
