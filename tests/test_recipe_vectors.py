"""What a run does to its vectors: handed to the next stage, and measured as it is exported."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from sslnlp.recipe import load_recipe, read_result, run
from sslnlp.search.encoder import Encoder
from sslnlp.vector_map import map_of_model, pooling_of_model
from tests.contract import corpus

TINY = ["model.size=nano", "train.steps=3", "train.batch_size=2", "tokenizer.vocab_size=520", "data.seq_length=32"]


@pytest.fixture(scope="module")
def bert(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pretrain_bert."""
    folder = tmp_path_factory.mktemp("start")
    keys = [f"data.train={text_file}", f"out={folder / 'bert'}", f"data.cache={folder / 'cache'}"]
    return run(load_recipe("pretrain_bert", [*TINY, *keys]))


def test_what_is_done_to_vectors_is_handed_on(bert: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": text[:20], "positive": text} for text in corpus()[:60]]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    small = [*TINY, f"data.train={pairs}", "train.steps=1"]
    maps = {}
    for name, keys in {
        "first": [f"model.pretrained={bert / 'export'}", "objective.whitening=0.5"],
        "second": [f"model.pretrained={tmp_path / 'first' / 'export'}"],
        "fresh": [f"model.pretrained={tmp_path / 'first' / 'export'}", "model.fresh=true", "objective.whitening=0.5"],
        "none": [f"model.pretrained={tmp_path / 'first' / 'export'}", "objective.whitening=0"],
    }.items():
        out = run(load_recipe("finetune_ranking", [*small, *keys, f"out={tmp_path / name}"]))
        maps[name] = map_of_model(str(out / "export"))
    assert maps["none"] is None
    assert all(maps[name] is not None for name in ("first", "second", "fresh"))
    assert torch.equal(maps["first"].weight, maps["second"].weight)
    assert not torch.allclose(maps["first"].weight, maps["fresh"].weight, atol=1e-3)


def test_the_pooling_of_a_sentence_encoder_is_handed_on(bert: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps({"query": text[:20], "positive": text}) for text in corpus()[:60]))
    small, start = [*TINY, f"data.train={pairs}", "train.steps=1"], f"model.pretrained={tmp_path / 'first' / 'export'}"
    first = [f"model.pretrained={bert / 'export'}", "objective.pooling=cls"]
    said = {}
    for name, keys in {"first": first, "next": [start], "given": [start, "objective.pooling=mean"]}.items():
        console = Console(file=StringIO(), width=300)
        out = run(load_recipe("finetune_ranking", [*small, *keys, f"out={tmp_path / name}"]), console=console)
        said[name] = console.file.getvalue()
        pooling = {"first": "cls", "next": "cls", "given": "mean"}[name]
        assert pooling_of_model(str(out / "export")) == pooling
    assert "objective.pooling cls" in said["next"]
    assert "objective.pooling" not in said["given"]


def test_held_out_figures_are_those_of_the_map_that_is_exported(bert: Path, tmp_path: Path) -> None:
    every = [{"query": text[:20], "positive": text[20:60]} for text in corpus()]
    rows = every[:40]
    for name, some in (("train", every[40:]), ("valid", rows)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in some))
    keys = [f"data.{name}={tmp_path / name}.jsonl" for name in ("train", "valid")]
    keys += [f"model.pretrained={bert / 'export'}", "train.steps=4"]
    keys += ["objective.whitening=0.5", "train.lr=0.01", "train.eval_every=2"]
    out = run(load_recipe("finetune_ranking", [*TINY, *keys, f"out={tmp_path / 'a'}"]))
    encoder = Encoder.load(str(out / "export"))
    query, document = (
        torch.from_numpy(encoder.encode([row[side] for row in rows], kind))
        for side, kind in (("query", "query"), ("positive", "document"))
    )
    similarity = float((query * document).sum(1).mean())
    assert read_result(out)["measures"]["positive_similarity"] == pytest.approx(similarity, abs=1e-5)


@pytest.mark.parametrize("name", ["tsdae", "retromae"])
def test_an_autoencoder_is_exported_with_the_map_of_its_end(
    name: str, bert: Path, text_file: Path, tmp_path: Path
) -> None:
    keys = [f"data.train={text_file}", f"model.pretrained={bert / 'export'}", f"out={tmp_path / 'a'}", "train.steps=1"]
    out = run(load_recipe(f"embed_{name}", [*TINY, *keys]))
    assert map_of_model(str(out / "export")) is not None
    stock = SentenceTransformer(str(out / "export"), device="cpu")
    texts = corpus()[:40]
    vectors = stock.encode(texts)
    assert np.abs(vectors - Encoder.load(str(out / "export")).encode(texts, "document")).max() < 1e-5
    assert np.linalg.norm(vectors.mean(0)) < 0.5, "what all texts share is gone"
