"""Collator × objective × architecture × tokenizer that do not go together: refused in one line, before data is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslnlp.cli import run_command
from sslnlp.collators import COLLATORS, get_collator
from sslnlp.collators.base import Collator
from sslnlp.errors import UserError
from sslnlp.objectives import OBJECTIVES
from sslnlp.objectives.base import Objective
from sslnlp.recipe.checks import check
from tests.contract import corpus, objective_class, small_tokenizer


def tokenizer_without(folder: Path, words: str) -> str:
    """Our tokenizer with every token that holds `words` renamed."""
    small_tokenizer().save_pretrained(folder)
    for path in folder.glob("*.json"):
        path.write_text(path.read_text().replace(words, words[:-1] + "#"))
    return f"tokenizer.path={folder}"


CASES = {
    # what is wrong: (recipe and overrides, words of the refusal)
    "span corruption with an encoder": (
        "pretrain_t5 model.architecture=modernbert",
        "choose model.architecture from: bart, t5",
    ),
    "span corruption with a decoder": (
        "pretrain_t5 model.architecture=llama",
        "choose model.architecture from: bart, t5",
    ),
    "masked LM with an encoder-decoder": (
        "pretrain_bert model.architecture=t5",
        "choose model.architecture",
    ),
    "causal LM with an encoder": (
        "pretrain_gpt model.architecture=bert",
        "both directions",
    ),
    "causal LM with an encoder-decoder": (
        "pretrain_gpt model.architecture=t5",
        "choose model.architecture",
    ),
    "electra with bert": (
        "pretrain_electra model.architecture=bert",
        "choose model.architecture from: electra",
    ),
    "hybrid with an encoder": (
        "pretrain_hybrid model.architecture=modernbert",
        "choose model.architecture",
    ),
    "diffusion with a decoder": (
        "pretrain_bert objective.name=masked_diffusion model.architecture=gpt2",
        "choose",
    ),
    "tsdae with an encoder-decoder": (
        "embed_tsdae model.architecture=bart",
        "choose model.architecture",
    ),
    "views of masked rows": (
        "embed_simcse collator.name=masked_lm",
        "collator.name=views",
    ),
    "a search measure without queries": (
        "embed_moco data.beir=folder",
        "sslnlp search evaluate",
    ),
    "views with an encoder-decoder": (
        "embed_byol model.architecture=t5",
        "choose model.architecture",
    ),
    "causal LM on masked rows": (
        "pretrain_gpt collator.name=masked_lm",
        "collator.name=causal_lm",
    ),
    "masked LM on causal rows": (
        "pretrain_bert collator.name=causal_lm",
        "collator.name=masked_lm",
    ),
    "denoising on an autoencoder's rows": (
        "pretrain_bart collator.name=tsdae",
        "collator.name=denoising",
    ),
    "span corruption on masked rows": (
        "pretrain_t5 collator.name=masked_lm",
        "collator.name=span_corruption",
    ),
    "electra on masked rows": (
        "pretrain_electra collator.name=masked_lm",
        "collator.name=electra",
    ),
    "order of rows without segments": (
        "pretrain_bert objective.name=sentence_order collator.name=masked_lm",
        "collator.name=sentence_order",
    ),
    "infilling on plain rows": (
        "pretrain_gpt objective.name=fim collator.name=causal_lm",
        "collator.name=fim",
    ),
    "a table's collator on text": (
        "pretrain_bert collator.name=ranking",
        "collator.name=masked_lm",
    ),
    "joint without parts": (
        "pretrain_bert objective.name=joint",
        "objective.weights",
    ),
    "joint of an encoder and a decoder": (
        'pretrain_bert objective.name=joint objective.weights={"masked_lm":1,"causal_lm":1}',
        "do not go together",
    ),
    "joint of an unknown part": (
        'pretrain_bert objective.name=joint objective.weights={"masked_ml":1}',
        "Did you mean 'masked_lm'",
    ),
}

TOKENS = {
    "sentinels missing": ("pretrain_t5", "<extra_id_0>", "sentinels"),
    "infilling markers missing": ("pretrain_gpt objective.name=fim", "<|fim_middle|>", "fim"),
    "mode tokens missing": ("pretrain_t5 objective.name=ul2", "[NLG]", "modes"),
}


def refused(
    arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    def untouched(*_: object, **__: object) -> None:
        raise AssertionError("the data was read")

    for name in ("build.prepare_text", "tokenizing.sample_texts", "build.labelled", "build.paired"):
        monkeypatch.setattr(f"sslnlp.recipe.{name}", untouched)
    (folder / "good.txt").write_text("\n\n".join(corpus()))
    code = run_command(["train", *arguments, f"data.train={folder / 'good.txt'}", f"out={folder / 'out'}"])
    told = capfd.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error:")]
    assert code == 2, told
    assert len(errors) == 1, told
    assert not (folder / "out").exists()
    return errors[0]


@pytest.mark.parametrize("case", CASES)
def test_wrong_pairs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, words = CASES[case]
    assert words in refused(arguments.split(), tmp_path, monkeypatch, capfd)


@pytest.mark.parametrize("case", TOKENS)
def test_missing_tokens(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, token, words = TOKENS[case]
    (tmp_path / "tokenizer").mkdir()
    given = tokenizer_without(tmp_path / "tokenizer", token)
    assert words in refused([*recipe.split(), given], tmp_path, monkeypatch, capfd)


def test_a_corpus_of_single_sentences_has_no_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only the data can tell, so it is read; nothing is trained or written."""
    lines = "\n\n".join(text.split(".")[0] + "." for text in corpus())
    (tmp_path / "single.txt").write_text(lines)
    code = run_command(
        ["train", "pretrain_bert", "objective.name=sentence_order", f"data.train={tmp_path / 'single.txt'}",
         f"data.cache={tmp_path / 'cache'}", "tokenizer.vocab_size=520", "model.size=nano", "data.seq_length=32",
         f"out={tmp_path / 'out'}"]
    )  # fmt: skip
    told = capfd.readouterr().err
    assert code == 2, told
    assert "sentence" in next(line for line in told.splitlines() if line.startswith("error:"))
    assert not (tmp_path / "out").exists()


def test_every_pair_fits_or_says_what_would() -> None:
    """All registered collators × objectives: a pair is accepted, or the refusal names the objective's own collator."""
    accepted = 0
    for objective_name in OBJECTIVES:
        objective = objective_class(objective_name)
        for collator_name in COLLATORS:
            collator = get_collator(collator_name)
            if objective_name == "joint" or collator_name == "joint":
                continue  # what these make and need depends on their parts
            if (refusal := refusal_of(collator, objective)) is None:
                accepted += 1
            else:
                assert f"collator.name={objective.collator}" in refusal
    assert accepted >= len(OBJECTIVES) - 1


def test_the_advice_stays_with_the_same_kind_of_data() -> None:
    refusal = refusal_of(get_collator("masked_lm"), objective_class("causal_lm"))
    assert refusal is not None
    assert "use collator.name=causal_lm or fim" in refusal
    assert "classification" not in refusal


def refusal_of(collator: type[Collator], objective: type[Objective]) -> str | None:
    try:
        check(collator, objective)
    except UserError as error:
        return str(error)
    return None
