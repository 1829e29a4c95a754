"""The benchmarks that make many small runs: what is a result, which runs belong together, where figures go."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import collapse, defaults, downstream, grad_cache, image_text, locked, objective_table
from sslnlp.errors import UserError
from sslnlp.recipe import load_recipe, override
from sslnlp.train import NonFiniteError
from tests.objectives.test_clip import folder_of_shades
from tests.turns import Turns


def test_a_list_is_one_value_of_a_comparison() -> None:
    made = defaults.combinations(["train.betas=[0.9,0.98],[0.5,0.98]", "train.lr=1,2"], [0])
    assert [(choice["train.betas"], choice["train.lr"]) for choice in made] == [
        ("[0.9,0.98]", "1"), ("[0.9,0.98]", "2"), ("[0.5,0.98]", "1"), ("[0.5,0.98]", "2")
    ]  # fmt: skip


def line(value: float | None, **other: Any) -> str:
    shared = {"objective": "masked_lm", "size": "nano", "tokens": 64, "seq_length": 32, "set": {"train.lr": "1"}}
    return json.dumps({**shared, **other, "figures": {} if value is None else {"loss": value}}) + "\n"


def test_rows_of_other_lengths_are_no_seeds_of_one_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverged = line(None, set={"train.lr": "9"})
    text = diverged + line(5.0) + line(7.0, seq_length=64) + line(6.0, set={"train.lr": "2"}) + line(4.0)
    (tmp_path / "defaults.jsonl").write_text(text)
    defaults.show(tmp_path)
    shown = [row.split("│")[1:-1] for row in capsys.readouterr().out.splitlines() if "masked_lm" in row]
    found = [tuple(row[at].strip() for at in (3, 4, 5, 6)) for row in shown]
    rows = [("32", "lr=1", "4.5000", "2"), ("32", "lr=2", "6.0000", "1"), ("32", "lr=9", "inf", "1")]
    assert found == [*rows, ("64", "lr=1", "7.0000", "1")]


def test_only_a_rate_too_high_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer").mkdir()
    asked = argparse.Namespace(
        out=tmp_path, objective="masked_lm", size="nano", tokens=64, seq_length=32, set=["train.lr=9"], seeds=[0],
        train="t",
    )  # fmt: skip

    def fails(error: Exception) -> Any:
        def one(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(defaults, "one", one)

    fails(UserError("unknown key"))
    with pytest.raises(UserError, match="unknown key"):
        defaults.train(asked)
    assert defaults.lines(tmp_path) == []
    fails(NonFiniteError(3))
    defaults.train(asked)
    assert defaults.lines(tmp_path)[0]["error"].startswith("NonFiniteError")


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (defaults.main, ["TRAIN", "VALID"], "give TRAIN VALID OUT"),
        (image_text.main, ["DATA", "--tower", "MiniLM"], "--tower MiniLM: write NAME=PATH"),
        (image_text.main, ["DATA", "--tower", "A=B", "--locked", "a"], "there is no 'a'"),
        (image_text.main, ["DATA", "--vision", "plain,rotations"], "Did you mean 'rotation'"),
        (grad_cache.main, ["--width", "100"], "not a multiple of 64"),
        (collapse.main, ["TEXT", "--seeds", "0"], "0 is not above 0"),
    ],
)
def test_bad_arguments_are_refused_before_a_run(
    main: Any, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_untrained_model_has_the_configuration_of_the_pretrained_one(tmp_path: Path) -> None:
    story: dict[str, Any] = {"model": {"architecture": "bert", "size": "nano", "config": {"num_hidden_layers": 3}}}
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": story | {"data": {"seq_length": 64}}}))
    keys = downstream.start(tmp_path, True)
    recipe = override(load_recipe("finetune_classification"), keys)
    assert (recipe.model.architecture, recipe.model.size) == ("bert", "nano")
    assert recipe.model.config == {"num_hidden_layers": 3}
    story["model"]["pretrained"] = "elsewhere"
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": story | {"data": {"seq_length": 64}}}))
    with pytest.raises(UserError, match="went on from other weights"):
        downstream.start(tmp_path, True)
    assert downstream.start(tmp_path, False) == {"model.pretrained": str(tmp_path)}


def test_the_figure_goes_into_a_folder_that_was_not_there(tmp_path: Path) -> None:
    figures = {"accuracy": 0.5, "most_frequent": 0.25, "parameters": 1e6}
    (tmp_path / "masked_lm.json").write_text(json.dumps({"figures": figures}))
    objective_table.table(tmp_path, tmp_path / "new" / "objectives.svg")
    assert "<svg" in (tmp_path / "new" / "objectives.svg").read_text()


@pytest.mark.slow
def test_figures_go_into_a_folder_that_was_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "grad-cache.json"
    sizes = ["--batches", "4", "--mini-batch-size", "2", "--layers", "1", "--width", "64", "--length", "4"]
    monkeypatch.setattr(sys, "argv", ["grad_cache", *sizes, "--out", str(out)])
    grad_cache.main()
    assert [run["mini"] for run in json.loads(out.read_text())["runs"]] == [None, 2]


def test_a_locked_tower_is_read_once_or_in_every_update(tmp_path: Path) -> None:
    keys = [f"data.train={folder_of_shades(tmp_path / 'shades')}", "model.size=nano", "tokenizer.vocab_size=400"]
    keys += ["objective.lock=text"]
    keys += ["objective.vision=nano", "objective.image_size=16", "train.batch_size=4", "train.epochs=20"]
    for keep in (True, False):
        gate = Turns(rounds=2)
        with pytest.raises(SystemExit):
            locked.contender(gate, keys=[*keys, f"data.cache={tmp_path}"], keep=keep, steps=1)
        assert gate.said[0]["kept"] is keep
        assert [facts["units"] for facts in gate.said[1:]] == [4, 4]
