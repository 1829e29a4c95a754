"""`sslnlp plan`: operations and bytes by hand, the arithmetic of time and of processes, and a table that shows all."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from sslnlp import budget
from sslnlp.budget import Pace, occasions
from sslnlp.data.stream import Stream
from sslnlp.errors import UserError
from sslnlp.last_layer import QUERIES
from sslnlp.locks import locked
from sslnlp.muon import Muon, hidden_matrices
from sslnlp.objectives.base import Objective
from sslnlp.recipe import load_recipe
from sslnlp.recipe.build import build_objective, build_parts, resolve
from sslnlp.recipe.costs import _Ledger, _muon_temporaries, count, executed_pairs, memory
from sslnlp.recipe.held_out import TIMED_BATCHES, HeldOut
from sslnlp.recipe.plan import plan
from sslnlp.train import TrainConfig
from sslnlp.types import Batch
from tests.contract import corpus, make_trainer

TINY = ["model.size=nano", "train.steps=3", "train.batch_size=2", "tokenizer.vocab_size=520", "data.seq_length=32"]


@pytest.fixture(autouse=True)
def _timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates are timed for three seconds, six of them at least: here they are six."""
    monkeypatch.setitem(budget.measure.__kwdefaults__, "at_least", 0.0)


def built(name: str, keys: list[str], data: Path) -> tuple[Objective, Batch, TrainConfig]:
    recipe, _ = resolve(load_recipe(name, [*keys, f"data.train={data}"]))
    parts = build_parts(recipe)
    batch = parts.collator(parts.stream.rows(range(recipe.train.batch_size)))
    return build_objective(parts), batch, recipe.train


def planned(name: str, keys: list[str], data: Path, **options: Any) -> tuple[dict[str, float], str]:
    with open(os.devnull, "w") as nowhere:
        console = Console(width=100, record=True, file=nowhere)
        figures = plan(load_recipe(name, [*keys, f"data.train={data}"]), console=console, **options)
    return figures, console.export_text()


# --- operations ------------------------------------------------------------------------------------------------------


def test_operations_of_bert(text_file: Path) -> None:
    """One layer, width 8, inner width 16; N positions scored of 2 × 32, the only ones for which the layer computes more
    than keys and values. Everything thrice (forward, and two products backward), but the scores of the fused kernel
    seven halves times, as it computes them again."""
    small = ["model.architecture=bert", "model.config.num_hidden_layers=1", "model.config.hidden_size=8"]
    small += ["model.config.intermediate_size=16"]
    objective, batch, train = built("pretrain_bert", [*TINY, *small], text_file)
    slots, scored, vocabulary = 2 * 32, len(batch["target_index"]), objective.model.config.vocab_size
    matrices = slots * 2 * 8 * 8 + scored * (2 * 8 * 8 + 2 * 8 * 16)  # key, value; query, output, in, out
    queries = 2 * QUERIES * -(-int((batch["labels"] != -100).sum(1).max()) // QUERIES)
    attention = 4 * 8 * 32  # two products of width 8 with each of the row's 32 places, packed or not
    head = scored * (8 * 8 + vocabulary * 8)
    bias = 2 * scored * vocabulary  # its gradient is a sum, which may be done as a product with ones
    expected = 6 * matrices + 3.5 * queries * attention + 6 * head
    assert count(objective, batch, train).flops in (expected, expected + bias)


@pytest.mark.parametrize("packing", ["pack", "bucket"])
def test_operations_of_gpt2(text_file: Path, packing: str) -> None:
    """No transform in front of the vocabulary, which is scored everywhere. A row as short as this has one block of
    keys, so a causal kernel skips nothing of it, with or without a mask."""
    small = [f"model.config.{key}" for key in ("n_layer=1", "n_embd=8", "n_inner=16")]
    small += ["model.architecture=gpt2", f"data.packing={packing}"]
    objective, batch, train = built("pretrain_gpt", [*TINY, *small], text_file)
    rows, length = batch["input_ids"].shape
    matrices = 8 * 24 + 8 * 8 + 2 * 8 * 16
    forward = 2 * (matrices + objective.model.config.vocab_size * 8)
    assert count(objective, batch, train).flops == rows * length * (3 * forward + 3.5 * 4 * 8 * length)


def test_operations_of_t5(text_file: Path) -> None:
    """Two stacks of unequal length. Cross attention is fused; where relative positions are learned, PyTorch takes the
    plain products, which keep their scores: thrice then."""
    sizes = ("num_layers=1", "num_decoder_layers=1", "d_model=8", "d_kv=4", "num_heads=2", "d_ff=16")
    small = [f"model.config.{key}" for key in sizes]
    objective, batch, train = built("pretrain_t5", [*TINY, *small], text_file)
    (rows, source), target = batch["input_ids"].shape, batch["labels"].shape[1]
    assert source != target
    gates = 3 if objective.model.config.is_gated_act else 2
    block = 4 * 8 * 8 + gates * 8 * 16
    matrices = source * (block + 2 * 8 * 8) + target * (block + 2 * 8 * 8)  # keys and values of the source, too
    head = target * objective.model.config.vocab_size * 8
    own, cross = 4 * 8 * (source**2 + target**2), 4 * 8 * source * target
    expected = rows * (6 * (matrices + head) + 3 * own + 3.5 * cross)
    assert count(objective, batch, train).flops == expected


def test_a_discriminator_comes_on_top_of_its_generator(text_file: Path) -> None:
    """The same width and depth twice are more than once, and a generator of half the width is in between."""
    flops = {}
    for size in (0.5, 1.0):
        objective, batch, train = built("pretrain_electra", [*TINY, f"objective.generator_size={size}"], text_file)
        flops[size] = count(objective, batch, train).flops
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 256)  # two layers of width 64, for 64 slots
    assert 6 * 64 * matrices < flops[0.5] < 2 * 6 * 64 * matrices < flops[1.0]


