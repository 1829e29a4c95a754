"""Laws of span corruption: nothing is lost, counts and lengths are the published ones, every cut is as likely."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5Config, T5ForConditionalGeneration

from sslnlp.collators.span_corruption import SpanCorruptionCollator, span_lengths
from sslnlp.data.packing import PackedRows
from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError
from sslnlp.tokenizer import SENTINELS, special_mask, train_tokenizer
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, packed_row, tiny

IGNORED = -100
TEXTS = [*ENGLISH, *CHINESE, "ok 🙂🙂 👩‍👩‍👧 done", "a", "", "ab"]


def row_of(texts, tokenizer, *, bos=True, padding=0, position=0):
    """One row of framed texts (strings, or ids), as rows are packed for an encoder-decoder."""
    plain = [tokenizer(t, add_special_tokens=False)["input_ids"] if isinstance(t, str) else list(t) for t in texts]
    pieces = [[tokenizer.bos_token_id] * bos + ids + [tokenizer.eos_token_id] for ids in plain]
    return packed_row(pieces, tokenizer, padding=padding, position=position)


def text_ids(n):
    """Ids of text, any but special ones: n different places, few different ids."""
    able = np.flatnonzero(~special_mask(tiny()))
    return able[np.arange(n) % len(able)]


def documents(ids, document_ids):
    """The tokens of each document of a row."""
    found = {}
    for token, document in zip(ids.tolist(), document_ids.tolist(), strict=True):
        if document >= 0:
            found.setdefault(document, []).append(token)
    return [found[d] for d in sorted(found)]


def spans_of(target, tokenizer):
    """The spans a target spells, by plain reading; its sentinels count from 0 and end-of-text is last, once."""
    sentinels = tokenizer.convert_tokens_to_ids(list(SENTINELS))
    assert target[-1] == tokenizer.eos_token_id
    spans = []
    for token in target[:-1]:
        if token in sentinels:
            assert token == sentinels[len(spans)]
            spans.append([])
        else:
            spans[-1].append(token)
    assert all(spans)
    return spans


def restored(source, target, tokenizer):
    """The text of a source and its target."""
    spans = spans_of(target, tokenizer)
    sentinels = tokenizer.convert_tokens_to_ids(list(SENTINELS))[: len(spans)]
    seen, text = 0, []
    for token in source:
        if token in sentinels:
            assert token == sentinels[seen]
            text += spans[seen]
            seen += 1
        else:
            text.append(token)
    assert seen == len(spans)
    return text


def corrupted(batch, row=0):
    """Sources and targets of the documents of a row of a batch."""
    sources = documents(batch["input_ids"][row], batch["document_ids"][row])
    targets = documents(batch["labels"][row], batch["decoder_document_ids"][row])
    assert len(sources) == len(targets)
    return list(zip(sources, targets, strict=True))


@given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    rate=st.floats(0.01, 0.99),
    mean_span=st.floats(1, 20),
    bos=st.booleans(),
    padding=st.integers(0, 40),
    seed=st.integers(0, 2**40),
    position=st.integers(0, 2**45),
)
@settings(max_examples=150, deadline=None)
def test_source_and_target_are_the_text_and_as_long_as_published(
    kind, texts, rate, mean_span, bos, padding, seed, position
):
    tokenizer = tiny(kind)
    row = row_of(texts, tokenizer, bos=bos, padding=padding, position=position)
    batch = SpanCorruptionCollator(tokenizer=tokenizer, seed=seed, rate=rate, mean_span=mean_span)([row])
    assert set(batch) == SpanCorruptionCollator.makes
    hidden = [token for _, target in corrupted(batch) for span in spans_of(target, tokenizer) for token in span]
    assert batch["labels"][batch["corrupted"]].tolist() == hidden
    before = documents(row["input_ids"], row["document_ids"])
    after = corrupted(batch)
    assert len(before) == len(after)
    text = ~special_mask(tokenizer)
    if tokenizer.unk_token_id is not None:
        text[tokenizer.unk_token_id] = True  # a word it cannot spell is part of the text
    for old, (source, target) in zip(before, after, strict=True):
        assert restored(source, target, tokenizer) == old
        spans = spans_of(target, tokenizer)
        assert all(text[token] for span in spans for token in span)
        n = len(old) - bos - 1
        noise = min(max(round(n * rate), 1), n - 1) if n > 1 else 0
        count = min(max(round(noise / mean_span), 1), n - noise, noise) if noise else 0
        assert (sum(map(len, spans)), len(spans)) == (noise, count)
        assert span_lengths(n, rate, mean_span) == (len(source) - bos, len(target))
        if count:  # a piece begins with text that stays and ends with a span
            assert text[source[bos]]
            assert source[-2] == tokenizer.convert_tokens_to_ids(SENTINELS[count - 1])
    padded = batch["document_ids"] < 0
    assert (batch["input_ids"][padded] == tokenizer.pad_token_id).all()
    assert torch.equal(batch["attention_mask"], ~padded)
    assert (batch["labels"] == IGNORED).equal(batch["decoder_document_ids"] < 0)


def test_published_lengths():
    """512 tokens of input come of 568 of text, and give 114 of target (Raffel et al., 2020)."""
    assert span_lengths(568) == (512, 114)
    assert max(n for n in range(2000) if span_lengths(n)[0] <= 512) == 568


def test_every_way_to_cut_is_as_likely():
    """12 tokens at rate 0.5, mean 2: six stay, six go, in three spans. Two cuts among five places, twice: 100 ways."""
    row = row_of([text_ids(12)], tiny())
    rows = [{**row, "position": p} for p in range(20_000)]
    batch = SpanCorruptionCollator(tokenizer=tiny(), rate=0.5, mean_span=2, seed=1)(rows)
    # The gaps between sentinels in source and target tell how both were cut.
    first = tiny().convert_tokens_to_ids("<extra_id_0>")
    ways = Counter()
    for source, target in zip(batch["input_ids"].numpy(), batch["labels"].numpy(), strict=True):
        marks = np.flatnonzero((source >= first) & (source < first + 3))
        spans = np.flatnonzero((target >= first) & (target < first + 3))
        ways[(*(np.diff(marks) - 1).tolist(), *(np.diff(spans) - 1).tolist())] += 1
    cuts = [(b - a, 6 - b) for a, b in combinations(range(1, 6), 2)]  # what follows the first stretch
    heads = [(a, b - a) for a, b in combinations(range(1, 6), 2)]
    assert set(ways) == {(*kept, *taken) for kept in cuts for taken in heads}
    expected = len(rows) / 100
    chi_squared = sum((count - expected) ** 2 / expected for count in ways.values())
    assert chi_squared < 99 + 5 * (2 * 99) ** 0.5  # 99 degrees of freedom, five standard deviations


def test_lengths_of_spans_follow_the_law():
    """q tokens in k spans: P(first has length m) = C(q - m - 1, k - 2) / C(q - 1, k - 1), nearly geometric."""
    row = row_of([text_ids(400)], tiny())
    batch = SpanCorruptionCollator(tokenizer=tiny())([{**row, "position": p} for p in range(500)])
    lengths = [
        len(span)
        for b in range(500)
        for span in spans_of(documents(batch["labels"][b], batch["decoder_document_ids"][b])[0], tiny())
    ]
    q, k = 60, 20
    assert len(lengths) == 500 * k
    for m in range(1, 8):
        share = math.comb(q - m - 1, k - 2) / math.comb(q - 1, k - 1)
        measured = lengths.count(m) / len(lengths)
        assert abs(measured - share) < 5 * (share / len(lengths)) ** 0.5


def test_rows_do_not_depend_on_neighbours_or_padding():
    rows = [row_of(TEXTS[i : i + 3], tiny(), padding=7 * i, position=50 + i) for i in range(6)]
    collator = SpanCorruptionCollator(tokenizer=tiny(), seed=4)
    together = [corrupted(collator(rows), b) for b in range(6)]
    assert [corrupted(collator([row])) for row in rows] == together
    assert [corrupted(collator(rows[::-1]), b) for b in range(6)][::-1] == together
    moved = collator([{**row, "position": row["position"] + 99} for row in rows])
    reseeded = SpanCorruptionCollator(tokenizer=tiny(), seed=5)(rows)
    fixed = collator.for_evaluation(5)(rows)
    assert [corrupted(moved, b) for b in range(6)] != together
    assert [corrupted(reseeded, b) for b in range(6)] != together
    assert torch.equal(fixed["input_ids"], reseeded["input_ids"])


@pytest.mark.parametrize("options", [{}, {"rate": 0.5}, {"rate": 0.5, "mean_span": 32}, {"rate": 0.9}, {"rate": 0.01}])
@pytest.mark.parametrize("length", [20, 61, 250])
def test_packed_rows_are_filled_and_never_too_long(length, options, tmp_path):
    """Texts of every length from 1 on, laid out as `source_length` and `reserve` say: neither side exceeds the row."""
    tokenizer = tiny()
    words = ENGLISH[0].split()
    texts = [" ".join(words[i % len(words)] for i in range(n)) for n in (*range(1, 60), 400, 900)]
    store = build_store([*texts, *"abcdefghijklmnop"], tokenizer, tmp_path, fingerprint="spans")
    collator = SpanCorruptionCollator(tokenizer=tokenizer, **options)
    rows = PackedRows(
        store, collator.source_length(length), [tokenizer.bos_token_id], [tokenizer.eos_token_id],
        suffix_every_piece=True, reserve=collator.reserve,
    )  # fmt: skip
    batch = collator([{**row, "position": p} for p, row in enumerate(rows.rows(range(len(rows))))])
    assert batch["input_ids"].shape[1] <= length
    assert batch["labels"].shape[1] <= length
    longest = max(int((batch[key] >= 0).sum(1).max()) for key in ("document_ids", "decoder_document_ids"))
    assert longest >= length - 3


def test_long_rows_hold_more_text_than_the_model_reads():
    """One token less than T5's 568 at most: a row of several pieces must fit too."""
    collator = SpanCorruptionCollator(tokenizer=tiny())
    room = collator.source_length(512) - collator.reserve - 2
    assert room in (566, 567)
    assert span_lengths(room)[0] + 1 in (511, 512)


