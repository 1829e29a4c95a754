"""metrics.jsonl: one JSON line per log, the record that curves and reports are drawn from; and trackers beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.writing import naming, write_lines

TRACKERS = ("tensorboard", "trackio")
REPORT = "report/"
"""Before the names of a report card's figures: the held-out pass has some of the same name."""


class MetricsLog:
    """Appends lines `{"step": ..., ...}` to `path`; on resume, forgets the lines of steps that will be run again."""

    def __init__(self, path: Path, *, resume_from: int | None = None) -> None:
        self.path = path
        if resume_from is not None:
            self.forget(resume_from)
        else:
            write_lines(self.path, [])

    def forget(self, after: int, *, but: Collection[str] = ()) -> None:
        """Takes out the lines of steps beyond `after`, which will be run again, but for those with a key of `but`."""
        lines = read_metrics(self.path)
        kept = [line for line in lines if line.get("step", 0) <= after or not line.keys().isdisjoint(but)]
        write_lines(self.path, kept)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line. A number that is not finite becomes a string: JSON has no NaN, and a curve must not hide one."""
        line = {"step": step} | {k: _plain(v) for k, v in values.items()}
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def tokens_per_second(path: Path) -> float:
    """That a finished run was trained at: the median over its log, so that a busy moment does not count."""
    speeds = [line["train/tokens_per_second"] for line in read_metrics(path) if "train/loss" in line]
    return float(statistics.median(speeds))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else str(value)
    return value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def check_trackers(names: list[str]) -> None:
    """Refuse unknown trackers, and known ones that are not installed, before anything trains."""
    import importlib.util

    for name in names:
        if name not in TRACKERS:
            raise UserError(f"unknown tracker {name!r} in train.trackers; accepted: {', '.join(TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"train.trackers names {name!r}, which is not installed; pip install 'sslnlp[trackers]'")
