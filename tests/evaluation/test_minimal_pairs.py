"""Minimal pairs: files in BLiMP's layout and others, scores against direct ones, ties and groups."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoModelForCausalLM

from sslnlp.errors import UserError
from sslnlp.evaluation.likelihood import log_likelihoods
from sslnlp.evaluation.minimal_pairs import (
    MinimalPairAccuracy,
    Pair,
    minimal_pair_measures,
    minimal_pair_scores,
    pair_credits,
    read_pairs,
)
from tests.contract import small_tokenizer
from tests.evaluation.test_likelihood import direct_causal, direct_pseudo, minilm, tiny

AGREEMENT = [
    Pair("The keys to the cabinet are lost.", "The keys to the cabinet is lost.", "agreement"),
    Pair("No student has ever lied.", "Some student has ever lied.", "polarity"),
    Pair("Who did the barnacled sailor see?", "Who did the barnacled sailor see him?", "gap"),
]


def rows(*pairs: tuple[str, str], **extra: str) -> list[dict[str, str]]:
    return [{"sentence_good": good, "sentence_bad": bad, **extra} for good, bad in pairs]


def write(path: Path, table: list[dict[str, str]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(table[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(table)
    return str(path)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_pairs_of_each_kind_of_file(tmp_path: Path, kind: str) -> None:
    table = rows(("a, b are", "a, b is"), ("null", "NA"), UID="number", linguistics_term="agreement", field="syntax")
    assert read_pairs(write(tmp_path / f"pairs.{kind}", table)) == [
        Pair("a, b are", "a, b is", "number"),
        Pair("null", "NA", "number"),
    ]


def test_a_folder_and_other_columns(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", rows(("a", "b"), field="syntax"))
    write(tmp_path / "two.jsonl", rows(("c", "d"), linguistics_term="islands", field="syntax"))
    assert [pair.group for pair in read_pairs(tmp_path)] == ["syntax", "islands"]
    named = write(tmp_path / "named.csv", [{"right": "a", "wrong": "b", "kind": "x", "UID": "y"}])
    assert read_pairs(named, good="right", bad="wrong") == [Pair("a", "b", "y")]
    assert read_pairs(named, good="right", bad="wrong", group="kind") == [Pair("a", "b", "x")]
    bare = write(tmp_path / "bare.tsv", rows(("a", "b")))
    assert read_pairs(bare) == [Pair("a", "b")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"sentence_good": "a", "bad": "b"}\n', "no column 'sentence_bad' of minimal pairs"),
        ("a.jsonl", '{"sentence_good": "a", "sentence_bad": "a"}\n', "holds no pair of two different sentences"),
        ("a.jsonl", '{"sentence_good": "a", "sentence_bad": " "}\n', "pair 1: .* must both hold a sentence"),
        ("a.jsonl", '{"sentence_good": "a", "sentence_bad": "b"}\n{"sentence_good": "a"}\n', "pair 2: .* must both"),
        ("a.jsonl", '{"sentence_good": "a", "sentence_bad": 3}\n', "pair 1: .* must both hold a sentence"),
        ("a.jsonl", "no JSON\n", "line 1 is not JSON"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.csv", "sentence_good,sentence_bad\n", "holds no rows"),
        ("a.txt", "some text\n", "no column 'sentence_good' of minimal pairs"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as refused:
        read_pairs(tmp_path / name)
    assert "\n" not in str(refused.value)
    assert name in str(refused.value)


def test_a_group_that_is_no_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column 'uid' of minimal pairs"):
        read_pairs(write(tmp_path / "a.jsonl", rows(("a", "b"), UID="x")), group="uid")


# --- scoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word_aware", [True, False])
def test_scores_and_accuracy_of_a_stock_model_are_the_direct_ones(word_aware: bool) -> None:
    model, tokenizer = minilm()
    nats = minimal_pair_scores(model, tokenizer, AGREEMENT, word_aware=word_aware)
    direct = np.array(
        [[direct_pseudo(model, tokenizer, text, word_aware) for text in (p.good, p.bad)] for p in AGREEMENT]
    )
    assert nats == pytest.approx(direct, abs=1e-4, rel=1e-6)
    figures = minimal_pair_measures(model, tokenizer, AGREEMENT, word_aware=word_aware)
    assert figures["minimal_pairs"].value == pytest.approx((direct[:, 0] > direct[:, 1]).mean(), abs=1e-4)
    assert figures["minimal_pairs"].number == 3
    assert figures["minimal_pairs"].chance == 0.5
    assert figures["minimal_pairs/gap"].value == float(direct[2, 0] > direct[2, 1])


def test_scores_of_a_causal_model_are_the_direct_ones() -> None:
    tokenizer, model = small_tokenizer(), tiny(AutoModelForCausalLM, "llama").double()
    for pair, nats in zip(AGREEMENT, minimal_pair_scores(model, tokenizer, AGREEMENT), strict=True):
        for text, one in zip((pair.good, pair.bad), nats, strict=True):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert one == pytest.approx(direct_causal(model, [tokenizer.bos_token_id, *ids]), abs=1e-8)


def test_what_the_tokenizer_does_not_tell_apart_is_a_tie() -> None:
    model, tokenizer = minilm()
    pairs = [Pair("Mary sleeps.", "mary sleeps."), Pair("who, Where", "Who , where")] * 3
    figure = minimal_pair_measures(model, tokenizer, pairs, batch_size=4)["minimal_pairs"]
    assert (figure.value, figure.low, figure.high) == (0.5, 0.5, 0.5)


def test_a_limit_is_spread_over_all_pairs() -> None:
    tokenizer, model = small_tokenizer(), tiny(AutoModelForCausalLM, "gpt2")
    pairs = [Pair(f"the cat {n}", f"the dog {n}", f"group {n // 10}") for n in range(30)]
    figures = minimal_pair_measures(model, tokenizer, pairs, limit=6)
    assert {name: figure.number for name, figure in figures.items()} == {
        "minimal_pairs": 6, "minimal_pairs/group 0": 2, "minimal_pairs/group 1": 2, "minimal_pairs/group 2": 2,
    }  # fmt: skip
    assert minimal_pair_measures(model, tokenizer, pairs[:10], limit=99).keys() == {"minimal_pairs"}


def test_pairs_that_cannot_be_scored() -> None:
    tokenizer, model = small_tokenizer(), tiny(AutoModelForCausalLM, "gpt2", 32)
    with pytest.raises(UserError, match="no minimal pairs"):
        minimal_pair_scores(model, tokenizer, [])
    long = "the cat " * 40
    assert log_likelihoods(model, tokenizer, [long])[0].truncated
    with pytest.raises(UserError, match="minimal pair 2: the model reads only 31 tokens of 'the cat"):
        minimal_pair_scores(model, tokenizer, [Pair("a", "b"), Pair("a", long)])


def test_credits_and_metric() -> None:
    good, bad = [-1.0, -2.0, -3.0, -4.0], [-2.0, -1.0, -3.0, -5.0]
    assert pair_credits(good, bad).tolist() == [1, 0, 0.5, 1]
    metric = MinimalPairAccuracy()
    assert metric.compute(predictions=good, references=bad) == {"minimal_pair_accuracy": 0.625}
    assert metric.compute(predictions=good, references=bad, groups=["x", "y", "y", "x"]) == {
        "minimal_pair_accuracy": 0.625,
        "minimal_pair_accuracy/x": 1.0,
        "minimal_pair_accuracy/y": 0.25,
    }


def test_a_pair_of_a_sentence_with_itself_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("He is.", "He are."), ("They are.", "They are."), ("We are.", "We is.")]
    lines = (json.dumps({"sentence_good": good, "sentence_bad": bad}) for good, bad in rows)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    assert [pair.good for pair in read_pairs(tmp_path / "pairs.jsonl")] == ["He is.", "We are."]
    assert "1 pairs of a sentence with itself are left out" in caplog.text
