"""Laws of the diffusion noise: exact counts, evenly spread rates, weights, purity, what counts as text."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.collators.masked_diffusion import MaskedDiffusionCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import special_mask, train_tokenizer
from tests.collators.test_masked_lm import IGNORED, features, ids_of, packed
from tests.tiny_tokenizers import ENGLISH, KINDS, tiny


def text_of(rows, tokenizer):
    """bool [B, S]: what the documents say: all but framing and padding."""
    special = special_mask(tokenizer)
    special[tokenizer.unk_token_id] = False
    return ~torch.from_numpy(special)[ids_of(rows)] & torch.from_numpy(np.stack([r["document_ids"] for r in rows]) >= 0)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 2**45), length=st.integers(12, 70))
@settings(max_examples=25, deadline=None)
def test_laws_of_a_batch(kind, seed, start, length):
    tokenizer = tiny(kind)
    rows = packed(kind, length=length, start=start)
    before = [row["input_ids"].copy() for row in rows]
    collator = MaskedDiffusionCollator(tokenizer=tokenizer, seed=seed)
    batch = collator(rows)
    assert set(batch) == MaskedDiffusionCollator.makes
    original, text, targets = ids_of(rows), text_of(rows, tokenizer), batch["labels"] != IGNORED
    assert not (targets & ~text).any()
    assert torch.equal(batch["labels"][targets], original[targets])
    assert (batch["input_ids"][targets] == tokenizer.mask_token_id).all()
    assert torch.equal(batch["input_ids"][~targets], original[~targets])
    assert all(np.array_equal(row["input_ids"], kept) for row, kept in zip(rows, before, strict=True))
    # Every row has a target, weighs its targets by tokens / targets, and so weighs as much as it has tokens.
    tokens, counts = text.sum(1), targets.sum(1)
    assert (counts >= 1).all()
    assert torch.equal(batch["text_tokens"], tokens)
    assert torch.equal(batch["target_index"], torch.nonzero(targets.flatten())[:, 0])
    assert torch.allclose(batch["weights"], (tokens / counts).repeat_interleave(counts))
    # Pure in (seed, position).
    again = collator(rows[::-1])
    assert torch.equal(again["input_ids"].flip(0), batch["input_ids"])
    moved = collator([{**row, "position": row["position"] + len(rows)} for row in rows])
    reseeded = MaskedDiffusionCollator(tokenizer=tokenizer, seed=seed + 1)(rows)
    for other in (moved, reseeded):
        assert not torch.equal(other["labels"], batch["labels"])


def shares(n, start, tokens, seed=0):
    """The share of masked tokens of `n` rows of `tokens` tokens, at positions from `start`."""
    row = {"input_ids": np.full(tokens, 300), "document_ids": np.zeros(tokens, np.int32)}
    collator = MaskedDiffusionCollator(tokenizer=tiny(), seed=seed)
    return (collator([{**row, "position": start + p} for p in range(n)])["labels"] != IGNORED).double().mean(1).numpy()


@given(start=st.integers(0, 2**45), n=st.integers(2, 300), seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_any_window_of_rows_has_rates_evenly_over_0_to_1(start, n, seed):
    """The multiples of the golden ratio: largest distance from the uniform distribution below (2 ln n + 2) / n."""
    found = np.sort(shares(n, start, 400, seed))
    expected = (np.arange(n) + 0.5) / n
    assert np.abs(found - expected).max() < (2 * np.log(n) + 2) / n + 1 / 400


def test_each_number_of_targets_is_equally_likely():
    """1 to 8 of 8 tokens, each an eighth of the rows: independent draws would be off by 0.007, these by much less."""
    counts = np.rint(shares(2000, 0, 8) * 8).astype(int)
    np.testing.assert_allclose(np.bincount(counts, minlength=9)[1:] / 2000, 1 / 8, atol=0.003)
    assert counts.min() == 1


def test_every_token_is_hidden_equally_often():
    """(8 + 1) / 2 of 8 in the mean, whatever the place: 2000 draws at 0.5625 have a standard error of 0.011."""
    row = {"input_ids": np.full(8, 300), "document_ids": np.zeros(8, np.int32)}
    batch = MaskedDiffusionCollator(tokenizer=tiny())([{**row, "position": p} for p in range(2000)])
    share = (batch["labels"] != IGNORED).double().mean(0)
    assert (share - 4.5 / 8).abs().max() < 5 * 0.011


def test_neighbours_and_padding_do_not_move_a_row_s_masks():
    tokenizer = tiny()
    rows = [
        {"input_ids": np.array(ids), "document_ids": np.zeros(len(ids), np.int32), "position": 70 + i}
        for i, ids in enumerate(tokenizer([*ENGLISH, "", "一"])["input_ids"])
    ]
    collator = MaskedDiffusionCollator(tokenizer=tokenizer, seed=11)
    together = collator(rows)
    for i in range(len(rows)):
        alone = collator(rows[i : i + 1])
        assert torch.equal(alone["labels"][0], together["labels"][i, : alone["labels"].shape[1]])
    parts = [collator(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    for key in ("weights", "text_tokens"):
        assert torch.equal(torch.cat([part[key] for part in parts]), together[key])


def test_rows_of_no_one_and_a_hundred_thousand_tokens():
    tokenizer = tiny()
    framed = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    long = np.resize(np.array(tokenizer("🦊 the fox 狐狸", add_special_tokens=False)["input_ids"]), 100_000)
    rows = [
        {"input_ids": np.array(ids), "document_ids": np.zeros(len(ids), np.int32), "position": p}
        for p, ids in enumerate([framed, [framed[0], 300, framed[1]], [framed[0], *long, framed[1]]])
    ]
    collator = MaskedDiffusionCollator(tokenizer=tokenizer)
    batch = collator(rows)
    assert batch["text_tokens"].tolist() == [0, 1, 100_000]
    counts = (batch["labels"] != IGNORED).sum(1)
    assert counts[:2].tolist() == [0, 1]
    assert counts[2] > 1
    empty = collator(rows[:1])
    assert empty["target_index"].shape == empty["weights"].shape == (0,)


def test_unknown_tokens_are_text_and_framing_is_not():
    tokenizer = tiny("wordpiece")
    ids = np.array(
        [tokenizer.cls_token_id, 300, tokenizer.unk_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    )
    row = {"input_ids": ids, "document_ids": np.array([0, 0, 0, 0, -1], np.int32)}
    batch = MaskedDiffusionCollator(tokenizer=tokenizer)([{**row, "position": p} for p in range(50)])
    assert (batch["text_tokens"] == 2).all()
    assert (batch["labels"] != IGNORED).any(0).tolist() == [False, True, True, False, False]


def test_held_out_draws_are_those_of_the_evaluation_s_seed():
    rows = packed(rows=4, length=64)
    batches = [MaskedDiffusionCollator(tokenizer=tiny(), seed=seed).for_evaluation(9)(rows) for seed in (1, 2)]
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])


def test_drop_in_makes_stock_keys_and_never_repeats():
    collator = MaskedDiffusionCollator(tokenizer=tiny())
    rows = [features()[0]] * 6
    first, second = collator(rows), collator(rows)
    assert set(first) == {"input_ids", "attention_mask", "labels"}
    masks = {tuple(row.tolist()) for batch in (first, second) for row in batch["labels"]}
    assert len(masks) == 12


def test_a_tokenizer_without_a_mask():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask token"):
        MaskedDiffusionCollator(tokenizer=tokenizer)
