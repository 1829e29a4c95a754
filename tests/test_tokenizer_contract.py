"""The contract: measured on text, refused with a fix."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sslnlp.errors import UserError
from sslnlp.tokenizer import Contract, contract, load_tokenizer, train_tokenizer
from sslnlp.tokenizer.contract import ADVICE
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny

MESSY = ["Two  spaces,\n\na line and a\ttab; [MASK] by name.", *ENGLISH, *CHINESE]


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_tokenizers(kind):
    measured = contract(tiny(kind), MESSY)
    expected = dict.fromkeys(ADVICE, True)
    # WordPiece forgets white space; Unigram kept every character of its corpus but knows no tab.
    expected["exact_round_trip"] = kind == "bpe"
    assert measured.facts == expected
    assert measured.figures["vocab_size"] == len(tiny(kind))
    assert measured.figures["word_start_agreement"] > (0.98 if kind == "unigram" else 0.999)
    # Capitals that the page never used are unknown to all but bytes.
    assert (measured.figures["unknown_rate"] == 0) == (kind == "bpe")


def test_bytes_keep_the_whole_contract():
    measured = contract(tiny("bytes"), MESSY)
    assert all(measured.facts.values())
    assert measured.figures["bytes_per_token"] == 1
    assert measured.figures["unknown_rate"] == 0
    assert measured.figures["word_start_agreement"] > 0.999


def test_lower_case_is_no_exact_round_trip_and_bytes_are_not_to_blame():
    measured = contract(train_tokenizer([], algorithm="bytes", lowercase=True), ["One Two"])
    assert not measured.facts["exact_round_trip"]
    with pytest.raises(UserError, match="algorithm bpe or bytes, and without lowercase"):
        measured.require(["exact_round_trip"])


def test_unigram_round_trip_is_exact_where_it_knows_the_characters():
    assert contract(tiny("unigram"), ENGLISH).facts["exact_round_trip"]


def test_figures_on_known_text():
    """One word per token, one word unknown: every figure by hand."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "lamp": 2, "<eos>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")
    measured = contract(tokenizer, ["a lamp a ship"])
    assert measured.figures == {
        "vocab_size": 4,
        "bytes_per_token": 13 / 4,
        "fertility": 1.0,
        "unknown_rate": 4 / 10,  # "ship", of ten letters
        "word_start_agreement": 1.0,
    }
    held = {name for name, fact in measured.facts.items() if fact}
    assert held == {"specials_excluded", "word_starts", "bos", "eos"}


def test_word_starts_fail_where_ids_do_not_tell():
    """Pieces cut anywhere and unmarked: ids alone cannot say where a word begins."""
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    backend = Tokenizer(models.WordLevel(letters | {"<unk>": len(letters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    measured = contract(tokenizer, ["the lamp of the harbour"])
    assert not measured.facts["word_starts"]
    with pytest.raises(UserError, match="unit=token"):
        measured.require(["word_starts"])


def test_pad_is_eos_and_missing_tokens():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.mask_token = None
    facts = contract(tokenizer, ENGLISH).facts
    assert facts["pad"]
    assert not facts["pad_is_not_eos"]
    assert not facts["mask"]


def test_require_names_the_fact_and_the_fix():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.mask_token = None
    measured = contract(tokenizer, ENGLISH)
    measured.require(["pad", "eos", "specials_excluded"])
    with pytest.raises(UserError, match=r"'mask'.*sslnlp tokenizer"):
        measured.require(["pad", "mask"])
    for missing in ("fim", "modes"):
        assert measured.facts[missing]
        with pytest.raises(UserError, match=rf"{missing}.*sslnlp tokenizer"):
            Contract(measured.facts | {missing: False}, measured.figures).require([missing])
    with pytest.raises(UserError, match="'sentinels'"):
        measured.require(["sentinel"])


def test_table_and_dict_show_every_fact():
    measured = contract(tiny("wordpiece"), ENGLISH)
    lines = measured.table().splitlines()
    assert len(lines) == len(measured.facts) + len(measured.figures)
    for name, held in measured.facts.items():
        line = next(line for line in lines if line.startswith(name + " "))
        assert line.split()[1] == ("yes" if held else "NO")
    assert measured.to_dict() == {"facts": measured.facts, "figures": measured.figures}


def test_no_text_is_refused():
    with pytest.raises(UserError, match="needs some text"):
        contract(tiny(), ["", "  "])


@pytest.mark.parametrize("role", ["mask", "pad", "bos", "eos"])
def test_the_advice_about_a_missing_token_is_enough(role, tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "lamp": 1}))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"set {role}_token in its tokenizer_config.json"):
        contract(load_tokenizer(tmp_path), ["lamp"]).require([role])
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {f"{role}_token": f"[{role}]"}))
    contract(load_tokenizer(tmp_path), ["lamp"]).require([role])
