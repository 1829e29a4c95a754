"""The loop where things go wrong: numbers that are not finite, signals, budgets, other process counts, best weights."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sslnlp import budget, distributed, signals
from sslnlp.checkpoint import newest_valid
from sslnlp.errors import UserError
from sslnlp.metrics import MetricsLog, read_metrics
from sslnlp.train import Interrupted, NonFiniteError, TrainConfig, Trainer
from sslnlp.train_config import parse_duration
from sslnlp.windows import Windows
from tests.contract import difference, digest, make_trainer, one_batch


def poisoned(out: Path, bad_step: int, **options: Any) -> Trainer:
    """A run whose loss is NaN on the rows of one step, whenever they are seen."""
    trainer = make_trainer("masked_lm", out, steps=6, save_every=2, batch_size=4, keep=9, **options)
    plain = trainer.collator

    def poison(rows: Any) -> Any:
        batch = plain(rows)
        if rows[0]["position"] // 4 == bad_step:
            batch["poison"] = torch.tensor(float("nan"))
        return batch

    forward = trainer.objective.forward

    def spoiled(batch: Any) -> Any:
        output = forward(batch)
        return output._replace(loss=output.loss * batch.get("poison", 1.0))

    trainer.collator = poison  # type: ignore[assignment]
    trainer.objective.forward = spoiled  # type: ignore[method-assign]
    return trainer


def test_a_run_with_gradient_checkpointing_is_the_run_without(tmp_path: Path) -> None:
    ends = []
    for checkpointing in (False, True):
        trainer = make_trainer("masked_lm", tmp_path / str(checkpointing), architecture="bert", dropout=0.1)
        if checkpointing:
            trainer.objective.model.gradient_checkpointing_enable()
        ends.append({name: value.clone() for name, value in trainer.fit().state_dict().items()})
    assert difference(*ends) < 1e-6


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, bad_step=3)
    with pytest.raises(NonFiniteError, match=r"gradient of step 3 \(rows 12 to 15\) is not finite; lower train.lr"):
        trainer.fit()
    assert all(torch.isfinite(p).all() for p in trainer.objective.parameters()), "the weights were not touched"
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[-1] == {"step": 3, "event": "nonfinite_gradient", "policy": "stop"}
    assert not any(line.get("train/loss") == 0.0 for line in lines)


def test_rollback_skips_the_offending_rows_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = poisoned(tmp_path / "run", bad_step=3, on_nonfinite="rollback")
    final = trainer.fit()
    assert trainer.progress.skipped == [3]
    assert "back to step 2, skipping these rows" in caplog.text
    logged = [(line["step"], line.get("event")) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    redone = [(3, None), (5, None), (6, None)]
    assert logged == [(1, None), (2, None), (3, "nonfinite_gradient"), *redone], "no update is logged twice"
    # It is the run that never saw step 3, updated with the learning rates of its own steps.
    clean = make_trainer("masked_lm", tmp_path / "clean", steps=6, batch_size=4)
    progress = clean._start(resume=False)
    progress.skipped = [3]
    clean._run(progress)
    assert difference(final.state_dict(), clean.objective.state_dict()) == 0


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_run_whose_last_update_is_skipped_ends_as_any_other(log_every: int, tmp_path: Path) -> None:
    trainer = poisoned(tmp_path, bad_step=5, on_nonfinite="rollback", log_every=log_every)
    trainer.fit()
    assert trainer.progress.skipped == [5]
    assert newest_valid(tmp_path / "state") == tmp_path / "state" / "step-00000006"
    logged = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert logged == ([1, 2, 3, 4, 5] if log_every == 1 else [6])


def test_rollback_gives_up_on_a_run_that_only_diverges(tmp_path: Path) -> None:
    trainer = make_trainer("masked_lm", tmp_path, steps=30, batch_size=2, on_nonfinite="rollback")
    forward = trainer.objective.forward
    trainer.objective.forward = lambda batch: forward(batch)._replace(  # type: ignore[method-assign]
        loss=forward(batch).loss * float("inf")
    )
    with pytest.raises(NonFiniteError, match="after ten windows were skipped"):
        trainer.fit()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_and_the_resumed_run_is_the_straight_one(signum: int, tmp_path: Path) -> None:
    straight = make_trainer("causal_lm", tmp_path / "straight", steps=5).fit()
    trainer = make_trainer("causal_lm", tmp_path / "run", steps=5, save_every=100)
    trainer.on_progress = lambda step, steps, metrics: os.kill(os.getpid(), signum) if step == 3 else None
    before = signal.getsignal(signum)  # not the usual one where a shell started the tests in the background
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(signum).name} and saved at step 3"):
        trainer.fit()
    assert signal.getsignal(signum) is before, "handlers are put back"
    resumed = make_trainer("causal_lm", tmp_path / "run", steps=5)
    assert digest(resumed.fit(resume=True).state_dict()) == digest(straight.state_dict())


def test_a_launcher_that_is_gone_saves_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, it can tell its processes nothing. A run that none launched goes on without its shell."""
    trainer = make_trainer("causal_lm", tmp_path, steps=5, save_every=100)
    gone = os.getpid()  # the parent is not this process
    trainer.on_progress = lambda step, *_: monkeypatch.setattr(signals, "_LAUNCHER", gone) if step == 3 else None
    with pytest.raises(Interrupted, match=r"stopped by SIGHUP \(its launcher is gone\) and saved at step 3"):
        trainer.fit()
    assert newest_valid(tmp_path / "state") == tmp_path / "state" / "step-00000003"
    monkeypatch.setattr(signals, "_LAUNCHER", None)
    assert make_trainer("causal_lm", tmp_path, steps=5).fit(resume=True)


