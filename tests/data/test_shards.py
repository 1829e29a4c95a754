"""Shards, joined, are the store of the single run: byte for byte, whatever the files, duplicates and held-out text."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import pytest

from sslnlp.cli import run_command
from sslnlp.data import DataConfig, joining, prepare_text, readers, shards, sources, tokens
from sslnlp.data.dealing import Shard
from sslnlp.data.shards import merge_shards, prepare_shard
from sslnlp.errors import UserError
from sslnlp.recipe import load_recipe
from sslnlp.recipe.prepare import prepare
from sslnlp.recipe.tokenizing import text_tokenizer
from sslnlp.tokenizer import train_tokenizer
from tests.data.test_prepare import TEXTS, write

# Repeats inside a shard, across shards and across files; empty texts; a text longer than the others.
MANY = [*TEXTS[:150], "", TEXTS[3], " \n", *TEXTS[100:400], "long " * 100, TEXTS[399], TEXTS[0]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def several(folder: Path, texts: list[str], files: int) -> str:
    """The texts over files of unequal length."""
    folder.mkdir()
    cuts = [0, *(len(texts) * (i + 1) * (i + 2) // (files * (files + 1)) for i in range(files))]
    for i in range(files):
        write(folder / f"{i:02}.jsonl", texts[cuts[i] : cuts[i + 1]])
    return str(folder)


@pytest.mark.parametrize(
    ("files", "of", "options"),
    [
        (1, 3, {}),  # one file: blocks of documents are dealt
        (12, 3, {}),  # whole files are dealt
        (12, 3, {"deduplicate": False}),
        (12, 3, {"valid_fraction": 0.3, "valid_tokens": 300}),
        (12, 3, {"valid_fraction": 0.0}),
        (12, 2, {"limit": 211}),
        (2, 7, {}),  # fewer files than shards, and shards without any document
        (3, 1, {}),
        (1, 2, {"limit": 60}),  # all in one block: the second shard has no document
        (12, 4, {"valid": "other"}),
    ],
)
def test_joined_shards_are_the_single_run(tiny, tmp_path, monkeypatch, files, of, options):
    monkeypatch.setattr(joining, "BLOCK", 100)
    monkeypatch.setattr(joining, "COPIED_TOKENS", 500)
    if "valid" in options:
        options = options | {"valid": write(tmp_path / "valid.jsonl", [*TEXTS[5:9], "", "new text"])}
    config = DataConfig(train=several(tmp_path / "texts", MANY, files), **{"valid_fraction": 0.1} | options)
    single = prepare_text(config, tiny, cache_dir=tmp_path / "single")
    for number in reversed(range(1, of + 1)):
        prepare_shard(config, tiny, Shard(number, of), cache_dir=tmp_path / "cache")
    joined = merge_shards(config, tiny, cache_dir=tmp_path / "cache")
    assert joined.facts == single.facts
    assert files_of(joined.train.path.parent) == files_of(single.train.path.parent)
    assert not list((tmp_path / "cache").glob(".text*ing"))


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet", "mixed"])
def test_files_of_every_kind_are_dealt_out_as_they_are_read_together(tiny, tmp_path, kind):
    """What `auto` means and which column is the text are settled by all files, not by each shard's own."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(6):
        texts = TEXTS[50 * i : 50 * i + 50]
        if kind == "txt" or (
            kind == "mixed" and i < 3
        ):  # several small files: documents, though blank lines are in them
            (folder / f"{i}.txt").write_text("\n\n".join(texts))
        elif kind == "parquet":
            datasets.Dataset.from_dict({"id": list(range(50)), "body": texts}).to_parquet(folder / f"{i}.parquet")
        elif kind == "csv":
            (folder / f"{i}.csv").write_text("id,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
        else:
            write(folder / f"{i}.jsonl", texts)
    spec = [str(folder / "*.txt"), str(folder / "*.jsonl")] if kind == "mixed" else str(folder)
    config = DataConfig(train=spec, valid_fraction=0.1)
    single = prepare_text(config, tiny, cache_dir=tmp_path / "single")
    for number in (1, 2):
        prepare_shard(config, tiny, Shard(number, 2), cache_dir=tmp_path / "cache")
    joined = merge_shards(config, tiny, cache_dir=tmp_path / "cache")
    assert files_of(joined.train.path.parent) == files_of(single.train.path.parent)


def test_a_shard_reads_its_own_files_only(tiny, tmp_path, monkeypatch):
    config = DataConfig(train=several(tmp_path / "texts", MANY, 12))
    read = []
    real = readers.json_lines
    monkeypatch.setattr(sources, "json_lines", lambda file: (read.append(file.name), real(file))[1])
    for number in (1, 2, 3):
        prepare_shard(config, tiny, Shard(number, 3), cache_dir=tmp_path / "cache")
    columns = ["00.jsonl"] * 3  # every shard looks at the first row of all
    assert sorted(read) == sorted([f"{i:02}.jsonl" for i in range(12)] + columns)


def test_a_killed_shard_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    config = DataConfig(train=several(tmp_path / "texts", MANY, 4))
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 300)
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", 20)
    whole = prepare_shard(config, tiny, Shard(1, 2), cache_dir=tmp_path / "whole")
    real, encoded = tokens.TokenWriter.add, []

    def add(self, ids, lengths, num_bytes):
        encoded.append(len(num_bytes))
        if len(encoded) == 5:
            raise KeyboardInterrupt
        real(self, ids, lengths, num_bytes)

    monkeypatch.setattr(tokens.TokenWriter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        prepare_shard(config, tiny, Shard(1, 2), cache_dir=tmp_path / "cut")
    first = sum(encoded[:-1])
    resumed = prepare_shard(config, tiny, Shard(1, 2), cache_dir=tmp_path / "cut")
    assert first > 0
    assert files_of(resumed) == files_of(whole)
    assert sum(encoded[5:]) < json.loads((whole / "shard.json").read_text())["documents"]
    before = files_of(resumed)
    monkeypatch.setattr(shards, "read_share", None)  # a second call finds the shard
    assert files_of(prepare_shard(config, tiny, Shard(1, 2), cache_dir=tmp_path / "cut")) == before


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "a/b", "-1/4", "1/0", ""])
def test_wrong_shard_numbers_are_one_line(text):
    with pytest.raises(UserError, match="from 1 to n"):
        Shard.parse(text)


