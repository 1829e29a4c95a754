"""`sslnlp plan`: what a run will cost, counted and measured, before it is started."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sslnlp import budget, distributed
from sslnlp.budget import Pace, nearest_folder, occasions
from sslnlp.locks import Held, locked
from sslnlp.models import count_parameters
from sslnlp.objectives.base import Objective
from sslnlp.precision import float32_by_default
from sslnlp.quiet import quiet_loading
from sslnlp.recipe.build import Parts, build_objective, build_parts, cache_folder, processes, resolve
from sslnlp.recipe.checks import check_compared
from sslnlp.recipe.choose import choose, settle_rate
from sslnlp.recipe.costs import count, memory
from sslnlp.recipe.held_out import HeldOut
from sslnlp.recipe.rows import ROWS, first_rows, remember
from sslnlp.recipe.schema import Recipe
from sslnlp.sharding import sharding_asked
from sslnlp.sums import count_tokens
from sslnlp.train import Trainer
from sslnlp.train_config import TrainConfig, parse_duration
from sslnlp.types import Batch

BEGIN_BATCHES = 20
"""Batches that what comes before the first update (the fit of a head) is timed on."""
_ASIDE, _LOCK = ".plan-", "lock"


@float32_by_default()
@quiet_loading()
def plan(recipe: Recipe, *, world: int | None = None, console: Console | None = None) -> dict[str, float]:
    """Print and return the plan of a recipe: parameters, tokens, FLOPs a token, memory, speed, time.

    FLOPs and the memory of activations are counted on a micro-batch from the middle of the run, speed is that of real
    updates on this machine, one evaluation (a part of it) and one checkpoint are timed, and the rest is arithmetic.
    Makes the tokenizer and the token store that the run will find; nothing is written to `out`.

    Args:
        world: processes of the run. Default: those launched together with this one, or the environment's WORLD_SIZE.
            Where they are not there, each is taken to be as fast as this one alone: what they send is not counted.

    Returns:
        Name -> figure: bytes (`memory`, `peak_memory`, of one process), seconds, shares, or plain numbers. The
        `expected_time` is that of finding the data, of what comes `before_training` where anything does, and of
        `training`; Python's start and the export come on top.
    """
    recipe, inherited = resolve(recipe)
    with _processes(world) as world:
        main = processes().is_main_process
        figures, parts, objective = _built(recipe, world)
        check_compared(parts, world)
        began = budget.clock()
        if remember(parts, objective):
            figures["before_training"] = budget.clock() - began
        figures |= {"processes": world} | _count(parts, objective, world)
        if objective.begins:
            figures["before_training"] = figures.get("before_training", 0.0) + _beginning(parts, objective)
        pace, spent = _measure(parts, objective)
        figures |= {
            "seconds_an_update": pace.update,
            "tokens_a_second": pace.tokens * world / pace.update,
            "seconds_an_evaluation": pace.evaluation,
            "seconds_a_checkpoint": pace.checkpoint,
            "peak_memory": _peak_memory(),
        }
        figures |= _expect(parts.recipe.train, pace, spent, figures, world)
    parts_of_it = ("finding_the_data", "before_training", "training")
    figures["expected_time"] = sum(figures.get(name, 0.0) for name in parts_of_it)
    if main:
        (console or Console()).print(_table(f"plan of {recipe.name}", inherited | parts.chosen, figures))
    return figures


@contextlib.contextmanager
def _processes(world: int | None) -> Iterator[int]:
    """The number of processes of the run. A WORLD_SIZE that no launcher set is hidden: it would wait for the others."""
    by_hand = None if "LOCAL_RANK" in os.environ else os.environ.pop("WORLD_SIZE", None)
    try:
        processes()
        yield world or int(by_hand or distributed.world_size())
    finally:
        if by_hand is not None:
            os.environ["WORLD_SIZE"] = by_hand


def _built(recipe: Recipe, world: int) -> tuple[dict[str, float], Parts, Objective]:
    """The parts of the run with what its budget chooses, and how long they took to make, and to find when there."""
    cache = cache_folder(recipe)
    before = set(cache.glob("*/*"))
    began = budget.clock()
    parts = build_parts(recipe)
    made = budget.clock() - began
    if distributed.broadcast_number(float(set(cache.glob("*/*")) != before)):  # the run will find it instead
        began = budget.clock()
        parts = build_parts(recipe)
    resident = _resident("VmRSS")
    parts = choose(parts, world=world)
    objective = build_objective(parts)
    parts = settle_rate(parts, objective)
    found = budget.clock() - began
    figures = {
        "parameters": float(count_parameters(objective)),
        "rows": float(len(parts.stream)),
        "tokens_of_the_data": float(parts.facts.get("tokens", math.nan)),
        "before_the_model": resident,
        "preparation": made,
        "finding_the_data": found,
    }
    return figures, parts, objective


def _count(parts: Parts, objective: Objective, world: int) -> dict[str, float]:
    """What follows from a micro-batch in the middle of the run."""
    train, device = parts.recipe.train, processes().device
    steps = train.steps or budget.UNKNOWN
    rows = train.batch_size * train.accumulate * world
    parts.collator.horizon = steps * rows
    middle = steps // 2 * rows
    batch = parts.collator(parts.stream.rows(range(middle, middle + train.batch_size)))
    encodings = [part for part in (batch, *batch.values()) if isinstance(part, dict) and "attention_mask" in part]
    tokens = float(count_tokens(batch))
    counted = count(objective.to(device), batch, train)
    return {
        "padding": 1 - tokens / sum(encoding["attention_mask"].numel() for encoding in encodings),
        "scored": _scored(batch, tokens),
        "flops_a_token": counted.flops / tokens,
        "memory": memory(objective, train, counted.live, world=world, sharded=sharding_asked() is not None),
    }


def _scored(batch: Batch, tokens: float) -> float:
    """Predictions that are scored, for each token that is read; 0 when the targets are not tokens."""
    labels = batch.get("labels")
    return int((labels != -100).sum()) / tokens if labels is not None and labels.ndim == 2 else 0.0


def _beginning(parts: Parts, objective: Objective) -> float:
    """Seconds that the objective takes before its first update, from those for a few batches of the same rows."""
    device = objective.device
    batches = math.ceil(min(objective.begin_rows, len(parts.stream)) / ROWS)
    timed = min(batches, BEGIN_BATCHES)
    began = budget.clock()
    objective.begin(islice(first_rows(parts, parts.stream, device, objective.begin_rows), timed))
    return (budget.clock() - began) * batches / timed


def _measure(parts: Parts, objective: Objective) -> tuple[Pace, float]:
    """The pace of the run on this machine, timed aside on the disk of `out`; and the seconds that took, as it does in a
    run under a budget."""
    train = parts.recipe.train
    held_out = None if parts.valid is None else HeldOut(parts, parts.valid, batch_size=train.batch_size)
    with _aside(nearest_folder(Path(parts.recipe.out).expanduser())) as aside:
        trainer = Trainer(
            objective, parts.collator, parts.stream, replace(train, trackers=[]),
            out=aside, evaluate=held_out, timed=None if held_out is None else held_out.part(), facts=parts.facts,
        )  # fmt: skip
        _forget_peak()
        limits = {} if train.budget is None else budget.limits(parse_duration(train.budget))
        began = budget.clock()
        pace = budget.measure(trainer, **limits)
        return pace, budget.clock() - began


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder to measure in. What plans that were killed (memory may not have sufficed) have left of theirs goes: a
    checkpoint may be in it."""
    for former in folder.glob(f"{_ASIDE}*/{_LOCK}"):
        with contextlib.suppress(OSError, Held), locked(former, "planning"):
            shutil.rmtree(former.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_ASIDE) as aside, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(locked(Path(aside) / _LOCK, "planning"))
        yield Path(aside)


