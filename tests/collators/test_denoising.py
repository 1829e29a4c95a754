"""Laws of BART's noise: how much is taken away, what the source still shows, what stays where it is."""

import math
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BartConfig, BartForConditionalGeneration

from sslnlp.collators.denoising import DenoisingCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import framing, sentence_boundaries, special_mask, train_tokenizer
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, packed_row, tiny

IGNORED = -100
TEXTS = [*ENGLISH, *CHINESE, "One. Two! Three? 🙂🙂 four… 五。六！七", "", "ship", "No.\nYes.\n\n好。"]


def framed(tokenizer, text):
    frame = framing(tokenizer, "seq2seq")
    return [*frame.prefix, *tokenizer(text, add_special_tokens=False)["input_ids"], *frame.suffix]


def make_row(kind, texts, position, padding=0):
    pieces = [framed(tiny(kind), text) for text in texts]
    return packed_row(pieces, tiny(kind), padding=padding, position=position)


def long_rows(kind="bpe", rows=8, length=2000):
    return [make_row(kind, [" ".join(ENGLISH * (length // 150))], p) for p in range(rows)]


def documents(ids, document_ids):
    """The ids of each document of a row, in order of appearance."""
    pairs = zip(document_ids.tolist(), ids.tolist(), strict=True)
    return [[token for _, token in run] for n, run in groupby(pairs, key=lambda pair: pair[0]) if n >= 0]


row_texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4)
weights = st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0.2, 0.1, 0.7)])


@given(
    texts=st.lists(row_texts, min_size=1, max_size=4),
    kind=st.sampled_from(KINDS),
    rate=st.floats(0, 0.95),
    split=weights,
    moves=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)]),
    mean=st.sampled_from([0.2, 1.0, 3.0, 12.0]),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 2**45),
)
@settings(max_examples=120, deadline=None)
def test_laws_of_every_mixture(texts, kind, rate, split, moves, mean, seed, start):
    tokenizer = tiny(kind)
    special = special_mask(tokenizer)
    rows = [make_row(kind, row, start + n, padding=3 * n) for n, row in enumerate(texts)]
    before = [row["input_ids"].copy() for row in rows]
    mask, delete, infill = split
    options = {"rate": rate, "mask": mask, "delete": delete, "infill": infill, "mean_span": mean, "seed": seed}
    collator = DenoisingCollator(tokenizer=tokenizer, permute=moves[0], rotate=moves[1], **options)
    batch = collator(rows)
    assert set(batch) == DenoisingCollator.makes
    assert batch["input_ids"].shape[1] <= batch["labels"].shape[1]
    assert torch.equal(batch["attention_mask"], batch["document_ids"] >= 0)
    for n, row in enumerate(rows):
        length = len(row["input_ids"])
        np.testing.assert_array_equal(row["input_ids"], before[n])
        # The target is the row as it was.
        present = row["document_ids"] >= 0
        np.testing.assert_array_equal(batch["labels"][n, :length], np.where(present, row["input_ids"], IGNORED))
        assert (batch["labels"][n, length:] == IGNORED).all()
        np.testing.assert_array_equal(batch["decoder_document_ids"][n, :length], row["document_ids"])
        # The rate is exact, and no special token is taken away.
        able = present & ~special[row["input_ids"]]
        hidden = batch["corrupted"][n, :length].numpy()
        assert not batch["corrupted"][n, length:].any()
        assert not (hidden & ~able).any()
        assert hidden.sum() == (max(round(rate * able.sum()), 1) if rate and able.any() else 0)
        # The source shows each document in its place: all that is not hidden, and masks.
        sources = documents(batch["input_ids"][n], batch["document_ids"][n])
        targets = documents(row["input_ids"], row["document_ids"])
        shown = documents(np.where(hidden, -1, row["input_ids"]), row["document_ids"])
        assert len(sources) == len(targets)
        assert sum(map(len, sources)) <= sum(map(len, targets))
        for source, target, left in zip(sources, targets, shown, strict=True):
            left = [token for token in left if token != -1]
            kept = [token for token in source if token != tokenizer.mask_token_id]
            assert (kept[0], kept[-1]) == (target[0], target[-1])
            assert sorted(kept) == sorted(left)
            if moves == (0.0, 0.0):
                assert kept == left
            if not (delete or infill):
                assert len(source) == len(target)
            if not (mask or infill):
                assert tokenizer.mask_token_id not in source
    # Pure in (seed, position): however the batch is split, padded or ordered.
    for n, row in enumerate(rows):
        alone = collator([row])
        for key in ("input_ids", "document_ids", "position_ids", "labels", "corrupted"):
            width = min(batch[key].shape[1], alone[key].shape[1])
            assert torch.equal(batch[key][n, :width], alone[key][0, :width])


