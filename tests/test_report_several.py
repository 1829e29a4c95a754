"""Reports of runs that differ: each is asked what it learnt, on the text that the first held out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sslnlp.recipe import load_recipe, run
from sslnlp.report.card import Card
from sslnlp.report.command import report_runs
from tests.contract import corpus

TINY = ["model.size=nano", "train.steps=2", "train.batch_size=2", "data.seq_length=32"]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of a report's time."""
    monkeypatch.setattr("sslnlp.report.runs.write_figures", lambda charts, folder: [])


def trained(name: str, text_file: Path, folder: Path, *keys: str) -> Path:
    own = [f"data.train={text_file}", f"data.cache={folder / 'cache'}", f"out={folder / name}"]
    return run(load_recipe(f"pretrain_{name}", [*TINY, "tokenizer.vocab_size=520", *own, *keys]))


def cards(out: Path) -> dict[str, Card]:
    plain = json.loads((out / "report.json").read_text())["cards"]
    return {name: Card.from_dict(card) for name, card in plain.items()}


def test_encoder_decoders_rebuild_what_each_was_trained_to(text_file: Path, tmp_path: Path) -> None:
    both = [trained("bart", text_file, tmp_path), trained("t5", text_file, tmp_path, "tokenizer.vocab_size=560")]
    report_runs(both, out=str(tmp_path / "together"))
    found = cards(tmp_path / "together")
    asked = {name: " ".join(card.samples["Corrupted text, rebuilt"]) for name, card in found.items()}
    assert ("[MASK]" in asked["bart"], "<extra_id_0>" in asked["bart"]) == (True, False)
    assert ("[MASK]" in asked["t5"], "<extra_id_0>" in asked["t5"]) == (False, True)


def test_held_out_text_is_read_with_the_tokenizer_that_wrote_it(text_file: Path, tmp_path: Path) -> None:
    """The first run is not finished, so another one is measured, whose tokenizer has other numbers for its tokens."""
    first = trained("gpt", text_file, tmp_path)
    second = trained("gpt", text_file, tmp_path / "other", "tokenizer.algorithm=bytes")
    shutil.rmtree(first / "export")
    report_runs([first, second], out=str(tmp_path / "out"))
    (card,) = cards(tmp_path / "out").values()
    beginnings = [line.partition(" ⟶ ")[0] for line in card.samples["Held-out beginnings, sampled on"]]
    assert beginnings
    assert all(any(beginning in " ".join(text.split()) for text in corpus()) for beginning in beginnings)


@pytest.mark.parametrize(("algorithm", "said"), [("wordpiece", True), ("bpe", False)])
def test_text_that_decoding_does_not_give_back_is_said(
    algorithm: str, said: bool, text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = trained("gpt", text_file, tmp_path, f"tokenizer.algorithm={algorithm}")
    report_runs([out])
    assert ("does not give back every text" in caplog.text) == said
    caplog.clear()
    report_runs([out], texts=str(text_file))
    assert "does not give back every text" not in caplog.text


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_a_run_measures_itself_as_a_report_of_it_does(architecture: str, text_file: Path, tmp_path: Path) -> None:
    """Texts are longer than what it reads: RoBERTa's positions are more than the tokens that they are for."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": " ".join(corpus()[n : n + 9])}) for n in range(0, 54, 9)))
    keys = [f"model.architecture={architecture}", f"report.texts={texts}"]
    out = trained("bert", text_file, tmp_path, *keys)
    (own,) = cards(out).values()
    report_runs([out])
    (later,) = cards(out).values()
    assert own.figures.keys() == later.figures.keys() >= {"mask_loss", "known_item_mrr"}
    for name, figure in own.figures.items():
        assert figure.value == pytest.approx(later.figures[name].value, rel=1e-5, abs=1e-6), name
