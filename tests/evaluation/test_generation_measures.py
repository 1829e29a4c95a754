"""What models write: repetition by hand, continuations of tiny decoders, reconstruction by tiny encoder-decoders."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from sslnlp.collators import get_collator
from sslnlp.errors import UserError
from sslnlp.evaluation.generation import continuations, continue_texts
from sslnlp.evaluation.reconstruction import Reconstruction, rebuild, reconstruct
from sslnlp.evaluation.written import (
    ReconstructionMeasures,
    Repetition,
    edit_similarity,
    repeated,
    repetition_figure,
)
from tests.contract import corpus, small_tokenizer
from tests.evaluation.test_likelihood import tiny

TEXTS = [*corpus()[:12], "the"]


@functools.cache
def model_of(wraps: Any, architecture: str) -> Any:
    return tiny(wraps, architecture)


# --- repetition -------------------------------------------------------------------------------------------------------


def test_repetition_by_hand() -> None:
    assert repeated([1, 2, 1, 2, 1], 1) == (3, 5)
    assert repeated([1, 2, 1, 2, 1], 2) == (2, 4)  # 12 21 12 21
    assert repeated([1, 2, 1, 2, 1], 4) == (0, 2)
    assert repeated([1, 2], 4) == (0, 0)
    assert repeated([], 1) == (0, 0)
    texts = [[7] * 10, list(range(10))]
    assert repetition_figure(texts, 4).value == pytest.approx(6 / 14)
    assert np.isnan(repetition_figure([[1]], 4).value)
    assert np.isnan(repetition_figure([], 4).value)
    assert Repetition().compute(predictions=texts) == pytest.approx(
        {"repetition@1": 9 / 20, "repetition@2": 8 / 18, "repetition@3": 7 / 16, "repetition@4": 6 / 14}
    )
    assert Repetition().compute(predictions=[[1, 1]]) == {"repetition@1": 0.5, "repetition@2": 0.0}


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_repeated_counts_what_came_before(ids: list[int], n: int) -> None:
    grams = ["".join(map(str, ids[i : i + n])) for i in range(max(0, len(ids) - n + 1))]
    assert repeated(ids, n) == (sum(gram in grams[:i] for i, gram in enumerate(grams)), len(grams))


# --- continuations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_continuations_stand_beside_what_people_wrote(architecture: str) -> None:
    tokenizer, model = small_tokenizer(), model_of(AutoModelForCausalLM, architecture)
    found = continue_texts(model, tokenizer, TEXTS, number=5, prompt_tokens=8, new_tokens=12, batch_size=2)
    assert len(found) == 5
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    for one in found:
        assert (len(one.prompt), len(one.people)) == (8, 12)
        assert one.prompt + one.people in [ids[:20] for ids in encoded]
        assert max(len(one.sampled), len(one.greedy)) <= 12
        assert tokenizer.eos_token_id not in one.sampled + one.greedy
        ids = [tokenizer.bos_token_id, *one.prompt]
        for written in one.greedy:  # the most probable token each time, without padding or a cache
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == written
            ids.append(written)


def test_draws_are_those_of_the_seed_and_nobody_elses_change() -> None:
    tokenizer, model = small_tokenizer(), tiny(AutoModelForCausalLM, "gpt2", sharpness=1)
    options: dict[str, Any] = {"number": 4, "prompt_tokens": 8, "new_tokens": 12}
    before = torch.random.get_rng_state()
    first = continue_texts(model, tokenizer, TEXTS, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(5)
    assert continue_texts(model, tokenizer, TEXTS, **options) == first
    other = continue_texts(model, tokenizer, TEXTS, seed=1, **options)
    assert [one.sampled for one in other] != [one.sampled for one in first]
    assert [one.greedy for one in other] == [one.greedy for one in first]
    one_token = continue_texts(model, tokenizer, TEXTS, top_p=1e-6, **options)
    assert [one.sampled for one in one_token] == [one.greedy for one in first]


def test_a_models_own_generation_options_do_not_count() -> None:
    tokenizer, model = small_tokenizer(), tiny(AutoModelForCausalLM, "gpt2", sharpness=1)
    options: dict[str, Any] = {"number": 4, "prompt_tokens": 8, "new_tokens": 12}
    plain = continue_texts(model, tokenizer, TEXTS, **options)
    for name, value in {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "top_k": 1, "temperature": 0.1}.items():
        before = getattr(model.generation_config, name)
        model.generation_config.update(**{name: value})
        assert continue_texts(model, tokenizer, TEXTS, **options) == plain, name
        model.generation_config.update(**{name: before})


def test_repetition_figures_of_continuations() -> None:
    tokenizer, model = small_tokenizer(), model_of(AutoModelForCausalLM, "gpt2")
    samples, figures = continuations(model, tokenizer, TEXTS, orders=(1, 4), number=6)
    assert list(figures) == [f"repetition@{n}{kind}" for n in (1, 4) for kind in ("", "/greedy", "/people")]
    found = continue_texts(model, tokenizer, TEXTS, number=6)
    assert figures["repetition@4/people"].value == repetition_figure([one.people for one in found], 4).value
    assert all(figure.number == 6 for figure in figures.values())
    assert all(len(lines) == 6 and "⟶" in lines[0] for lines in samples.values())


def test_short_texts_and_small_models() -> None:
    tokenizer = small_tokenizer()
    small = tiny(AutoModelForCausalLM, "gpt2", 16)
    (one,) = continue_texts(small, tokenizer, ["the cat sees"])
    assert len(one.prompt) + len(one.people) == len(tokenizer.tokenize("the cat sees"))
    (one,) = continue_texts(small, tokenizer, [TEXTS[4]])
    assert (len(one.prompt), len(one.people)) == (4, 11)  # with the opening 16
    with pytest.raises(UserError, match="no text is long enough"):
        continue_texts(small, tokenizer, ["", "a"])
    with pytest.raises(UserError, match="top_p above 0"):
        continue_texts(small, tokenizer, TEXTS, top_p=0)
    with pytest.raises(UserError, match="does not continue text"):
        continue_texts(model_of(AutoModelForMaskedLM, "bert"), tokenizer, TEXTS)
    with pytest.raises(UserError, match="does not continue text"):
        continue_texts(model_of(AutoModelForSeq2SeqLM, "t5"), tokenizer, TEXTS)


# --- reconstruction ---------------------------------------------------------------------------------------------------


def test_edit_similarity_by_hand() -> None:
    assert edit_similarity([], []) == 1
    assert edit_similarity([1, 2, 3], []) == 0
    assert edit_similarity([1, 2, 3], [1, 2, 3]) == 1
    assert edit_similarity([1, 2, 3, 4], [1, 3, 4]) == pytest.approx(3 / 4)
    assert edit_similarity([1, 2], [2, 1]) == 0
    assert edit_similarity([1, 2, 3], [1, 9, 3]) == pytest.approx(2 / 3)
    found = ReconstructionMeasures().compute(predictions=[[1, 2], [1]], references=[[1, 2], [2]])
    assert found == {"exact_match": 0.5, "edit_similarity": 0.5}


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Levenshtein's, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


@given(st.lists(st.integers(0, 2), max_size=5), st.lists(st.integers(0, 2), max_size=5))
def test_edits_are_the_fewest(a: list[int], b: list[int]) -> None:
    longest = max(len(a), len(b), 1)
    assert edit_similarity(a, b) == pytest.approx(1 - distance(tuple(a), tuple(b)) / longest)
    assert edit_similarity(a, b) == edit_similarity(b, a)


@pytest.mark.parametrize(("architecture", "corruption"), [("t5", "span_corruption"), ("bart", "denoising")])
def test_reconstruction_reads_what_the_collator_made(architecture: str, corruption: str) -> None:
    tokenizer, model = small_tokenizer(), model_of(AutoModelForSeq2SeqLM, architecture)
    collator = get_collator(corruption)(tokenizer=tokenizer)
    rows = [{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"][:40]} for text in TEXTS[:3]]
    batch = collator(rows)
    found = reconstruct(model, tokenizer, batch)
    special = set(tokenizer.all_special_ids) | {-100}
    for n, one in enumerate(found):
        assert one.target == [i for i in batch["labels"][n].tolist() if i not in special]
        assert one.source == [i for i in batch["input_ids"][n].tolist() if i not in special]
        alone = {name: value[n : n + 1] for name, value in batch.items()}
        assert reconstruct(model, tokenizer, alone)[0].written == one.written
    samples, figures = rebuild(model, tokenizer, TEXTS, number=5)
    assert all(figure.number == 5 for figure in figures.values())
    assert len(samples["Corrupted text, rebuilt"]) == 5
    named = rebuild(model, tokenizer, TEXTS, number=5, collator=collator)
    assert named == (samples, figures)


def test_a_model_that_writes_the_target_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, model = small_tokenizer(), tiny(AutoModelForSeq2SeqLM, "bart")
    batch = get_collator("denoising")(tokenizer=tokenizer)([{"input_ids": [150, 151, 152, 153, 154, 155]}])
    start, end = model.config.decoder_start_token_id, tokenizer.eos_token_id
    answer = torch.tensor([[start, *batch["labels"][0].tolist(), end, tokenizer.pad_token_id]])
    monkeypatch.setattr(model, "generate", lambda **inputs: answer)
    (one,) = reconstruct(model, tokenizer, batch)
    assert one.target
    assert one.exact
    assert one.similarity == 1
    assert one.copied == edit_similarity(one.source, one.target) < 1


def test_levels_of_a_reconstruction() -> None:
    one = Reconstruction(source=[1, 2], target=[1, 2, 3, 4], written=[1, 2, 3, 5])
    assert not one.exact
    assert one.similarity == pytest.approx(3 / 4)
    assert one.copied == pytest.approx(1 / 2)


def test_what_cannot_be_rebuilt() -> None:
    tokenizer = small_tokenizer()
    with pytest.raises(UserError, match="no text has a token"):
        rebuild(model_of(AutoModelForSeq2SeqLM, "t5"), tokenizer, ["", ""])
    with pytest.raises(UserError, match="does not rebuild text"):
        reconstruct(model_of(AutoModelForCausalLM, "gpt2"), tokenizer, {})
