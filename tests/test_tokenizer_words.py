"""Word boundaries: read off ids alone, compared with the text."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from sslnlp.errors import UserError
from sslnlp.tokenizer import sentence_boundaries, train_tokenizer, word_boundaries
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny


def words(tokenizer, text):
    """The text of each word, white space taken off, as the boundaries cut it."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array([encoded["input_ids"]], dtype=np.int64)
    starts = word_boundaries(tokenizer).starts(ids)[0]
    pieces: list[list[int]] = []
    for start, token in zip(starts, ids[0].tolist(), strict=True):
        if start:
            pieces.append([])
        pieces[-1].append(token)
    decoded = [tokenizer.decode(piece).replace("##", "").strip() for piece in pieces]
    return [word for word in decoded if word]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ENGLISH)
def test_english_words_and_punctuation(kind, text):
    joined = re.findall(r"\w+|[^\w\s]", text)
    found = words(tiny(kind), text)
    if kind == "wordpiece":
        assert found == joined
    else:  # a run of marks ("):", "'s") may be one token; nothing else may differ
        assert re.findall(r"\w+|[^\w\s]", " ".join(found)) == joined
        assert all(word in joined or not word[0].isalnum() for word in found)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bpe"])
@pytest.mark.parametrize("text", CHINESE)
def test_chinese_characters_are_words(kind, text):
    tokenizer = tiny(kind)
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]])
    starts = word_boundaries(tokenizer).starts(ids)[0]
    found = words(tokenizer, text)
    assert "".join(found) == text
    if kind == "wordpiece":
        assert found == list(text)
    # A token that begins with a character starts a word; one that begins inside a character never does.
    if kind == "bpe":
        inverse = {c: b for b, c in byte_map().items()}
        for start, token in zip(starts, tokenizer.convert_ids_to_tokens(ids[0]), strict=True):
            assert start == (inverse[token[0]] & 0xC0 != 0x80)
    else:
        assert starts.all()


def byte_map():
    """Byte to character, observed: what the byte-level pre-tokenizer makes of each one-byte character."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    observed = {}
    for code in [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x400)]:
        for byte, character in zip(chr(code).encode(), split(chr(code))[0][0], strict=True):
            observed[byte] = character
    return observed


def test_byte_characters_match_the_library():
    from sslnlp.tokenizer.words import byte_characters

    ours = byte_characters()
    for byte, character in byte_map().items():
        assert ours[byte] == character


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_bytes_of_a_character_are_never_parted(text):
    """With a vocabulary of single bytes most characters are several tokens: only the first may start a word."""
    tokenizer = bytes_only()
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]])
    assert ids.shape[1] == len(text.encode())
    starts = word_boundaries(tokenizer).starts(ids)[0]
    inside = np.frombuffer(text.encode(), dtype=np.uint8) & 0xC0 == 0x80
    assert not (starts & inside).any()


def bytes_only():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_single_bytes_still_make_whole_words():
    assert words(bytes_only(), "the café, 3rd of May") == ["the", "café", ",", "3rd", "of", "May"]
    assert words(bytes_only(), "шуба «мех»") == ["шуба", "«", "мех", "»"]
    assert words(bytes_only(), "数船 很") == ["数", "船", "很"]
    assert words(bytes_only(), "ok 🙂🙂") == ["ok", "🙂", "🙂"]


def test_our_bytes_make_whole_words():
    assert words(tiny("bytes"), "the café, 3rd of May 数船 🙂🙂") == (
        ["the", "café", ",", "3rd", "of", "May", "数", "船", "🙂", "🙂"]
    )


@pytest.mark.parametrize(
    "post", [None, processors.ByteLevel(trim_offsets=True), processors.RobertaProcessing(("</s>", 1), ("<s>", 0))]
)
def test_byte_level_whatever_the_post_processor(post):
    tokenizer = train_tokenizer(ENGLISH * 4, vocab_size=500)
    if post is not None:
        tokenizer.backend_tokenizer.post_processor = post
    assert words(tokenizer, "before the harbour, answered") == ["before", "the", "harbour", ",", "answered"]


def test_unmerged_space_leads_its_word():
    """A rare word leaves its space alone: the space, the bytes, one word."""
    tokenizer = tiny("bpe")
    ids = np.array([tokenizer(" ξ", add_special_tokens=False)["input_ids"]])
    assert ids.shape[1] == 3
    assert word_boundaries(tokenizer).starts(ids).tolist() == [[True, False, False]]


def test_rows_and_special_tokens_start_words():
    tokenizer = tiny("wordpiece")
    boundaries = word_boundaries(tokenizer)
    inner = next(i for token, i in tokenizer.get_vocab().items() if token.startswith("##"))
    ids = np.array([[inner, inner, tokenizer.mask_token_id, inner], [inner, tokenizer.cls_token_id, inner, inner]])
    starts = boundaries.starts(ids)
    assert starts[:, 0].all()
    assert starts[ids == tokenizer.mask_token_id].all()
    assert starts[ids == tokenizer.cls_token_id].all()


def test_rows_do_not_see_each_other():
    tokenizer = tiny("bpe")
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"][:12] for text in ENGLISH])
    together = word_boundaries(tokenizer).starts(ids)
    for row, alone in zip(ids, together, strict=True):
        np.testing.assert_array_equal(word_boundaries(tokenizer).starts(row), alone)


def test_llama_style_byte_fallback():
    """BPE with ▁ and <0xE4> tokens: the third kind in use, neither byte-level nor Unigram."""
    pieces = ["<unk>", "▁", "▁the", "lamp", "▁lamp", "s", ",", "<0xE7>", "<0x81>", "<0xAF>"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    boundaries = word_boundaries(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    row = ["▁the", "▁lamp", "s", ",", "▁", "lamp", "<0xE7>", "<0x81>", "<0xAF>", "lamp"]
    starts = boundaries.starts(np.array([pieces.index(p) for p in row]))
    assert starts.tolist() == [True, True, False, True, True, False, True, False, False, True]


@pytest.mark.parametrize("boundaries", [word_boundaries, sentence_boundaries])
def test_a_tokenizer_that_is_not_fast_is_refused(boundaries):
    with pytest.raises(UserError, match="ByT5Tokenizer has no tokenizer"):
        boundaries(ByT5Tokenizer())
