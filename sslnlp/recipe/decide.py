"""What held-out texts settle about a classifier's export: the temperature of its probabilities, and its thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sslnlp.data.stream import Stream, in_runs
from sslnlp.evaluation.calibration import calibration_figures, f1_thresholds, unknown_figures
from sslnlp.evaluation.held_out import predict_rows
from sslnlp.objectives.base import Objective
from sslnlp.recipe.build import Parts
from sslnlp.recipe.held_out import SETTLED, HeldOut
from sslnlp.writing import write_lines

LEAST = 50
"""Held-out texts from which on something is settled by them."""
PREDICTIONS = "held_out.jsonl"


@dataclass
class Decided:
    """What was settled."""

    figures: dict[str, float] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the export's configuration."""
    temperature: float = 1.0


def decide(parts: Parts, objective: Objective, read: HeldOut | None, out: Path) -> Decided:
    """Write what was said of each held-out text to `out/held_out.jsonl`, and settle what that tells. `read`: the last
    held-out pass, which was over this objective.

    Of one class a text: the temperature, and with `data.out_of_scope` the probability below which a text is `unknown`.
    Of several: a threshold for each class. Neither temperature nor thresholds of classes from fewer than 50 texts.
    """
    from scipy.special import expit, softmax

    decided, kind = Decided(), parts.collator.label_kind
    if read is None or kind not in SETTLED:
        return decided
    predicted = _plain(read.predicted)
    if kind == "number":
        _write(out, parts, predicted["predicted"].tolist(), predicted["labels"].tolist(), [])
        return decided
    logits_NC, labels = predicted["logits"].astype(np.float64), predicted["labels"]
    enough = len(logits_NC) >= LEAST
    if kind == "several":
        probability_NC = expit(logits_NC)
        if enough:
            decided.fields["thresholds"] = [round(t, 6) for t in f1_thresholds(probability_NC, labels > 0.5)]
        least = np.array(decided.fields.get("thresholds", 0.5))
        names = parts.label_names or []
        said = [[names[c] for c in np.flatnonzero(row)] for row in probability_NC >= least]
        truth = [[names[c] for c in np.flatnonzero(row)] for row in labels > 0.5]
        _write(out, parts, said, truth, [])
        return decided
    if enough:
        decided.figures = calibration_figures(logits_NC, labels)
        decided.temperature = decided.figures["temperature"]
    shares_NC = softmax(logits_NC / decided.temperature, axis=-1)
    names = parts.label_names or []
    said = [names[c] for c in shares_NC.argmax(-1)]
    _write(out, parts, said, [names[c] for c in labels], shares_NC.max(-1).tolist())
    if parts.out_of_scope is not None:
        logits_MC = _predict(parts, objective, Stream.fixed(parts.out_of_scope))["logits"].astype(np.float64)
        known_N, unknown_M = (softmax(x / decided.temperature, axis=-1).max(-1) for x in (logits_NC, logits_MC))
        decided.figures |= unknown_figures(known_N, unknown_M)
        decided.fields["unknown_below"] = round(decided.figures["unknown_below"], 6)
    return decided


def _predict(parts: Parts, objective: Objective, stream: Stream) -> dict[str, Any]:
    size, device = max(32, parts.recipe.train.batch_size), objective.device
    return _plain(predict_rows(objective, parts.collator, stream, batch_size=size, device=device))


def _plain(found: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (rows.float() if rows.is_floating_point() else rows).numpy() for name, rows in found.items()}


def _write(out: Path, parts: Parts, said: list[Any], truth: list[Any], probability: list[float]) -> None:
    sure = [{"probability": round(p, 6)} for p in probability] or [{}] * len(said)
    lines = zip(_texts(parts), truth, said, sure, strict=True)
    write_lines(out / PREDICTIONS, ({**row, "label": label, "predicted": found, **p} for row, label, found, p in lines))


def _texts(parts: Parts) -> Iterator[dict[str, str]]:
    assert parts.valid is not None
    for rows in in_runs(parts.valid):
        for row in rows:
            yield {name: str(row[name]) for name in ("text", "text_pair") if name in row}


def settle(objective: Objective, decided: Decided) -> None:
    """Put what was settled where the export finds it."""
    objective.calibrate(decided.temperature)
    objective.model.config.update(decided.fields)
