"""A whole run on a GPU, pretended (`tests.pretend_gpu`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForMaskedLM

from sslnlp import distributed
from sslnlp.precision import new_accelerator
from sslnlp.recipe import load_recipe, run
from sslnlp.recipe.build import processes
from sslnlp.signals import Signals
from tests.pretend_gpu import GPU, one_device_a_run, pretended

KEYS = ["model.size=nano", "train.steps=4", "train.batch_size=4", "tokenizer.vocab_size=520", "data.seq_length=32"]
KEYS += ["train.eval_every=2", "train.optimizer=muon", "train.ema=0.9", "train.precision=no"]


def weights(out: Path) -> dict[str, Any]:
    return AutoModelForMaskedLM.from_pretrained(out / "export").state_dict()


def test_a_run_there_ends_with_the_same_export(text_file: Path, tmp_path: Path) -> None:
    """Tokenizer, start from counts, updates, evaluations, average, checkpoints, export and what it is compared with."""
    keys = [*KEYS, f"data.train={text_file}", f"data.cache={tmp_path / 'cache'}"]
    quiet = Console(quiet=True)
    here = run(load_recipe("pretrain_bert", [*keys, f"out={tmp_path / 'here'}"]), console=quiet)
    with one_device_a_run(), pretended() as waits:
        there = run(load_recipe("pretrain_bert", [*keys, f"out={tmp_path / 'there'}"]), console=quiet)
        assert waits
        again = run(load_recipe("pretrain_bert", [*keys, f"out={there}"]), resume=True, console=quiet)
    assert again == there
    expected, got = weights(here), weights(there)
    assert got.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.allclose(got[name], weight, atol=2e-4), name
    measured = [json.loads((out / "recipe.json").read_text())["result"]["measures"] for out in (here, there)]
    assert measured[1] == pytest.approx(measured[0], rel=1e-3, abs=1e-3)


def test_several_ranks_there_hear_of_a_signal_one_update_late_and_wait_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    elsewhere = 0
    monkeypatch.setattr(distributed, "all_reduce_max", lambda x: x.clamp(min=elsewhere))
    signals, cpu = Signals(), torch.device("cpu")
    with pretended() as waits:
        said = [signals.on_any_rank(GPU, at_once=False)]
        elsewhere = 15
        said += [signals.on_any_rank(GPU, at_once=False) for _ in range(2)]
        assert said == [0, 0, 15]
        assert not waits
        elsewhere, signals.received = 0, 2
        assert signals.on_any_rank(GPU, at_once=True) == 2
    assert Signals().on_any_rank(cpu, at_once=False) == 0
    assert signals.on_any_rank(cpu, at_once=False) == 2


def test_apples_gpu_which_has_no_float64_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, patch in {
        "torch.accelerator.is_available": lambda: True,
        "torch.accelerator.current_accelerator": lambda *_, **__: torch.device("mps"),
        "accelerate.state.is_mps_available": lambda *_, **__: True,
    }.items():
        monkeypatch.setattr(place, patch)
    with one_device_a_run():
        assert new_accelerator("no").device.type == "cpu"
    with one_device_a_run():
        assert processes().device.type == "cpu"
