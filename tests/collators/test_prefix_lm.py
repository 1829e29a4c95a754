"""Laws of prefix language modelling: where texts are split, what is asked, what is seen from both sides."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from sslnlp.collators.causal_lm import CausalLMCollator
from sslnlp.collators.prefix_lm import PrefixLMCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import special_mask
from tests.collators.test_span_corruption import TEXTS, row_of, text_ids
from tests.tiny_tokenizers import ENGLISH, KINDS, tiny

IGNORED = -100


@given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    bos=st.booleans(),
    padding=st.integers(0, 40),
    seed=st.integers(0, 2**40),
    position=st.integers(0, 2**45),
)
@settings(max_examples=150, deadline=None)
def test_each_document_is_split_once(kind, texts, shares, bos, padding, seed, position):
    tokenizer = tiny(kind)
    row = row_of(texts, tokenizer, bos=bos, padding=padding, position=position)
    low, high = shares
    batch = PrefixLMCollator(tokenizer=tokenizer, seed=seed, prefix_min=low, prefix_max=high)([row])
    assert set(batch) == PrefixLMCollator.makes
    assert torch.equal(batch["input_ids"][0], torch.from_numpy(row["input_ids"]))
    special = special_mask(tokenizer)
    special[tokenizer.unk_token_id] = False
    for document in range(len(texts)):
        own = row["document_ids"] == document
        ids, labels, prefix = (batch[key][0].numpy()[own] for key in ("input_ids", "labels", "bidirectional"))
        n, split = int((~special[ids]).sum()), int((~special[ids[prefix]]).sum())
        assert prefix[: bos + split].all()
        if n:
            assert not prefix[bos + split :].any()
            assert int(low * n) <= split <= min(int(high * n), n - 1) or split == n - 1
        # Asked: what follows the prefix, up to end-of-text; what opens a document follows nothing.
        asked = np.where(~prefix & (np.arange(len(ids)) > 0), ids, IGNORED)
        assert np.array_equal(labels, asked)
    assert not batch["bidirectional"][batch["document_ids"] < 0].any()
    assert (batch["labels"][batch["document_ids"] < 0] == IGNORED).all()


def test_every_split_is_as_likely():
    row = row_of([text_ids(10)], tiny())
    rows = [{**row, "position": p} for p in range(5000)]
    for options, splits in (({}, range(10)), ({"prefix_min": 0.5}, range(5, 10)), ({"prefix_max": 0.4}, range(4))):
        prefix = PrefixLMCollator(tokenizer=tiny(), **options)(rows)["bidirectional"].sum(1) - 1
        counts = torch.bincount(prefix, minlength=10).tolist()
        assert {n for n, count in enumerate(counts) if count} == set(splits)
        expected = len(rows) / len(splits)
        assert all(abs(counts[n] - expected) < 5 * expected**0.5 for n in splits)


def test_no_prefix_is_the_causal_collator():
    """The opening token alone is seen by all, as it always is."""
    rows = [row_of(TEXTS[i : i + 2], tiny(), padding=3 * i, position=i) for i in range(5)]
    ours = PrefixLMCollator(tokenizer=tiny(), prefix_max=0.0)(rows)
    plain = CausalLMCollator(tokenizer=tiny())(rows)
    assert all(torch.equal(ours[key], plain[key]) for key in CausalLMCollator.makes)
    assert torch.equal(ours["bidirectional"], ours["attention_mask"] & (ours["input_ids"] == tiny().bos_token_id))


def test_splits_do_not_depend_on_neighbours_or_padding():
    rows = [row_of(TEXTS[i : i + 3], tiny(), padding=7 * i, position=50 + i) for i in range(6)]
    collator = PrefixLMCollator(tokenizer=tiny(), seed=4)
    together = collator(rows)
    for i, row in enumerate(rows):
        alone = collator([row])
        width = alone["labels"].shape[1]
        for key in ("labels", "bidirectional"):
            assert torch.equal(alone[key][0], together[key][i, :width])
    moved = collator([{**row, "position": row["position"] + 99} for row in rows])
    reseeded = PrefixLMCollator(tokenizer=tiny(), seed=5)(rows)
    for other in (moved, reseeded):
        assert not torch.equal(other["bidirectional"], together["bidirectional"])
    assert torch.equal(collator.for_evaluation(5)(rows)["labels"], reseeded["labels"])


def test_one_token_is_always_left_to_write():
    row = row_of([text_ids(n) for n in (1, 2, 9)], tiny())
    batch = PrefixLMCollator(tokenizer=tiny(), prefix_min=1.0)([row])
    assert (batch["labels"] != IGNORED).sum() == 3 * 2  # with the end-of-text


@pytest.mark.parametrize("n", [0, 1, 100_000])
def test_documents_of_any_length(n):
    row = row_of([text_ids(n)], tiny(), position=3)
    batch = PrefixLMCollator(tokenizer=tiny(), prefix_min=0.5, prefix_max=0.5)([row])
    assert int(batch["bidirectional"].sum()) == (1 + n // 2 if n else 2)
    empty = {"input_ids": np.zeros(0, np.int64), "document_ids": np.zeros(0, np.int32), "position": 3}
    padding = PrefixLMCollator(tokenizer=tiny())([empty])  # of one place, as any batch without a token
    assert padding["labels"].tolist() == [[-100]]
    assert padding["document_ids"].tolist() == [[-1]]


@pytest.mark.parametrize("options", [{"prefix_min": -0.1}, {"prefix_max": 1.1}, {"prefix_min": 0.6, "prefix_max": 0.5}])
def test_bad_options(options):
    with pytest.raises(UserError, match="prefix_min"):
        PrefixLMCollator(tokenizer=tiny(), **options)


def test_drop_in_batches_go_through_the_stock_model_and_never_repeat():
    rows = [{"input_ids": row_of([text], tiny())["input_ids"].tolist()} for text in ENGLISH]
    collator = PrefixLMCollator(tokenizer=tiny())
    first, second = collator(rows), collator(rows)
    assert set(first) == {"input_ids", "attention_mask", "labels"}
    assert not torch.equal(first["labels"], second["labels"])
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny()), n_embd=16, n_layer=1, n_head=2, n_positions=64)).eval()
    assert torch.isfinite(model(**first).loss)
