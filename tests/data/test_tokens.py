from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sslnlp.data import tokens
from sslnlp.data.encoding import encode, plain_tokenizer, split_long, tokenizer_fingerprint
from sslnlp.data.store import TokenStore
from sslnlp.data.tokens import build_store
from sslnlp.errors import UserError
from tests.data.conftest import TEXTS


def ids_of(tokenizer, text):
    return np.concatenate([ids for _, ids in encode(plain_tokenizer(tokenizer), [text])]).tolist()


def test_a_store_gives_back_the_ids_and_the_bytes_of_each_document(tiny, tmp_path):
    texts = [*TEXTS, "", "naïve 你好"]
    store = build_store(texts, tiny, tmp_path / "s", fingerprint="f")
    assert len(store) == len(texts)
    for i, text in enumerate(texts):
        assert store.tokens(i).tolist() == tiny(text, add_special_tokens=False)["input_ids"]
        assert tiny.decode(store.tokens(i)) == text
    assert store.byte_counts.tolist() == [len(text.encode()) for text in texts]
    assert store.num_bytes == sum(store.byte_counts)
    assert store.lengths.sum() == store.num_tokens
    assert (tmp_path / "s" / "tokens.bin").stat().st_size == 2 * store.num_tokens


def test_special_strings_in_the_text_are_ordinary_text(tiny):
    text = "a [SEP] b [PAD][CLS]"
    ids = ids_of(tiny, text)
    assert not set(ids) & set(tiny.all_special_ids)
    assert tiny.decode(ids) == text


def test_a_long_text_is_encoded_in_pieces_with_the_same_ids(tiny, monkeypatch):
    text = " ".join(TEXTS) + "\n" + "\n\n".join(TEXTS)
    whole = tiny(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(split_long, "__defaults__", (50,))
    pieces = list(split_long(text))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 50
    assert ids_of(tiny, text) == whole


@pytest.mark.parametrize("text", ["x" * 1000, "你好。世界！" * 200, "a" * 99 + "\n" + "b" * 500])
def test_pieces_of_a_text_without_spaces_are_bounded_and_lose_nothing(text):
    pieces = list(split_long(text, 64))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 64


@pytest.mark.parametrize("after", [1, 40, 99])
def test_a_killed_build_goes_on_and_gives_the_same_bytes(tiny, tmp_path, monkeypatch, after):
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 100)
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", 3)
    texts = [f"{text} {i}" for i in range(9) for text in TEXTS]
    whole = build_store(texts, tiny, tmp_path / "whole", fingerprint="f")

    def dying():
        yield from texts[:after]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(dying(), tiny, tmp_path / "cut", fingerprint="f")
    with pytest.raises(UserError, match="not a complete"):
        TokenStore(tmp_path / "cut")
    with (tmp_path / "cut" / "tokens.bin").open("ab") as file:
        file.write(b"written but never committed")
    build_store(texts, tiny, tmp_path / "cut", fingerprint="f")
    for file in ("tokens.bin", "offsets.bin", "bytes.bin", "store.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (whole.path / file).read_bytes()


@pytest.mark.parametrize("name", ["progress.json.new", "progress.json", "store.json"])
def test_a_store_killed_at_its_last_notes_is_whole_or_goes_on(tiny, tmp_path, monkeypatch, name):
    """Killed when a note was opened and holds nothing yet, or before it gets its name."""
    whole = build_store(TEXTS, tiny, tmp_path / "whole", fingerprint="f")

    def write(path, *args, **options):
        path.touch()
        raise KeyboardInterrupt if path.name == name else AssertionError(path)

    def replace(path, place):
        if place.name == name:
            raise KeyboardInterrupt
        real(path, place)

    real = tokens.os.replace
    with monkeypatch.context() as patched:
        if name.endswith(".new"):
            patched.setattr(Path, "write_text", write)
        patched.setattr(tokens.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            build_store(TEXTS, tiny, tmp_path / "cut", fingerprint="f")
    assert not (tmp_path / "cut" / "store.json").exists()
    build_store(TEXTS, tiny, tmp_path / "cut", fingerprint="f")
    build_store(TEXTS, tiny, tmp_path / "cut", fingerprint="f")  # finished, but killed before that was noted elsewhere
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {path.name for path in whole.path.iterdir()}
    for path in whole.path.iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    writer = tokens.TokenWriter(tmp_path / "s", 65_536)
    writer.add(np.array([65_535, 3]), np.array([2]), np.array([9]))
    writer.finish("f")
    assert TokenStore(tmp_path / "s").tokens(0).tolist() == [65_535, 3]
    assert (tmp_path / "s" / "tokens.bin").stat().st_size == 8


def test_a_store_of_the_wrong_size_is_refused(tiny, tmp_path):
    build_store(TEXTS, tiny, tmp_path / "s", fingerprint="f")
    with (tmp_path / "s" / "tokens.bin").open("r+b") as file:
        file.truncate(10)
    with pytest.raises(UserError, match="damaged"):
        TokenStore(tmp_path / "s")


def test_framing_does_not_change_the_fingerprint_but_the_vocabulary_does(tiny):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    other = deepcopy(tiny)
    special = [("[CLS]", 1), ("[SEP]", 2)]
    other.backend_tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tiny)
    other.add_tokens(["zzz"])
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tiny)


def test_pages_are_given_back_and_read_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sslnlp.data.store.RELEASE_BYTES", 1)
    store = build_store(TEXTS, tiny, tmp_path / "s", fingerprint="f")
    assert [tiny.decode(store.tokens(i)) for i in range(len(store))] == TEXTS
