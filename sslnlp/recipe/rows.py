"""The training rows as an objective sees them outside the loop: before its first update and after its last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from sslnlp.collators.image_text import ImageTextCollator
from sslnlp.data.stream import Stream
from sslnlp.distributed import world_size
from sslnlp.evaluation.held_out import by_length
from sslnlp.models import max_positions
from sslnlp.objectives.base import Objective
from sslnlp.recipe.build import Parts, processes
from sslnlp.recipe.checks import stock_config
from sslnlp.sharding import sharding_asked
from sslnlp.types import Batch, Encoding

ROWS = 16
"""That are read at a time to fit something to them: as many however the rows of an update are split."""
_READ, _ENCODED = 1000, 64
"""Rows that are read at a time to collect their captions, and captions that are encoded at a time."""
_LOOKED_AT, _TOLD = 512, 0.05


def first_rows(parts: Parts, stream: Stream | None, device: torch.device, most: int) -> Iterator[Batch]:
    """The rows that come first in a stream, at most so many, each once."""
    collator = parts.collator.for_evaluation(0)
    rows = 0 if stream is None else min(most, len(stream))
    for start in range(0, rows, ROWS):
        assert stream is not None
        yield send_to_device(collator(stream.rows(range(start, min(start + ROWS, rows)))), device)


def training_rows(parts: Parts, device: torch.device) -> Iterator[Batch]:
    """Every training row once, then every unlabelled one, each from short to long."""
    collator, size = parts.collator.for_evaluation(0), parts.recipe.train.batch_size
    for source in (parts.stream.source, parts.unlabelled):
        rows = Stream.fixed(source) if source is not None else None
        order = by_length(rows).tolist() if rows is not None else []
        for start in range(0, len(order), size):
            assert rows is not None
            yield send_to_device(collator(rows.rows(order[start : start + size])), device)


def remember(parts: Parts, objective: Objective) -> bool:
    """Let the objective keep what does not change in a run that reads its captions more than once; whether it did."""
    train = parts.recipe.train
    rows = (train.steps or 0) * train.batch_size * train.accumulate * world_size()
    again = rows > len(parts.stream) or (train.epochs or 0) > 1
    if not (objective.remembers and again) or sharding_asked() is not None:
        return False
    objective.to(processes().device).eval()
    objective.remember(_captions(parts, objective.device))
    return True


def _captions(parts: Parts, device: torch.device) -> Iterator[Encoding]:
    """Every caption of the training rows once, from short to long."""
    collator, rows = parts.collator, Stream.fixed(parts.stream.source)
    assert isinstance(collator, ImageTextCollator)
    found: dict[str, None] = {}
    for start in range(0, len(rows), _READ):
        for row in rows.rows(range(start, min(start + _READ, len(rows)))):
            found.update(dict.fromkeys(row["captions"]))
    captions = sorted(found, key=len)
    for start in range(0, len(captions), _ENCODED):
        yield send_to_device(collator.encode(captions[start : start + _ENCODED]), device)


def cut_short(parts: Parts) -> Iterator[str]:
    """A line for each length of the collator that a twentieth of the texts or more fill: longer ones lost their end.

    Of `_LOOKED_AT` training rows spread over all; not for rows of tokens, of which nothing is cut, nor for pictures.
    """
    collator = parts.collator.for_evaluation(0)
    limits = {option: getattr(collator, option) for option in collator.lengths}
    if not limits or collator.reads != "rows":
        return
    rows = Stream.fixed(parts.stream.source)
    spread = np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT)).astype(int).tolist()
    filled = {option: np.zeros(2, int) for option in limits}
    for option, tokens in _token_counts(collator(rows.rows(spread)), limits):
        filled[option] += int((tokens >= limits[option]).sum()), len(tokens)
    model = parts.recipe.model
    longest = max_positions(stock_config(model)) if model.pretrained else None
    for option, (full, texts) in filled.items():
        if full > _TOLD * texts:
            most = longest is not None and limits[option] >= longest
            yield (
                f"collator.{option}={limits[option]}: {full} of {texts} texts looked at fill it, and longer ones lose "
                f"their end; {'the model reads no more' if most else 'a larger one keeps more of them'}"
            )


def _token_counts(batch: Mapping[str, Any], limits: Mapping[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Of each encoding in a batch: the option that bounds its texts, and the tokens [N] of each."""
    for name, part in [("", batch), *batch.items()]:
        if isinstance(part, Mapping) and "attention_mask" in part and "document_ids" not in part:
            kind = next((option for option in (f"{name}_length", "document_length") if option in limits), "max_length")
            yield kind, part["attention_mask"].sum(1)
