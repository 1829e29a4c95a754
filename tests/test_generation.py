"""Writing by iterative unmasking: what stands stays, nothing special is written, draws follow the model."""

import functools
from collections import Counter

import pytest
import torch

from sslnlp.errors import UserError
from sslnlp.generation import diffuse
from sslnlp.models import ModelConfig, build_model
from sslnlp.tokenizer import special_mask
from tests.contract import make_collator, make_objective, small_tokenizer

WORDS = ("Ġcat", "Ġdog", "Ġfox")


@pytest.fixture
def model():
    from transformers import AutoModelForMaskedLM

    config = ModelConfig(architecture="bert", size="nano", dropout=0.1)
    return build_model(config, small_tokenizer(), AutoModelForMaskedLM, max_length=32).eval()


def biased(model, **odds):
    """The model made to give these odds, whatever it reads, and nothing else worth mention."""
    for parameter in model.parameters():
        parameter.data.zero_()
    bias = model.cls.predictions.decoder.bias
    bias.data.fill_(-50.0)
    for word, weight in odds.items():
        bias.data[small_tokenizer().convert_tokens_to_ids(word)] = float(torch.tensor(weight).log())
    return model


def test_nothing_special_is_written_and_nothing_is_left(model):
    tokenizer = small_tokenizer()
    with torch.no_grad():
        model.cls.predictions.decoder.bias[torch.from_numpy(special_mask(tokenizer))] += 100  # it would love to
    written = diffuse(model, tokenizer, length=20, steps=5, number=4, seed=1)
    assert len(set(written)) == 4
    pieces = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert not any(special_mask(tokenizer)[ids].any() for ids in pieces)
    assert not any("[" in text for text in written)


@pytest.mark.parametrize("order", ["random", "confident"])
@pytest.mark.parametrize(("steps", "runs"), [(None, 12), (5, 5), (1, 1), (99, 12)])
def test_every_mask_is_filled_in_so_many_runs(model, order, steps, runs):
    left, mask = [], small_tokenizer().mask_token_id
    model.register_forward_pre_hook(
        lambda module, args, inputs: left.append(int((inputs["input_ids"] == mask).sum())), with_kwargs=True
    )
    [text] = diffuse(biased(model, Ġcat=1.0), small_tokenizer(), length=12, steps=steps, order=order)
    assert text.split() == ["cat"] * 12
    assert len(left) == runs
    assert left[0] == 12
    fewer = [a - b for a, b in zip(left, [*left[1:], 0], strict=True)]
    assert max(fewer) - min(fewer) <= 1


def test_draws_follow_the_model_s_distribution(model):
    """Odds of 5 : 3 : 2 over 3000 draws, standard error at most 0.0092; sharper at half the temperature."""
    biased(model, Ġcat=5.0, Ġdog=3.0, Ġfox=2.0)
    for temperature, expected in ((1.0, [5, 3, 2]), (0.5, [25, 9, 4])):
        texts = diffuse(model, small_tokenizer(), length=30, steps=3, number=100, temperature=temperature, seed=5)
        count = Counter(word for text in texts for word in text.split())
        shares = [count[word] / 3000 for word in ("cat", "dog", "fox")]
        assert sum(shares) == pytest.approx(1)
        assert shares == pytest.approx([weight / sum(expected) for weight in expected], abs=4 * 0.0092)
    [cold] = diffuse(model, small_tokenizer(), length=10, temperature=0)
    assert cold.split() == ["cat"] * 10


@pytest.mark.parametrize("temperature", [0, 0.001])
def test_confident_goes_by_the_model_s_probability_at_any_temperature(model, temperature):
    """The model is surer of a place the further to the right: written from right to left, however cold."""
    seen, mask = [], small_tokenizer().mask_token_id
    cat = small_tokenizer().convert_tokens_to_ids("Ġcat")

    def surer_to_the_right(module, args, inputs, output):
        ids = inputs["input_ids"]
        seen.append((ids[0] == mask).nonzero().flatten().tolist())
        output.logits = torch.zeros_like(output.logits)
        output.logits[..., cat] = torch.arange(1.0, ids.shape[1] + 1)
        return output

    model.register_forward_hook(surer_to_the_right, with_kwargs=True)
    [text] = diffuse(model, small_tokenizer(), length=6, temperature=temperature, order="confident")
    assert text.split() == ["cat"] * 6
    assert seen == [list(range(1, end)) for end in (7, 6, 5, 4, 3, 2)]


def test_a_text_depends_on_its_number_and_the_seed_alone(model):
    tokenizer = small_tokenizer()
    three = diffuse(model, tokenizer, length=10, steps=4, number=3, seed=2)
    assert diffuse(model, tokenizer, length=10, steps=4, number=1, seed=2) == three[:1]
    assert diffuse(model.train(), tokenizer, length=10, steps=4, number=3, seed=2) == three
    assert model.training
    assert diffuse(model, tokenizer, length=10, steps=4, number=3, seed=3) != three


def test_the_prompt_stands_and_its_masks_are_filled(model):
    tokenizer = small_tokenizer()
    biased(model, Ġcat=1.0)
    [text] = diffuse(model, tokenizer, prompt="the old owl", length=2)
    assert text == "the old owl cat cat"
    [text] = diffuse(model, tokenizer, prompt=f"the{tokenizer.mask_token} sees a{tokenizer.mask_token}", length=0)
    assert text == "the cat sees a cat"


def test_a_model_that_learned_a_text_writes_it():
    """Trained at every rate on one sentence it writes that sentence, from nothing and from any part of it."""
    objective = make_objective("masked_diffusion", "bert").train()
    collator = make_collator("masked_diffusion")
    text = "the old owl remembers one mouse under the bridge."
    ids = torch.tensor(collator.tokenizer(text)["input_ids"]).numpy()
    rows = [{"input_ids": ids, "document_ids": 0 * ids, "position": p} for p in range(8)]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(80):
        loss = objective(collator([{**row, "position": row["position"] + 8 * step} for row in rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    write = functools.partial(diffuse, objective.model, collator.tokenizer)
    assert write(length=len(ids) - 2, temperature=0.1) == [text]
    half = len(ids) // 2
    [again] = write(prompt=collator.tokenizer.decode(ids[1:half]), length=len(ids) - half - 1, steps=2, temperature=0)
    assert again == text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 40}, "smaller length"),
        ({"length": -1}, "length"),
        ({"steps": 0}, "steps"),
        ({"number": 0}, "number"),
        ({"temperature": -0.5}, "temperature"),
        ({"order": "confidnet"}, "'confident'"),
    ],
)
def test_bad_values(model, options, words):
    with pytest.raises(UserError, match=words):
        diffuse(model, small_tokenizer(), **options)
