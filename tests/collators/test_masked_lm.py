"""Laws of masking: rates, whole units, purity, specials; and the collator as a stock `data_collator`."""

from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import drawable_ids, special_mask, train_tokenizer, word_boundaries
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny

IGNORED = -100


def packed(kind="bpe", length=48, rows=6, texts=ENGLISH + CHINESE, start=0):
    """Rows of whole framed documents, cut to `length`; the last is padded."""
    tokenizer = tiny(kind)
    ids, documents = [], []
    for n in range(rows * length // 8):
        piece = tokenizer(texts[n % len(texts)])["input_ids"]
        ids += piece
        documents += [n] * len(piece)
    made = []
    for i in range(rows):
        row, document = (np.array(x[i * length : (i + 1) * length]) for x in (ids, documents))
        document = document - document[0]
        if i == rows - 1:
            row[-7:], document[-7:] = tokenizer.pad_token_id, -1
        made.append({"input_ids": row, "document_ids": document.astype(np.int32), "position": start + i})
    return made


def ids_of(rows):
    return torch.from_numpy(np.stack([row["input_ids"] for row in rows]))


def maskable(rows, tokenizer):
    special = torch.from_numpy(special_mask(tokenizer))
    return ~special[ids_of(rows)] & torch.from_numpy(np.stack([row["document_ids"] for row in rows]) >= 0)


def units(row, tokenizer):
    """Token indices of each whole word of a row, one by one, in plain Python."""
    starts = word_boundaries(tokenizer).starts(row["input_ids"][None])[0]
    special = special_mask(tokenizer)[row["input_ids"]]
    found, before = [], None
    for i, start in enumerate(starts):
        document = row["document_ids"][i]
        if special[i] or document < 0:
            before = None
            continue
        if start or before != document:
            found.append([])
        found[-1].append(i)
        before = document
    return found


@given(rate=st.floats(0.01, 0.95), seed=st.integers(0, 2**40), start=st.integers(0, 2**45), length=st.integers(4, 70))
@settings(max_examples=60, deadline=None)
def test_token_count_of_each_row_is_exact(rate, seed, start, length):
    tokenizer = tiny()
    rows = packed(length=max(length, 12), start=start)
    batch = MaskedLMCollator(tokenizer=tokenizer, seed=seed, rate=rate)(rows)
    able = maskable(rows, tokenizer).sum(1)
    for n, scored in zip(able.tolist(), (batch["labels"] != IGNORED).sum(1).tolist(), strict=True):
        assert scored == (max(1, round(rate * n)) if n else 0)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("replace", ["mask", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_laws_of_every_setting(kind, unit, replace):
    tokenizer = tiny(kind)
    rows = packed(kind, rows=12)
    before = [row["input_ids"].copy() for row in rows]
    collator = MaskedLMCollator(tokenizer=tokenizer, unit=unit, replace=replace, rate=0.3, seed=5)
    batch = collator(rows)
    assert set(batch) == MaskedLMCollator.makes
    original, targets = ids_of(rows), batch["labels"] != IGNORED
    # The labels are what was there; what is no target is untouched; rows are left as they came.
    assert torch.equal(batch["labels"][targets], original[targets])
    assert torch.equal(batch["input_ids"][~targets], original[~targets])
    for row, kept in zip(rows, before, strict=True):
        np.testing.assert_array_equal(row["input_ids"], kept)
    # Specials and padding are never targets; every row has one.
    assert not (targets & ~maskable(rows, tokenizer)).any()
    assert targets.any(1).all()
    assert torch.equal(batch["target_index"], torch.nonzero(targets.flatten())[:, 0])
    if replace == "mask":
        assert (batch["input_ids"][targets] == tokenizer.mask_token_id).all()
    else:
        put = batch["input_ids"][targets]
        assert torch.isin(put, torch.tensor([tokenizer.mask_token_id, *drawable_ids(tokenizer)])).all()
    # Pure in (seed, position); every other seed or position has its own masks.
    again = collator(rows[::-1])
    assert torch.equal(again["input_ids"].flip(0), batch["input_ids"])
    moved = collator([{**row, "position": row["position"] + len(rows)} for row in rows])
    reseeded = MaskedLMCollator(tokenizer=tokenizer, unit=unit, replace=replace, rate=0.3, seed=6)(rows)
    for other in (moved, reseeded):
        assert not torch.equal(other["labels"], batch["labels"])


@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("kind", KINDS)
@given(rate=st.floats(0.05, 0.8), seed=st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_words_stay_whole_and_meet_the_count(kind, unit, rate, seed):
    tokenizer = tiny(kind)
    rows = packed(kind, rows=5)
    batch = MaskedLMCollator(tokenizer=tokenizer, unit=unit, rate=rate, seed=seed)(rows)
    for row, labels in zip(rows, batch["labels"], strict=True):
        words = units(row, tokenizer)
        hidden = [{bool(labels[i] != IGNORED) for i in word} for word in words]
        assert all(len(state) == 1 for state in hidden)
        chosen = [len(word) for word, state in zip(words, hidden, strict=True) if True in state]
        count = max(1, round(rate * sum(map(len, words))))
        fits = [len(word) for word in words if len(word) <= count]
        assert chosen
        # The last word is taken while its middle falls within the count: half a word off at most.
        longest = max(fits) if sum(fits) >= count else max(map(len, words))
        assert abs(sum(chosen) - count) <= longest / 2


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("replace", ["mask", "bert"])
def test_neighbours_and_padding_do_not_move_a_row_s_masks(unit, replace):
    """Rows of unlike length, alone, in twos and all together: the same masks, so how a window is split is no matter."""
    tokenizer = tiny()
    encoded = [tokenizer(text)["input_ids"] for text in ENGLISH + CHINESE]
    rows = [
        {"input_ids": np.array(ids), "document_ids": np.zeros(len(ids), np.int32), "position": 70 + i}
        for i, ids in enumerate(encoded)
    ]
    collator = MaskedLMCollator(tokenizer=tokenizer, unit=unit, replace=replace, seed=11)
    together = collator(rows)
    for size in (1, 2):
        for i in range(0, len(rows), size):
            part = collator(rows[i : i + size])
            width = part["labels"].shape[1]
            assert torch.equal(part["input_ids"], together["input_ids"][i : i + size, :width])
            assert torch.equal(part["labels"], together["labels"][i : i + size, :width])


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_every_token_is_a_target_equally_often(unit):
    """Over many positions no place in the row is favoured: 400 draws at 0.25 have a standard error of 0.022."""
    tokenizer = tiny()
    row = packed(rows=2, length=64)[0]
    batch = MaskedLMCollator(tokenizer=tokenizer, unit=unit, rate=0.25)([{**row, "position": p} for p in range(400)])
    share = (batch["labels"] != IGNORED).double().mean(0)[maskable([row], tokenizer)[0]]
    assert abs(share.mean().item() - 0.25) < 0.02
    assert share.min() > 0.25 - 6 * 0.022
    assert share.max() < 0.25 + 6 * 0.022


def test_bert_replacement_is_80_10_10():
    tokenizer = tiny()
    row = packed(rows=2, length=64)[0]
    rows = [{**row, "position": p} for p in range(800)]
    batch = MaskedLMCollator(tokenizer=tokenizer, replace="bert", rate=0.4)(rows)
    targets = batch["labels"] != IGNORED
    put, there = batch["input_ids"][targets], batch["labels"][targets]
    n = len(put)
    masked = (put == tokenizer.mask_token_id).double().mean().item()
    same = (put == there).double().mean().item()
    assert n > 15_000
    assert abs(masked - 0.8) < 0.015
    assert abs(same - 0.1) < 0.012
    drawn = put[(put != tokenizer.mask_token_id) & (put != there)]
    assert len(drawn.unique()) > 0.7 * len(drawable_ids(tokenizer))


def test_spans_have_the_lengths_of_the_paper():
    """Runs of hidden words at a small rate, where spans rarely touch: geometric with p = 0.2, cut at 10, mean 3.8."""
    tokenizer = tiny("wordpiece")
    word = next(iter(drawable_ids(tokenizer)))
    rows = [
        {"input_ids": np.full(512, word), "document_ids": np.zeros(512, np.int32), "position": p} for p in range(300)
    ]
    batch = MaskedLMCollator(tokenizer=tokenizer, unit="span", rate=0.05)(rows)
    runs = [len(list(g)) for row in (batch["labels"] != IGNORED).tolist() for hit, g in groupby(row) if hit]
    share = np.array([0.2 * 0.8 ** (n - 1) for n in range(1, 11)])
    expected = (np.arange(1, 11) * share).sum() / share.sum()
    assert abs(np.mean(runs) - expected) < 0.5
    single = MaskedLMCollator(tokenizer=tokenizer, unit="word", rate=0.05)(rows)
    alone = [len(list(g)) for row in (single["labels"] != IGNORED).tolist() for hit, g in groupby(row) if hit]
    assert np.mean(alone) < 1.2


@pytest.mark.parametrize("unit", ["word", "span"])
def test_units_do_not_cross_documents(unit):
    """Two documents of one unbroken word each, meeting without a special token between."""
    tokenizer = tiny("wordpiece")
    inner = next(i for token, i in tokenizer.get_vocab().items() if token.startswith("##"))
    row = {"input_ids": np.full(8, inner), "document_ids": np.repeat([0, 1], 4).astype(np.int32)}
    batch = MaskedLMCollator(tokenizer=tokenizer, unit=unit, rate=0.5)([{**row, "position": p} for p in range(40)])
    hidden = batch["labels"] != IGNORED
    assert (hidden.sum(1) == 4).all()
    assert torch.equal(hidden[:, :4].any(1), hidden[:, :4].all(1))
    assert hidden[:, 0].any()
    assert not hidden[:, 0].all()


def test_special_tokens_part_words():
    """A `##` piece goes on with the word before it, but not across [CLS]: two words here, of two and three pieces."""
    tokenizer = tiny("wordpiece")
    inner = next(i for token, i in tokenizer.get_vocab().items() if token.startswith("##"))
    ids = np.array([inner, inner, tokenizer.cls_token_id, inner, inner, inner])
    rows = [{"input_ids": ids, "document_ids": np.zeros(6, np.int32), "position": p} for p in range(40)]
    hidden = MaskedLMCollator(tokenizer=tokenizer, unit="word", rate=0.6)(rows)["labels"] != IGNORED
    seen = {tuple(row) for row in hidden.int().tolist()}
    assert seen == {(1, 1, 0, 0, 0, 0), (0, 0, 0, 1, 1, 1)}


def test_a_word_longer_than_the_count_comes_last():
    tokenizer = tiny("wordpiece")
    inner = next(i for token, i in tokenizer.get_vocab().items() if token.startswith("##"))
    head = tokenizer.convert_tokens_to_ids("a")
    ids = np.array([head] * 12 + [head] + [inner] * 11)
    rows = [{"input_ids": ids, "document_ids": np.zeros(24, np.int32), "position": p} for p in range(50)]
    hidden = MaskedLMCollator(tokenizer=tokenizer, unit="word", rate=0.25)(rows)["labels"] != IGNORED
    assert (hidden[:, :12].sum(1) == 6).all()
    assert not hidden[:, 12:].any()


def test_positions_restart_in_each_document():
    rows = packed(rows=3)
    batch = MaskedLMCollator(tokenizer=tiny())(rows)
    for row, positions in zip(rows, batch["position_ids"].tolist(), strict=True):
        for document, run in groupby(zip(row["document_ids"].tolist(), positions, strict=True), key=lambda x: x[0]):
            if document >= 0:
                assert [place for _, place in run] == list(range(row["document_ids"].tolist().count(document)))
    assert torch.equal(batch["attention_mask"], batch["document_ids"] >= 0)
    assert batch["position"].tolist() == [0, 1, 2]


def test_rows_of_specials_alone_have_no_target():
    tokenizer = tiny()
    row = {"input_ids": np.array([2, 3, 4, 0]), "document_ids": np.array([0, 0, 0, -1], np.int32), "position": 0}
    for unit in ("token", "word", "span"):
        batch = MaskedLMCollator(tokenizer=tokenizer, unit=unit)([row])
        assert (batch["labels"] == IGNORED).all()
        assert batch["target_index"].shape == (0,)
        # Beside an ordinary row of the same width it still has none, and the other row is not disturbed.
        other = {**packed(rows=2, length=4)[0], "position": 1}
        both = MaskedLMCollator(tokenizer=tokenizer, unit=unit)([row, other, row])
        assert (both["labels"] != IGNORED).any(1).tolist() == [False, True, False]
        assert torch.equal(both["labels"][1], MaskedLMCollator(tokenizer=tokenizer, unit=unit)([other])["labels"][0])


def test_rate_decays_over_the_run():
    tokenizer = tiny()
    row = packed(rows=2, length=64)[0]
    collator = MaskedLMCollator(tokenizer=tokenizer, rate=0.4, rate_end=0.1, horizon=1000)
    batch = collator([{**row, "position": p} for p in (0, 500, 1000, 5000)])
    able = int(maskable([row], tokenizer).sum())
    counts = (batch["labels"] != IGNORED).sum(1).tolist()
    assert counts == [round(share * able) for share in (0.4, 0.25, 0.1, 0.1)]


def test_evaluation_has_its_own_rate_and_fixed_masks():
    tokenizer = tiny()
    rows = packed(rows=4, length=64)
    trained = MaskedLMCollator(tokenizer=tokenizer, rate=0.4, rate_end=0.1, horizon=10, unit="word", replace="bert")
    held_out = trained.for_evaluation(99)
    assert (held_out.rate, held_out.rate_end, held_out.horizon, held_out.seed) == (0.15, None, None, 99)
    assert (held_out.unit, held_out.replace) == ("word", "mask")
    assert torch.equal(held_out(rows)["input_ids"], held_out(rows)["input_ids"])
    other = MaskedLMCollator(tokenizer=tokenizer, rate=0.2, unit="word", seed=7).for_evaluation(99)
    assert torch.equal(held_out(rows)["input_ids"], other(rows)["input_ids"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "collator.rate"),
        ({"rate": 1.5}, "collator.rate"),
        ({"rate_end": -0.1}, "collator.rate_end"),
        ({"eval_rate": 2.0}, "collator.eval_rate"),
        ({"unit": "words"}, "'word'"),
        ({"replace": "bart"}, "'bert'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        MaskedLMCollator(tokenizer=tiny(), **options)


def test_a_tokenizer_without_mask_and_rows_without_tokens():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask token"):
        MaskedLMCollator(tokenizer=tokenizer)
    with pytest.raises(UserError, match="'input_ids'"):
        MaskedLMCollator(tokenizer=tiny())([{"text": "not yet tokens"}])


# As a data_collator: ragged features, no position.


def features(kind="bpe", n=24):
    encoded = tiny(kind)((ENGLISH + CHINESE) * 3, truncation=True, max_length=40)
    return [{"input_ids": ids} for ids in encoded["input_ids"]][:n]


def test_drop_in_makes_what_models_take():
    rows = features()[:5]
    batch = MaskedLMCollator(tokenizer=tiny(), unit="word")(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"].shape == (5, max(lengths))
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tiny().pad_token_id).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_drop_in_masks_never_repeat(workers):
    """With a seed of its own the usual collator repeats the same masks every epoch, and in every worker."""
    rows = [features()[0]] * 8
    torch.manual_seed(3)
    loader = DataLoader(rows, batch_size=2, collate_fn=MaskedLMCollator(tokenizer=tiny()), num_workers=workers)
    masks = [tuple(row.tolist()) for _ in range(3) for batch in loader for row in batch["labels"]]
    assert len(masks) == 24
    assert len(set(masks)) == 24


def test_trains_in_the_stock_trainer(tmp_path):
    tokenizer = tiny("wordpiece")
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    arguments = TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=4, dataloader_num_workers=2, report_to="none",
        logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    collator = MaskedLMCollator(tokenizer=tokenizer, unit="word", replace="bert")
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=features("wordpiece"))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(np.isfinite(loss) and loss > 1 for loss in losses)