def test_infilled_spans_are_poisson():
    """A mask between shown tokens n and n + 1 stands for what is hidden there: lengths of the law, zero included."""
    rows = long_rows(rows=30)
    mean = 3.0
    batch = DenoisingCollator(tokenizer=tiny(), permute=0.0, rate=0.2, mean_span=mean)(rows)
    lengths = []
    for source, labels, hidden in zip(batch["input_ids"], batch["labels"], batch["corrupted"], strict=True):
        tokens, gone = labels[labels != IGNORED].tolist(), hidden.tolist()
        runs = {}  # hidden run -> how many tokens were shown before it
        shown = 0
        for i, token in enumerate(tokens):
            if gone[i]:
                runs[shown] = runs.get(shown, 0) + 1
            else:
                shown += 1
            assert token >= 0
        masks, at = {}, 0
        for token in source[source != tiny().pad_token_id].tolist():
            if token == tiny().mask_token_id:
                masks[at] = masks.get(at, 0) + 1
            else:
                at += 1
        assert set(runs) <= set(masks)
        lengths += [runs.get(place, 0) for place, count in masks.items() if count == 1]
    # Runs of one mask leave out spans that fell into one gap: longer ones no more than shorter ones.
    lengths = np.array(lengths)
    assert len(lengths) > 2000
    for k in range(8):
        expected = math.exp(-mean) * mean**k / math.factorial(k)
        assert abs((lengths == k).mean() - expected) < 4.5 * math.sqrt(expected / len(lengths)) + 0.003, k


@pytest.mark.parametrize("mean", [0.5, 1.0, 6.0])
def test_number_of_masks_follows_the_mean_length(mean):
    rows = long_rows(rows=30)
    rate = 0.15
    batch = DenoisingCollator(tokenizer=tiny(), permute=0.0, rate=rate, mean_span=mean)(rows)
    masks = (batch["input_ids"] == tiny().mask_token_id).sum().item()
    expected = batch["corrupted"].sum().item() / mean
    if mean < 1:  # as many masks are put in as tokens went, and no more: the source would outgrow its row
        assert masks == batch["corrupted"].sum().item()
    else:
        assert abs(masks / expected - 1) < 0.05


def test_weights_divide_what_is_taken():
    rows = long_rows(rows=4)
    tokens = [len(row["input_ids"]) - 2 for row in rows]
    batch = DenoisingCollator(tokenizer=tiny(), rate=0.4, mask=3, delete=1, infill=0, permute=0.0)(rows)
    for n, count in enumerate(tokens):
        taken = round(0.4 * count)
        masked = round(taken * 3 / 4)
        assert (batch["input_ids"][n] == tiny().mask_token_id).sum() == masked
        assert batch["attention_mask"][n].sum() == count + 2 - (taken - masked)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_sentences_move_whole(kind, texts):
    tokenizer = tiny(kind)
    joined = ("" if texts is CHINESE else " ").join(texts)
    rows = [make_row(kind, [joined], p) for p in range(60)]
    ids = rows[0]["input_ids"]
    opens = np.arange(len(ids)) == 0
    cuts = np.flatnonzero(sentence_boundaries(tokenizer).starts(ids[None], opens[None])[0])
    sentences = [tuple(part.tolist()) for part in np.split(ids, cuts[1:])][1:-1]
    assert len(sentences) >= 4
    batch = DenoisingCollator(tokenizer=tokenizer, rate=0.0)(rows)
    assert not batch["corrupted"].any()
    firsts = []
    for source in batch["input_ids"].tolist():
        source = source[: len(ids)]
        assert (source[0], source[-1]) == (ids[0], ids[-1])
        rest, found = source[1:-1], []
        while rest:
            sentence = max((s for s in sentences if tuple(rest[: len(s)]) == s), key=len)
            found.append(sentence)
            rest = rest[len(sentence) :]
        assert sorted(found) == sorted(sentences)
        firsts.append(found[0])
    assert len(set(firsts)) == len(set(sentences))  # each comes first sometimes: (1 - 1/n)^60 is small


