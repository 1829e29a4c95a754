"""The held-out pass: one walk over fixed rows with fixed draws, the same every time it is made."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib import import_module

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from sslnlp.arrays import Ints
from sslnlp.collators.base import Collator
from sslnlp.data.stream import Rows, in_runs
from sslnlp.distributed import alone
from sslnlp.errors import UserError
from sslnlp.evaluation.caveats import caveat
from sslnlp.nn import evaluating
from sslnlp.objectives.base import Objective
from sslnlp.signals import heed
from sslnlp.sums import add_sums, ratios


def _imported(module: str, name: str) -> Callable[[Mapping[str, Tensor]], dict[str, float]]:
    """The function, imported when it is called: most of them bring `evaluate` and scipy.stats, which no run that
    pretrains a language model has to wait for."""

    def measure(predicted: Mapping[str, Tensor]) -> dict[str, float]:
        found: dict[str, float] = getattr(import_module(f"sslnlp.evaluation.{module}"), name)(predicted)
        return found

    return measure


MEASURES = {
    "classification": _imported("classification", "classification_measures"),
    "detection": _imported("detection", "detection_measures"),
    "image_text": _imported("image_text", "image_text_measures"),
    "latent": _imported("latent", "latent_measures"),
    "multi_label": _imported("classification", "multi_label_measures"),
    "ordinal": _imported("classification", "ordinal_measures"),
    "ranking": _imported("ranking", "known_item_measures"),
    "regression": _imported("classification", "regression_measures"),
    "tagging": _imported("tagging", "tagging_measures"),
    "reranking": _imported("reranking", "reranking_measures"),
}


def evaluate_held_out(
    objective: Objective,
    collator: Collator,
    stream: Rows,
    *,
    batch_size: int,
    num_bytes: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    keep: dict[str, Tensor] | None = None,
    notes: list[str] | None = None,
) -> dict[str, float]:
    """`loss` and the objective's metrics over all rows of `stream`, weighted by targets, so batch size hardly matters.

    Draws (masks) depend on `seed` and position alone and not on the run's seed: every call sees the same ones, and
    runs compare. With `num_bytes` (UTF-8 bytes of the held-out text) an exact likelihood also gets `bits_per_byte` =
    loss x targets / (ln 2 x bytes), which compares across tokenizers. What the objective's `measures` need is kept for
    all rows: a row of logits or a vector each, or a score a token, never a token's logits. Each process scores
    everything by itself. `keep` gets what was predicted, in the order of `stream`, where `predict` says a row a text.
    `notes` gets a line where figures say little whatever they are (`caveats`): one candidate, one class.
    """
    collator = collator.for_evaluation(seed)
    sums: dict[str, Tensor] = {}
    targets, most = 0.0, 0
    kept: dict[str, list[Tensor]] = defaultdict(list)
    with evaluating(objective), alone(), torch.no_grad():
        order = by_length(stream) if collator.label_kind is not None else np.arange(len(stream))
        for start in range(0, len(stream), batch_size):
            heed()
            batch = collator(stream.rows(order[start : start + batch_size].tolist()))
            count = objective.num_targets(batch).reshape(-1)  # here, where nothing has to be waited for
            if not int(count.sum()):  # the mean over nothing: rows too short to have a target
                continue
            output, predicted = objective.scored(send_to_device(batch, device))
            add_sums(sums, output, count.to(device))
            targets, most = targets + float(count[0]), max(most, int(count[0]))
            for name, rows in predicted.items():
                kept[name].append(rows.cpu())
    if not sums:
        raise UserError("the held-out rows have no targets, so nothing can be measured; give a longer data.valid")
    figures = ratios(sums, targets)
    if objective.likelihood and num_bytes:
        figures["bits_per_byte"] = figures["loss"] * targets / (math.log(2) * num_bytes)
    joined = {name: torch.cat(parts) for name, parts in kept.items()}
    for measure in objective.measures:
        figures |= MEASURES[measure](joined)
    said = caveat(objective.measures, joined, most if objective.couples_rows else None)
    if notes is not None and said is not None:
        notes.append(said)
    if keep is not None:
        keep.update(_in_order(joined, order))
    return figures


def predict_rows(
    objective: Objective, collator: Collator, stream: Rows, *, batch_size: int, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """What the objective's `predict` says of labelled texts: CPU tensors, a row each, in the order of `stream`."""
    collator, order = collator.for_evaluation(0), by_length(stream)
    kept: dict[str, list[Tensor]] = defaultdict(list)
    with evaluating(objective), alone(), torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = send_to_device(collator(stream.rows(order[start : start + batch_size].tolist())), device)
            for name, rows in objective.predict(batch).items():
                kept[name].append(rows.cpu())
    return _in_order({name: torch.cat(parts) for name, parts in kept.items()}, order)


def _in_order(read: Mapping[str, Tensor], order: Ints) -> dict[str, Tensor]:
    """Rows that were read in `order`, where they stood."""
    back = torch.from_numpy(np.argsort(order))
    return {name: rows[back] for name, rows in read.items()}


def by_length(stream: Rows) -> Ints:
    """The positions of labelled texts from short to long: batches of like length have little padding."""
    lengths = [
        sum(len(value) for value in row.values() if isinstance(value, (str, list)))
        for rows in in_runs(stream)
        for row in rows
    ]
    return np.argsort(np.array(lengths), kind="stable").astype(np.int64)
