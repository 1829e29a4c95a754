"""`sslnlp plan`: what a run will cost, counted and measured, before it is started."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslnlp.budget import parse_duration
from sslnlp.models import count_parameters
from sslnlp.objectives.base import Objective
from sslnlp.recipe.build import Parts, build_objective, build_parts, resolve
from sslnlp.recipe.schema import Recipe
from sslnlp.train import Trainer
from sslnlp.types import Batch, Encoding
from sslnlp.windows import Windows, iterate

TIMED_STEPS = 4


def plan(recipe: Recipe, *, console: Console | None = None) -> dict[str, float]:
    """Print and return the plan of a recipe: parameters, tokens, FLOPs a token, memory, speed, time.

    The speed is that of a few real updates on this machine, after one to warm up. Nothing is written to `out`.
    """
    console = console or Console()
    recipe, _ = resolve(recipe)
    parts = build_parts(recipe)
    objective = build_objective(parts)
    figures = _count(parts, objective) | _measure(parts, objective)
    figures |= _expect(recipe, figures)
    table = Table("", "", title=f"plan of {recipe.name}", show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), _UNITS[name](value))
    console.print(table)
    return figures


def _count(parts: Parts, objective: Objective) -> dict[str, float]:
    """What follows from shapes alone, on the first micro-batch of the run."""
    train = parts.recipe.train
    batch = parts.collator(parts.stream.rows(range(train.batch_size)))
    encodings = [part for part in (batch, *batch.values()) if isinstance(part, dict) and "input_ids" in part]
    tokens = sum(int(encoding["attention_mask"].sum()) for encoding in encodings)
    slots = sum(encoding["input_ids"].numel() for encoding in encodings)
    return {
        "parameters": count_parameters(objective),
        "rows": len(parts.stream),
        "tokens_of_the_data": parts.facts.get("tokens", math.nan),
        "tokens_an_update": tokens * train.accumulate,
        "padding": 1 - tokens / slots,
        "scored": _scored(batch, tokens),
        "flops_a_token": flops_per_token(objective.model, batch, encodings),
        "memory": memory_estimate(objective, slots, _scored(batch, tokens) * tokens),
    }


def _scored(batch: Batch, tokens: int) -> float:
    """The share of tokens whose prediction is scored; 0 when the targets are not tokens."""
    labels = batch.get("labels")
    return int((labels != -100).sum()) / tokens if labels is not None and labels.ndim == 2 else 0.0


def flops_per_token(model: PreTrainedModel, batch: Batch, encodings: list[Encoding]) -> float:
    """Training FLOPs a token: 3 × (2·P + 4·layers·width·attended + 2·p·(width² + V·width)).

    P counts the matrices of the backbone without embeddings, `attended` is the mean number of tokens a token looks at
    (its document's, all heads), and p the share of positions whose vocabulary head is computed. The backward pass
    costs two forward ones, hence 3.
    """
    config = model.config
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    matrices = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear | Conv1D))
    lengths = torch.cat([_document_lengths(encoding) for encoding in encodings]).double()
    attended = float((lengths**2).sum() / lengths.sum())
    tokens = int(lengths.sum())
    head = width**2 + int(config.vocab_size) * width if model.get_output_embeddings() is not None else 0
    return 3 * (2 * matrices + 4 * layers * width * attended + 2 * _scored(batch, tokens) * head)


def _document_lengths(encoding: Encoding) -> torch.Tensor:
    """Tokens of each document (or row) of an encoding: int64 [documents]."""
    documents = encoding.get("document_ids")
    if documents is None:
        lengths: torch.Tensor = encoding["attention_mask"].sum(1)
        return lengths
    rows = torch.arange(len(documents))[:, None] * (documents.max() + 1)
    counts: torch.Tensor = torch.unique((rows + documents)[documents >= 0], return_counts=True)[1]
    return counts


def memory_estimate(objective: Objective, slots: int, scored: float) -> float:
    """Bytes of training, roughly: weights, gradients and two AdamW moments (16 a parameter); about 18 activations of
    the model's width a token and layer; logits, their softmax and gradient in float32 where a token is scored."""
    config = objective.model.config
    activations = 4 * 18 * slots * int(config.hidden_size) * int(config.num_hidden_layers)
    return 16 * count_parameters(objective) + activations + 12 * scored * int(config.vocab_size)


def _measure(parts: Parts, objective: Objective) -> dict[str, float]:
    """Updates a second and tokens a second of a few real updates."""
    config = replace(parts.recipe.train, trackers=[], workers=0, compile=False)
    with tempfile.TemporaryDirectory() as aside:
        trainer = Trainer(objective, parts.collator, parts.stream, config, out=Path(aside))
        trainer.module.train()
        windows = Windows(batch_size=config.batch_size, accumulate=config.accumulate)
        seconds, tokens = [], 0.0
        mark = time.perf_counter()
        stop = TIMED_STEPS + 1
        for step, window in iterate(parts.stream, parts.collator, windows, start=0, stop=stop, workers=0):
            sums = trainer.train_step(window, step, stop)
            tokens += float(sums["tokens"]) if step else 0.0  # also waits for the device
            seconds.append(time.perf_counter() - mark)
            mark = time.perf_counter()
    update = statistics.median(seconds[1:])
    return {
        "seconds_an_update": update,
        "tokens_a_second": tokens / sum(seconds[1:]),
        "peak_memory": _peak_memory(),
    }


def _peak_memory() -> float:
    """Bytes: the device's peak, or this process's on a CPU (everything it loaded included)."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def _expect(recipe: Recipe, figures: dict[str, float]) -> dict[str, float]:
    """How long the run is in updates, tokens and time; held-out passes and checkpoints come on top."""
    train = recipe.train
    rows = train.batch_size * train.accumulate
    if train.budget is not None:
        time_left = parse_duration(train.budget)
        steps = time_left / figures["seconds_an_update"]
    else:
        steps = float(train.steps or math.ceil((train.epochs or 0) * figures["rows"] / rows))
    return {
        "updates": float(int(steps)),
        "passes_over_the_data": steps * rows / figures["rows"],
        "tokens_seen": steps * figures["tokens_an_update"],
        "expected_time": steps * figures["seconds_an_update"],
    }


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:,.0f}"


def _bytes(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.0f} MB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


_UNITS: dict[str, Any] = {
    "parameters": _number,
    "rows": _number,
    "tokens_of_the_data": _number,
    "tokens_an_update": _number,
    "padding": lambda share: f"{100 * share:.1f} %",
    "scored": lambda share: f"{100 * share:.1f} % of the tokens",
    "flops_a_token": lambda flops: f"{flops / 1e6:,.2f} MFLOP",
    "memory": lambda size: f"{_bytes(size)} (estimate)",
    "seconds_an_update": lambda seconds: f"{seconds:.3f} (measured)",
    "tokens_a_second": lambda speed: f"{speed:,.0f} (measured)",
    "peak_memory": lambda size: f"{_bytes(size)} (measured)",
    "updates": _number,
    "passes_over_the_data": lambda passes: f"{passes:,.2f}",
    "tokens_seen": _number,
    "expected_time": _time,
}
