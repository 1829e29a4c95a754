"""Laws of RetroMAE's rows: the encoder's side is that of masked LM, and every token of the text is asked once more."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.retromae import RetroMAECollator
from sslnlp.tokenizer import special_mask
from tests.collators.test_tsdae import TEXTS, row_of
from tests.tiny_tokenizers import ENGLISH, KINDS, tiny

IGNORED = -100

settings_of_masking = st.fixed_dictionaries(
    {
        "rate": st.floats(0.05, 0.9),
        "unit": st.sampled_from(["token", "word", "span"]),
        "replace": st.sampled_from(["mask", "bert"]),
        "seed": st.integers(0, 2**40),
    }
)


@given(
    rows=st.lists(
        st.lists(st.sampled_from(TEXTS) | st.text(max_size=40), min_size=1, max_size=4), min_size=1, max_size=3
    ),
    kind=st.sampled_from(KINDS),
    options=settings_of_masking,
    start=st.integers(0, 2**45),
)
@settings(max_examples=80, deadline=None)
def test_all_of_the_text_is_asked_and_nothing_else(rows, kind, options, start):
    tokenizer = tiny(kind)
    made = [row_of(texts, tokenizer, start + i, padding=i) for i, texts in enumerate(rows)]
    batch = RetroMAECollator(tokenizer=tokenizer, **options)(made)
    plain = MaskedLMCollator(tokenizer=tokenizer, **options)(made)
    assert all(torch.equal(batch[name], value) for name, value in plain.items())
    assert batch.keys() == plain.keys() | {"decoder_targets"}
    special = special_mask(tokenizer)
    for b, row in enumerate(made):
        ids, n = row["input_ids"], len(row["input_ids"])
        text = ~special[ids] & (row["document_ids"] >= 0)
        assert batch["decoder_targets"][b, :n].tolist() == np.where(text, ids, IGNORED).tolist()
        assert (batch["decoder_targets"][b, n:] == IGNORED).all()


def test_held_out_rows_are_masked_as_those_of_masked_lm():
    rows = [row_of([text], tiny(), i) for i, text in enumerate(ENGLISH)]
    trained = RetroMAECollator(tokenizer=tiny(), rate=0.3, replace="bert").for_evaluation(4)
    other = MaskedLMCollator(tokenizer=tiny(), rate=0.5).for_evaluation(4)
    assert torch.equal(trained(rows)["input_ids"], other(rows)["input_ids"])


def test_drop_in_makes_what_models_take():
    rows = [{"input_ids": tiny()(text)["input_ids"]} for text in ENGLISH]
    assert set(RetroMAECollator(tokenizer=tiny())(rows)) == {"input_ids", "attention_mask", "labels"}
