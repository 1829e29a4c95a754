"""The loop: next window, step, sometimes evaluate, sometimes save. It knows the two base classes and no objective.

An update is a function of (weights, optimiser state, step): rows, masks and dropout are keyed on their position, the
learning rate on the step. So a run that is killed and resumed, with other workers or split over other processes, goes
on with the same updates.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from sslnlp import distributed
from sslnlp.averaging import Average
from sslnlp.budget import calibrate, distances
from sslnlp.checkpoint import keep_last, load_checkpoint, newest_valid, place_of, save_checkpoint
from sslnlp.collators.base import Collator
from sslnlp.data.stream import Stream
from sslnlp.errors import UserError
from sslnlp.evaluation.chance import ChanceWatch
from sslnlp.evaluation.collapse import CollapseWatch
from sslnlp.finite import Finite, NonFiniteError
from sslnlp.heap import keep_freed_memory
from sslnlp.keyed import drop_the_same_again, row_keyed_dropout
from sslnlp.metrics import MetricsLog
from sslnlp.objectives.base import Objective
from sslnlp.optim import OPTIMIZERS, learning_rate_factor
from sslnlp.packed import takes_starts
from sslnlp.precision import new_accelerator, warn_if_slower
from sslnlp.progress import Progress
from sslnlp.sharding import gathered, load_whole, refill, shard, sharding_asked
from sslnlp.signals import Interrupted, Signals
from sslnlp.sums import Running, add_sums, count_tokens
from sslnlp.train_config import TrainConfig, parse_duration
from sslnlp.types import Batch, Row
from sslnlp.varlen import with_starts
from sslnlp.windows import Windows, iterate

__all__ = ["Interrupted", "NonFiniteError", "TrainConfig", "Trainer"]

log = logging.getLogger(__name__)
Evaluate = Callable[[Objective], Mapping[str, float]]


class Trainer:
    """Trains any objective on any collator's batches.

    Args:
        objective: the module that owns the model; moved to the device.
        collator: makes its batches; its `horizon` is set here.
        stream: rows by position.
        config: see `TrainConfig`.
        out: the run's folder: `state/` and `metrics.jsonl` are written here.
        evaluate: held-out figures of the objective, called every `eval_every` steps on each rank alike.
        timed: what stands in for `evaluate` where a budget asks how long that takes, and how many times as long it is.
        facts: recorded in every checkpoint (the resolved recipe).
        on_progress: called with (step, steps, metrics) after each log and held-out pass, for a progress bar.
    """

    def __init__(
        self,
        objective: Objective,
        collator: Collator,
        stream: Stream,
        config: TrainConfig,
        *,
        out: Path,
        evaluate: Evaluate | None = None,
        timed: tuple[Callable[[Objective], object], float] | None = None,
        facts: Mapping[str, Any] | None = None,
        on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    ) -> None:
        config = config.for_weights(objective.model)  # before they are cut over processes
        self.objective, self.collator, self.stream, self.config, self.out = objective, collator, stream, config, out
        self.evaluate, self.timed = evaluate, timed
        self.facts, self.on_progress = dict(facts or {}), on_progress
        sharding = sharding_asked()
        loggers: Any = list(config.trackers)
        self.accelerator = new_accelerator(
            config.precision, log_with=loggers or None, project_dir=str(out / "trackers")
        )
        self.device = self.accelerator.device
        distributed.wait()
        self.tells_starts = takes_starts(objective, self.device, config.precision)
        self._whole = objective
        if sharding is not None and distributed.world_size() > 1:
            if config.ema:
                raise UserError("train.ema keeps whole weights, which FSDP2 cuts up: use DDP, or leave train.ema out")
            self.objective = shard(objective, sharding, self.device)
        self.reset()
        module: Any = torch.compile(self.objective) if config.compile else self.objective
        self.module = module if self._sharded else self.accelerator.prepare(module)
        warn_if_slower(config.precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        # Under FSDP2 the optimiser's flag would have to be a tensor of all ranks, so there it is read at once.
        self._finite = Finite(late=self.device.type == "cuda" and not self._sharded)
        self._signals = Signals()
        self._logged: dict[str, float] = {}
        self._watch, self._chance = CollapseWatch(), ChanceWatch()

    # --- the page ----------------------------------------------------------------------------------------------------

    def fit(self, resume: bool = False) -> Objective:
        """Train to the end and return the objective, on its best weights when there was an evaluation.

        With `resume`, goes on from the newest valid checkpoint in `out/state`, or starts when there is none.
        """
        progress = self._start(resume)
        drop_the_same_again(self.objective)
        with self._signals:
            stop = 0
            if progress.owed:
                _, stop = self._evaluate(progress)
                self._save(progress)
            while progress.step < progress.steps and not stop:
                try:
                    self._run(progress)
                except NonFiniteError as error:
                    progress = self._roll_back(progress, error.step)
            if stop := self._signals.on_any_rank(self.device, at_once=True):  # it came during the last save
                raise Interrupted(progress.step, stop)
        self._finish(progress)
        return self.objective

    def _run(self, progress: Progress) -> None:
        windows = self.windows(progress)
        eval_every, save_every = distances(progress.steps, self.config)
        eval_every = progress.eval_every or eval_every
        running, clock = Running(progress.unlogged, self.device), time.perf_counter() - progress.unlogged_seconds
        self.module.train()
        batches = iterate(
            self.stream, self.collate, windows, start=progress.step, stop=progress.steps, workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        for step, window in batches:
            if step not in progress.skipped:
                running.add(self.train_step(window, step, progress.steps))
            progress.step = step + 1
            last = progress.step == progress.steps
            if running.sums and (progress.step % self.config.log_every == 0 or last):
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                self._log(progress, running, seconds)
            progress.owed = self.evaluate is not None and (progress.step % eval_every == 0 or last)
            saves = progress.step % save_every == 0 or last
            stop = self._signals.on_any_rank(self.device, at_once=progress.owed or saves)
            improved, paused = False, time.perf_counter()
            if progress.owed and not stop:
                improved, stop = self._evaluate(progress)
            if saves or improved or stop:
                progress.unlogged, progress.unlogged_seconds = running.so_far(), paused - clock
                self._save(progress)
            clock += time.perf_counter() - paused  # held-out passes and checkpoints are no training
            if stop:
                raise Interrupted(progress.step, stop)
        self._finite.settle()

    @property
    def collate(self) -> Callable[[Sequence[Row]], Batch]:
        """Makes the batches of `train_step`."""
        return with_starts(self.collator) if self.tells_starts else self.collator

    def train_step(self, window: Sequence[Batch], step: int, steps: int) -> dict[str, Tensor]:
        """One update from this rank's micro-batches: the loss is a mean over the targets of the window, all ranks.

        Returns sums over this rank (see `sums.add_sums`) with `targets` and `tokens`, on the device.
        Raises `NonFiniteError`, with the weights before the update it names: this one, or on a GPU the last one.
        """
        batches = [send_to_device(batch, self.device, non_blocking=True) for batch in window]
        counts = torch.stack([self.objective.num_targets(batch).to(self.device).reshape(-1) for batch in batches])
        total = distributed.all_reduce_sum(counts.sum(0).double())
        sums: dict[str, Tensor] = {
            "targets": counts[:, 0].sum().double(),
            "tokens": torch.stack([count_tokens(batch).to(self.device) for batch in batches]).sum(),
        }
        for i, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            with contextlib.ExitStack() as stack:
                if i < len(batches) - 1 and not self._sharded:  # kept back, the gradients would have to be whole
                    stack.enter_context(self.accelerator.no_sync(self.module))
                if "position" in batch:
                    stack.enter_context(row_keyed_dropout(self.config.seed, batch["position"]))
                with self.accelerator.autocast():
                    output = self.module(batch)
                terms = output.loss if output.terms is None else output.terms
                # Gradients are averaged over ranks, hence × world: what is left is the window's mean.
                weight = (count * distributed.world_size() / total.clamp(min=1)).to(terms.dtype)
                self.accelerator.backward((terms * weight).sum())
            add_sums(sums, output, count)
        norm = distributed.clip_gradients(self.objective, self.config.clip)
        self.optimizer.found_inf = self._finite.look(norm, step)  # type: ignore[attr-defined]
        self._set_lr(step, steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step((step + 1) / steps)
        if self.average is not None:
            self.average.update(step)
        return sums | {"gradient_norm": norm.double() * counts[:, 0].sum()}

    # --- beginning and end -------------------------------------------------------------------------------------------

    def _start(self, resume: bool) -> Progress:
        found = newest_valid(self.out / "state") if resume else None
        if found is not None:
            progress = self._restore(found)
        else:
            windows = self.windows()
            self._set_horizon(None)
            steps, eval_every = self._count_steps(windows.rows)
            progress = Progress(steps, windows.rows, windows.together, eval_every=eval_every)
        self._set_horizon(progress)
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            self.metrics = MetricsLog(self.out / "metrics.jsonl", resume_from=progress.step if found else None)
            if found is not None:  # a kill may have come before the last save had removed what was over
                self._keep_last(progress, newest=found)
        if self.config.trackers:
            self.accelerator.init_trackers(self.out.name or "run", config=None)
        if found is None and (self.config.budget is not None or self.config.on_nonfinite == "rollback"):
            self._save(progress)  # the number of steps is fixed from here on, and there is something to roll back to
        if found is None and 0 < progress.steps <= self.config.warmup:
            log.warning(
                "train.warmup=%g: all %d updates are warm-up, and the rate never falls; a share such as 0.05 is of "
                "the run's length", self.config.warmup, progress.steps,
            )  # fmt: skip
        return progress

    def _count_steps(self, rows: int) -> tuple[int, int | None]:
        """How many there are, and how far apart held-out passes are where a budget says so."""
        config = self.config
        if config.steps is not None:
            return config.steps, None
        if config.epochs is not None:
            return max(1, math.ceil(config.epochs * len(self.stream) / rows)), None
        if config.budget is None:
            raise UserError("say how long to train: train.steps=1000, train.epochs=3 or train.budget=10m")
        found = calibrate(self, parse_duration(config.budget))
        self._finite.settle()
        return found

    @property
    def _sharded(self) -> bool:
        """The weights are cut over the processes, those of `_whole` being away until the end."""
        return self.objective is not self._whole

    def _finish(self, progress: Progress) -> None:
        if self._sharded:
            refill(self._whole, self.objective, self.device)
            self.objective = self.module = self._whole
        best = progress.best_step
        if self.config.keep_best and best is not None and best != progress.step:
            try:
                parts, _ = load_checkpoint(self._checkpoint(best))
            except UserError as error:  # nothing would make them again, and without the last ones the run had no end
                log.warning("the best weights, of step %d, are lost, and the last are kept instead: %s", best, error)
                progress.best_step = None
            else:
                self.objective.load_state_dict(parts["objective"])
                if self.average is not None:
                    self.average.load(parts["average"])
        if self.average is not None:
            self.average.settle()
        self.objective.eval()
        self.progress = progress
        for tracker in self.accelerator.trackers:  # its `end_training` would part the processes, too
            tracker.finish()

    def windows(self, progress: Progress | None = None) -> Windows:
        """The windows of this rank: as configured, or those of the run being resumed on the processes there are now."""
        asked = Windows(
            batch_size=self.config.batch_size,
            accumulate=self.config.accumulate,
            world=distributed.world_size(),
            rank=distributed.rank(),
        )
        if progress is None:
            return asked
        fitted = asked.fit(rows=progress.rows, together=progress.together if self.objective.couples_rows else None)
        if fitted != asked:
            log.warning(
                "to keep %d rows an update: train.batch_size=%d train.accumulate=%d on each of %d processes",
                *(fitted.rows, fitted.batch_size, fitted.accumulate, fitted.world),
            )
        return fitted

    def _set_horizon(self, progress: Progress | None) -> None:
        self.collator.horizon = progress.steps * progress.rows if progress else None

    def reset(self) -> None:
        """The optimiser and the average of weights as they are before the first update."""
        config = self.config
        self.objective.to(self.accelerator.device)
        by_layer = {"layer_decay": config.layer_decay} if config.layer_decay < 1 else {}
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.objective, lr=config.lr, betas=tuple(config.betas), eps=config.eps, weight_decay=config.weight_decay,
            embedding_lr_scale=config.embedding_lr_scale,
            dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32, **by_layer,
        )  # fmt: skip
        self.average = Average(self.objective, config.ema) if config.ema else None

    def _set_lr(self, step: int, steps: int) -> None:
        config = self.config
        factor = learning_rate_factor(step, steps, schedule=config.schedule, warmup=config.warmup, decay=config.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor * group.get("lr_scale", 1.0)

    # --- once in a while ---------------------------------------------------------------------------------------------

    def _log(self, progress: Progress, running: Running, seconds: float) -> None:
        self._finite.settle()
        values = running.means()
        tokens = int(values.pop("tokens"))
        progress.tokens += tokens
        progress.seconds += seconds
        values |= {"lr": self.optimizer.param_groups[0]["lr"], "tokens_per_second": tokens / max(seconds, 1e-9)}
        self._write(progress.step, {f"train/{k}": v for k, v in values.items()} | {"train/tokens": progress.tokens})
        if self.accelerator.is_main_process:
            self._watch(progress.step, values)
            self._chance(progress.step, progress.steps, values)
        self._logged = values
        self._show(progress)

    def _show(self, progress: Progress) -> None:
        if self.on_progress is not None and self.accelerator.is_main_process:
            valid = {f"valid_{k}": v for k, v in progress.valid.items()}
            self.on_progress(progress.step, progress.steps, self._logged | valid)

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.write(step, values)
        if self.config.trackers:
            self.accelerator.log({k: v for k, v in values.items() if isinstance(v, int | float)}, step=step)

    def _evaluate(self, progress: Progress) -> tuple[bool, int]:
        """Held-out figures: whether they are the best so far, and the signal that came meanwhile, or 0. After one there
        are none, and they stay owed. Every rank scores all of it: none waits or differs."""
        assert self.evaluate is not None
        self._finite.settle()
        self.objective.eval()
        shown = contextlib.nullcontext() if self.average is None else self.average.shown()
        figures: dict[str, float] = {}
        with distributed.alone(), torch.no_grad(), shown, self._signals.heeded():
            figures = {name: float(value) for name, value in self.evaluate(self.objective).items()}
        self.module.train()
        if stop := self._signals.on_any_rank(self.device, at_once=True):  # ranks may have come unlike far
            return False, stop
        progress.valid, progress.owed = figures, False
        self._write(progress.step, {f"valid/{k}": v for k, v in figures.items()})
        self._show(progress)
        name, direction = self.objective.best
        score = figures.get(name, figures.get("loss", math.nan))
        # Two devices may round unlike, and all ranks have to save together or not at all.
        score = distributed.broadcast_number(-score if direction == "max" and name in figures else score)
        # A figure that is not a number is none to keep weights by: nothing would ever be below it. Of equals the last
        # counts: where one held-out text has no other to be told from, all are, and the first would undo the training.
        if math.isnan(score) or (progress.best is not None and score > progress.best):
            return False, 0
        progress.best, progress.best_step = score, progress.step
        return True, 0

    def _save(self, progress: Progress) -> None:
        self._finite.settle()
        state = self.out / "state"
        parts = self.parts()
        if self.accelerator.is_main_process:
            save_checkpoint(state, progress.step, parts, {"progress": asdict(progress), "facts": self.facts})
            self._keep_last(progress)
        distributed.wait()

    def _keep_last(self, progress: Progress, newest: Path | None = None) -> None:
        best = None if progress.best_step is None else self._checkpoint(progress.best_step)
        keep_last(self.out / "state", self.config.keep, best, newest=newest)

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds, whole on the main process; all processes call it together."""
        parts: dict[str, Any] = {"objective": self.objective.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self._sharded:
            parts = gathered(parts, keep=self.accelerator.is_main_process)
        return parts if self.average is None else parts | {"average": self.average.values}

    def _checkpoint(self, step: int) -> Path:
        return place_of(self.out / "state", step)

    def _restore(self, path: Path) -> Progress:
        parts, meta = load_checkpoint(path)
        load_whole(self.objective, self.optimizer, parts)
        if self.average is not None:
            self.average.load(parts["average"])
        return Progress(**meta["progress"])

    def _roll_back(self, failed: Progress, step: int) -> Progress:
        """After a NaN or Inf in `step`: stop, or go back to the last good checkpoint and never see its rows again."""
        self.optimizer.zero_grad(set_to_none=True)
        what = (
            f"the gradient of step {step} (rows {step * failed.rows} to {(step + 1) * failed.rows - 1}) is not finite"
        )
        self._write(step, {"event": "nonfinite_gradient", "policy": self.config.on_nonfinite})
        if self.config.on_nonfinite == "stop":
            raise NonFiniteError(
                step, f"{what}; lower train.lr, check the data, or set train.on_nonfinite=rollback to skip such rows"
            )
        if len(failed.skipped) >= 10:
            raise NonFiniteError(
                step, f"{what}, after ten windows were skipped already; lower train.lr or use train.precision=no"
            )
        path = newest_valid(self.out / "state")
        if path is None:
            raise NonFiniteError(step, f"{what}, and no valid checkpoint is left to roll back to")
        progress = self._restore(path)
        progress.skipped = [*failed.skipped, step]
        if self.accelerator.is_main_process:
            self.metrics.forget(progress.step, but=("event",))
        log.warning("%s: back to step %d, skipping these rows", what, progress.step)
        return progress
