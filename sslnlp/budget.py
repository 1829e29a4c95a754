"""From wall clock to a number of steps: measured first, then fixed, so a run under a budget resumes exactly."""

from __future__ import annotations

import copy
import re
import statistics
import time
from typing import TYPE_CHECKING

from sslnlp import distributed
from sslnlp.errors import UserError
from sslnlp.windows import iterate

if TYPE_CHECKING:
    from sslnlp.train import Trainer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `10m`, `1.5h`, `1h30m`, `2d`."""
    compact = text.replace(" ", "").lower()
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", compact):
        raise UserError(f"cannot read the duration {text!r}; write for instance 90s, 10m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", compact))
    if seconds <= 0:
        raise UserError(f"a budget of {text!r} leaves no time to train")
    return seconds


def calibrate(trainer: Trainer, seconds: float, *, least: int = 3) -> int:
    """The number of steps that fit in `seconds`.

    Runs the first updates for about 3 % of the budget (at least `least` after one to warm up), takes the median time of
    a step, and puts weights and optimiser back: training itself then starts at step 0 with its schedule known. One
    evaluation is timed too; what the run's evaluations will take is set aside.
    """
    began = time.perf_counter()
    before = copy.deepcopy(trainer.objective.state_dict())
    trainer.module.train()
    times: list[float] = []
    batches = iterate(trainer.stream, trainer.collator, trainer.windows(), start=0, stop=10_000, workers=0)
    mark = time.perf_counter()
    for step, window in batches:
        trainer.train_step(window, step, 10_000)
        now = time.perf_counter()
        times.append(now - mark)
        mark = now
        # Every rank must leave at the same step: rank 0's clock decides.
        enough = len(times) > least and now - began > 0.03 * seconds
        if distributed.broadcast_number(float(enough)):
            break
    evaluation = 0.0
    if trainer.evaluate is not None:
        trainer.objective.eval()
        with distributed.alone():
            trainer.evaluate(trainer.objective)
        evaluation = time.perf_counter() - mark
    trainer.objective.load_state_dict(before)
    trainer.optimizer = trainer._new_optimizer()
    cost, every = statistics.median(times[1:]), trainer.config.eval_every
    left = seconds - (time.perf_counter() - began)
    if every is None:
        left -= 10 * evaluation  # a tenth of the run between evaluations, however long it is
    else:
        cost += evaluation / every
    return int(distributed.broadcast_number(float(max(1, int(max(left, 0.2 * seconds) / cost)))))
