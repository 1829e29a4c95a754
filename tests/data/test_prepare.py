from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from sslnlp.data import DataConfig, encoding, joining, prepare, prepare_text, sample_texts, tokens
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.texts import Texts
from sslnlp.errors import UserError

TEXTS = [f"document number {i} says {i * i}" for i in range(400)]


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def decoded(tokenizer, store) -> list[str]:
    return [tokenizer.decode(store.tokens(i)) for i in range(len(store))]


def test_duplicates_and_empty_documents_go_and_the_rest_is_split(tiny, tmp_path):
    spec = write(tmp_path / "a.jsonl", [*TEXTS, "", " \n", *TEXTS[:7]])
    got = prepare_text(DataConfig(train=spec, valid_fraction=0.1), tiny, cache_dir=tmp_path)
    train, valid = decoded(tiny, got.train), decoded(tiny, got.valid)
    assert sorted(train + valid) == sorted(TEXTS)
    assert 20 <= len(valid) <= 60
    facts = got.facts
    assert (facts["read"], facts["duplicates"], facts["empty"], facts["overlap"]) == (409, 7, 2, 0)
    assert facts["documents"] == len(train)
    assert facts["valid"]["documents"] == len(valid)
    assert facts["bytes"] == sum(len(text.encode()) for text in train)
    assert json.loads(json.dumps(facts)) == facts


def test_the_split_depends_on_the_documents_not_on_their_order(tiny, tmp_path):
    sides = []
    for name, texts in (("a", TEXTS), ("b", TEXTS[::-1])):
        config = DataConfig(train=write(tmp_path / f"{name}.jsonl", texts), valid_fraction=0.1)
        sides.append(set(decoded(tiny, prepare_text(config, tiny, cache_dir=tmp_path / name).valid)))
    assert sides[0] == sides[1]


def test_the_cap_takes_whole_documents_of_smallest_hash(tiny, tmp_path):
    config = DataConfig(train=write(tmp_path / "a.jsonl", TEXTS), valid_fraction=0.5, valid_tokens=200)
    got = prepare_text(config, tiny, cache_dir=tmp_path)
    assert 150 < got.valid.num_tokens <= 200
    by_hash = [TEXTS[i] for i in np.argsort(hash_texts(TEXTS))]
    assert set(decoded(tiny, got.valid)) == set(by_hash[: len(got.valid)])
    assert len(got.train) + len(got.valid) == len(TEXTS)


def test_given_held_out_text_is_removed_from_training(tiny, tmp_path):
    valid = write(tmp_path / "b.jsonl", [*TEXTS[:5], "new"])
    config = DataConfig(train=write(tmp_path / "a.jsonl", TEXTS), valid=valid)
    got = prepare_text(config, tiny, cache_dir=tmp_path)
    assert decoded(tiny, got.valid) == [*TEXTS[:5], "new"]
    assert decoded(tiny, got.train) == TEXTS[5:]
    assert got.facts["overlap"] == 5


@pytest.mark.parametrize(
    ("texts", "held_out"), [(["only one"], 0), (["a b c", "d e f", "g h i"], 1), (["x" * 99, "y"], None)]
)
def test_a_tiny_corpus_holds_out_one_document_or_none(tiny, tmp_path, texts, held_out):
    got = prepare_text(DataConfig(train=write(tmp_path / "a.jsonl", texts)), tiny, cache_dir=tmp_path)
    if held_out is None:  # never the larger part of the text
        assert "x" * 99 in decoded(tiny, got.train)
    else:
        assert (len(got.valid) if got.valid else 0) == held_out


