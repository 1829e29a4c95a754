"""What a budget chooses: the rule by hand, what is never touched, and that a run keeps its choice."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sslnlp.budget import Pace, occasions
from sslnlp.errors import UserError
from sslnlp.optim import relative_rate
from sslnlp.recipe import Recipe, load_recipe, override, resolve, run
from sslnlp.recipe.build import build_parts
from sslnlp.recipe.choose import Speed, apply, choose, chooses, rule
from sslnlp.recipe.plan import _built, plan
from sslnlp.recipe.schema import from_dict, to_dict
from sslnlp.train_config import TrainConfig

TINY = ["model.size=nano", "tokenizer.vocab_size=520", "data.seq_length=32"]


def recipe(*pairs: str, name: str = "pretrain_bert") -> Recipe:
    return load_recipe(name, ["data.train=corpus.txt", "train.budget=10m", *pairs])


def ruled(asked: Recipe, **facts: Any) -> dict[str, Any]:
    known = {"speed": Speed(fixed=0.0, per_row=0.01), "seconds": 600.0, "rows_of_data": 10**6, "rows_held_out": 0}
    return rule(asked, **(known | {"tokens_a_row": 128, "processes": 1} | facts))


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("processes", [1, 8])
def test_the_rows_of_an_update_are_the_root_of_the_run_they_lead_to(fixed: float, processes: int) -> None:
    speed = Speed(fixed=fixed, per_row=0.002)
    rows = speed.rows(3600, 128, processes=processes)
    update = fixed + 0.002 * rows / processes
    tokens = 3600 / update * rows * 128
    assert rows * 128 == pytest.approx(2 * math.sqrt(tokens))


def test_where_only_updates_cost_the_rows_grow_with_their_number() -> None:
    rows = Speed(fixed=0.1, per_row=0.0).rows(100, 64)
    assert rows * 64 == pytest.approx(2**2 * 100 / 0.1)


def test_more_time_means_more_rows_and_what_memory_does_not_hold_is_accumulated() -> None:
    short, long = ruled(recipe(), seconds=60.0), ruled(recipe(), seconds=3600.0 * 24)
    assert short["train.accumulate"] == 1
    assert short["train.batch_size"] < long["train.batch_size"] * long["train.accumulate"]
    assert long["train.batch_size"] == recipe().train.batch_size


def test_processes_share_the_rows() -> None:
    alone, together = ruled(recipe()), ruled(recipe(), processes=4)
    one = alone["train.batch_size"] * alone["train.accumulate"]
    each = together["train.batch_size"] * together["train.accumulate"]
    assert one / 4 <= each < one  # four are faster too, so all together have more


def test_text_read_again_and_again_gets_dropout_and_an_average() -> None:
    once, often = ruled(recipe()), ruled(recipe(), rows_of_data=200)
    assert (once["model.dropout"], once["train.ema"]) == (0.0, 0.0)
    assert often["model.dropout"] > 0
    updates = 600 / (0.01 * often["train.batch_size"] * often["train.accumulate"])
    assert often["train.ema"] == pytest.approx(1 - 2.5 / updates, abs=1e-5)


def test_a_budget_of_years_asks_for_an_average_that_the_trainer_takes() -> None:
    years = ruled(recipe(), rows_of_data=200, seconds=1e15)
    TrainConfig(steps=1, ema=years["train.ema"])


def test_held_out_passes_take_a_tenth_of_the_time_at_most() -> None:
    few, many = ruled(recipe(), rows_held_out=9000), ruled(recipe(), rows_held_out=9)
    updates = 600 / (0.01 * few["train.batch_size"] * few["train.accumulate"])
    assert math.ceil(updates / few["train.eval_every"]) == 2  # a pass takes 30 of 600 seconds
    assert many["train.eval_every"] is None


@pytest.mark.parametrize("rows_held_out", [9, 1900, 2250, 9000])
@pytest.mark.parametrize("faster", [0.7, 1.0, 1.31, 1.9])
def test_there_are_ten_held_out_passes_at_most_whatever_a_few_updates_promised(
    rows_held_out: int, faster: float
) -> None:
    chosen = ruled(recipe(), rows_held_out=rows_held_out)
    updates = 600 / (0.01 * chosen["train.batch_size"] * chosen["train.accumulate"])
    config = replace(recipe().train, eval_every=chosen["train.eval_every"])
    assert 1 <= occasions(int(faster * updates), config)[0] <= 10


def test_the_learning_rate_is_the_recipes_by_width_and_by_the_rows_that_rounding_leaves() -> None:
    asked = recipe("model.size=mini")
    for seconds in (1.0, 60.0, 3600.0):
        chosen = ruled(asked, seconds=seconds)
        rows = chosen["train.batch_size"] * chosen["train.accumulate"]
        wished = Speed(fixed=0.0, per_row=0.01).rows(seconds, 128)
        assert chosen["train.lr"] == pytest.approx(asked.train.lr * rows / wished, rel=0.02)
    tiny = ruled(recipe("model.size=tiny"))
    assert tiny["train.lr"] == pytest.approx(2 * ruled(asked)["train.lr"], rel=0.02)
    small = ruled(recipe("model.size=small"))
    assert small["train.lr"] == pytest.approx(ruled(asked)["train.lr"] / 2**0.5, rel=0.02)
    adamw = ruled(recipe("model.size=mini", "train.optimizer=adamw"))
    assert adamw["train.lr"] == pytest.approx(ruled(asked)["train.lr"] / 4, rel=0.02)
    own = recipe(name="embed_retromae")  # whose rate is AdamW's already
    assert own.train.optimizer == "adamw"
    share = ruled(asked)["train.lr"] / asked.train.lr
    assert ruled(own)["train.lr"] == pytest.approx(own.train.lr * share, rel=0.02)


def test_the_learning_rate_is_for_the_rows_that_were_given_and_knows_its_bounds() -> None:
    chosen = ruled(recipe("model.size=tiny"))
    fewer = ruled(
        recipe("model.size=tiny", f"train.batch_size={chosen['train.batch_size'] // 4}", "train.accumulate=1")
    )
    assert fewer["train.lr"] == pytest.approx(chosen["train.lr"] / 4, rel=0.02)
    shared = ruled(recipe("model.size=tiny", "train.accumulate=4"))
    assert shared["train.batch_size"] * 4 == chosen["train.batch_size"] * chosen["train.accumulate"]
    assert ruled(recipe("model.size=tiny", "train.batch_size=4096"))["train.lr"] == 1.5e-2
    assert ruled(recipe("model.size=base", "train.batch_size=4096"))["train.lr"] == recipe().train.lr


def test_rows_that_a_loss_compares_stay_together() -> None:
    """On the clock of a slow machine four rows, on that of a fast one 1,024 in sixteen parts: neither is the task."""
    asked = recipe(name="embed_barlow")
    for speed in (Speed(fixed=0.0, per_row=10.0), Speed(fixed=0.0, per_row=1e-5)):
        chosen = ruled(asked, speed=speed)
        assert (chosen["train.batch_size"], chosen["train.accumulate"]) == (asked.train.batch_size, 1)
        assert chosen["train.lr"] == asked.train.lr


# --- whose word counts -----------------------------------------------------------------------------------------------


def test_a_budget_chooses_only_for_fresh_models_of_text_and_when_it_was_given() -> None:
    assert chooses(recipe())
    assert not chooses(load_recipe("pretrain_bert", ["data.train=corpus.txt"]))
    pairs = {"train.budget": "10m", "data.train": "pairs.csv"}
    assert not chooses(override(load_recipe("finetune_classification"), pairs))
    written = load_recipe("pretrain_bert", ["data.train=corpus.txt"])
    written.train.steps, written.train.budget = None, "10m"
    assert not chooses(written)
    assert not chooses(recipe("model.pretrained=somewhere"))


def test_what_was_given_is_never_touched(text_file: Path) -> None:
    given = [*TINY, "train.batch_size=3", "train.lr=0.5", "model.dropout=0.25", f"data.train={text_file}"]
    asked, _ = resolve(load_recipe("pretrain_gpt", [*given, "train.budget=2s"]))
    parts = choose(build_parts(asked))
    assert not {"train.batch_size", "train.lr", "model.dropout"} & parts.chosen.keys()
    assert (parts.recipe.train.batch_size, parts.recipe.train.lr, parts.recipe.model.dropout) == (3, 0.5, 0.25)
    assert parts.chosen  # the rest was still to be chosen
    assert apply(asked, parts.chosen) == parts.recipe


def test_a_rate_and_one_in_proportion_to_the_weights_replace_each_other() -> None:
    recipe = load_recipe("finetune_classification", ["data.train=rows.csv"])
    assert recipe.train.relative_lr
    given = override(recipe, {"train.lr": "0.5"})
    assert (given.train.lr, given.train.relative_lr) == (0.5, None)
    back = override(given, {"train.relative_lr": "3"})
    assert back.train.relative_lr == 3.0
    assert from_dict(to_dict(back)).train.relative_lr == 3.0
    assert from_dict(to_dict(given)).train == given.train
    assert override(recipe, {"train.lr": "0.5", "train.relative_lr": "none"}).train == given.train
    with pytest.raises(UserError, match=r"one of train\.lr and train\.relative_lr"):
        override(recipe, {"train.lr": "0.5", "train.relative_lr": "3"})
    with pytest.raises(UserError, match=r"train\.relative_lr must be a positive number"):
        override(recipe, {"train.relative_lr": "0"})


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_says_and_records_what_was_chosen_and_resumes_with_it(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*TINY, f"data.train={text_file}", f"out={tmp_path / 'run'}", "train.budget=2s"]
    out = run(load_recipe("pretrain_gpt", keys), console=Console(stderr=True, width=200))
    story = json.loads((out / "recipe.json").read_text())
    chosen = story["chosen"]
    assert story["recipe"]["train"]["batch_size"] == chosen["train.batch_size"]
    assert story["recipe"]["train"]["lr"] == chosen["train.lr"]
    told = capsys.readouterr().err
    assert "chosen (give a key to choose otherwise): train.precision" in told
    assert f"train.batch_size {chosen['train.batch_size']}" in told

    run(load_recipe("pretrain_gpt", keys), resume=True, console=Console(quiet=True))
    assert json.loads((out / "recipe.json").read_text())["chosen"] == chosen


def test_a_plan_shows_the_choice_of_as_many_processes_as_the_run_will_have(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslnlp.recipe.choose.timed", lambda parts, seconds: Speed(fixed=0.0, per_row=1e-4))
    monkeypatch.setattr("sslnlp.budget.measure", lambda trainer, **limits: Pace(update=0.1, tokens=1e3))
    keys = [*TINY, f"data.train={text_file}", "train.budget=20s", "train.precision=no"]
    updates = []
    for world in (1, 4):
        with open(os.devnull, "w") as nowhere:
            console = Console(width=100, record=True, file=nowhere)
            plan(load_recipe("pretrain_gpt", keys), world=world, console=console)
        shown = dict(re.findall(r"(train\.\w+)\W+(\d+)", console.export_text()))
        updates.append(int(shown["train.batch_size"]) * int(shown["train.accumulate"]))
    assert updates[1] == updates[0] // 2  # four processes read four times the tokens, in updates of twice as many


@pytest.mark.parametrize("given", [None, "no"])
def test_half_precision_is_chosen_where_the_machine_has_units_for_it(
    given: str | None, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslnlp.recipe.choose.fitting_precision", lambda device: "bf16")
    timed_in = []
    monkeypatch.setattr(
        "sslnlp.recipe.choose.timed",
        lambda parts, seconds: timed_in.append(parts.recipe.train.precision) or Speed(fixed=0.01, per_row=0.01),
    )
    pairs = [] if given is None else [f"train.precision={given}"]
    asked, _ = resolve(load_recipe("pretrain_gpt", [*TINY, *pairs, f"data.train={text_file}", "train.budget=2s"]))
    parts = choose(build_parts(asked))
    assert parts.recipe.train.precision == (given or "bf16")
    assert timed_in == [given or "bf16"]
    assert ("train.precision" in parts.chosen) == (given is None)


@pytest.mark.parametrize(
    ("fitting", "keys", "said"),
    [
        ("bf16", [], True),
        ("no", [], False),
        ("bf16", ["train.precision=no"], False),
        ("bf16", ["train.steps=0"], False),
    ],
)
def test_training_in_float32_unasked_is_said_where_half_precision_is_faster(
    fitting: str, keys: list[str], said: bool, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sslnlp.recipe.running.fitting_precision", lambda device: fitting)
    pairs = [*TINY, f"data.train={text_file}", f"out={tmp_path / 'run'}", "train.steps=1", *keys]
    run(load_recipe("pretrain_gpt", pairs), console=Console(stderr=True, width=200))
    assert ("train.precision=bf16" in capsys.readouterr().err) == said


def test_a_fine_tuned_run_records_the_rate_for_its_weights_and_resumes_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"text {n}", "label": n % 2}) + "\n" for n in range(40)))
    keys = [*TINY, f"data.train={rows}", f"data.cache={tmp_path}", f"out={tmp_path / 'run'}", "train.steps=2"]
    asked = load_recipe("finetune_classification", keys)
    _, planned, objective = _built(resolve(asked)[0], 1)
    rate = relative_rate(objective.model, 6.0)
    assert planned.recipe.train.lr == rate
    out = run(asked, console=Console(stderr=True, width=200))
    assert f"chosen (give a key to choose otherwise): train.lr {rate:g}" in capsys.readouterr().err
    story = json.loads((out / "recipe.json").read_text())
    assert story["chosen"] == {"train.lr": rate}
    assert (story["recipe"]["train"]["lr"], story["recipe"]["train"]["relative_lr"]) == (rate, None)
    assert f"{rate}" in (out / "export" / "README.md").read_text()
    run(asked, resume=True, console=Console(quiet=True))
    assert json.loads((out / "recipe.json").read_text())["chosen"] == {"train.lr": rate}
