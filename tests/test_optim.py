"""Schedules and parameter groups, against arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from sslnlp.errors import UserError
from sslnlp.optim import OPTIMIZERS, learning_rate_factor, parameter_groups, relative_rate
from sslnlp.recipe import load_recipe
from sslnlp.train_config import SCHEDULES, TrainConfig
from tests.contract import difference, make_objective, make_trainer, one_batch


def curve(schedule: str, steps: int = 10, warmup: int = 2, decay: float = 0.3) -> list[float]:
    return [learning_rate_factor(step, steps, schedule=schedule, warmup=warmup, decay=decay) for step in range(steps)]


def test_warm_up_stable_decay_by_hand() -> None:
    # Two warm-up steps, stable, then the last three fall in quarters: 3/4, 2/4, 1/4.
    assert curve("wsd") == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert curve("wsd", decay=0.0) == curve("constant")  # the last update too
    # A warm-up that reaches into the decay leaves it what is left.
    assert curve("wsd", steps=10, warmup=8, decay=0.5) == pytest.approx([*(n / 8 for n in range(1, 9)), 2 / 3, 1 / 3])


def test_linear_and_constant_by_hand() -> None:
    assert curve("linear") == pytest.approx([0.5, 1.0, *(n / 9 for n in range(8, 0, -1))])
    assert curve("constant") == pytest.approx([0.5] + [1.0] * 9)


def test_cosine_is_half_way_in_the_middle() -> None:
    values = curve("cosine", steps=11, warmup=2)
    assert values[6] == pytest.approx(0.5, abs=0.06)
    assert values[2:] == sorted(values[2:], reverse=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_rate_is_always_positive_and_never_above_its_peak(schedule: str, steps: int, warmup: int) -> None:
    assert all(0 < value <= 1 for value in curve(schedule, steps, warmup))


def test_a_relative_rate_follows_the_weights_the_width_and_the_depth() -> None:
    model = make_objective("masked_lm").model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.125 if ".layer." in name and parameter.ndim == 2 else 7.0)
    config = model.config
    expected = 2 * 0.125 / (config.hidden_size * config.num_hidden_layers)
    assert relative_rate(model, 2.0) == float(f"{expected:.2g}")
    assert relative_rate(model, 2.0) != relative_rate(model, 1.0)


@pytest.mark.parametrize("name", ["causal_lm", "span_corruption"])
def test_a_relative_rate_suits_other_architectures(name: str) -> None:
    for architecture in ("gpt2", "llama") if name == "causal_lm" else ("t5", "bart"):
        assert 1e-5 < relative_rate(make_objective(name, architecture).model, 2.0) < 1e-2


def test_a_layer_that_is_run_several_times_counts_as_often() -> None:
    options = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 32}
    rates = []
    for depth in (2, 8):
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model("albert", **options, num_hidden_layers=depth))
        rates.append(relative_rate(model, 4.0))
    assert rates[0] == pytest.approx(4 * rates[1], rel=0.05)


def test_a_trainer_learns_at_the_relative_rate(tmp_path: Path) -> None:
    # The first update of AdamW is the rate itself, wherever there is a gradient.
    options = {"steps": 1, "batch_size": 4, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "eps": 1e-12}
    trainer = make_trainer("masked_lm", tmp_path, **options, lr=0.5, relative_lr=3.0)
    rate = relative_rate(trainer.objective.model, 3.0)
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    trainer.fit()
    assert difference(trainer.objective.state_dict(), before) == pytest.approx(rate, rel=1e-3)


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    decayed, kept = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in kept["params"]] == [(4,), (4,), (4,)]
    assert kept["weight_decay"] == 0.0
    assert isinstance(decayed["params"][0], torch.Tensor)


def test_a_recipe_may_name_every_optimizer_and_no_other() -> None:
    with pytest.raises(UserError, match=f"Accepted: {', '.join(sorted(OPTIMIZERS))}\\."):
        TrainConfig(optimizer="lion")


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", ["masked_lm", "causal_lm"])
def test_embeddings_learn_at_their_multiple_of_the_rate(optimizer: str, name: str, tmp_path: Path) -> None:
    # The first update of AdamW is the rate itself, wherever there is a gradient.
    options = {"steps": 1, "batch_size": 4, "optimizer": optimizer, "schedule": "constant", "warmup": 0}
    trainer = make_trainer(name, tmp_path, **options, lr=1e-3, weight_decay=0.0, embedding_lr_scale=4.0)
    tables = [part.weight for part in trainer.objective.modules() if isinstance(part, nn.Embedding)]
    vectors = [p for p in trainer.objective.parameters() if p.ndim == 1]
    before = [p.detach().clone() for p in (*tables, *vectors)]
    trainer.fit()
    moved = [(p - old).abs().max().item() for p, old in zip((*tables, *vectors), before, strict=True)]
    assert moved[: len(tables)] == pytest.approx([4e-3] * len(tables), rel=0.01)
    assert max(moved[len(tables) :]) == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_loop_of_one_s_own_has_the_rates_that_were_asked_for(optimizer: str) -> None:
    """With a stock scheduler or without: its factor is of each group's own rate."""
    objective = make_objective("masked_lm", "modernbert")
    table = objective.model.get_input_embeddings().weight
    options: dict[str, Any] = {"layer_decay": 0.5} if optimizer == "adamw" else {}
    updates = OPTIMIZERS[optimizer](
        objective, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, embedding_lr_scale=8.0, dtype=torch.float32,
        **options,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(updates, lambda step: 1.0 if step == 0 else 0.5)
    factor = 8 * 0.5**3 if options else 8.0  # two layers and what stands above them
    for moved in (factor * 1e-3, factor * 5e-4):
        before = table.detach().clone()
        updates.zero_grad()
        objective(one_batch("masked_lm")).loss.backward()
        updates.step()
        schedule.step()
        assert (table - before).abs().max().item() == pytest.approx(moved, rel=0.01)


def test_layers_and_embeddings_have_one_rate_each() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4, bias=False))
    groups = parameter_groups(module, 0.1, embedding_lr_scale=4.0)
    assert [(g["lr_scale"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (4.0, [(5, 4)]),
        (1.0, [(4, 4)]),
    ]


@pytest.mark.parametrize("recipe", ["pretrain_gpt", "pretrain_hybrid"])
def test_a_row_seen_for_the_first_time_does_not_follow_rounding(recipe: str) -> None:
    """A table with a head beside it has a gradient for the tokens of its batch alone: a row's first has no past."""
    train = load_recipe(recipe).train
    tables = []
    for rounding in (1e-9, -1e-9):
        table = nn.Embedding.from_pretrained(torch.zeros(4, 2), freeze=False)
        optimizer = OPTIMIZERS[train.optimizer](
            table, lr=train.lr, betas=train.betas, eps=train.eps, weight_decay=0.0, dtype=torch.float32
        )
        table.weight.grad = torch.tensor([[1e-3, rounding]] + 3 * [[0.0, 0.0]])
        optimizer.step()
        tables.append(table.weight.detach())
    assert tables[0][0, 0] == pytest.approx(-train.lr, rel=0.01)
    assert (tables[0] - tables[1]).abs().max() < 0.01 * train.lr