def test_a_causal_kernel_skips_whole_blocks() -> None:
    assert executed_pairs(512, 512, "cpu") == 512**2
    # Blocks of 256 queries see 512, 512, 1,024 and 1,024 keys.
    assert executed_pairs(1024, 1024, "cpu") == 256 * (2 * 512 + 2 * 1024)
    assert executed_pairs(256, 256, "cuda") == 128 * 128 + 128 * 256


# --- bytes -----------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """Two matrices 32 × 64, one of them frozen for AdamW's sake, and a bias: 2,048 + 2,048 + 64 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32, bias=False)
        self.b.weight.requires_grad = False


def test_memory_by_hand() -> None:
    adamw, muon = TrainConfig(steps=1), TrainConfig(steps=1, optimizer="muon")
    weights, trainable, matrix = 4 * (2 * 2048 + 64), 4 * (2048 + 64), 4 * 2048
    states = weights + 2 * trainable
    assert memory(Pair(), adamw, live=0) == states + trainable  # gradients are all there is beside them
    assert memory(Pair(), adamw, live=1e6) == states + 1e6
    assert memory(Pair(), adamw, live=1e6, world=2) == states + 1e6 + trainable  # the buckets of DDP
    assert memory(Pair(), replace(adamw, ema=0.99), live=1e6) == states + 1e6 + trainable
    # Muon: one moment less; its step has the update, the stack, two iterates and two products 32 × 32 beside it.
    step = trainable + matrix + matrix + 2 * matrix + 2 * 4 * 32 * 32
    assert memory(Pair(), muon, live=0) == states - matrix + step
    # FSDP2 over four: weights, gradients and moments are cut, and all of this module is one unit, whole while it runs.
    cut = memory(Pair(), adamw, live=1e6, world=4, sharded=True)
    assert cut == (states + trainable) / 4 + 1e6 - trainable + 2 * weights


def test_muon_needs_what_its_step_was_seen_to_need() -> None:
    module = nn.Sequential(*(nn.Linear(64, 256 if i % 2 else 64, bias=False) for i in range(6)))
    optimizer = Muon(module, lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, dtype=torch.float32)
    for p in module.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()  # makes the momentum
    ledger = _Ledger([])
    with ledger:
        optimizer.step()
    seen = ledger.most - 2 * 4 * sum(p.numel() for p in module.parameters())  # weights and momentum pass by as well
    assert _muon_temporaries(hidden_matrices(module), 4, cut=False) == pytest.approx(seen, rel=0.15)


def test_activations_grow_with_the_rows_and_logits_do_not_stand_whole(text_file: Path) -> None:
    live = {}
    for rows in (2, 8, 32):
        objective, batch, train = built("pretrain_bert", [*TINY, f"train.batch_size={rows}"], text_file)
        live[rows] = count(objective, batch, train).live
    assert live[2] < live[8] < live[32]
    assert (live[32] - live[8]) / (live[8] - live[2]) == pytest.approx(4, rel=0.3)


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "options", "expected"),
    [
        (100, {}, (10, 10)),
        (19, {}, (10, 10)),  # every 2, and the last: ten at most
        (25, {}, (9, 9)),  # every 3, and the last
        (0, {}, (0, 0)),
        (100, {"eval_every": 30, "save_every": 50}, (4, 5)),  # 30 60 90 100, and 50
        (100, {"on_nonfinite": "rollback"}, (10, 11)),
    ],
)
def test_occasions(steps: int, options: dict[str, Any], expected: tuple[int, int]) -> None:
    assert occasions(steps, TrainConfig(steps=steps, **options)) == expected


