"""Laws of filling in the middle: nothing is lost, cuts are uniform, markers are never asked, plain texts stay."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from sslnlp.collators.causal_lm import CausalLMCollator
from sslnlp.collators.fim import FimCollator
from sslnlp.data.packing import PackedRows
from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError
from sslnlp.tokenizer import train_tokenizer
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, packed_row, tiny

IGNORED = -100
TEXTS = [*ENGLISH, *CHINESE, "ok 🙂🙂 👩‍👩‍👧 done", "a", ""]


def markers(tokenizer):
    return tokenizer.convert_tokens_to_ids(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])


def row_of(texts, tokenizer, *, ends=True, bos=True, padding=0, position=0):
    """One row of framed texts; `ends` says of each whether its end-of-text is there."""
    ends = [ends] * len(texts) if isinstance(ends, bool) else ends
    plain = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    first, last = [tokenizer.bos_token_id] * bos, [tokenizer.eos_token_id]
    pieces = [first + ids + last * end for ids, end in zip(plain, ends, strict=True)]
    return packed_row(pieces, tokenizer, padding=padding, position=position)


def pieces(ids, documents, *more):
    """The tokens of each document of a row, in order, with whatever else is given per token."""
    found = {}
    for values in zip(ids.tolist(), documents.tolist(), *(value.tolist() for value in more), strict=True):
        if values[1] >= 0:
            found.setdefault(values[1], []).append((values[0], *values[2:]))
    return [found[d] for d in sorted(found)]


def rebuilt(ids, tokenizer, *, ended):
    """The piece before it was taken, by plain reading of the layout; and its three parts."""
    pre, suf, mid = markers(tokenizer)
    head, body = ids[: ids.index(pre)], ids[ids.index(pre) + 1 :]
    assert body[-1] == tokenizer.eos_token_id
    body = body[:-1]
    if body[0] == suf:
        suffix, rest = body[1 : body.index(mid)], body[body.index(mid) + 1 :]
        prefix, middle = None, rest
        text = rest + suffix
    else:
        prefix, suffix = body[: body.index(suf)], body[body.index(suf) + 1 : body.index(mid)]
        middle = body[body.index(mid) + 1 :]
        text = prefix + middle + suffix
    return head + text + [tokenizer.eos_token_id] * ended, (prefix, middle, suffix)


@given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    data=st.data(),
    seed=st.integers(0, 2**40),
    position=st.integers(0, 2**45),
)
@settings(max_examples=120, deadline=None)
def test_every_text_can_be_rebuilt(kind, texts, data, seed, position):
    tokenizer = tiny(kind)
    ends = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    bos, padding = data.draw(st.booleans()), data.draw(st.integers(0, 40))
    row = row_of(texts, tokenizer, ends=ends, bos=bos, padding=padding, position=position)
    if not len(row["input_ids"]):
        return
    rate, spm = data.draw(st.sampled_from([0.0, 0.5, 1.0])), data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    collator = FimCollator(tokenizer=tokenizer, seed=seed, rate=rate, spm=spm)
    batch = collator([row])
    assert set(batch) == FimCollator.makes
    before = pieces(row["input_ids"], row["document_ids"])
    # A document of no tokens at all is in neither.
    after = pieces(*(batch[key][0] for key in ("input_ids", "document_ids", "labels", "middle", "infilling")))
    assert len(before) == len(after)
    eos, special = tokenizer.eos_token_id, set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for old, new in zip(before, after, strict=True):
        old_ids, new_ids = [t[0] for t in old], [t[0] for t in new]
        taken = markers(tokenizer)[0] in new_ids
        if taken:
            ended = old_ids[-1] == eos
            whole, (_, middle, _) = rebuilt(new_ids, tokenizer, ended=ended)
            assert whole == old_ids
            asked_middle = [t[0] for t in new if t[2]]
            assert middle[len(middle) - len(asked_middle) :] == asked_middle
            assert len(new) - len(old) == 4 - ended <= collator.reserve
            opener = new_ids.index(markers(tokenizer)[0])
            assert all(t[3] for t in new[opener:])
            assert not any(t[3] for t in new[:opener])
        else:
            assert new_ids == old_ids
            assert not any(t[2] or t[3] for t in new)
        text = [i for i in old_ids if i not in special]
        assert taken == bool(text) or rate < 1
        assert not (taken and rate == 0)
        # What is asked: all but markers and the token that opens the piece.
        asked = [t[0] if i and t[0] not in markers(tokenizer) else IGNORED for i, t in enumerate(new)]
        assert [t[1] for t in new] == asked
    real = batch["document_ids"] >= 0
    assert torch.equal(batch["attention_mask"], real)
    assert (batch["input_ids"][~real] == tokenizer.pad_token_id).all()


def test_layouts_by_hand():
    """Six letters in one row of each layout, cut where the batch says it was."""
    tokenizer = tiny()
    pre, suf, mid = markers(tokenizer)
    text = tokenizer("abcdef", add_special_tokens=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    row = {"input_ids": np.array([bos, *text, eos]), "document_ids": np.zeros(len(text) + 2, np.int32)}
    for spm in (0.0, 1.0):
        for position in range(30):
            batch = FimCollator(tokenizer=tokenizer, rate=1.0, spm=spm)([{**row, "position": position}])
            ids = batch["input_ids"][0].tolist()
            moved = batch["input_ids"][0][batch["middle"][0]].tolist()
            if spm:
                suffix = ids[3 : ids.index(mid)]
                prefix = text[: len(text) - len(suffix) - len(moved)]
                assert ids == [bos, pre, suf, *suffix, mid, *prefix, *moved, eos]
            else:
                prefix, suffix = ids[2 : ids.index(suf)], ids[ids.index(suf) + 1 : ids.index(mid)]
                assert ids == [bos, pre, *prefix, suf, *suffix, mid, *moved, eos]
            assert prefix + moved + suffix == text


def test_shares_and_cuts_are_uniform():
    """Four tokens have five borders, so 25 ordered pairs: an unordered one is drawn twice as often as an equal one."""
    tokenizer = tiny()
    text = tokenizer(ENGLISH[0], add_special_tokens=False)["input_ids"][:4]
    row = {"input_ids": np.array([tokenizer.bos_token_id, *text]), "document_ids": np.zeros(5, np.int32)}
    rows = [{**row, "position": p} for p in range(6000)]
    batch = FimCollator(tokenizer=tokenizer, rate=0.5, spm=0.25)(rows)
    taken = batch["infilling"].any(1)
    assert abs(taken.double().mean().item() - 0.5) < 0.03
    _, suf, mid = markers(tokenizer)
    ids = batch["input_ids"][taken]
    spm = ids[:, 2] == suf
    psm_only = ids[~spm]
    # In PSM with an empty prefix <|fim_suffix|> follows too: told apart by where the prefix of SPM is.
    pairs = {}
    for found in psm_only.tolist():
        low = found.index(suf) - 2
        high = 4 - (found.index(mid) - found.index(suf) - 1)
        pairs[low, high] = pairs.get((low, high), 0) + 1
    assert {low for low, _ in pairs} <= {1, 2, 3, 4}
    # PSM is 3/4 of what is taken; those with an empty prefix, 9 in 25, look like SPM here.
    assert abs(len(psm_only) / len(ids) - 0.75 * 16 / 25) < 0.04
    n = len(psm_only)
    for low in range(1, 5):
        for high in range(low, 5):
            share = (1 if low == high else 2) / 16
            assert abs(pairs[low, high] / n - share) < 5 * (share / n) ** 0.5


def test_layout_share():
    tokenizer = tiny()
    row = row_of([ENGLISH[0]], tokenizer)
    rows = [{**row, "position": p} for p in range(2000)]
    suffix = markers(tokenizer)[1]
    ids = FimCollator(tokenizer=tokenizer, rate=1.0, spm=0.25)(rows)["input_ids"]
    n = len(row["input_ids"]) - 2
    empty = 0.75 * (2 * n + 1) / (n + 1) ** 2  # PSM with an empty prefix
    assert abs((ids[:, 2] == suffix).double().mean().item() - 0.25 - empty) < 0.05


def test_rows_do_not_depend_on_neighbours_or_padding():
    tokenizer = tiny()
    rows = [row_of(TEXTS[i : i + 3], tokenizer, padding=7 * i, position=50 + i) for i in range(6)]
    collator = FimCollator(tokenizer=tokenizer, seed=4)
    together = collator(rows)
    for size in (1, 4):
        for i in range(0, 6, size):
            part = collator(rows[i : i + size])
            width = min(part["labels"].shape[1], together["labels"].shape[1])
            for key in ("input_ids", "labels", "document_ids", "position_ids", "middle"):
                real = part["attention_mask"][:, :width]
                assert torch.equal(part[key][:, :width][real], together[key][i : i + size, :width][real])
                assert int(part["attention_mask"].sum()) == int(real.sum())
    again = collator(rows[::-1])
    assert torch.equal(again["input_ids"].flip(0), together["input_ids"])
    moved = collator([{**row, "position": row["position"] + 99} for row in rows])
    reseeded = FimCollator(tokenizer=tokenizer, seed=5)(rows)
    for other in (moved, reseeded):
        assert other["input_ids"].shape != together["input_ids"].shape or not torch.equal(
            other["input_ids"], together["input_ids"]
        )


@pytest.mark.parametrize("length", [16, 48])
def test_packed_rows_leave_the_room(length, tmp_path):
    """With `reserve`, no row of the batch is longer than it was packed to be, even where every piece is taken."""
    tokenizer = tiny()
    store = build_store([text for text in TEXTS if text], tokenizer, tmp_path, fingerprint="fim")
    collator = FimCollator(tokenizer=tokenizer, rate=1.0)
    rows = PackedRows(
        store, collator.source_length(length), [tokenizer.bos_token_id], [tokenizer.eos_token_id],
        suffix_every_piece=False, reserve=collator.reserve,
    )  # fmt: skip
    batch = collator([{**row, "position": p} for p, row in enumerate(rows.rows(range(len(rows))))])
    assert batch["input_ids"].shape == (len(rows), length)
    plain = sum(int((row["document_ids"] >= 0).sum()) for row in rows.rows(range(len(rows))))
    assert int(batch["attention_mask"].sum()) > plain


@pytest.mark.parametrize("n", [0, 1, 100_000])
def test_rows_of_any_length(n):
    tokenizer = tiny()
    text = np.resize(tokenizer(ENGLISH[0], add_special_tokens=False)["input_ids"], n)
    ids = np.concatenate([[tokenizer.bos_token_id], text, [tokenizer.eos_token_id]]).astype(np.int64)
    row = {"input_ids": ids, "document_ids": np.zeros(len(ids), np.int32), "position": 3}
    batch = FimCollator(tokenizer=tokenizer, rate=1.0)([row])
    taken = batch["input_ids"][0].tolist()
    assert len(taken) == n + 2 + (3 if n else 0)
    if n:
        assert rebuilt(taken, tokenizer, ended=True)[0] == ids.tolist()
    empty = {"input_ids": np.zeros(0, np.int64), "document_ids": np.zeros(0, np.int32), "position": 3}
    padding = FimCollator(tokenizer=tokenizer)([empty])  # of one place, as any batch without a token
    assert padding["input_ids"].tolist() == [[tokenizer.pad_token_id]]
    assert padding["document_ids"].tolist() == [[-1]]


def test_rate_zero_is_the_causal_collator():
    tokenizer = tiny()
    rows = [row_of(TEXTS[i : i + 3], tokenizer, padding=3 * i, position=i) for i in range(5)]
    ours, plain = FimCollator(tokenizer=tokenizer, rate=0.0)(rows), CausalLMCollator(tokenizer=tokenizer)(rows)
    assert all(torch.equal(ours[key], plain[key]) for key in CausalLMCollator.makes)
    assert not ours["infilling"].any()


def test_evaluation_takes_half_whatever_the_rate_was():
    tokenizer = tiny()
    held_out = [FimCollator(tokenizer=tokenizer, rate=r, seed=s).for_evaluation(9) for r, s in ((0.0, 1), (0.9, 2))]
    rows = [row_of([ENGLISH[0]], tokenizer, position=p) for p in range(200)]
    first, second = (collator(rows) for collator in held_out)
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert 60 < int(first["infilling"].any(1).sum()) < 140


def test_texts_joined_by_specials_are_cut_apart():
    """As a stock data_collator gets them: several texts in one feature, joined by end-of-text."""
    tokenizer = tiny()
    eos = tokenizer.eos_token_id
    joined = [i for text in ENGLISH for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]]
    batch = FimCollator(tokenizer=tokenizer, rate=1.0, spm=0.0)([{"input_ids": joined}])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    parts, part = [], []
    for token in batch["input_ids"][0].tolist():
        part.append(token)
        if token == eos:
            parts.append(part)
            part = []
    assert len(parts) == len(ENGLISH)
    assert [i for part in parts for i in rebuilt(part, tokenizer, ended=True)[0]] == joined


def test_left_padding_is_left_alone():
    tokenizer = tiny()
    text = tokenizer("a lamp", add_special_tokens=False)["input_ids"]
    feature = {"input_ids": [0, 0, 0, *text], "attention_mask": [0, 0, 0] + [1] * len(text)}
    batch = FimCollator(tokenizer=tokenizer, rate=1.0)([feature])
    assert batch["attention_mask"][0].tolist() == [0, 0, 0] + [1] * (len(text) + 4)
    assert rebuilt(batch["input_ids"][0].tolist()[3:], tokenizer, ended=False)[0] == text


@pytest.mark.parametrize(
    ("options", "words"), [({"rate": 1.1}, "collator.rate"), ({"rate": -0.1}, "0 and 1"), ({"spm": 2}, "collator.spm")]
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        FimCollator(tokenizer=tiny(), **options)


def test_a_tokenizer_without_what_it_takes():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="fim_prefix"):
        FimCollator(tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"))
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end-of-text"):
        FimCollator(tokenizer=tokenizer)


def test_trains_in_the_stock_trainer(tmp_path):
    tokenizer = tiny()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64))
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=4, report_to="none", logging_steps=1, save_strategy="no",
        use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    features = [{"input_ids": ids[:40]} for ids in tokenizer(ENGLISH * 2, add_special_tokens=False)["input_ids"]]
    collator = FimCollator(tokenizer=tokenizer)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=features)
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    drawn = {tuple(collator([features[0]])["input_ids"][0].tolist()) for _ in range(20)}
    assert len(drawn) > 5