@pytest.mark.parametrize("n", [0, 1, 100_000])
def test_documents_of_any_length(n):
    row = row_of([text_ids(n)], tiny(), position=3)
    (source, target), *_ = corrupted(SpanCorruptionCollator(tokenizer=tiny())([row]))
    assert restored(source, target, tiny()) == row["input_ids"].tolist()
    spans = spans_of(target, tiny())
    # A hundred sentinels, so a hundred spans: longer ones, and the rate is kept.
    assert (len(spans), sum(map(len, spans))) == ((100, 15_000) if n > 1 else (0, 0))
    empty = {"input_ids": np.zeros(0, np.int64), "document_ids": np.zeros(0, np.int32), "position": 3}
    assert (SpanCorruptionCollator(tokenizer=tiny())([empty, row])["labels"][0] == IGNORED).all()
    assert (SpanCorruptionCollator(tokenizer=tiny())([empty])["labels"] == IGNORED).all()


def test_texts_joined_by_specials_are_cut_apart_and_sentinels_go_on():
    """As a stock data_collator gets them; where sentinels run out, spans stay."""
    tokenizer = tiny()
    eos = tokenizer.eos_token_id
    for n in (3, 150):
        joined = [token for i in range(n) for token in (*text_ids(20)[: 6 + i % 9].tolist(), eos)]
        batch = SpanCorruptionCollator(tokenizer=tokenizer, rate=0.4)([{"input_ids": joined}])
        source = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
        target = [token for token in batch["labels"][0].tolist() if token >= 0]
        assert restored(source, target, tokenizer) == joined
        assert len(spans_of(target, tokenizer)) == (3 if n == 3 else 100)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 0.0}, "collator.rate"),
        ({"rate": 1.0}, "collator.rate"),
        ({"mean_span": 0.5}, "collator.mean_span"),
        ({"mean_span": float("nan")}, "collator.mean_span"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        SpanCorruptionCollator(tokenizer=tiny(), **options)


def test_a_tokenizer_without_what_it_takes():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="extra_id_0"):
        SpanCorruptionCollator(
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
        )
    tokenizer = train_tokenizer(ENGLISH, vocab_size=450)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos"):
        SpanCorruptionCollator(tokenizer=tokenizer)


def test_drop_in_batches_go_through_the_stock_model_and_never_repeat():
    rows = [
        {"input_ids": row_of([text], tiny())["input_ids"].tolist()} for text in (" ".join(ENGLISH), "".join(CHINESE))
    ]
    collator = SpanCorruptionCollator(tokenizer=tiny())
    first, second = collator(rows), collator(rows)
    assert set(first) == {"input_ids", "attention_mask", "labels"}
    assert first["input_ids"].shape != second["input_ids"].shape or not torch.equal(
        first["input_ids"], second["input_ids"]
    )
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tiny()), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    loss = T5ForConditionalGeneration(config).eval()(**first).loss.item()
    assert math.isfinite(loss)
    assert loss > 1
