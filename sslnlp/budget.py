"""From wall clock to a number of steps and back: the parts of a run are timed first, and added up.

Under a budget the number is then fixed and recorded, so a run resumes exactly.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from sslnlp import distributed
from sslnlp.checkpoint import save_checkpoint
from sslnlp.windows import Windows, iterate

if TYPE_CHECKING:
    from sslnlp.train import Trainer
    from sslnlp.train_config import TrainConfig

log = logging.getLogger(__name__)

clock = time.perf_counter
"""Seconds. `benchmarks.plan` puts the process's CPU seconds in its place, which a neighbour does not disturb."""

LEAST = 5
"""Updates that are timed at least, beside the first one."""

UNKNOWN = 10_000
"""Updates of a run whose number is not known yet: parts of it are looked at all along, wherever it will end."""

_ASIDE = ".measured-"
_GOLDEN = 0.6180339887498949
USUAL = 10
"""Held-out passes of a run."""
EVALUATING = 0.25
"""The most of a budget that goes to held-out passes, where the recipe does not say how far apart they are."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that the parts of a run take."""

    update: float
    """One update, its batches included."""
    first: float = 0.0
    """What the first update takes beyond that: kernels are set up, torch.compile compiles."""
    tokens: float = 0.0
    """Real tokens of an update, of this process."""
    evaluation: float = 0.0
    """One pass over the held-out rows; 0 where there are none."""
    checkpoint: float = 0.0

    def seconds(self, steps: int, config: TrainConfig) -> float:
        """What a run of `steps` updates takes."""
        evaluations, checkpoints = occasions(steps, config, evaluates=self.evaluation > 0)
        once_in_a_while = evaluations * self.evaluation + checkpoints * self.checkpoint
        return self.first + steps * self.update + once_in_a_while

    def steps(self, seconds: float, config: TrainConfig, *, spent: float = 0.0) -> int:
        """The updates that fit into `seconds` of which `spent` are gone, with their evaluations and checkpoints. A
        fifth of the time goes to updates in any case, and there is at least one."""
        least = max(1, int(0.2 * seconds / self.update))
        steps = max(least, int((seconds - spent) / self.update))
        while steps > least and (over := self.seconds(steps, config) - (seconds - spent)) > 0:
            # Half of what is too much: fewer steps have fewer evaluations too, where their distance is given.
            steps = max(least, steps - max(1, int(over / self.update / 2)))
        return steps

    def spread(self, seconds: float, config: TrainConfig, *, spent: float = 0.0) -> tuple[int, int | None]:
        """The updates that fit, as `steps` counts them, and how many lie between two held-out passes where these are to
        be fewer than ten: as many as fit into a quarter of the time (`EVALUATING`), at least the last."""
        passes = max(1, int(EVALUATING * seconds / self.evaluation)) if self.evaluation else USUAL
        if config.eval_every is not None or passes >= USUAL:
            return self.steps(seconds, config, spent=spent), None
        once = replace(config, eval_every=sys.maxsize)
        steps = self.steps(seconds, once, spent=spent + (passes - 1) * (self.evaluation + self.checkpoint))
        return steps, math.ceil(steps / passes)


def distances(steps: int, config: TrainConfig) -> tuple[int, int]:
    """Updates from one evaluation to the next, and from one checkpoint to the next: a tenth of the run where nothing
    else is given, rounded up, so that there are ten at most."""
    tenth = max(1, math.ceil(steps / USUAL))
    return config.eval_every or tenth, config.save_every or tenth


def occasions(steps: int, config: TrainConfig, *, evaluates: bool = True) -> tuple[int, int]:
    """How many evaluations and checkpoints a run of `steps` updates has. Each evaluation is taken to be the best so
    far, which saves the weights: so it is while a model learns."""
    eval_every, save_every = distances(steps, config)
    evaluations = {*range(0, steps + 1, eval_every), steps} - {0} if evaluates else set()
    checkpoints = {*range(0, steps + 1, save_every), steps} - {0} | evaluations
    at_the_start = config.budget is not None or config.on_nonfinite == "rollback"
    return len(evaluations), len(checkpoints) + at_the_start


def calibrate(trainer: Trainer, seconds: float) -> tuple[int, int | None]:
    """The number of steps that fit in `seconds`, the time it takes to find out included, and the distance of held-out
    passes (`Pace.spread`).

    About 3 % of the budget goes to timing; weights and optimiser are put back: training itself then starts at step 0
    with its schedule known. What the run's evaluations and checkpoints will take is set aside.
    """
    began = clock()
    if trainer.accelerator.is_main_process:
        for left_over in trainer.out.glob(f"{_ASIDE}*"):  # by a run that was killed here
            shutil.rmtree(left_over, ignore_errors=True)
    before = copy.deepcopy(trainer.objective.state_dict())
    pace = measure(trainer, **limits(seconds))
    trainer.objective.load_state_dict(before)
    trainer.reset()
    found = replace(pace, first=0.0).spread(seconds, trainer.config, spent=clock() - began)
    steps, eval_every = (int(distributed.broadcast_number(float(number or 0))) for number in found)
    config = replace(trainer.config, eval_every=eval_every or trainer.config.eval_every)
    timing = clock() - began
    passes = occasions(steps, config)[0] + (trainer.timed is None)  # then a whole one was timed
    if passes * pace.evaluation > seconds / 2:
        log.warning(
            "of the %.0f s of train.budget held-out passes take %.0f (%d of %.0f s): fewer held-out documents leave "
            "more for updates",
            *(seconds, passes * pace.evaluation, passes, pace.evaluation),
        )
    if (whole := timing + pace.seconds(steps, config)) > 1.5 * seconds:
        log.warning(
            "train.budget=%.0fs is short: %d update%s will take about %.0f s (%.1f each, a held-out pass %.1f, timing "
            "them took %.0f)",
            *(seconds, steps, "" if steps == 1 else "s", whole, pace.update, pace.evaluation, timing),
        )
    return steps, eval_every or None


