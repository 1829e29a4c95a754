"""Laws of hybrid rows: each is wholly masked or wholly causal, and agrees with the pure collator of its kind."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sslnlp.collators.causal_lm import CausalLMCollator
from sslnlp.collators.hybrid import HybridCollator
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import special_mask, train_tokenizer
from tests.collators.test_span_corruption import row_of
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny

IGNORED = -100
TEXTS = [*ENGLISH, *CHINESE, "ok 🙂🙂 done", "a", ""]


@given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), min_size=1, max_size=5),
    options=st.fixed_dictionaries(
        {
            "masked_share": st.sampled_from([0.0, 0.5, 1.0]),
            "rate": st.floats(0.05, 0.9),
            "unit": st.sampled_from(["token", "word", "span"]),
            "replace": st.sampled_from(["mask", "bert"]),
        }
    ),
    bos=st.booleans(),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 2**45),
)
@settings(max_examples=80, deadline=None)
def test_every_row_is_of_one_kind_and_that_kind_is_the_pure_one(kind, texts, options, bos, seed, start):
    tokenizer = tiny(kind)
    rows = [row_of(t, tokenizer, bos=bos, padding=5 * i, position=start + i) for i, t in enumerate(texts)]
    before = [row["input_ids"].copy() for row in rows]
    batch = HybridCollator(tokenizer=tokenizer, seed=seed, **options)(rows)
    assert set(batch) == HybridCollator.makes
    share = options.pop("masked_share")
    masked = MaskedLMCollator(tokenizer=tokenizer, seed=seed, **options)(rows)
    causal = CausalLMCollator(tokenizer=tokenizer)(rows)
    asked, seen = batch["labels"] != -100, batch["bidirectional"].any(dim=1, keepdim=True)
    for name, of_kind in (("masked_index", asked & seen), ("causal_index", asked & ~seen)):
        assert torch.equal(batch[name], of_kind.flatten().nonzero().flatten())
    special = torch.from_numpy(special_mask(tokenizer))
    for b, row in enumerate(rows):
        np.testing.assert_array_equal(row["input_ids"], before[b])
        width = len(row["input_ids"])
        both = bool(batch["bidirectional"][b].any())
        assert both or share < 1
        assert not both or share > 0
        assert torch.equal(batch["bidirectional"][b], batch["attention_mask"][b] & both)
        opens = batch["position_ids"][b][:width] == 0
        for key in ("input_ids", "labels"):
            ours, pure = batch[key][b][:width], (masked if both else causal)[key][b][:width]
            # Masked rows leave out what opens a document: nothing of it stands before.
            assert torch.equal(ours[~opens], pure[~opens])
        assert torch.equal(batch["input_ids"][b][:width][opens], causal["input_ids"][b][:width][opens])
        assert (batch["labels"][b][:width][opens] == IGNORED).all()
        targets = batch["labels"][b] != IGNORED
        assert not (targets & ~batch["attention_mask"][b]).any()
        if both:
            assert not special[batch["labels"][b][targets]].any()
        if bos and both:  # then the masks are all of masked_lm's
            assert torch.equal(batch["labels"][b], masked["labels"][b])


def test_share_of_masked_rows_and_purity():
    tokenizer = tiny()
    rows = [row_of([ENGLISH[0]], tokenizer, position=p) for p in range(1500)]
    collator = HybridCollator(tokenizer=tokenizer, masked_share=0.25, seed=8)
    batch = collator(rows)
    kind = batch["bidirectional"].any(1)
    assert abs(kind.double().mean().item() - 0.25) < 0.05  # 4.5 standard errors
    again = collator(rows[::-1])
    assert torch.equal(again["labels"].flip(0), batch["labels"])
    for i in (0, 700):
        alone = collator(rows[i : i + 1])
        assert torch.equal(alone["input_ids"], batch["input_ids"][i : i + 1])
    other = HybridCollator(tokenizer=tokenizer, masked_share=0.25, seed=9)(rows)["bidirectional"].any(1)
    assert not torch.equal(kind, other)


def test_held_out_rows_come_both_ways_and_compare_with_the_pure_ones():
    tokenizer = tiny()
    rows = [row_of(TEXTS[i : i + 3], tokenizer, padding=2 * i, position=i) for i in range(5)]
    ours = HybridCollator(
        tokenizer=tokenizer, seed=1, masked_share=0.9, rate=0.6, rate_end=0.1, horizon=9, replace="bert"
    )
    held_out = ours.for_evaluation(7)
    batch = held_out(rows)
    masked = MaskedLMCollator(tokenizer=tokenizer, seed=2, rate=0.4).for_evaluation(7)(rows)
    causal = CausalLMCollator(tokenizer=tokenizer).for_evaluation(7)(rows)
    for key in ("input_ids", "labels", "position_ids", "document_ids"):
        assert torch.equal(batch[key], torch.cat([masked[key], causal[key]]))
    assert torch.equal(batch["bidirectional"][:5], masked["attention_mask"])
    assert not batch["bidirectional"][5:].any()
    other = HybridCollator(tokenizer=tokenizer, seed=3, masked_share=0.1, rate=0.2).for_evaluation(7)(rows)
    assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_rate_decays_in_masked_rows():
    tokenizer = tiny()
    row = row_of([ENGLISH[0]], tokenizer)
    collator = HybridCollator(tokenizer=tokenizer, masked_share=1.0, rate=0.5, rate_end=0.1)
    collator.horizon = 100  # as the loop does
    batch = collator([{**row, "position": p} for p in (0, 50, 100)])
    n = len(row["input_ids"]) - 2
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [round(r * n) for r in (0.5, 0.3, 0.1)]


@pytest.mark.parametrize("n", [0, 1, 100_000])
def test_rows_of_any_length(n):
    tokenizer = tiny()
    text = np.resize(tokenizer(ENGLISH[0], add_special_tokens=False)["input_ids"], n)
    ids = np.concatenate([[tokenizer.bos_token_id], text, [tokenizer.eos_token_id]]).astype(np.int64)
    row = {"input_ids": ids, "document_ids": np.zeros(len(ids), np.int32), "position": 3}
    for share, asked in ((0.0, n + 1), (1.0, max(round(0.3 * n), min(n, 1)))):
        batch = HybridCollator(tokenizer=tokenizer, masked_share=share)([row])
        assert int((batch["labels"] != IGNORED).sum()) == asked


@pytest.mark.parametrize(
    ("options", "words"),
    [({"masked_share": 1.5}, "masked_share"), ({"rate": 0.0}, "collator.rate"), ({"unit": "words"}, "'word'")],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        HybridCollator(tokenizer=tiny(), **options)


def test_a_tokenizer_without_mask():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask token"):
        HybridCollator(tokenizer=tokenizer)


def test_as_a_stock_data_collator(tmp_path):
    """Each row's direction is in the mask: a stock decoder looks ahead in masked rows and in no others."""
    tokenizer = tiny()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    plain = tokenizer(ENGLISH * 2, add_special_tokens=False)["input_ids"]
    features = [{"input_ids": ids[: 20 + i]} for i, ids in enumerate(plain)]
    collator = HybridCollator(tokenizer=tokenizer)
    batch = collator(features)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["attention_mask"].shape == (10, 1, batch["labels"].shape[1], batch["labels"].shape[1])
    changed = batch["input_ids"].clone()
    changed[:, 10] = 300
    with torch.no_grad():
        first, second = (
            model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, 0]
            for ids in (batch["input_ids"], changed)
        )
    looks_ahead = (first != second).any(1)
    masked = (batch["labels"] != IGNORED).sum(1) < 12
    assert torch.equal(looks_ahead, masked)
    assert masked.any()
    assert not masked.all()
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, report_to="none", logging_steps=1, save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=features)
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