def test_the_second_run_reads_nothing_and_a_changed_file_is_read_again(tiny, tmp_path, monkeypatch):
    spec = write(tmp_path / "a.jsonl", TEXTS)
    config = DataConfig(train=spec)
    first = prepare_text(config, tiny, cache_dir=tmp_path / "cache")
    built = []
    monkeypatch.setattr(prepare, "_build", lambda *args: built.append(1))
    again = prepare_text(config, tiny, cache_dir=tmp_path / "cache")
    assert again.facts == first.facts
    assert again.train.path == first.train.path
    monkeypatch.undo()
    stat = os.stat(spec)
    write(tmp_path / "a.jsonl", [TEXTS[0].replace("0", "9", 1), *TEXTS[1:]])
    os.utime(spec, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = prepare_text(config, tiny, cache_dir=tmp_path / "cache")
    assert changed.facts["fingerprint"] != first.facts["fingerprint"]
    assert built == []


@pytest.mark.parametrize("killed", [1, 4, 6, "held out", "train"])
def test_an_interrupted_preparation_goes_on_and_leaves_nothing_half_written(tiny, tmp_path, monkeypatch, killed):
    """Killed while text is tokenised, and while the stores are made of it: nothing is tokenised twice."""
    config = DataConfig(train=write(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:9]]), valid_fraction=0.1)
    whole = prepare_text(config, tiny, cache_dir=tmp_path / "whole")
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 300)
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", 60)
    real, encoded, copied = encoding.Encoder.encode, [], []

    def encode(self, texts):
        if isinstance(texts, Texts):  # the corpus, not the sample that an encoder is tried with
            encoded.append(len(texts))
            if len(encoded) == killed:
                raise KeyboardInterrupt
        return real(self, texts)

    def copy(self, decisions, wanted, directory, *rest):
        copied.append(directory.name)
        done(self, decisions, wanted, directory, *rest)
        if copied == ["valid"] if killed == "held out" else copied == ["valid", "train"] and killed == "train":
            raise KeyboardInterrupt

    done = joining.Parts.copy
    monkeypatch.setattr(encoding.Encoder, "encode", encode)
    monkeypatch.setattr(joining.Parts, "copy", copy)
    with pytest.raises(KeyboardInterrupt):
        prepare_text(config, tiny, cache_dir=tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("text-*"))
    first = len(encoded)
    resumed = prepare_text(config, tiny, cache_dir=tmp_path / "cut")
    batches = -(-len(TEXTS) // 60)
    # A batch is done again that was encoded or written, but not committed: two, where commits are a batch apart.
    assert batches <= len(encoded) <= batches + 2
    assert isinstance(killed, int) or len(encoded) == first == batches
    folder, expected = resumed.train.path.parent, whole.train.path.parent
    for path in expected.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(expected)).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "cut").glob(".*building"))


@pytest.mark.parametrize("lost", ["notes.npy", "store/tokens.bin"])
def test_a_preparation_killed_while_it_removes_what_it_read_is_finished(tiny, tmp_path, monkeypatch, lost):
    config = DataConfig(train=write(tmp_path / "a.jsonl", TEXTS), valid_fraction=0.1)

    def die(folder, **options):
        if folder.name == "read":
            (folder / "1-of-1" / lost).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prepare.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            prepare_text(config, tiny, cache_dir=tmp_path / "cut")
    folder = prepare_text(config, tiny, cache_dir=tmp_path / "cut").train.path.parent
    expected = prepare_text(config, tiny, cache_dir=tmp_path / "whole").train.path.parent
    files = sorted(path.relative_to(expected) for path in expected.rglob("*"))
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == files
    assert all((folder / file).read_bytes() == (expected / file).read_bytes() for file in files if file.suffix)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["", "  "], {}, "no text to train on"),
        (TEXTS[:3], {"valid": "same"}, "also in data.valid"),
        (TEXTS[:3], {"text": "txt"}, "Did you mean 'text'"),
    ],
)
def test_no_text_left_is_one_clear_line(tiny, tmp_path, texts, options, message):
    spec = write(tmp_path / "a.jsonl", texts)
    options = {key: spec if value == "same" else value for key, value in options.items()}
    with pytest.raises(UserError, match=message):
        prepare_text(DataConfig(train=spec, **options), tiny, cache_dir=tmp_path)


def test_a_tokenizer_sample_says_that_all_text_is_held_out(tmp_path):
    spec = write(tmp_path / "a.jsonl", TEXTS[:3])
    with pytest.raises(UserError, match=r"also in data.valid.*give another data.valid"):
        list(sample_texts(DataConfig(train=spec, valid=spec), 1000))
    more = write(tmp_path / "b.jsonl", TEXTS[:4])
    assert list(sample_texts(DataConfig(train=more, valid=spec), 1000)) == TEXTS[3:4]


