"""The electra collator: masked_lm's masks, and which tokens are judged and may be drawn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.collators.electra import ElectraCollator
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.tokenizer import special_mask
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, packed_row, tiny

TEXTS = [*ENGLISH, *CHINESE, "🙂🙂 four… 五。六！七", "ship", ""]


def make_row(kind, texts, position, padding=0):
    """Documents framed and packed into one row."""
    pieces = [tiny(kind)(text)["input_ids"] for text in texts]
    return packed_row(pieces, tiny(kind), padding=padding, position=position)


@given(
    texts=st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), min_size=1, max_size=5),
    kind=st.sampled_from(KINDS),
    rate=st.floats(0.01, 0.9),
    unit=st.sampled_from(["token", "word", "span"]),
    replace=st.sampled_from(["mask", "bert"]),
    start=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_every_token_of_text_is_judged_and_no_other(texts, kind, rate, unit, replace, start):
    rows = [make_row(kind, each, start + n, padding=n) for n, each in enumerate(texts)]
    options = {"tokenizer": tiny(kind), "seed": 3, "rate": rate, "unit": unit, "replace": replace}
    batch, masked = ElectraCollator(**options)(rows), MaskedLMCollator(**options)(rows)
    assert set(batch) == ElectraCollator.makes
    assert all(torch.equal(batch[key], value) for key, value in masked.items())
    special = torch.from_numpy(special_mask(tiny(kind)))
    for row, judged, labels in zip(rows, batch["judged"], batch["labels"], strict=True):
        n = len(row["input_ids"])
        text = ~special[torch.from_numpy(row["input_ids"])] & torch.from_numpy(row["document_ids"] >= 0)
        assert torch.equal(judged[:n], text)  # hidden tokens are judged too: by what was there, not by [MASK]
        assert not judged[n:].any()
        assert not (labels[~judged] != -100).any()


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_be_drawn_is_the_vocabulary_without_specials(kind):
    batch = ElectraCollator(tokenizer=tiny(kind))([make_row(kind, ENGLISH, 0)])
    special = special_mask(tiny(kind))
    assert batch["drawable"].tolist() == (~special).tolist()
    assert len(batch["drawable"]) == len(tiny(kind))


def test_held_out_options_and_the_published_rate():
    collator = ElectraCollator(tokenizer=tiny(), replace="bert", rate_end=0.5)
    held_out = collator.for_evaluation(7)
    assert isinstance(held_out, ElectraCollator)
    assert (collator.rate, held_out.rate, held_out.rate_end, held_out.replace) == (0.15, 0.15, None, "mask")


def test_as_a_stock_data_collator_it_is_masked_lm():
    features = [tiny()(text) for text in ENGLISH[:3]]
    assert set(ElectraCollator(tokenizer=tiny())(features)) == {"input_ids", "attention_mask", "labels"}
