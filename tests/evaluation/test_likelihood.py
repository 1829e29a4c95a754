"""(Pseudo-)log-likelihoods against a direct computation: one masked copy at a time, all logits, nothing shared."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from sslnlp.errors import UserError
from sslnlp.evaluation.likelihood import BitsPerByte, PseudoPerplexity, log_likelihoods
from sslnlp.evaluation.minimal_pairs import MinimalPairAccuracy, Pair, minimal_pair_measures, minimal_pair_scores
from sslnlp.models import ModelConfig, build_model
from tests.contract import LENGTH, small_tokenizer
from tests.evaluation.shipped import shipped_masked_lm

TEXTS = [
    "The disputes of travellers are uninteresting.",
    "sun",
    "",
    "Unbelievably, the cloak-makers disagreed about 1,234 coats!",
    "Die Sonne schien: 自由内容 für alle.",
]


def model_of(architecture: str, auto: Any) -> Any:
    config = ModelConfig(architecture=architecture, size="nano")
    return build_model(config, small_tokenizer(), auto, max_length=LENGTH, seed=0).eval()


@torch.no_grad()
def direct_pseudo(model: Any, tokenizer: Any, text: str, word_aware: bool) -> float:
    """By the definition, for a WordPiece tokenizer: `##` goes on with a word."""
    ids = tokenizer(text)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    total = 0.0
    for place, token in enumerate(tokens):
        if token in (tokenizer.cls_token, tokenizer.sep_token):
            continue
        masked = list(ids)
        masked[place] = tokenizer.mask_token_id
        after = place + 1
        while word_aware and after < len(tokens) and tokens[after].startswith("##"):
            masked[after] = tokenizer.mask_token_id
            after += 1
        logits = model(input_ids=torch.tensor([masked]), attention_mask=torch.ones(1, len(masked)).long()).logits
        total += float(logits[0, place].double().log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize("word_aware", [True, False])
def test_pseudo_likelihood_of_a_shipped_model(word_aware: bool) -> None:
    model, tokenizer = shipped_masked_lm()
    scored = log_likelihoods(model, tokenizer, TEXTS, batch_size=7, word_aware=word_aware)
    for text, one in zip(TEXTS, scored, strict=True):
        expected = direct_pseudo(model, tokenizer, text, word_aware)
        assert one.log_likelihood == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert one.tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert one.bytes == len(text.encode())
    if word_aware:  # the words of "Unbelievably, the cloak-makers disagreed about 1,234 coats!"
        assert scored[3].words == 13
        other = log_likelihoods(model, tokenizer, TEXTS[3:4], word_aware=False)[0]
        assert other.log_likelihood > scored[3].log_likelihood  # pieces of a word give each other away


def test_minimal_pairs_of_a_shipped_model() -> None:
    model, tokenizer = shipped_masked_lm()
    pairs = [
        Pair("The cats annoy Tim.", "The cats annoys Tim.", "agreement"),
        Pair("She sees herself.", "She sees himself.", "anaphor"),
        Pair("Many girls insulted themselves.", "Many girls insulted herself.", "anaphor"),
        Pair("Who did you see?", "Who did you see her?", "island"),
    ]
    expected = np.array(
        [direct_pseudo(model, tokenizer, p.good, True) - direct_pseudo(model, tokenizer, p.bad, True) for p in pairs]
    )
    assert minimal_pair_scores(model, tokenizer, pairs, batch_size=5) == pytest.approx(expected, abs=1e-4)
    figures = minimal_pair_measures(model, tokenizer, pairs)
    assert figures["minimal_pairs"].value == pytest.approx((expected > 0).mean())
    assert figures["minimal_pairs/anaphor"].value == pytest.approx((expected[1:3] > 0).mean())
    assert figures["minimal_pairs"].chance == 0.5
    assert minimal_pair_measures(model, tokenizer, pairs, limit=3)["minimal_pairs"].number == 3  # one of each group
    again = MinimalPairAccuracy().compute(predictions=[1.0, 2.0, 3.0], references=[0.0, 2.0, 4.0])
    assert again["minimal_pairs"] == pytest.approx(0.5)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_likelihood_of_a_causal_model(architecture: str) -> None:
    model, tokenizer = model_of(architecture, AutoModelForCausalLM), small_tokenizer()
    scored = log_likelihoods(model, tokenizer, TEXTS, batch_size=2, max_length=24)
    for text, one in zip(TEXTS, scored, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]][:24]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[i - 1, ids[i]]) for i in range(1, len(ids)))
        assert one.log_likelihood == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert one.tokens == len(ids) - 1
        assert one.bytes <= len(text.encode())
    bits = BitsPerByte().compute(
        predictions=[one.log_likelihood for one in scored], references=[one.bytes for one in scored]
    )
    assert 0 < bits["bits_per_byte"] < 30


def test_uniform_logits_have_the_perplexity_of_the_vocabulary() -> None:
    model, tokenizer = model_of("bert", AutoModelForMaskedLM), small_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    scored = log_likelihoods(model, tokenizer, TEXTS[:2])
    figure = PseudoPerplexity().compute(
        predictions=[one.log_likelihood for one in scored], references=[one.tokens for one in scored]
    )
    assert figure["pseudo_perplexity"] == pytest.approx(model.config.vocab_size, rel=1e-5)


def test_neither_the_batch_nor_its_neighbours_move_a_score() -> None:
    model, tokenizer = model_of("modernbert", AutoModelForMaskedLM), small_tokenizer()
    together = log_likelihoods(model, tokenizer, TEXTS, batch_size=64)
    alone = [log_likelihoods(model, tokenizer, [text], batch_size=1)[0] for text in TEXTS]
    for a, b in zip(together, alone, strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-4)
        assert (a.tokens, a.words, a.bytes) == (b.tokens, b.words, b.bytes)
    assert together[2].tokens == together[2].log_likelihood == 0


def test_long_texts_are_cut() -> None:
    model, tokenizer = model_of("bert", AutoModelForMaskedLM), small_tokenizer()
    long = "one word after another " * 40
    one = log_likelihoods(model, tokenizer, [long], max_length=16)[0]
    assert one.tokens == 14
    assert 0 < one.bytes < len(long)
    assert math.isfinite(one.log_likelihood)


def test_models_without_a_likelihood() -> None:
    with pytest.raises(UserError, match="gives no likelihood"):
        log_likelihoods(model_of("t5", AutoModelForSeq2SeqLM), small_tokenizer(), ["x"])
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        log_likelihoods(model_of("bert", AutoModelForMaskedLM), tokenizer, ["x"])
