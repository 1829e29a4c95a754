"""What a budget chooses: precision, rows an update, learning rate, held-out passes, dropout, an average of the weights.

`train.budget` says how long to train. What fits into that time depends on the machine, so a few updates are timed
first; the rest is a rule, fitted on small runs (`benchmarks.defaults`; the figures are in docs/pretraining.md). It
speaks where pretraining starts from fresh weights and the time was given on the command line; a key that was given
there too is never touched, and a recipe that says `budget` itself has said the rest as well.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslnlp import distributed
from sslnlp.architectures import SIZES
from sslnlp.budget import time_updates
from sslnlp.objectives.base import Objective
from sslnlp.precision import fitting_precision
from sslnlp.recipe.build import Parts, build_objective, processes
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.schema import Recipe, override
from sslnlp.sharding import sharding_asked
from sslnlp.train import Trainer
from sslnlp.train_config import parse_duration
from sslnlp.windows import Windows

OF_ROOT = 2.0
"""Tokens an update = this × √(tokens of the run): 2,048 at 1 M. The root is about the exponent that was found for
critical batch sizes (Bergsma et al., 2025: 0.46)."""
WIDTH = 256
"""Where a recipe's rate is right for updates of so many tokens. A narrower model takes more, by its width, a wider one
less, by the root of it: 512 wide, 1.4 times too low by the width."""
FASTEST = 1.5e-2
"""The highest rate that was measured to be worth it, of models up to `WIDTH` wide."""
EVALUATING = 0.1
"""Of the budget, given to held-out passes at most: a short run has fewer than ten."""
FRESH_PASSES = 4
"""Text read up to this often teaches nearly as much as new text (Muennighoff et al., 2023)."""
DROPOUT = 0.1
AVERAGED = 0.4
"""The share of the run that the average of the weights looks back on, where the text is read more often."""
LONGEST_MEMORY = 0.99999
"""Of that average: a budget of years asks for more, which rounds to a share of 1."""
ADAMW_TO_MUON = 0.25
"""AdamW's best rate beside Muon's (1e-3 to 4e-3), where it was asked for in the place of a recipe's Muon."""
TIMED_SHARE = 0.02
"""Of the budget, spent on timing updates of the smallest and of larger batches."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of an update with one process: what every update costs, and what a row adds to it."""

    fixed: float
    per_row: float

    def rows(self, seconds: float, tokens_a_row: float, *, processes: int = 1) -> float:
        """Rows an update, over all processes, whose tokens are `OF_ROOT` times the root of all tokens of the run.

        With B tokens an update, t(B) = a + p·B seconds each, B = c·√(S·B / t(B)) has one positive solution.
        """
        a, p = self.fixed, self.per_row / tokens_a_row / processes
        share = OF_ROOT**2 * seconds
        tokens = (math.sqrt(a * a + 4 * p * share) - a) / (2 * p) if p > 0 else share / a
        return tokens / tokens_a_row


def chooses(recipe: Recipe) -> bool:
    """Whether the budget of a resolved recipe has anything to choose."""
    fresh_text = recipe.model.pretrained is None and recipe.collator_class.reads == "tokens"
    return recipe.train.budget is not None and "train.budget" in recipe.given and fresh_text


def choose(parts: Parts, *, world: int | None = None) -> Parts:
    """The parts of a run with what its budget chooses: `parts.chosen`, empty where there is nothing to choose.

    world: processes of the run, where it is planned without them. Default: those launched together with this one.
    """
    recipe = parts.recipe
    if not chooses(recipe):
        return parts
    assert recipe.train.budget is not None
    seconds = parse_duration(recipe.train.budget)
    # First, because the speed is that of this precision. All processes take what the first of them found.
    half = distributed.broadcast_number(float(fitting_precision(processes().device) == "bf16"))
    precision = {"train.precision": "bf16" if half else "no"}
    found = rule(
        recipe,
        speed=timed(parts.under(apply(recipe, precision), {}), TIMED_SHARE * seconds),
        seconds=seconds,
        rows_of_data=len(parts.stream),
        rows_held_out=len(parts.valid) if parts.valid is not None else 0,
        tokens_a_row=parts.max_length,
        processes=world or distributed.world_size(),
    )
    if sharding_asked() is not None:  # cut weights have no average
        del found["train.ema"]
    chosen = {key: value for key, value in (precision | found).items() if key not in recipe.given}
    return parts.under(apply(recipe, chosen), chosen)


def chosen_before(out: Path) -> dict[str, Any]:
    """What was chosen when the run in `out` began: it goes on with that, whatever the machine does today."""
    path = out / "recipe.json"
    return dict(read_biography(path).get("chosen", {})) if path.is_file() else {}


