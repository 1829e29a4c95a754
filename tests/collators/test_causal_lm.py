"""Labels of a left-to-right model: by the mask, never by the pad id; nothing scored across documents."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from sslnlp.collators.causal_lm import CausalLMCollator
from sslnlp.tokenizer import train_tokenizer
from tests.tiny_tokenizers import ENGLISH, tiny

IGNORED = -100


@pytest.fixture(scope="module")
def pad_is_eos():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def framed(tokenizer, n=6):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = tokenizer((ENGLISH * 3)[:n], add_special_tokens=False)["input_ids"]
    return [{"input_ids": [bos, *row[: 10 + 3 * i], eos]} for i, row in enumerate(ids)]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), padding=st.integers(0, 5), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_packed_rows_score_all_but_the_heads_of_documents(lengths, padding, seed):
    documents = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), np.full(padding, -1)]).astype(np.int32)
    ids = np.random.default_rng(seed).integers(0, 600, len(documents))
    row = {"input_ids": ids, "document_ids": documents, "position": seed}
    batch = CausalLMCollator(tokenizer=tiny())([row])
    assert set(batch) == CausalLMCollator.makes
    expected = []
    for i, document in enumerate(documents):
        head = i == 0 or documents[i - 1] != document
        expected.append(IGNORED if document < 0 or head else ids[i])
    assert batch["labels"][0].tolist() == expected
    assert (batch["labels"] != IGNORED).sum() == sum(lengths) - len(lengths)
    assert batch["input_ids"][0].tolist() == ids.tolist()
    places = [place for length in lengths for place in range(length)]
    assert batch["position_ids"][0, : len(places)].tolist() == places


def test_real_ends_of_text_stay_targets_where_pad_is_eos(pad_is_eos):
    rows = framed(pad_is_eos)
    batch = CausalLMCollator(tokenizer=pad_is_eos)(rows)
    eos = pad_is_eos.eos_token_id
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        n = len(row["input_ids"])
        assert mask.tolist() == [1] * n + [0] * (len(mask) - n)
        assert ids[:n].tolist() == row["input_ids"]
        assert labels[1:n].tolist() == row["input_ids"][1:]
        assert labels[n - 1] == eos
        assert labels[0] == IGNORED
        assert (labels[n:] == IGNORED).all()


def test_features_padded_beforehand_go_by_their_mask(pad_is_eos):
    eos = pad_is_eos.eos_token_id
    left = {"input_ids": [eos, eos, 200, 201, eos], "attention_mask": [0, 0, 1, 1, 1]}
    right = {"input_ids": [200, 201, eos, eos, eos], "attention_mask": [1, 1, 1, 0, 0]}
    batch = CausalLMCollator(tokenizer=pad_is_eos)([left, right])
    assert batch["labels"].tolist() == [[-100, -100, -100, 201, eos], [-100, 201, eos, -100, -100]]
    assert batch["attention_mask"].tolist() == [left["attention_mask"], right["attention_mask"]]


def test_a_tokenizer_without_padding_pads_all_the_same():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.pad_token = None
    batch = CausalLMCollator(tokenizer=tokenizer)(framed(tokenizer))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.eos_token_id).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_trains_in_the_stock_trainer(pad_is_eos, workers, tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(pad_is_eos), n_positions=64, n_embd=16, n_layer=1, n_head=2))
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, dataloader_num_workers=workers, report_to="none",
        logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    rows = framed(pad_is_eos, 12)
    collator = CausalLMCollator(tokenizer=pad_is_eos)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(np.isfinite(loss) and loss > 1 for loss in losses)
    # The model's own loss is the mean over the labels after the first token, ends of text included.
    batch = collator(rows[:3])
    with torch.no_grad():
        output = model.eval()(**batch)
    scored = batch["labels"][:, 1:]
    log_p = output.logits[:, :-1].log_softmax(-1)
    picked = log_p.gather(-1, scored.clamp(min=0)[..., None])[..., 0][scored != IGNORED]
    assert len(picked) == sum(len(row["input_ids"]) - 1 for row in rows[:3])
    torch.testing.assert_close(output.loss, -picked.mean())
