"""Laws of the mixture of denoisers: which kind a document gets, what it takes, and that nothing is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from sslnlp.collators.ul2 import UL2Collator
from sslnlp.collators.ul2_decoder import UL2DecoderCollator
from sslnlp.data.packing import PackedRows
from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError
from sslnlp.tokenizer import SENTINELS, special_mask
from tests.collators.test_span_corruption import TEXTS, corrupted, documents, restored, row_of, spans_of, text_ids
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny

IGNORED = -100
MODES = ["[NLU]", "[NLG]", "[S2S]"]
WEIGHTS = st.fixed_dictionaries({kind: st.sampled_from([0.0, 1.0, 2.5]) for kind in "rsx"}).filter(
    lambda weights: any(weights.values())
)


def mode_of(source, tokenizer):
    """The mode of a source and the source without it; the mode stands in front of the text."""
    found = [token for token in source if token in tokenizer.convert_tokens_to_ids(MODES)]
    assert len(found) <= 1
    if not found:
        return None, source
    at = source.index(found[0])
    assert at == (source[0] == tokenizer.bos_token_id)
    return tokenizer.convert_ids_to_tokens(found[0]), source[:at] + source[at + 1 :]


def read_and_written(batch, row=0):
    """Of a decoder's row: what each document reads, and what it must write."""
    kinds = documents(batch["bidirectional"][row].long(), batch["document_ids"][row])
    ids = documents(batch["input_ids"][row], batch["document_ids"][row])
    labels = documents(batch["labels"][row], batch["document_ids"][row])
    pairs = []
    for seen, tokens, asked in zip(kinds, ids, labels, strict=True):
        reads = sum(seen)
        assert seen == [1] * reads + [0] * (len(seen) - reads)
        assert asked[:reads] == [IGNORED] * reads
        assert asked[max(reads, 1) :] == tokens[max(reads, 1) :]  # what opens a document follows nothing
        pairs.append((tokens[:reads], tokens[reads:]))
    return pairs