def _forget_peak() -> None:
    """From here on, `_peak_memory` is that of the updates: making the data may have needed more."""
    if distributed.own_device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux alone
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> float:
    """Bytes: the device's peak, or this process's on a CPU (Python, libraries and data included)."""
    on_gpu = distributed.own_device().type == "cuda"
    return float(torch.cuda.max_memory_allocated()) if on_gpu else _resident("VmHWM")


def _resident(kind: str) -> float:
    """Bytes of this process in memory: now (`VmRSS`) or at most (`VmHWM`); NaN where there is no /proc."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(kind))
    return math.nan


def _expect(train: TrainConfig, pace: Pace, spent: float, figures: Mapping[str, float], world: int) -> dict[str, float]:
    """How long the run is in updates, tokens and seconds."""
    rows = train.batch_size * train.accumulate * world
    if train.budget is None:
        steps = train.steps
        if steps is None:
            steps = max(1, math.ceil((train.epochs or 0) * figures["rows"] / rows))
        seconds = pace.seconds(steps, train)
    else:
        seconds = parse_duration(train.budget)
        steps, eval_every = replace(pace, first=0.0).spread(seconds, train, spent=spent)
        train = replace(train, eval_every=eval_every or train.eval_every)
    evaluations, checkpoints = occasions(steps, train, evaluates=pace.evaluation > 0)
    return {
        "tokens_an_update": pace.tokens * world,
        "updates": float(steps),
        "passes_over_the_data": steps * rows / figures["rows"],
        "tokens_seen": steps * pace.tokens * world,
        "evaluations": float(evaluations),
        "checkpoints": float(checkpoints),
        "training": seconds,
    }


def _table(title: str, chosen: Mapping[str, Any], figures: Mapping[str, float]) -> Table:
    """What was settled for the recipe, then its figures in the order and with the units of `_UNITS`."""
    table = Table("", "", title=title, show_header=False)
    for name, value in chosen.items():
        table.add_row(name, escape(str(value)))
    table.add_section()
    for name, shown in _UNITS.items():
        if name in figures:
            table.add_row(name.replace("_", " "), shown(figures[name]))
    return table


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
    "processes": _number,
    "tokens_an_update": _number,
    "padding": lambda share: f"{100 * share:.1f} %",
    "scored": lambda share: f"{100 * share:.1f} % of the tokens",
    "flops_a_token": lambda flops: f"{flops / 1e6:,.2f} MFLOP",
    "before_the_model": lambda size: f"{_bytes(size)} of memory (measured)",
    "memory": lambda size: f"{_bytes(size)} (counted, on top of that)",
    "peak_memory": lambda size: f"{_bytes(size)} in all (measured, of one process)",
    "preparation": lambda seconds: f"{_time(seconds)} (done)",
    "finding_the_data": lambda seconds: f"{seconds:.1f} s (measured)",
    "before_training": lambda seconds: f"{seconds:.1f} s (measured)",
    "seconds_an_update": lambda seconds: f"{seconds:.3f} (measured)",
    "tokens_a_second": lambda speed: f"{speed:,.0f} (measured)",
    "seconds_an_evaluation": lambda seconds: f"{seconds:.1f} (measured)",
    "seconds_a_checkpoint": lambda seconds: f"{seconds:.1f} (measured)",
    "updates": _number,
    "passes_over_the_data": lambda passes: f"{passes:,.2f}",
    "tokens_seen": _number,
    "evaluations": _number,
    "checkpoints": _number,
    "training": _time,
    "expected_time": _time,
}
