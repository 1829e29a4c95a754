"""What all documents share is taken out of vectors that were never trained: when, by which map, and that it stays."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sslnlp.errors import UserError
from sslnlp.search import segments
from sslnlp.search.encoder import Encoder
from sslnlp.search.index import Index, add_documents, build_index, delete_documents
from sslnlp.search.loading import MAP, load_encoder
from sslnlp.search.whitening import _pieces, mean_cosine
from tests.search.conftest import WORDS
from tests.tiny_tokenizers import tiny

Make = Callable[..., Path]
TEXTS = [" ".join(random.Random(n).choices(WORDS, k=9)) for n in range(60)]
QUERIES = [" ".join(text.split()[2:6]) for text in TEXTS]


def written(path: Path, texts: list[str], first: int = 0) -> Path:
    path.write_text("".join(json.dumps({"id": f"d{first + n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def bare(folder: Path, make_encoder: Make, shared: float = 3) -> str:
    """A model that says nothing of its vectors; in each of their directions all texts have `shared` in common."""
    (make_encoder(folder) / "modules.json").unlink()
    mean_H = Encoder.load(str(folder)).unscaled().encode(TEXTS, "document").mean(0)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.LayerNorm.bias"] += shared - torch.from_numpy(mean_H)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def vectors(index: Path) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(index.glob("segment-*/vectors.npy"))])


def reciprocal_rank(index: Path) -> float:
    ranked = Index(index).rank(QUERIES, "dense", len(TEXTS))
    return float(np.mean([1 / (1 + ranking.rows.tolist().index(n)) for n, ranking in enumerate(ranked)]))


def test_texts_of_a_bare_language_model_are_told_apart(tmp_path: Path, make_encoder: Make) -> None:
    model, data = bare(tmp_path / "m", make_encoder), written(tmp_path / "d.jsonl", TEXTS)
    for name, whiten in (("unasked", None), ("asked", True), ("not", False)):
        facts = build_index(data, tmp_path / name, model=model, whiten=whiten, dtype="float32")
        assert facts["dense"]["whitened"] == (name != "not")
    assert mean_cosine(vectors(tmp_path / "not")) > 0.8 > 0.1 > mean_cosine(vectors(tmp_path / "unasked"))
    np.testing.assert_array_equal(vectors(tmp_path / "asked"), vectors(tmp_path / "unasked"))
    assert reciprocal_rank(tmp_path / "unasked") > 1.3 * reciprocal_rank(tmp_path / "not")
    assert load_encoder(model).fingerprint == Index(tmp_path / "unasked").facts["dense"]["fingerprint"]


def test_a_sentence_encoder_is_left_as_it_is_unless_asked(tmp_path: Path, make_encoder: Make) -> None:
    data, model = written(tmp_path / "d.jsonl", TEXTS), str(make_encoder(tmp_path / "m"))
    assert not build_index(data, tmp_path / "i", model=model)["dense"]["whitened"]
    assert build_index(data, tmp_path / "j", model=model, whiten=True)["dense"]["whitened"]
    # The same weights, of which nobody knows what they are, but whose vectors do not lie beside each other.
    apart = bare(tmp_path / "apart", make_encoder, shared=0)
    assert not build_index(data, tmp_path / "k", model=apart)["dense"]["whitened"]
    assert mean_cosine(vectors(tmp_path / "k")) < 0
    assert build_index(data, tmp_path / "l", model=apart, whiten=True)["dense"]["whitened"], "below 0, and asked for"


def test_the_map_stays_with_the_index(tmp_path: Path, make_encoder: Make) -> None:
    """Through adding, joining of segments and deleting; a query goes through it, too."""
    model, index = bare(tmp_path / "m", make_encoder), tmp_path / "i"
    build_index(written(tmp_path / "d.jsonl", TEXTS[:40]), index, model=model, dtype="float32")
    first = vectors(index)
    add_documents(index, written(tmp_path / "e.jsonl", TEXTS[40:], 40))
    assert len(Index(index).facts["segments"]) == 1, "joined: forty are not twice twenty"
    np.testing.assert_array_equal(vectors(index)[:40], first)
    delete_documents(index, ["d1", "d3"])
    opened = Index(index)
    assert (index / opened.facts["table"] / MAP / "model.safetensors").is_file()
    expected = opened.encoder.encode(TEXTS[:1], "document")
    np.testing.assert_allclose(expected, first[:1], atol=1e-3)
    assert opened.rank([TEXTS[0]], "dense", 1)[0].scores[0] == pytest.approx(1, abs=1e-3)
    shutil.rmtree(index / opened.facts["table"] / MAP)
    with pytest.raises(UserError, match="is missing"):
        Index(index)


def test_a_run_that_goes_on_keeps_its_map(tmp_path: Path, make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = bare(tmp_path / "m", make_encoder), written(tmp_path / "d.jsonl", TEXTS)
    build_index(data, tmp_path / "whole", model=model)
    monkeypatch.setattr(segments, "write_postings", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_index(data, tmp_path / "i", model=model)
    monkeypatch.undo()
    monkeypatch.setattr("sslnlp.search.whitening.whitener", lambda *_: 1 / 0)  # fitted already
    said: list[str] = []
    assert build_index(data, tmp_path / "i", model=model, say=said.append)["dense"]["whitened"]
    assert said == ["Going on where a run was interrupted: 60 documents read."]
    np.testing.assert_array_equal(vectors(tmp_path / "i"), vectors(tmp_path / "whole"))


def test_few_documents_make_no_map(tmp_path: Path, make_encoder: Make) -> None:
    model, data = bare(tmp_path / "m", make_encoder), written(tmp_path / "d.jsonl", TEXTS[:15])
    assert not build_index(data, tmp_path / "i", model=model)["dense"]["whitened"]
    with pytest.raises(UserError, match=r"15 are too few \(at least 16\): leave it out"):
        build_index(data, tmp_path / "j", model=model, whiten=True)
    assert not (tmp_path / "j").exists()
    with pytest.raises(UserError, match="--whiten is for vectors: give --model with it"):
        build_index(data, tmp_path / "j", whiten=True)


def test_documents_that_are_all_alike_have_nothing_to_take_out(tmp_path: Path, make_encoder: Make) -> None:
    model = bare(tmp_path / "m", make_encoder)
    data = written(tmp_path / "d.jsonl", ["flat"] * 20)
    assert not build_index(data, tmp_path / "i", model=model)["dense"]["whitened"]
    with pytest.raises(UserError, match="these are all the same, or no numbers: leave it out"):
        build_index(data, tmp_path / "j", model=model, whiten=True)
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_pieces_begin_with_a_word_of_the_text(kind: str) -> None:
    reader: Any = SimpleNamespace(tokenizer=tiny(kind), max_length=512)
    some = ["flat", "wings,", "unheardof", "(lift)"]
    texts = [" ".join(random.Random(n).choices(some, k=40)) for n in range(50)]
    assert len(reader.tokenizer.tokenize("unheardof")) > 2
    pieces = list(_pieces(reader, texts))
    for piece, text in zip(pieces, texts, strict=True):
        assert re.search(r"(?:\b|(?<!\w))" + re.escape(piece), text), piece
        assert 4 <= len(reader.tokenizer.tokenize(piece)) <= 16 + len("unheardof")
    assert len({len(piece) for piece in pieces}) > 10
    assert list(_pieces(reader, ["", "  "])) == ["", ""]
    assert list(_pieces(SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False)), texts)) == []  # type: ignore[arg-type]
