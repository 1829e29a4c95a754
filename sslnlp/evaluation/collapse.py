"""Collapse: the vectors of a run becoming one, or lying in a few directions, told while it trains."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

FIGURES = ("spread", "compared_spread", "effective_rank")
"""What falls in a collapse (`objectives.embedding.live`)."""

FLOOR = {"effective_rank": 1.0}
"""Where a figure is when all vectors are one; 0 for the others."""

FALLEN = 0.2
"""A figure has fallen when no more than this share of its best is left above the floor."""

PATIENCE = 3
"""Logs in a row: a young run swings."""


@dataclass
class CollapseWatch:
    """Called with the training figures of every log; the first time that a run is collapsing it logs one line.

    A run is judged by itself: a fresh model's vectors are all alike, and a healthy run pulls them apart from there. A
    figure is down when it has lost four fifths of its best; down for three logs in a row is a collapse. Its best is
    where it began, or what it has held for as many logs: MoCo from vectors that are all alike first throws them far
    apart and back. Figures of the parts of a joint objective (`part/spread`) are watched like others; a run without
    them is not.
    """

    said: bool = False
    best: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Figure -> its best above the floor, and the loss at that time."""
    recent: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=PATIENCE)))
    """Figure -> its last values above the floor."""

    def __call__(self, step: int, values: Mapping[str, float]) -> str | None:
        """What is said at this step, after logging it; None otherwise."""
        for name, value in values.items():
            figure = name.rpartition("/")[2]
            if figure not in FIGURES or self.said:
                continue
            above = value - FLOOR.get(figure, 0.0)
            loss = values.get(name.removesuffix(figure) + "loss", values.get("loss", 0.0))
            best, before = self.best.setdefault(name, (above, loss))
            recent = self.recent[name]
            recent.append(above)
            if len(recent) < PATIENCE:
                continue
            if min(recent) >= best:
                self.best[name] = min(recent), loss
            elif max(recent) <= FALLEN * best:
                self.said = True
                line = (
                    f"step {step}: the vectors are collapsing: {name} is down to {value:.3g} from "
                    f"{best + FLOOR.get(figure, 0.0):.3g}; {_reason(figure, loss, before)}"
                )
                log.warning(line)
                return line
        return None


def _reason(figure: str, loss: float, before: float) -> str:
    """Why it might be, and what to do."""
    if loss > before:
        return "the loss has risen, so the run is diverging: lower train.lr or lengthen train.warmup"
    if figure == "effective_rank":
        return (
            "texts still differ, but in few directions: views that differ too little, or too little weight on features "
            "being different (covariance, off_diagonal)"
        )
    return (
        "the loss is falling with it, so agreement alone is rewarded: something has to keep texts apart (negatives, a "
        "variance term, a predictor and a slow copy); if it is there, lower train.lr"
    )