def test_a_run_stopped_between_two_logs_logs_the_figures_of_the_straight_one(tmp_path: Path) -> None:
    """The sums of the updates before it stopped are in the checkpoint: neither a target nor a token is missing."""
    straight = make_trainer("masked_lm", tmp_path / "straight", steps=7, log_every=5)
    straight.fit()
    trainer = make_trainer("masked_lm", tmp_path / "run", steps=7, log_every=5)
    moved = trainer.objective.after_step

    def after_step(progress: float) -> None:
        moved(progress)
        if round(progress * 7) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.objective.after_step = after_step  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="saved at step 3"):
        trainer.fit()
    resumed = make_trainer("masked_lm", tmp_path / "run", steps=7, log_every=5)
    resumed.fit(resume=True)
    ours, theirs = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("run", "straight"))
    for line in ours + theirs:
        line.pop("train/tokens_per_second")
    assert ours == theirs
    assert resumed.progress.tokens == straight.progress.tokens


def test_the_speed_is_that_of_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def evaluate(objective: Any) -> dict[str, float]:
        now[0] += 1000.0
        return {"loss": 1.0}

    trainer = make_trainer("masked_lm", tmp_path, steps=4, log_every=1, eval_every=2)
    trainer.evaluate = evaluate
    trainer.fit()
    assert (now[0], trainer.progress.seconds) == (2000.0, 0.0)


def test_a_budget_becomes_a_number_of_steps_that_resuming_keeps(tmp_path: Path) -> None:
    trainer = make_trainer("masked_lm", tmp_path / "run", steps=None, budget="2s")
    before = digest(trainer.objective.state_dict())
    progress = trainer._start(resume=False)
    assert progress.steps > 1
    assert digest(trainer.objective.state_dict()) == before, "measuring the speed leaves no trace"
    assert trainer.collator.horizon == progress.steps * progress.rows
    again = make_trainer("masked_lm", tmp_path / "run", steps=None, budget="2s")
    assert again._start(resume=True).steps == progress.steps
    # The same number of steps given by hand is the same run.
    by_hand = make_trainer("masked_lm", tmp_path / "hand", steps=progress.steps)
    assert digest(by_hand.fit().state_dict()) == digest(again.fit(resume=True).state_dict())


