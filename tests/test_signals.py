"""A stop that comes during a held-out pass: it is left at once, and made anew by the run that goes on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslnlp import signals
from sslnlp.metrics import read_metrics
from sslnlp.report.card import Card, fill
from sslnlp.train import Interrupted, Trainer
from tests.contract import digest, make_stream, make_trainer

OPTIONS: dict[str, Any] = {"steps": 4, "eval_every": 2, "save_every": 100, "ema": 0.5, "log_every": 3}
BATCHES = math.ceil(len(make_stream("masked_lm")) / 8)
"""Of a held-out pass."""


def run(out: Path, at: int | None = None, do: Callable[[], None] = lambda: None) -> tuple[Trainer, list[bool]]:
    """A run in which `do` is called before held-out batch number `at`, from 0; and for each of these that was read,
    whether the model was in training mode."""
    trainer, read = make_trainer("masked_lm", out, **OPTIONS), list[bool]()
    scored = trainer.objective.scored

    def seen(batch: Any) -> Any:
        if len(read) == at:
            do()
        read.append(trainer.objective.training)
        return scored(batch)

    trainer.objective.scored = seen  # type: ignore[method-assign]
    return trainer, read


def lines(out: Path) -> list[dict[str, Any]]:
    found = read_metrics(out / "metrics.jsonl")
    for line in found:
        line.pop("train/tokens_per_second", None)
    return found


def test_a_pass_that_was_cut_short_is_that_of_the_straight_run(tmp_path: Path) -> None:
    """Twice in the first one, the second time after the run went on with it, and in the last, which ended the run."""
    straight, read = run(tmp_path / "straight")
    final = digest(straight.fit().state_dict())
    assert read == [False] * (2 * BATCHES)
    for at, step in ((5, 2), (7, 2), (BATCHES + 3, 4)):
        trainer, read = run(tmp_path / "run", at, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM and saved at step {step}"):
            trainer.fit(resume=True)
        assert len(read) == at + 1, "the batch in progress is the last one"
    trainer, read = run(tmp_path / "run")
    assert digest(trainer.fit(resume=True).state_dict()) == final
    assert len(read) == BATCHES
    assert lines(tmp_path / "run") == lines(tmp_path / "straight")
    ours, theirs = trainer.progress, straight.progress
    assert (ours.best_step, ours.valid) == (theirs.best_step, theirs.valid)


def test_a_stop_before_a_pass_does_not_wait_for_it(tmp_path: Path) -> None:
    trainer, read = run(tmp_path)
    moved = trainer.objective.after_step

    def after_step(progress: float) -> None:
        moved(progress)
        trainer._signals.received = signal.SIGTERM if progress == 0.5 else 0

    trainer.objective.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="saved at step 2"):
        trainer.fit()
    assert not read
    trainer, read = run(tmp_path)
    trainer.fit(resume=True)
    assert len(read) == 2 * BATCHES


def test_a_stop_that_comes_during_the_last_save_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what comes after the training would go on as if nobody had asked it to stop: an export, the next stage."""
    trainer, _ = run(tmp_path)
    kept = trainer._keep_last
    monkeypatch.setattr(trainer, "_keep_last", lambda p: (kept(p), setattr(trainer._signals, "received", p.step == 4)))
    with pytest.raises(Interrupted, match="saved at step 4"):
        trainer.fit()
    trainer, read = run(tmp_path)
    trainer.fit(resume=True)
    assert not read


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_terminal_that_closes_stops_and_saves_unless_that_is_ignored(tmp_path: Path) -> None:
    def closes(step: int, steps: int, metrics: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)  # by the kernel and by the shell

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer("masked_lm", tmp_path / "nohup", steps=2)
        trainer.on_progress = closes
        trainer.fit()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        trainer = make_trainer("masked_lm", tmp_path / "run", steps=2)
        trainer.on_progress = closes
        with pytest.raises(Interrupted, match=r"stopped by SIGHUP \(its terminal is closed\) and saved at step 1"):
            trainer.fit()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_that_an_error_ends_does_not_wait_for_its_workers() -> None:
    """They leave SIGTERM to the loop, and with that multiprocessing ends those that are there when Python exits."""
    program = """
from sslnlp.windows import Windows, iterate
batches = iterate(range(99), list, Windows(batch_size=1, accumulate=1), start=0, stop=99, workers=1)
next(batches)
raise KeyError("an error of the program")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "an error of the program" in ended.stderr


def test_a_report_card_is_left_between_two_measures_of_a_training_run_alone() -> None:
    made: list[str] = []
    received = signals.Signals()

    def stop() -> None:
        made.append("first")
        received.received = signal.SIGTERM

    asked = {"first": stop, "second": lambda: made.append("second")}
    with received.heeded():
        fill(Card(), asked, lambda name: None)
        made.append("not reached")
    assert made == ["first"]
    fill(Card(), asked, lambda name: None)
    assert made == ["first", "first", "second"]