def test_permuted_and_rotated_shares_of_the_documents():
    rows = [
        make_row("bpe", [ENGLISH[0] + " " + ENGLISH[1] + " " + ENGLISH[2] + " " + ENGLISH[3]] * 2, p)
        for p in range(150)
    ]
    for option in ("permute", "rotate"):
        moves = {"permute": 0.0, option: 0.4}
        batch = DenoisingCollator(tokenizer=tiny(), rate=0.0, **moves)(rows)
        width = batch["input_ids"].shape[1]
        changed = [
            source != target
            for n in range(len(rows))
            for source, target in zip(
                documents(batch["input_ids"][n], batch["document_ids"][n]),
                documents(batch["labels"][n, :width], batch["decoder_document_ids"][n, :width]),
                strict=True,
            )
        ]
        assert len(changed) == 300
        assert abs(np.mean(changed) - 0.4) < 4 * math.sqrt(0.24 / 300) + 0.02


def test_rotation_begins_at_every_token():
    rows = [make_row("bpe", ["counted seventeen ships before"], p) for p in range(400)]
    ids = rows[0]["input_ids"].tolist()
    text = ids[1:-1]
    batch = DenoisingCollator(tokenizer=tiny(), rate=0.0, permute=0.0, rotate=1.0)(rows)
    turns = {(ids[0], *text[i:], *text[:i], ids[-1]) for i in range(len(text))}
    assert {tuple(source[: len(ids)]) for source in batch["input_ids"].tolist()} == turns


def test_a_very_long_document():
    rng = np.random.default_rng(0)
    tokenizer = tiny()
    ids = rng.choice(np.flatnonzero(~special_mask(tokenizer)), 100_000)
    row = {"input_ids": ids, "document_ids": np.zeros(len(ids), np.int32), "position": 5}
    batch = DenoisingCollator(tokenizer=tokenizer, mask=1, delete=1, infill=2, rotate=1.0)([row])
    assert batch["corrupted"].sum() == 30_000
    assert torch.equal(batch["labels"][0], torch.from_numpy(ids))


def test_a_document_without_framing_keeps_a_source():
    tokenizer = tiny()
    ids = np.flatnonzero(~special_mask(tokenizer))[:6]
    for position in range(50):
        row = {"input_ids": ids, "document_ids": np.array([0, 1, 2, 3, 4, 4], np.int32), "position": position}
        batch = DenoisingCollator(tokenizer=tokenizer, rate=0.9, delete=1, infill=0)([row])
        assert set(batch["document_ids"][0].tolist()) - {-1} == {0, 1, 2, 3, 4}


def test_rate_moves_over_the_run_and_evaluation_has_its_own():
    row = long_rows(rows=1)[0]
    tokens = len(row["input_ids"]) - 2
    collator = DenoisingCollator(tokenizer=tiny(), rate=0.1, rate_end=0.5, horizon=1000, eval_rate=0.2, rotate=1.0)
    batch = collator([{**row, "position": p} for p in (0, 500, 1000, 5000)])
    assert batch["corrupted"].sum(1).tolist() == [round(share * tokens) for share in (0.1, 0.3, 0.5, 0.5)]
    held_out = collator.for_evaluation(9)
    assert held_out([row])["corrupted"].sum() == round(0.2 * tokens)
    other = DenoisingCollator(tokenizer=tiny(), seed=4, eval_rate=0.2, rotate=1.0).for_evaluation(9)
    assert torch.equal(held_out([row])["input_ids"], other([row])["input_ids"])
    assert not torch.equal(held_out([row])["input_ids"], collator.for_evaluation(10)([row])["input_ids"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 1.0}, "collator.rate"),
        ({"rate_end": -0.1}, "collator.rate_end"),
        ({"eval_rate": 2.0}, "collator.eval_rate"),
        ({"permute": 1.5}, "collator.permute"),
        ({"rotate": -1.0}, "collator.rotate"),
        ({"infill": 0.0}, "collator.mask"),
        ({"delete": -1.0}, "collator.mask"),
        ({"mean_span": 0.0}, "collator.mean_span"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        DenoisingCollator(tokenizer=tiny(), **options)


def test_a_tokenizer_without_mask():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask token"):
        DenoisingCollator(tokenizer=tokenizer)


def test_drop_in_batches_go_through_the_stock_model_and_never_repeat():
    rows = [{"input_ids": framed(tiny(), text)} for text in (ENGLISH[0], CHINESE[0])]
    collator = DenoisingCollator(tokenizer=tiny())
    first, second = collator(rows), collator(rows)
    assert set(first) == {"input_ids", "attention_mask", "labels"}
    assert not torch.equal(first["input_ids"], second["input_ids"])
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(vocab_size=len(tiny()), **size, **heads)).eval()
    loss = model(**first).loss.item()
    assert loss == pytest.approx(math.log(len(tiny())), abs=0.5)