@pytest.mark.parametrize(("takes", "said"), [(40.0, "held-out passes take 80 (2 of 40 s)"), (10.0, "")])
def test_a_budget_that_goes_into_held_out_passes_says_so(
    takes: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.1
        return now[0]

    def evaluate(objective: Any) -> dict[str, float]:
        now[0] += takes
        return {"loss": 1.0}

    monkeypatch.setattr(budget, "clock", clock)
    trainer = make_trainer("masked_lm", tmp_path, steps=None, budget="60s", eval_every=10**6)
    trainer.evaluate = evaluate
    trainer._start(resume=False)
    assert said in caplog.text
    assert bool(caplog.records) == bool(said)


def test_a_budget_has_as_many_held_out_passes_as_it_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, made = [0.0], [0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    def evaluate(objective: Any) -> dict[str, float]:
        now[0] += 6.0
        made[0] += 1
        return {"loss": 1.0}

    def trainer() -> Trainer:
        return make_trainer("masked_lm", tmp_path, steps=None, budget="60s", evaluate=evaluate)

    monkeypatch.setattr(budget, "clock", clock)
    started = trainer()._start(resume=False)
    assert started.eval_every == math.ceil(started.steps / 2)
    made[0] = 0
    resumed = trainer()
    resumed.fit(resume=True)
    assert resumed.progress.eval_every == started.eval_every, "kept for the run that goes on"
    assert made[0] == 2


def test_what_a_run_killed_while_it_was_timed_left_behind_goes(tmp_path: Path) -> None:
    (tmp_path / "run" / ".measured-abc" / "state").mkdir(parents=True)
    make_trainer("masked_lm", tmp_path / "run", steps=None, budget="2s")._start(resume=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "state"]


def test_durations() -> None:
    assert [parse_duration(text) for text in ("90s", "10m", "1.5h", "1h30m", "2d")] == [90, 600, 5400, 5400, 172800]
    for text in ("", "10", "m", "-5m", "ten minutes", "0s"):
        with pytest.raises(UserError, match=r"duration|no time"):
            parse_duration(text)


def test_the_best_weights_are_left_behind(tmp_path: Path) -> None:
    losses = iter([3.0, 1.0, 2.0, 5.0, 4.0])
    trainer = make_trainer(
        "masked_lm",
        tmp_path,
        steps=5,
        eval_every=1,
        save_every=1,
        keep=1,
        evaluate=lambda objective: {"loss": next(losses)},
    )
    states: dict[int, str] = {}
    shown: dict[int, float] = {}

    def see(step: int, _: int, metrics: Any) -> None:
        states[step] = digest(trainer.objective.state_dict())
        shown[step] = metrics.get("valid_loss", math.nan)

    trainer.on_progress = see
    assert digest(trainer.fit().state_dict()) == states[2]
    assert shown == {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}, "the figures of each pass, not of the one before"
    assert trainer.progress.best_step == 2
    kept = sorted(path.name for path in (tmp_path / "state").glob("step-*"))
    assert kept == ["step-00000002", "step-00000005"]


@pytest.mark.parametrize(("seen", "best"), [("nan 3 2 nan", (2, 3)), ("0 0 0 1", (0, 3)), ("0 0 0 0", (0, 4))])
def test_the_last_of_equal_figures_is_the_best_and_never_nan(seen: str, best: tuple[int, int], tmp_path: Path) -> None:
    losses = map(float, seen.split())
    trainer = make_trainer("masked_lm", tmp_path, steps=4, batch_size=2, eval_every=1)
    trainer.evaluate = lambda objective: {"loss": next(losses)}
    trainer.fit()
    assert (trainer.progress.best, trainer.progress.best_step) == best


def test_a_killed_pruning_is_finished_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"steps": 4, "batch_size": 2, "save_every": 1, "keep": 1}
    state = tmp_path / "state"
    with monkeypatch.context() as patched:
        patched.setattr("sslnlp.train.keep_last", lambda *args, **given: None)
        make_trainer("masked_lm", tmp_path, **options).fit()
    assert len(list(state.iterdir())) == 4
    (state / "step-00000001").rename(state / ".unfinished-step-00000001-removed")
    make_trainer("masked_lm", tmp_path, **options).fit(resume=True)
    assert [path.name for path in state.iterdir()] == ["step-00000004"]


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "batch_size": 2, "keep": 1}
    state = tmp_path / "state"
    make_trainer("masked_lm", tmp_path, save_every=4, **options | {"keep": 2}).fit()
    damaged = state / "step-00000006" / "objective.pt"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    stopped = make_trainer("masked_lm", tmp_path, save_every=4, **options)
    stopped.on_progress = lambda *args: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="saved at step 5"):
        stopped.fit(resume=True)
    found = newest_valid(state)
    assert found is not None
    assert found.name == "step-00000005"


@pytest.mark.parametrize("skip", ["truncated", "flipped"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    skip: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"steps": 4, "save_every": 2, "keep": 5}
    straight = make_trainer("masked_lm", tmp_path, **options).fit()
    newest = tmp_path / "state" / "step-00000004" / "objective.pt"
    data = bytearray(newest.read_bytes())
    if skip == "truncated":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2] ^= 1
    newest.write_bytes(bytes(data))
    resumed = make_trainer("masked_lm", tmp_path, **options)
    assert digest(resumed.fit(resume=True).state_dict()) == digest(straight.state_dict())
    assert "passing over the checkpoint step-00000004" in caplog.text