def limits(budget: float) -> dict[str, float]:
    """How long updates are timed under a budget, in seconds: 3 % of it, up to 15 % where updates are slow."""
    return {"at_least": min(0.03 * budget, 60.0), "at_most": 0.15 * budget}


def measure(trainer: Trainer, *, at_least: float = 3.0, at_most: float = 30.0) -> Pace:
    """Time the parts of a run: a first update, then updates for `at_least` seconds and `LEAST` of them, but not much
    beyond `at_most`, one evaluation and one checkpoint (written aside, and removed).

    The updates are real ones, of rows from all over the run, as costs may change in it (a falling rate of masks, rows
    of unlike length). Leaves other weights, optimiser state and buffers behind than it found.
    """
    config, began = trainer.config, clock()

    def enough(updates: int) -> bool:
        nonlocal began
        now = clock()
        if updates == 1:  # torch.compile may take longer than all that is timed
            began = now
        return (updates > LEAST and now - began > at_least) or (updates > 1 and now - began > at_most)

    loads, works, tokens = time_updates(trainer, trainer.windows(), enough)
    load, work = _middle(loads[1:]), _middle(works[1:])
    hands = min(config.workers, distributed.own_cores() - 1)  # a worker without a core of its own hides nothing
    update = max(work, load / hands) if hands > 0 else work + load
    return Pace(
        update=update,
        first=max(0.0, loads[0] + works[0] - load - work),
        tokens=tokens / len(works),
        evaluation=_evaluation(trainer),
        checkpoint=_checkpoint(trainer),
    )


def time_updates(
    trainer: Trainer, windows: Windows, enough: Callable[[int], bool]
) -> tuple[list[float], list[float], float]:
    """Seconds that the batches and the work of each update took, and the tokens of all of them.

    `enough` is told how many there were, after each; that of rank 0 counts.
    """
    config = trainer.config
    steps = config.steps or UNKNOWN
    trainer.collator.horizon = steps * windows.rows
    # Steps come in no order, so a rate that matters would have no warm-up and could break the weights.
    trainer.config = replace(config, lr=1e-9)
    trainer.module.train()
    loads: list[float] = []
    works: list[float] = []
    tokens = 0.0
    for k in count():
        step = int(k * _GOLDEN % 1 * steps)  # even all over the run, wherever the count stops
        trainer.stream.index(windows.positions(step, 0))  # a block of rows is put in order once, not for each update
        mark = clock()
        ((_, window),) = iterate(trainer.stream, trainer.collate, windows, start=step, stop=step + 1, workers=0)
        loaded = clock()
        tokens += float(trainer.train_step(window, step, steps)["tokens"])  # also waits for the device
        loads.append(loaded - mark)
        works.append(clock() - loaded)
        # Every rank must leave at the same update.
        if distributed.broadcast_number(float(enough(k + 1))):
            break
    trainer.config = config
    return loads, works, tokens


def _middle(values: Sequence[float]) -> float:
    """The mean of the middle half: deaf to a stolen core as the median is, but not to rows of unlike length."""
    drop = len(values) // 4
    return statistics.fmean(sorted(values)[drop : len(values) - drop])


def _evaluation(trainer: Trainer) -> float:
    """Seconds of a held-out pass."""
    if trainer.evaluate is None:
        return 0.0
    walk, times = trainer.timed or (trainer.evaluate, 1.0)
    trainer.objective.eval()
    with distributed.alone():
        if trainer.timed:
            walk(trainer.objective)  # the first batches of a shape set up kernels: not as many times over
        began = clock()
        walk(trainer.objective)
        seconds = (clock() - began) * times
    trainer.module.train()
    return seconds


def _checkpoint(trainer: Trainer) -> float:
    began = clock()
    parts = trainer.parts()
    if trainer.accelerator.is_main_process:
        with tempfile.TemporaryDirectory(dir=nearest_folder(trainer.out), prefix=_ASIDE) as aside:
            save_checkpoint(Path(aside), 0, parts, {"facts": trainer.facts})
    distributed.wait()
    return clock() - began


def nearest_folder(path: Path) -> Path:
    """`path` or the nearest folder above it that is there: on the disk that `path` will be on."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