def test_a_run_takes_the_sum_of_its_parts_and_a_budget_holds_it() -> None:
    pace = Pace(update=2.0, first=7.0, evaluation=10.0, checkpoint=1.0)
    config = TrainConfig(eval_every=10)
    assert pace.seconds(30, config) == 7 + 60 + 3 * 10 + 12 * 1  # saved every 3 steps, and at 10 and 20
    for seconds in (300.0, 1000.0, 12345.0):
        steps = pace.steps(seconds, config)
        assert pace.seconds(steps, config) <= seconds
        assert pace.seconds(steps, config) > 0.97 * seconds
    assert pace.steps(1.0, config) == 1
    # A fifth of the time is spent on updates, come what may.
    assert replace(pace, evaluation=1e6).steps(1000.0, config) == pace.steps(1000.0, config, spent=2000.0) == 100


@pytest.mark.parametrize(
    ("takes", "passes"),
    [(0.0, None), (20.0, None), (30.0, 8), (100.0, 2), (200.0, 1), (900.0, 1)],  # a quarter of 1,000 s, the last always
)
def test_held_out_passes_of_a_budget_take_a_quarter_at_most(takes: float, passes: int | None) -> None:
    pace, config = Pace(update=2.0, evaluation=takes, checkpoint=1.0), TrainConfig()
    steps, eval_every = pace.spread(1000.0, config, spent=50.0)
    assert (eval_every is None) == (passes is None)
    spread = replace(config, eval_every=eval_every)
    if passes is not None:
        assert occasions(steps, spread)[0] == passes
    if takes < 900:
        assert 0.96 * 950 < pace.seconds(steps, spread) <= 950
    else:
        assert steps == 100, "a fifth of the time is spent on updates, come what may"
    given = replace(config, eval_every=10)  # what is asked for is done
    assert pace.spread(1000.0, given) == (pace.steps(1000.0, given), None)


def test_updates_are_timed_all_over_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs may change as it goes on; the clock here is the share of the run that an update stands at."""
    trainer = make_trainer("masked_lm", tmp_path, steps=1000, evaluate=lambda _: {"loss": 1.0})
    now, step_of = 0.0, trainer.train_step

    def slower(window: Any, step: int, steps: int) -> Any:
        nonlocal now
        now += step / steps
        return step_of(window, step, steps)

    trainer.train_step = slower  # type: ignore[method-assign]
    monkeypatch.setattr(budget, "clock", lambda: now)
    pace = budget.measure(trainer, at_least=20.0)
    assert pace.update == pytest.approx(0.5, abs=0.05)
    assert trainer.config.lr == make_trainer("masked_lm", tmp_path).config.lr
    assert not list(tmp_path.iterdir()), "the checkpoint that was timed is gone"


@pytest.mark.parametrize("part", [True, False])
def test_a_held_out_pass_is_timed_by_a_part_of_it(part: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the kernels are set up, which the whole pass has to wait for once only."""
    now, walks, passes = 0.0, 0, 0

    def walk(_: Any) -> None:
        nonlocal now, walks
        now, walks = now + (0.5 if walks else 7.0), walks + 1

    def evaluate(_: Any) -> dict[str, float]:
        nonlocal now, passes
        now, passes = now + 100.0, passes + 1
        return {"loss": 1.0}

    monkeypatch.setattr(budget, "clock", lambda: now)
    trainer = make_trainer("masked_lm", tmp_path, evaluate=evaluate)
    trainer.timed = (walk, 80.0) if part else None
    assert budget.measure(trainer, at_least=-1.0).evaluation == (40.0 if part else 100.0)
    assert (walks, passes) == ((2, 0) if part else (0, 1))
    assert trainer.module.training


