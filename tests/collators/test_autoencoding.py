"""Autoencoding is the deletion collator with nothing deleted; its laws are those of `test_tsdae`."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslnlp.collators.tsdae import AutoencodingCollator, TSDAECollator
from tests.contract import small_tokenizer

TEXT = st.text(st.sampled_from("the cat sees 猫が好き。🙂 a dog.\n"), max_size=60)


def rows(texts: list[list[str]]) -> list[dict[str, object]]:
    """Packed rows of framed documents at positions 0, 1, ..."""
    made = []
    for position, documents in enumerate(texts):
        ids = [small_tokenizer()(text)["input_ids"] for text in documents]
        numbers = [np.full(len(one), d, dtype=np.int32) for d, one in enumerate(ids)]
        made.append({"input_ids": np.concatenate(ids), "document_ids": np.concatenate(numbers), "position": position})
    return made


@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=3))
def test_each_document_is_read_whole_and_asked_for_from_its_second_token(texts: list[list[str]]) -> None:
    batch = AutoencodingCollator(tokenizer=small_tokenizer())(rows(texts))
    for b, documents in enumerate(texts):
        for d, text in enumerate(documents):
            ids = small_tokenizer()(text)["input_ids"]
            assert batch["input_ids"][b][batch["document_ids"][b] == d].tolist() == ids
            assert batch["labels"][b][batch["decoder_document_ids"][b] == d].tolist() == ids[1:]


def test_with_a_rate_it_deletes_as_tsdae_does() -> None:
    block = rows([["the cat sees a dog in the garden"] * 2, ["one mouse"]])
    ours = AutoencodingCollator(tokenizer=small_tokenizer(), seed=3, rate=0.6)(block)
    theirs = TSDAECollator(tokenizer=small_tokenizer(), seed=3, rate=0.6)(block)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert int((ours["document_ids"] >= 0).sum()) < sum(len(row["input_ids"]) for row in block)  # type: ignore
