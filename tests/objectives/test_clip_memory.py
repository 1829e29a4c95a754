"""A locked text tower reads each caption once: nothing else is learnt by it, and it is not run in training again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sslnlp.objectives.clip import Clip
from sslnlp.objectives.memory import Memory
from sslnlp.packed import hidden_states
from sslnlp.recipe import load_recipe, run
from sslnlp.recipe.plan import plan
from sslnlp.recipe.schema import Recipe
from sslnlp.signals import Interrupted, Signals
from tests.contract import difference, make_objective, one_batch
from tests.objectives.test_clip import folder_of_shades

STEPS = 6


def locked(data: Path, out: Path, *keys: str) -> Recipe:
    few = [f"data.train={data}", "data.valid_fraction=0.2", "model.size=nano", "tokenizer.vocab_size=400"]
    few += ["train.epochs=none", f"train.steps={STEPS}", "train.batch_size=16", "train.lr=1e-3", "train.eval_every=100"]
    few += ["objective.vision=nano", "objective.image_size=16", "objective.lock=text", f"out={out}"]
    return load_recipe("clip_image_text", [*few, f"data.cache={data.parent}", *keys])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_shades(tmp_path_factory.mktemp("pictures") / "shades")


@pytest.fixture
def training_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each time that the text tower is run in training, how many captions it read."""
    counted: list[int] = []

    def counting(model: Any, encoding: Any, **options: Any) -> torch.Tensor:
        if model.training:
            counted.append(len(encoding["input_ids"]))
        return hidden_states(model, encoding, **options)

    monkeypatch.setattr("sslnlp.objectives.clip.hidden_states", counting)
    return counted


def end(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "export" / "model.safetensors")


def test_it_learns_the_same_and_the_tower_is_not_run_again(
    data: Path, tmp_path: Path, training_reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run(locked(data, tmp_path / "kept"))
    assert not training_reads
    with monkeypatch.context() as patched:
        patched.setattr(Clip, "remembers", False)
        live = run(locked(data, tmp_path / "live"))
    assert training_reads == [16] * STEPS
    figures = [json.loads((out / "recipe.json").read_text())["result"]["measures"] for out in (kept, live)]
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], abs=1e-5)
    assert difference(end(kept), end(live)) < 1e-4  # where AdamW blows up the rounding of gradients near zero


def test_a_stopped_run_goes_on_exactly(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(locked(data, tmp_path / "straight"))
    with monkeypatch.context() as patched:
        patched.setattr(Signals, "here", lambda self: 15)
        with pytest.raises(Interrupted):
            run(locked(data, tmp_path / "stopped"))
    resumed = run(locked(data, tmp_path / "stopped"), resume=True)
    assert difference(end(straight), end(resumed)) == 0


@pytest.mark.parametrize("keys", [["train.steps=1"], ["model.dropout=0.1"], ["objective.unlock=0.9"]])
def test_it_is_run_where_that_is_less_or_not_the_same(
    keys: list[str], data: Path, tmp_path: Path, training_reads: list[int]
) -> None:
    run(locked(data, tmp_path / "out", *keys))
    assert training_reads


def test_a_plan_tells_of_such_a_run(data: Path, tmp_path: Path, training_reads: list[int]) -> None:
    figures = plan(locked(data, tmp_path / "out", "train.steps=50"))
    assert figures["before_training"] > 0
    assert not training_reads


def test_captions_are_found_by_their_tokens_whatever_the_padding() -> None:
    model = make_objective("clip").eval().model
    encoding = one_batch("clip")["text"]
    wider = {name: torch.nn.functional.pad(value, (0, 3)) for name, value in encoding.items()}
    memory = Memory()
    assert not memory
    memory.fill([encoding], lambda part: hidden_states(model, part), model.pooler)
    states = hidden_states(model, encoding)[:, :1]
    assert torch.equal(memory.of(encoding), states)
    assert torch.equal(memory.of({name: value.flip(0) for name, value in wider.items()}), states.flip(0))
    other = {**encoding, "input_ids": encoding["input_ids"] + encoding["attention_mask"]}
    with pytest.raises(AssertionError, match="not read before"):
        memory.of(other)


def test_nothing_is_kept_for_a_pooler_that_reads_more_or_where_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_objective("clip").eval().model
    encoding = one_batch("clip")["text"]
    memory = Memory()
    memory.fill([encoding], lambda part: hidden_states(model, part), lambda states: states.mean(1))
    assert not memory
    monkeypatch.setattr("sslnlp.objectives.memory.LARGEST", 10)
    memory.fill([encoding], lambda part: hidden_states(model, part), model.pooler)
    assert not memory


@pytest.mark.slow
def test_a_compiled_objective_remembers_too(data: Path, tmp_path: Path, training_reads: list[int]) -> None:
    run(locked(data, tmp_path / "out", "train.compile=true"))
    assert not training_reads