def test_the_part_of_a_held_out_pass_is_from_all_over(text_file: Path) -> None:
    recipe, _ = resolve(load_recipe("pretrain_bert", [*TINY, "data.valid_fraction=0.5", f"data.train={text_file}"]))
    parts = build_parts(recipe)
    assert parts.valid is not None
    rows = len(parts.valid)
    whole = HeldOut(parts, parts.valid, batch_size=max(1, rows // (5 * TIMED_BATCHES)))
    assert whole.part() is not None
    walk, times = whole.part() or pytest.fail("too few rows")
    read: list[float] = []

    def rows_of(positions: Any) -> list[Any]:
        read.extend(positions)
        return Stream.rows(parts.valid, positions)  # type: ignore[arg-type]

    whole.valid.rows = rows_of  # type: ignore[method-assign]
    objective = build_objective(parts)
    walk(objective)
    assert times == rows / len(read) > 2
    assert len(np.unique(np.diff(read))) == 1
    assert read[0] == 0
    assert rows - read[-1] <= read[1]
    assert not whole.called, "its figures and predictions are none of the run's"
    assert HeldOut(parts, parts.valid, batch_size=rows // (2 * TIMED_BATCHES)).part() is None
    # Nothing to score in any of them: an error of the pass itself, where it is made.
    objective.num_targets = lambda batch: torch.zeros(1, dtype=torch.long)  # type: ignore[method-assign]
    walk(objective)
    with pytest.raises(UserError, match="no targets"):
        whole(objective)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_the_fit_of_a_head_before_the_updates_is_expected_too(tmp_path: Path) -> None:
    rows = [{"text": text, "label": n % 3} for n, text in enumerate(corpus())]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = ["model.size=nano", "tokenizer.vocab_size=520", "train.steps=3", "train.batch_size=2"]
    found = {}
    for head in ("fitted", "random"):
        keys = [*small, f"objective.head={head}", f"data.cache={tmp_path}", f"out={tmp_path / 'o'}"]
        figures, shown = planned("finetune_classification", keys, tmp_path / "rows.jsonl")
        found[head] = figures.get("before_training", 0.0)
        assert figures["expected_time"] == figures["finding_the_data"] + found[head] + figures["training"]
        assert ("before training" in shown) == (head == "fitted")
    assert found["fitted"] > found["random"] == 0


def test_plan_counts_what_can_be_counted(text_file: Path, tmp_path: Path) -> None:
    keys = [*TINY, "train.accumulate=2", f"out={tmp_path / 'o'}"]
    for name in ("killed", "going_on"):
        (tmp_path / f".plan-{name}").mkdir()
        (tmp_path / f".plan-{name}" / "lock").touch()
    (tmp_path / ".plan-killed" / "model.pt").touch()
    with locked(tmp_path / ".plan-going_on" / "lock", "planning"):
        figures, shown = planned("pretrain_bert", keys, text_file)
    assert [path.name for path in tmp_path.glob("*plan*")] == [".plan-going_on"]
    assert figures["updates"] == figures["evaluations"] == figures["checkpoints"] == 3
    assert figures["tokens_seen"] == 3 * figures["tokens_an_update"]
    assert figures["tokens_an_update"] <= 2 * 2 * 32
    assert 0.2 < figures["scored"] < 0.35  # a rate of 0.3, of the tokens that are not framing
    parts = ("seconds_an_update", "seconds_an_evaluation", "seconds_a_checkpoint")
    assert all(figures[name] > 0 for name in parts)
    assert figures["training"] * (1 + 1e-9) >= 3 * sum(figures[name] for name in parts) > 0  # sums round
    assert figures["expected_time"] == figures["finding_the_data"] + figures["training"]
    assert not (tmp_path / "o").exists()
    for row in ("flops a token", "memory", "peak memory", "checkpoints", "expected time"):
        assert f"│ {row} " in shown


def test_processes_share_the_rows(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WORLD_SIZE without a launcher is arithmetic: nobody is waited for, and the environment is as it was."""
    keys = [*TINY[:1], *TINY[2:], "train.epochs=4"]
    alone, _ = planned("pretrain_bert", keys, text_file)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    two, shown = planned("pretrain_bert", keys, text_file)
    assert os.environ["WORLD_SIZE"] == "2"
    assert (alone["processes"], two["processes"]) == (1, 2)
    assert "processes" in shown
    assert two["updates"] == math.ceil(4 * two["rows"] / (2 * 2))
    assert alone["updates"] == math.ceil(4 * alone["rows"] / 2)
    assert two["tokens_an_update"] == pytest.approx(2 * alone["tokens_an_update"], rel=0.1)
    assert two["tokens_seen"] == pytest.approx(alone["tokens_seen"], rel=0.1)
    assert two["memory"] - alone["memory"] == pytest.approx(4 * alone["parameters"], rel=0.2)  # buckets
    four, _ = planned("pretrain_bert", keys, text_file, world=4)
    assert four["updates"] == math.ceil(4 * four["rows"] / (4 * 2))


def test_no_update_is_planned_where_none_is_asked_for(text_file: Path) -> None:
    figures, _ = planned("pretrain_bert", [*TINY, "train.steps=0"], text_file)
    assert figures["updates"] == figures["tokens_seen"] == figures["evaluations"] == figures["checkpoints"] == 0


def test_a_budget_is_what_it_says(text_file: Path) -> None:
    keys = [*TINY[:1], *TINY[2:], "train.budget=30s"]
    figures, _ = planned("pretrain_bert", keys, text_file)
    assert figures["training"] == 30
    spent = figures["updates"] * figures["seconds_an_update"]
    assert 6 <= spent <= 30