@given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    weights=WEIGHTS,
    modes=st.booleans(),
    bos=st.booleans(),
    padding=st.integers(0, 40),
    seed=st.integers(0, 2**40),
    position=st.integers(0, 2**45),
)
@settings(max_examples=150, deadline=None)
def test_source_and_target_are_the_text(kind, texts, weights, modes, bos, padding, seed, position):
    tokenizer = tiny(kind)
    row = row_of(texts, tokenizer, bos=bos, padding=padding, position=position)
    batch = UL2Collator(tokenizer=tokenizer, seed=seed, modes=modes, **weights)([row])
    assert set(batch) == UL2Collator.makes
    hidden = [token for _, target in corrupted(batch) for span in spans_of(target, tokenizer) for token in span]
    assert batch["labels"][batch["corrupted"]].tolist() == hidden
    text = ~special_mask(tokenizer)
    text[tokenizer.unk_token_id] = True
    before = documents(row["input_ids"], row["document_ids"])
    allowed = {mode for mode, name in zip(MODES, "rxs", strict=True) if weights[name]}
    for old, (source, target) in zip(before, corrupted(batch), strict=True):
        n = len(old) - bos - 1
        mode, source = mode_of(source, tokenizer)
        assert (mode in allowed) == bool(modes and n)
        assert restored(source, target, tokenizer) == old
        spans = spans_of(target, tokenizer)
        assert all(text[token] for span in spans for token in span)
        taken = sum(map(len, spans))
        assert taken < max(n, 1)
        if mode == "[NLU]" and n > 1:
            assert taken == max(round(0.15 * n), 1)
        if mode == "[NLG]" and n > 1:
            assert taken in (max(round(0.15 * n), 1), min(max(round(0.5 * n), 1), n - 1))
        if mode == "[S2S]" and n > 1:
            assert len(spans) == 1
            assert 1 <= taken <= max(n // 2, 1)
            assert old[bos + n - taken : bos + n] == spans[0]


@given(
    kind=st.sampled_from(KINDS),
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    weights=WEIGHTS,
    modes=st.booleans(),
    data=st.data(),
    position=st.integers(0, 2**45),
)
@settings(max_examples=150, deadline=None)
def test_a_decoder_writes_what_was_taken_out(kind, texts, weights, modes, data, position):
    """The corruption is that of the encoder-decoder; what is written ends with end-of-text, and S goes on as it was."""
    tokenizer = tiny(kind)
    eos = tokenizer.eos_token_id
    row = row_of(texts, tokenizer, position=position)
    if data.draw(st.booleans()):  # a piece that its text goes on after has no end-of-text
        row = {**row, "input_ids": row["input_ids"][:-1], "document_ids": row["document_ids"][:-1]}
    collator = UL2DecoderCollator(tokenizer=tokenizer, modes=modes, **weights)
    batch = collator([row])
    assert set(batch) == UL2DecoderCollator.makes
    before = documents(row["input_ids"], row["document_ids"])
    after = read_and_written(batch)
    assert len(before) == len(after)
    twin = corrupted(UL2Collator(tokenizer=tokenizer, modes=modes, **weights)([row]))
    for old, (source, target), (other, other_target) in zip(before, after, twin, strict=True):
        ended = old[-1] == eos
        text = old[:-1] if ended else old
        mode, bare = mode_of(source, tokenizer)
        spans = spans_of(other_target, tokenizer)
        assert mode == mode_of(other, tokenizer)[0]
        if not any(token in tokenizer.convert_tokens_to_ids(list(SENTINELS)) for token in source) and spans:
            assert len(spans) == 1
            assert target == spans[0] + [eos] * ended
            assert bare + spans[0] == text
        elif spans:
            assert source == (other[:-1] if ended else other)
            assert target == other_target
            assert restored(bare, target, tokenizer) == text
        else:
            assert bare == text
            assert target in ([eos], [])
    assert all(a["document_ids"].equal(b["document_ids"]) for a, b in [(batch, collator([row]))])


def test_kinds_are_drawn_by_weight():
    row = row_of([text_ids(24)] * 4, tiny())
    rows = [{**row, "position": p} for p in range(1500)]
    n = 4 * len(rows)
    modes = tiny().convert_tokens_to_ids(MODES)
    for weights, shares in (
        ({}, (2 / 7, 4 / 7, 1 / 7)),
        ({"r": 1.0, "x": 0.5, "s": 0.5}, (0.5, 0.25, 0.25)),
        ({"r": 0.0, "s": 3.0, "x": 1.0}, (0, 0.25, 0.75)),
    ):
        for cls in (UL2Collator, UL2DecoderCollator):
            ids = cls(tokenizer=tiny(), seed=2, **weights)(rows)["input_ids"]
            counts = [int((ids == mode).sum()) for mode in modes]
            assert sum(counts) == n
            for count, share in zip(counts, shares, strict=True):
                assert abs(count - n * share) <= 5 * (n * share * (1 - share)) ** 0.5


def test_the_settings_of_a_kind_are_as_likely():
    """1000 tokens: R takes 150 in 50 or 19 spans, X 500 in 100 (as many as sentinels), 62 or 8, or 150 in 2."""
    row = row_of([text_ids(1000)], tiny())
    rows = [{**row, "position": p} for p in range(600)]
    for weights, pairs in (
        ({"r": 1.0, "s": 0.0, "x": 0.0}, {(150, 50), (150, 19)}),
        ({"r": 0.0, "s": 0.0, "x": 1.0}, {(500, 100), (500, 62), (500, 8), (150, 2)}),
    ):
        batch = UL2Collator(tokenizer=tiny(), **weights)(rows)
        spans = (batch["labels"] >= tiny().convert_tokens_to_ids("<extra_id_0>")) & (
            batch["labels"] <= tiny().convert_tokens_to_ids("<extra_id_99>")
        )
        counts = spans.sum(1)
        taken = (batch["labels"] != IGNORED).sum(1) - counts - 1
        found = list(zip(taken.tolist(), counts.tolist(), strict=True))
        assert set(found) == pairs
        share = 1 / len(pairs)
        for pair in pairs:
            assert abs(found.count(pair) - 600 * share) < 5 * (600 * share * (1 - share)) ** 0.5


def test_the_end_that_s_takes_is_uniform():
    row = row_of([text_ids(20)], tiny())
    batch = UL2Collator(tokenizer=tiny(), r=0.0, x=0.0)([{**row, "position": p} for p in range(4000)])
    taken = (batch["labels"] != IGNORED).sum(1) - 2
    counts = torch.bincount(taken, minlength=11).tolist()
    assert counts[0] == 0
    assert len(counts) == 11
    assert all(abs(count - 400) < 5 * 400**0.5 for count in counts[1:])


@pytest.mark.parametrize("cls", [UL2Collator, UL2DecoderCollator])
def test_rows_do_not_depend_on_neighbours_or_padding(cls):
    rows = [row_of(TEXTS[i : i + 3], tiny(), padding=7 * i, position=50 + i) for i in range(6)]
    collator = cls(tokenizer=tiny(), seed=4)
    take = corrupted if cls is UL2Collator else read_and_written
    together = [take(collator(rows), b) for b in range(6)]
    assert [take(collator([row])) for row in rows] == together
    assert [take(collator(rows[::-1]), b) for b in range(6)][::-1] == together
    moved = collator([{**row, "position": row["position"] + 99} for row in rows])
    reseeded = cls(tokenizer=tiny(), seed=5)(rows)
    assert [take(moved, b) for b in range(6)] != together
    assert [take(reseeded, b) for b in range(6)] != together
    assert torch.equal(collator.for_evaluation(5)(rows)["input_ids"], reseeded["input_ids"])


@pytest.mark.parametrize("weights", [{}, {"s": 0}, {"x": 0, "s": 0}, {"r": 0, "x": 0}, {"modes": False}])
@pytest.mark.parametrize("length", [24, 61, 250])
@pytest.mark.parametrize("cls", [UL2Collator, UL2DecoderCollator])
def test_packed_rows_are_never_too_long(cls, length, weights, tmp_path):
    """Texts of every length from 1 on, laid out as `source_length` and `reserve` say."""
    tokenizer = tiny()
    words = ENGLISH[0].split()
    texts = [" ".join(words[i % len(words)] for i in range(n)) for n in (*range(1, 60), 400, 900)]
    store = build_store([*texts, *"abcdefghijklmnop"], tokenizer, tmp_path, fingerprint="ul2")
    collator = cls(tokenizer=tokenizer, **weights)
    rows = PackedRows(
        store, collator.source_length(length), [tokenizer.bos_token_id], [tokenizer.eos_token_id],
        suffix_every_piece=cls is UL2Collator, reserve=collator.reserve,
    )  # fmt: skip
    longest = 0
    for seed in range(4):
        batch = cls(tokenizer=tokenizer, seed=seed, **weights)(
            [{**row, "position": p} for p, row in enumerate(rows.rows(range(len(rows))))]
        )
        assert batch["input_ids"].shape[1] <= length
        assert batch["labels"].shape[1] <= length
        longest = max(longest, int((batch["document_ids"] >= 0).sum(1).max()))
    assert longest >= 0.85 * length


@pytest.mark.parametrize("n", [0, 1, 100_000])
@pytest.mark.parametrize("weights", [{"s": 0, "x": 0}, {"r": 0, "x": 0}, {"r": 0, "s": 0}])
def test_documents_of_any_length(weights, n):
    row = row_of([text_ids(n)], tiny(), position=3)
    (source, target), *_ = corrupted(UL2Collator(tokenizer=tiny(), **weights)([row]))
    mode, source = mode_of(source, tiny())
    assert (mode is None) == (n == 0)
    assert restored(source, target, tiny()) == row["input_ids"].tolist()
    assert bool(spans_of(target, tiny())) == (n > 1)
    ((source, target),) = read_and_written(UL2DecoderCollator(tokenizer=tiny(), **weights)([row]))
    assert target[-1] == tiny().eos_token_id
    empty = {"input_ids": np.zeros(0, np.int64), "document_ids": np.zeros(0, np.int32), "position": 3}
    for cls in (UL2Collator, UL2DecoderCollator):
        assert (cls(tokenizer=tiny())([empty])["labels"] == IGNORED).all()


def test_texts_joined_by_specials():
    """As a stock data_collator gets them: one kind a document, one mode, and S takes the end of the last text."""
    eos = tiny().eos_token_id
    joined = [token for i in range(5) for token in (*text_ids(20)[: 8 + i].tolist(), eos)]
    row = {"input_ids": np.array(joined), "document_ids": np.zeros(len(joined), np.int32)}
    for position in range(30):
        (source, target), *_ = corrupted(UL2Collator(tokenizer=tiny())([{**row, "position": position}]))
        mode, source = mode_of(source, tiny())
        assert restored(source, target, tiny()) == joined
        assert len(spans_of(target, tiny())) == 1 if mode == "[S2S]" else len(spans_of(target, tiny())) >= 5


@pytest.mark.parametrize("options", [{"r": -1.0}, {"r": 0.0, "s": 0.0, "x": 0.0}, {"x": float("nan")}])
def test_bad_options(options):
    with pytest.raises(UserError, match=r"collator\.r, s and x"):
        UL2Collator(tokenizer=tiny(), **options)


def test_without_modes_the_tokenizer_need_not_have_them():
    assert "modes" in UL2Collator.bound({}).requires
    for cls in (UL2Collator, UL2DecoderCollator):
        bound = cls.bound({"modes": False})
        assert bound.requires == cls.requires - {"modes"}
        assert bound.name == cls.name
        batch = bound(tokenizer=tiny(), modes=False)([row_of(CHINESE, tiny())])
        assert not np.isin(batch["input_ids"].numpy(), tiny().convert_tokens_to_ids(MODES)).any()


def test_a_tokenizer_without_modes():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "<extra_id_0>": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    with pytest.raises(UserError, match=r"collator\.modes=false"):
        UL2Collator(tokenizer=tokenizer)


def test_drop_in_batches_go_through_a_stock_decoder_and_never_repeat():
    rows = [{"input_ids": row_of([text], tiny())["input_ids"].tolist()} for text in ENGLISH]
    collator = UL2DecoderCollator(tokenizer=tiny())
    first, second = collator(rows), collator(rows)
    assert set(first) == {"input_ids", "attention_mask", "labels"}
    assert first["labels"].shape != second["labels"].shape or not torch.equal(first["labels"], second["labels"])
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny()), n_embd=16, n_layer=1, n_head=2, n_positions=128)).eval()
    assert torch.isfinite(model(**first).loss)