def test_shards_that_are_missing_or_of_something_else_are_one_line(tiny, tmp_path):
    config = DataConfig(train=several(tmp_path / "texts", MANY, 6))
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"no shards of this recipe are in .*cache: make them"):
        merge_shards(config, tiny, cache_dir=cache)
    for number in (1, 4):
        prepare_shard(config, tiny, Shard(number, 4), cache_dir=cache)
    prepare_shard(config, tiny, Shard(1, 9), cache_dir=cache)
    with pytest.raises(UserError, match=r"shards 2, 3 of 4 are missing in .*: make each with --shard i/4"):
        merge_shards(config, tiny, cache_dir=cache)
    other = DataConfig(train=config.train, deduplicate=False)
    with pytest.raises(UserError, match="made from other text, another tokenizer or other data keys"):
        merge_shards(other, tiny, cache_dir=cache)
    mine = prepare_shard(other, tiny, Shard(1, 4), cache_dir=cache)
    theirs = prepare_shard(config, tiny, Shard(2, 4), cache_dir=cache)
    shutil.copytree(theirs, mine.parent / theirs.name)
    with pytest.raises(UserError, match="2-of-4 was made from other text"):
        merge_shards(other, tiny, cache_dir=cache)
    prepare_shard(config, tiny, Shard(3, 4), cache_dir=cache)
    shutil.rmtree(theirs.parent / "4-of-4")
    with pytest.raises(UserError, match=r"shard 4 of 4 is missing in .*: make it with --shard 4/4"):
        merge_shards(config, tiny, cache_dir=cache)
    prepare_shard(config, tiny, Shard(4, 4), cache_dir=cache)
    (theirs / "notes.npy").write_bytes((theirs / "notes.npy").read_bytes()[: -joining.NOTE.itemsize])
    with pytest.raises(UserError, match="2-of-4 is damaged"):
        merge_shards(config, tiny, cache_dir=cache)


def test_the_command_line_prepares_what_training_finds(tmp_path, capsys, monkeypatch):
    data = several(tmp_path / "texts", TEXTS, 4)
    keys = [f"data.train={data}", "model.size=nano", "tokenizer.vocab_size=520", f"data.cache={tmp_path / 'cache'}"]
    for number in ("1/2", "2/2"):
        assert run_command(["prepare", "pretrain_bert", *keys, "--shard", number]) == 0
    assert "join them with --merge" in capsys.readouterr().err
    assert run_command(["prepare", "pretrain_bert", *keys, "--merge"]) == 0
    monkeypatch.setattr("sslnlp.data.prepare.read_share", None)
    keys += [f"out={tmp_path / 'run'}", "train.steps=1", "train.batch_size=2"]
    assert run_command(["train", "pretrain_bert", *keys]) == 0
    monkeypatch.undo()
    for wrong in (["--shard", "3/2"], ["--shard", "1/2", "--merge"]):
        assert run_command(["prepare", "pretrain_bert", *keys, *wrong]) == 2
    assert run_command(["prepare", "finetune_classification", *keys, "--shard", "1/2"]) == 2
    assert "nothing to prepare" in capsys.readouterr().err


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """A recipe whose tokenizer is not there yet; the list grows by each training of one, which takes a while."""
    data = several(tmp_path / "texts", TEXTS, 4)
    keys = [f"data.train={data}", "model.size=nano", "tokenizer.vocab_size=520", f"data.cache={tmp_path / 'cache'}"]
    recipe = load_recipe("pretrain_bert", keys)
    trained = []

    def slowly(*texts, **options):
        trained.append(time.sleep(0.5))
        return train_tokenizer(*texts, **options)

    monkeypatch.setattr("sslnlp.recipe.tokenizing.train_tokenizer", slowly)
    return recipe, trained


def test_of_shards_that_start_together_one_trains_the_tokenizer(untrained):
    """Else each trains it and takes away the folder that another is reading."""
    recipe, trained = untrained
    with ThreadPoolExecutor(3) as together:
        made = list(together.map(lambda number: prepare(recipe, shard=Shard(number, 3)), (1, 2, 3)))
    assert len(trained) == 1
    assert len({path.parent for path in made}) == 1


def test_of_runs_that_start_together_one_trains_the_tokenizer(untrained, tmp_path):
    recipe, trained = untrained
    with ThreadPoolExecutor(3) as together:
        list(together.map(lambda _: text_tokenizer(recipe, tmp_path / "cache"), range(3)))
    assert len(trained) == 1
    assert not list((tmp_path / "cache" / "tokenizers").glob(".*"))