def test_windows_part_the_rows_without_gap_or_overlap() -> None:
    for world, accumulate in ((1, 1), (1, 4), (2, 2), (4, 1)):
        ranks = [Windows(batch_size=8 // world, accumulate=accumulate, world=world, rank=r) for r in range(world)]
        rows = ranks[0].rows
        seen = sorted(p for w in ranks for m in range(accumulate) for p in w.positions(5, m))
        assert seen == list(range(5 * rows, 6 * rows))


def test_windows_keep_their_rows_on_other_processes() -> None:
    two = Windows(batch_size=16, accumulate=1, world=2)
    one = Windows(batch_size=16, accumulate=1).fit(rows=two.rows, together=None)
    assert (one.batch_size, one.accumulate) == (16, 2)
    back = Windows(batch_size=32, accumulate=1, world=2, rank=1).fit(rows=32, together=None)
    assert (back.batch_size, back.accumulate, back.rank) == (16, 1, 1)
    coupled = Windows(batch_size=16, accumulate=1).fit(rows=two.rows, together=two.together)
    assert (coupled.batch_size, coupled.accumulate) == (32, 1)
    with pytest.raises(UserError, match="3 processes cannot share evenly"):
        Windows(batch_size=16, accumulate=1, world=3).fit(rows=32, together=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3, "budget": "3m"}, "one of train.steps"),
        ({"steps": -1}, "train.steps must be at least 0"),
        ({"lr": -1.0}, "train.lr must be a positive number"),
        ({"lr": float("nan")}, "train.lr must be a positive number"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"precision": "fp8"}, "Accepted: bf16, no"),
        ({"trackers": ["wandb"]}, "accepted: tensorboard, trackio"),
        ({"budget": "soon"}, "cannot read the duration"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)


def test_no_length_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"say how long to train: train.steps=1000"):
        make_trainer("masked_lm", tmp_path, steps=None).fit()


def test_metrics_forget_what_is_run_again_and_hide_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(4):
        log.write(step, {"train/loss": float("nan") if step == 1 else 1.0 / 3})
    with path.open("a") as file:
        file.write('{"step": 4, "train/lo')  # cut off by a crash
    MetricsLog(path, resume_from=2)
    assert read_metrics(path) == [
        {"step": 0, "train/loss": 0.3333333},
        {"step": 1, "train/loss": "nan"},
        {"step": 2, "train/loss": 0.3333333},
    ]


def test_a_full_disk_is_one_line_that_names_the_log(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk; what was logged before stays as it was."""
    resource = pytest.importorskip("resource")
    log = MetricsLog(path := tmp_path / "metrics.jsonl")
    log.write(1, {"train/loss": 1.0})
    before, limits = path.read_text(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, limits[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
            log.write(2, {"train/loss": 1.0})
        with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
            MetricsLog(path, resume_from=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_trackers_receive_the_figures_and_the_processes_stay_together(tmp_path: Path) -> None:
    """Others of a launch wait for the last measures still."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        make_trainer("masked_lm", tmp_path, steps=2, trackers=["tensorboard"]).fit()
        assert dist.is_initialized()
    finally:
        distributed.leave()
    deadline = time.monotonic() + 5
    while not (found := list((tmp_path / "trackers").rglob("events.*"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(found[0].parent))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("objective", "architecture"),
    [("masked_lm", "bert"), ("masked_lm", "modernbert"), ("causal_lm", "gpt2"), ("denoising", "bart")],
)
def test_compiled_the_losses_of_packed_rows_are_the_same(
    objective: str, architecture: str, dropout: float, tmp_path: Path
) -> None:
    assert one_batch(objective)["document_ids"].max() > 0, "rows of several documents, kept apart by a mask of pairs"
    curves = []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        torch._dynamo.reset()
        make_trainer(
            objective, out, architecture=architecture, dropout=dropout, steps=6, compile=compiled, lr=1e-2
        ).fit()
        curves.append([line["train/loss"] for line in read_metrics(out / "metrics.jsonl") if "train/loss" in line])
    assert curves[0][0] - curves[0][-1] > 0.1
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)