def rule(
    recipe: Recipe,
    *,
    speed: Speed,
    seconds: float,
    rows_of_data: int,
    rows_held_out: int,
    tokens_a_row: int,
    processes: int,
) -> dict[str, Any]:
    """The rule itself: a pure function of the recipe, the speed, the time and the size of the data."""
    train, given, compared = recipe.train, recipe.given, recipe.objective_class.couples_rows
    if compared:  # fewer rows, or rows apart, are another task: they stay the recipe's, and so does the rate for them
        given = given | {"train.batch_size", "train.accumulate"}
    wished = speed.rows(seconds, tokens_a_row, processes=processes) / processes
    rows = 2 ** max(0, round(math.log2(wished)))
    # The recipe's own batch is what is known to fit into memory; more rows than that are accumulated.
    times = train.accumulate if "train.accumulate" in given else 1
    batch = train.batch_size if "train.batch_size" in given else max(1, min(rows // times, train.batch_size))
    accumulate = times if "train.accumulate" in given else max(1, rows // batch)
    updates = seconds / (speed.fixed + speed.per_row * batch * accumulate)
    passes = updates * batch * accumulate * processes / rows_of_data
    # A held-out pass has no backward one, so a row of it costs a third.
    evaluations = EVALUATING * seconds / max(speed.per_row * rows_held_out / 3, 1e-9)
    again = passes > FRESH_PASSES
    return {
        "train.batch_size": batch,
        "train.accumulate": accumulate,
        "train.lr": train.lr
        if compared
        else _learning_rate(recipe, batch * accumulate * processes * tokens_a_row, updates),
        # Where ten fit, the trainer's own tenth, of the updates that there will really be. Where fewer do, five: there
        # may be twice the updates that a few timed ones promise, and ten is the most.
        "train.eval_every": None if evaluations >= 10 else math.ceil(updates / min(5, max(1, evaluations))),
        "train.ema": min(LONGEST_MEMORY, round(max(0.0, 1 - 1 / (AVERAGED * updates)), 5))
        if again
        else recipe.train.ema,
        "model.dropout": DROPOUT if again else recipe.model.dropout,
    }


def _learning_rate(recipe: Recipe, tokens: float, updates: float) -> float:
    """The peak for so many updates of `tokens` tokens each: the recipe's, times their share of the tokens that the rule
    wants, and times what the width of the model asks for against `WIDTH`, which was measured. At most the fastest that
    was measured, or the recipe's where that is more; of a model that is wider, the recipe's."""
    width = int(recipe.model.config.get("hidden_size", SIZES[recipe.model.size].width))
    wider = WIDTH / width if width < WIDTH else (WIDTH / width) ** 0.5
    share_of_wished = tokens / (OF_ROOT * math.sqrt(updates * tokens))
    most = recipe.train.lr if width > WIDTH else max(recipe.train.lr, FASTEST)
    replaced = recipe.train.optimizer == "adamw" and "train.optimizer" in recipe.given
    share = ADAMW_TO_MUON if replaced else 1.0
    return float(f"{share * min(most, recipe.train.lr * wider * share_of_wished):.2g}")


def settle_rate(parts: Parts, objective: Objective) -> Parts:
    """The parts of a run with the learning rate that `train.relative_lr` asks for, which is then among the chosen."""
    train = parts.recipe.train
    if train.relative_lr is None:
        return parts
    rate = {"train.lr": distributed.broadcast_number(train.for_weights(objective.model).lr)}
    return replace(parts, recipe=override(parts.recipe, rate), chosen=parts.chosen | rate)


def apply(recipe: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """The recipe with what was chosen, but for what was given."""
    return override(recipe, {key: value for key, value in chosen.items() if key not in recipe.given})


def timed(parts: Parts, seconds: float) -> Speed:
    """The speed of updates of this recipe here, from batches that grow from 4 rows until about `seconds` are gone."""
    train = parts.recipe.train
    config = replace(train, budget=None, trackers=[], compile=False)
    times: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as aside:
        trainer = Trainer(build_objective(parts), parts.collator, parts.stream, config, out=Path(aside))
        began, rows = time.perf_counter(), min(4, train.batch_size)
        while True:
            times[rows] = _update(trainer, rows)
            enough = rows == train.batch_size or (len(times) > 1 and time.perf_counter() - began > seconds)
            if distributed.broadcast_number(float(enough)):
                break
            rows = min(4 * rows, train.batch_size)
    (small, least), (large, most) = min(times.items()), max(times.items())
    per_row = max(0.0, (most - least) / (large - small)) if large > small else least / small
    fixed = max(0.0, least - per_row * small)
    return Speed(fixed=distributed.broadcast_number(fixed), per_row=distributed.broadcast_number(per_row))


def _update(trainer: Trainer, rows: int) -> float:
    """Seconds of the faster of two updates of `rows` rows a process, after one to warm up."""
    windows = Windows(batch_size=rows, accumulate=1, world=distributed.world_size(), rank=distributed.rank())
    loads, works, _ = time_updates(trainer, windows, lambda updates: updates == 3)
    return min(load + work for load, work in zip(loads[1:], works[1:], strict=True))
