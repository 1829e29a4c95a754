"""The benchmark of short texts in miniature: contenders run and do the same work, and other work gives no ratio."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoTokenizer

from benchmarks import short
from benchmarks.common import Comparison
from tests.turns import Turns

ROUNDS = 2
SIZES = {
    "bf16": False,
    "layers": 1,
    "width": 32,
    "vocabulary": 600,
    "length": 32,
    "batch": 8,
    "steps": 3,
    "rounds": ROUNDS,
}


@pytest.fixture(autouse=True)
def contenders_in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undoes what they leave behind, because each counts on a process of its own."""
    for name in ("ACCELERATE_USE_CPU", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Pairs of a few words and of up to a dozen."""
    draw = random.Random(0)
    words = ["cat", "garden", "bridge", "river", "owl", "listens", "follows", "the", "under", "house", "seven", "rain"]

    def text(most: int) -> str:
        return " ".join(draw.choice(words) + str(draw.randrange(10)) for _ in range(draw.randint(2, most)))

    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"name": text(3), "about": text(12)}) + "\n" for _ in range(300)))
    return path


def compared(kind: str, table: Path, folder: Path) -> tuple[dict[str, dict[str, Any]], Comparison, set[str]]:
    """What contenders said when they were ready, their rounds, and which of them drop out."""
    folder.mkdir()
    work = short.make_work(kind, folder, argparse.Namespace(file=table, columns=["name", "about"], **SIZES))
    made, loose = short.contenders(kind, work)
    ready, rounds = {}, {}
    for name, (function, options) in made.items():
        AcceleratorState._reset_state(reset_partial_state=True)
        turns = Turns(ROUNDS)
        torch.manual_seed(0)
        with pytest.raises(SystemExit):
            function(turns, **options)
        ready[name], rounds[name] = turns.said[0], turns.said[1:]
    return ready, Comparison(rounds, "tokens", next(iter(made)), {}), loose


def test_masked_contenders_see_the_same_tokens(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    # Some 50 targets a round at a deviation that is small, because nothing is known yet.
    monkeypatch.setattr(short, "NOISE", {"masked": 0.1})
    ready, result, loose = compared("masked", table, tmp_path / "work")
    assert short.other_work("masked", result, loose) == {}
    assert len(result.rounds) == 5
    assert list(scratch.iterdir()) == []  # all that a contender writes is in the folder that goes with the comparison
    # A pass a round: the warm-up and all rounds have the same tokens.
    digests = {facts["digest"] for rounds in (ready.values(), *result.rounds.values()) for facts in rounds}
    assert len(digests) == 1
    places = {name: rounds[0]["places"] for name, rounds in result.rounds.items()}
    assert places["HF Trainer, pad_to_max_length"] == SIZES["batch"] * SIZES["steps"] * SIZES["length"]
    assert places["sslnlp, packed"] < places["HF Trainer, tuned"] < places["HF Trainer, pad_to_max_length"]
    assert result.rounds["sslnlp, packed"][0]["units"] / places["sslnlp, packed"] > 0.9

    # The tuned peer computes as little padding as there can be in its batches: it sorts all texts of a round.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "work" / "model")
    lengths = sorted(map(len, tokenizer(json.loads((tmp_path / "work" / "texts.json").read_text()))["input_ids"]))
    widest = lengths[SIZES["batch"] - 1 :: SIZES["batch"]]
    assert places["HF Trainer, tuned"] == SIZES["batch"] * sum(widest)

    result.rounds["HF Trainer, tuned"][1]["digest"] = "other"
    assert short.other_work("masked", result, loose) == {"HF Trainer, tuned": "other tokens"}


def test_contrastive_contenders_make_the_same_vectors_and_losses(table: Path, tmp_path: Path) -> None:
    ready, result, loose = compared("contrastive", table, tmp_path / "work")
    short.same_vectors(ready)
    assert ready["sslnlp, packed"]["vectors"].shape == (2, SIZES["batch"], SIZES["width"])
    assert short.other_work("contrastive", result, loose) == {}
    for name in ("sslnlp, padded", "sentence-transformers, tuned"):  # the same batches: step by step
        for mine, theirs in zip(result.rounds["sslnlp, packed"], result.rounds[name], strict=True):
            assert theirs["losses"] == pytest.approx(mine["losses"], abs=2e-3), name
            assert theirs["units"] == SIZES["batch"] * SIZES["steps"]
            assert mine["places"] < theirs["places"]

    ready["sentence-transformers, tuned"]["vectors"] = np.flip(ready["sslnlp, packed"]["vectors"], 1)
    with pytest.raises(SystemExit, match=r"sentence-transformers, tuned gives the first batch other vectors"):
        short.same_vectors(ready)
    result.rounds["sslnlp, padded"][0]["losses"] = [9.0] * SIZES["steps"]
    assert short.other_work("contrastive", result, loose).keys() == {"sslnlp, padded"}


def test_a_file_with_too_few_pairs_is_refused(table: Path) -> None:
    columns = short.read_columns(table, ["name", "about"])
    pairs = short.choose_pairs(columns, 40)
    texts = [text.lower() for pair in pairs for text in pair]
    assert len(set(texts)) == len(texts) == 80
    with pytest.raises(SystemExit, match=r"only \d+ different pairs, 400 are needed"):
        short.choose_pairs(columns, 400)