def test_a_tokenizer_sample_is_bounded_even_and_holds_no_held_out_text(tiny, tmp_path):
    config = DataConfig(train=write(tmp_path / "a.jsonl", TEXTS), valid_fraction=0.1)
    held = set(decoded(tiny, prepare_text(config, tiny, cache_dir=tmp_path).valid))
    everything = list(sample_texts(config, 10**6))
    assert set(everything) == set(TEXTS) - held
    some = list(sample_texts(config, 3000))
    assert 2000 < sum(len(text.encode()) for text in some) < 3100
    assert TEXTS.index(some[-1]) > 300  # from the whole corpus, not its beginning
    assert not set(some) & held


@pytest.mark.parametrize("number", [2, 3, 20])
def test_the_one_document_that_is_held_out_of_few_is_no_text_for_a_tokenizer(tiny, tmp_path, number):
    for trial in range(8):
        texts = [f"{trial} {i} {TEXTS[i]}" for i in range(number)]
        config = DataConfig(train=write(tmp_path / f"{trial}.jsonl", ["", *texts, "x" * 2000]), valid_tokens=300)
        held = set(decoded(tiny, prepare_text(config, tiny, cache_dir=tmp_path).valid))
        assert len(held) == 1
        assert set(sample_texts(config, 10**6)) - {""} == {*texts, "x" * 2000} - held


def test_books_that_are_too_long_to_be_held_out_are_text_for_a_tokenizer(tiny, tmp_path):
    books = [f"{n} " + " ".join(TEXTS)[n : n + 3000] for n in range(4)]
    config = DataConfig(train=write(tmp_path / "a.jsonl", books), valid_tokens=300, cache=str(tmp_path))
    assert prepare_text(config, tiny, cache_dir=tmp_path).valid is None
    assert set(sample_texts(config, 10**6)) == set(books)
    for trial in range(4):
        short = [f"{trial} {i} {TEXTS[i]}" for i in range(3)]
        spec = write(tmp_path / f"{trial}.jsonl", [*books, *short])
        config = DataConfig(train=spec, valid_tokens=300, cache=str(tmp_path))
        held = set(decoded(tiny, prepare_text(config, tiny, cache_dir=tmp_path).valid))
        assert len(held) == 1
        assert set(sample_texts(config, 10**6)) == {*books, *short} - held


def test_of_few_long_texts_a_tokenizer_reads_some_of_each(tmp_path):
    words = [f"w{n}" for n in range(40_000)]
    books = [" ".join(random.Random(n).choices(words, k=300_000)) for n in range(3)]
    config = DataConfig(train=write(tmp_path / "a.jsonl", books), valid_fraction=0, cache=str(tmp_path))
    some = list(sample_texts(config, 2_000_000))
    assert 1_000_000 < sum(len(text) for text in some) <= 2_000_000 + 2**16
    assert all(any(text in book for text in some) for book in books)


def test_a_text_that_comes_again_and_again_is_one_of_few(tiny, tmp_path):
    config = DataConfig(train=write(tmp_path / "a.jsonl", ["a b c"] * 50))
    assert prepare_text(config, tiny, cache_dir=tmp_path).valid is None
    assert set(sample_texts(config, 10**6)) == {"a b c"}


def test_a_limit_reads_so_many_documents(tiny, tmp_path):
    config = DataConfig(train=write(tmp_path / "a.jsonl", TEXTS), limit=50)
    assert prepare_text(config, tiny, cache_dir=tmp_path).facts["read"] == 50


def test_the_set_of_hashes_is_a_set():
    rng = np.random.default_rng(0)
    ours, theirs = HashSet(), set()
    for _ in range(50):
        batch = rng.integers(0, 3000, 100).astype(np.uint64)
        expected = []
        for value in batch.tolist():
            expected.append(value not in theirs)
            theirs.add(value)
        assert ours.add(batch).tolist() == expected
    assert len(ours) == len(theirs)
    assert ours.contains(np.arange(4000, dtype=np.uint64)).sum() == len(theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "packed"}, "Did you mean 'pack'"),
        ({"split_text": "lines"}, "Did you mean 'line'"),
        ({"valid_fraction": 1.0}, "valid_fraction"),
        ({"seq_length": 2}, "seq_length"),
        ({"limit": 0}, "data.limit"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**options)
