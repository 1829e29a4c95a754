"""Sentence boundaries: read off ids alone, compared with the text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.tokenizer import sentence_boundaries, special_mask, train_tokenizer
from tests.test_tokenizer_words import bytes_only
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny

TEXTS = [
    ["He paid 3.14 pounds.", ' "Really?"', " she asked.", " (No!)", " Look at example.com now...", " The end"],
    ["Mr. J. R. Hartley wrote to Dr. Watson, e.g. about U.S. law.", " Then he left."],
    ["灯塔很亮。", "他说：“好！”", "然后走了？！", "是的……", "嗯。」", "完"],
    ["Title\n\n", "First line\n", "Second; third. \n", "“Quoted.”", " Yes!", " 🙂 ok.", "数.", "很"],
    ["  \n start.", " Go\n"],
    ["क्या आप ठीक हैं?", " हाँ।", " ठीक।"],
]


def starts_of(tokenizer, text):
    ids = np.array([tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=np.int64)
    opens = np.zeros(ids.shape, dtype=bool)
    opens[:, :1] = True
    return ids, sentence_boundaries(tokenizer).starts(ids, opens)


def sentences(tokenizer, text):
    ids, starts = starts_of(tokenizer, text)
    parts = np.split(ids[0], np.flatnonzero(starts[0])[1:])
    return [tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts]


def trained(kind):
    return train_tokenizer(["".join(text) for text in TEXTS] * 4 + ENGLISH + CHINESE, vocab_size=900, algorithm=kind)


@pytest.mark.parametrize("text", TEXTS)
def test_sentences_of_a_byte_level_tokenizer(text):
    """With merges, and with a vocabulary of single bytes, where 。 and ” are three tokens each."""
    assert sentences(trained("bpe"), "".join(text)) == text
    if not any("Mr." in part for part in text):  # a title is known where it is one token
        assert sentences(bytes_only(), "".join(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        ["He paid 3.14 pounds.", " Really?", " (No!)", " Look at example.com now...", " The end"],
        ["J. R. Hartley wrote, e.g. about U.S. law.", " Then he left."],
        TEXTS[2],
        TEXTS[5],
    ],
)
@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_sentences_of_other_tokenizers(kind, text):
    found = [part.replace(" ", "") for part in sentences(trained(kind), "".join(text))]
    assert found == [part.replace(" ", "") for part in text]


@pytest.mark.parametrize("kind", KINDS)
@given(
    texts=st.lists(st.sampled_from(ENGLISH + CHINESE), min_size=1, max_size=6), separator=st.sampled_from([" ", "\n"])
)
@settings(max_examples=25, deadline=None)
def test_marks_close_sentences_of_a_corpus(kind, texts, separator):
    """No full stop stands inside these texts: joined by a space, they come apart where they met."""
    tokenizer = tiny(kind)
    texts = [text.replace("The fishermen", "and the fishermen").replace("years.", "years,") for text in texts]
    texts = [text.replace("(in any weather!)", "(in any weather)") for text in texts]
    _, starts = starts_of(tokenizer, separator.join(texts))
    assert starts.sum() == len(texts)


@given(text=st.text(max_size=60), kind=st.sampled_from([*KINDS, "bytes"]))
@settings(max_examples=200, deadline=None)
def test_any_text(text, kind):
    """Never inside a character, the same for a row alone and beside others, and no sentence of white space alone."""
    tokenizer = bytes_only() if kind == "bytes" else tiny(kind)
    ids, starts = starts_of(tokenizer, text)
    if not ids.size:
        return
    assert starts[0, 0]
    if kind == "bytes":
        raw = np.frombuffer(text.encode(), dtype=np.uint8)
        assert not (starts[0] & (raw & 0xC0 == 0x80)).any()
        parts = np.split(raw, np.flatnonzero(starts[0])[1:])
        blank = [bytes(part).strip(b" \n") == b"" for part in parts]
        assert not any(blank) or len(parts) == 1
    opens = np.zeros((3, ids.shape[1]), dtype=bool)
    opens[:, 0] = True
    together = sentence_boundaries(tokenizer).starts(np.repeat(ids, 3, axis=0), opens)
    assert (together == starts).all()


def test_documents_and_special_tokens():
    """Every document starts a sentence, however the one before it ended; framing tokens stand apart."""
    tokenizer = trained("bpe")
    one = tokenizer("A lamp. It", add_special_tokens=True)["input_ids"]
    two = tokenizer("burns", add_special_tokens=False)["input_ids"]
    ids = np.array([one + two])
    opens = np.zeros(ids.shape, dtype=bool)
    opens[0, [0, len(one)]] = True
    starts = sentence_boundaries(tokenizer).starts(ids, opens)[0]
    special = special_mask(tokenizer)[ids[0]]
    assert starts[special].all()
    assert (starts & ~special).sum() == 3
    assert starts[1]
    assert starts[len(one)]


def test_the_unknown_token_is_a_word():
    tokenizer = tiny("wordpiece")
    _, starts = starts_of(tokenizer, "ships Ω lamp. Ω ships")
    assert tokenizer.unk_token_id in starts_of(tokenizer, "Ω")[0]
    assert starts.sum() == 2
