from __future__ import annotations

import functools
import json
import math
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from sslnlp.data import DataConfig
from sslnlp.data.label_kinds import class_names
from sslnlp.data.labelled import labelled, out_of_scope, unlabelled
from sslnlp.data.paired import paired
from sslnlp.data.table_rows import TableRows
from sslnlp.data.tagged import tagged
from sslnlp.errors import UserError

ROWS = [{"text": f"utterance {i}", "label": "abc"[i % 3]} for i in range(90)]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def load(tmp_path):
    def load(reader, rows, valid=None, **options):
        options["train"] = write(tmp_path / "train.jsonl", rows)
        if valid is not None:
            options["valid"] = write(tmp_path / "valid.jsonl", valid)
        return reader(DataConfig(**options), cache_dir=tmp_path / "cache")

    return load


def test_labels_become_ids_and_each_text_keeps_its_own(load):
    got = load(labelled, ROWS, valid_fraction=0.2)
    assert got.label_names == ["a", "b", "c"]
    seen = [got.train[i] for i in range(len(got.train))] + got.valid.rows(range(len(got.valid)))
    assert {row["text"]: got.label_names[row["label"]] for row in seen} == {r["text"]: r["label"] for r in ROWS}
    assert len(seen) == 90
    counted = Counter(got.label_names[row["label"]] for row in got.train.rows(range(len(got.train))))
    assert got.counts == counted


def test_numbers_keep_their_order(load):
    rows = [{"sentence": f"s {i}", "label": i % 12} for i in range(60)]
    assert load(labelled, rows).label_names == [str(i) for i in range(12)]


def test_numbers_of_one_value_have_an_order_too():
    assert class_names(["1", "01", "2", "001"], None) == ["001", "01", "1", "2"]
    assert class_names(["2", "10", "-1", "--1"], None) == ["--1", "-1", "10", "2"]  # no number, so none are


def test_a_class_label_keeps_its_names_and_hidden_labels_go(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    table = datasets.Dataset.from_dict({"text": list("pqrs"), "label": [0, 1, 0, -1]}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    got = labelled(DataConfig(train=str(tmp_path / "a.parquet"), valid_fraction=0), cache_dir=tmp_path)
    assert got.label_names == ["z", "a"]
    assert [row["label"] for row in got.train.rows(range(3))] == [0, 1, 0]
    assert got.facts["unlabelled"] == 1


def test_unlabelled_texts_of_one_column_need_not_call_it_as_the_labelled_ones_do(load, tmp_path):
    (tmp_path / "more.txt").write_text("one more\nutterance 0\nand another\n")
    rows = [{"body": row["text"], "label": row["label"]} for row in ROWS]
    tables = load(labelled, rows, text="body", valid_fraction=0)
    config = DataConfig(train="train.jsonl", text="body", unlabelled=str(tmp_path / "more.txt"))
    more, left_out = unlabelled(config, tables)
    assert ([row["text"] for row in more.rows(range(2))], left_out) == (["one more", "and another"], 1)


def test_what_cannot_be_used_is_counted(load):
    extra = [{"text": "", "label": "a"}, {"text": "x", "label": None}, ROWS[0], {"text": ROWS[1]["text"], "label": "c"}]
    got = load(labelled, ROWS + extra, valid_fraction=0)
    counts = {name: got.facts[name] for name in ("read", "empty", "unlabelled", "duplicates", "conflicts", "rows")}
    assert counts == {"read": 94, "empty": 1, "unlabelled": 1, "duplicates": 1, "conflicts": 1, "rows": 91}


def test_held_out_texts_leave_training(load):
    got = load(labelled, ROWS, ROWS[:6])
    assert got.facts["overlap"] == 6
    assert len(got.train) == 84
    assert len(got.valid) == 6


def test_few_labels_are_so_many_of_each_class_and_nested(load):
    draws = {}
    for n, draw in ((2, 0), (8, 0), (8, 1)):
        got = load(labelled, ROWS, ROWS[:3], labels_per_class=n, draw=draw)
        assert set(got.counts.values()) == {n}
        draws[n, draw] = {row["text"] for row in got.train.rows(range(len(got.train)))}
    assert draws[2, 0] < draws[8, 0]
    assert draws[8, 0] != draws[8, 1]


@pytest.mark.parametrize(
    ("rows", "valid", "options", "message"),
    [
        (ROWS, [{"text": "x", "label": "d"}], {}, "label 'd' of data.valid never occurs"),
        ([{"text": str(i), "label": "a"} for i in range(9)], None, {}, "1 class"),
        (ROWS, None, {"label": "lable"}, "Did you mean 'label'"),
        ([{"text": "x", "kind": "a"}], None, {}, "say data.label=NAME"),
        ([{"one": "x", "two": "y", "label": "a"}], None, {}, "say data.text=NAME"),
        ([{"text": "x", "label": 0.5}], None, {}, "whole numbers"),
        ([{"text": None, "label": "a"}, {"text": "", "label": "b"}], None, {}, "no row has both"),
        (ROWS, [{"text": "x"}], {}, "has no column 'label'"),
        ([{"text": i, "label": "ab"[i % 2]} for i in range(9)], None, {}, "column 'text' must hold text, found int64"),
        ([{"text": text, "label": "a"} for text in ("a", 2)], None, {}, "'text' must hold text, found int in row 2"),
    ],
)
def test_wrong_tables_are_one_clear_line(load, rows, valid, options, message):
    with pytest.raises(UserError, match=message) as caught:
        load(labelled, rows, valid, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "labels"), [("one", [1, math.nan, 0]), ("number", [1.5, math.nan, 0]), ("several", [["a"], None, ["b"]])]
)
def test_what_pandas_has_for_a_missing_value_is_none(tmp_path, kind, labels):
    rows = [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)]
    train = write(tmp_path / "a.jsonl", [*rows, {"text": math.nan, "label": labels[0]}])
    got = labelled(DataConfig(train=train, valid_fraction=0.0), kind=kind, cache_dir=tmp_path / "cache")
    assert [got.facts[name] for name in ("rows", "empty", "unlabelled")] == [2, 1, 1]
    assert [row["text"] for row in got.train.rows([0, 1])] == ["t0", "t2"]


def test_pairs_by_common_names_and_by_given_ones(load):
    rows = [{"question": f"q {i}", "answer": f"a {i}", "other": f"o {i}"} for i in range(30)]
    got = load(paired, [*rows, rows[0], {"question": "q", "answer": " ", "other": "o"}], valid_fraction=0)
    assert got.train.rows([0, 29]) == [{"query": f"q {i}", "positive": f"a {i}"} for i in (0, 29)]
    assert (got.facts["duplicates"], got.facts["empty"]) == (1, 1)
    got = load(paired, rows, rows[:2], columns={"query": "other", "negative": "question"})
    assert got.train[0] == {"query": "o 2", "positive": "a 2", "negative": "q 2"}
    assert got.facts["overlap"] == 2
    with pytest.raises(UserError, match=r"say data\.columns\.positive=NAME"):
        load(paired, [{"question": "x", "reply": "y"}])


def test_negatives_written_as_text_are_no_lists(load, caplog):
    rows = [{"query": f"q {i}", "positive": f"p {i}", "negatives": json.dumps([f"n {i}", "x"])} for i in range(9)]
    with pytest.raises(UserError, match=r"'negatives' of .* holds lists written as text, such as"):
        load(paired, rows)
    rows = [row | {"negatives": f"[{i}] a text"} for i, row in enumerate(rows)]
    assert load(paired, rows, valid_fraction=0).train[0]["negative"] == "[0] a text"
    assert not caplog.text
    numbered = [{"query": f"q {i}", "positive": f"p {i}", "negative_1": "a", "negative_2": "b"} for i in range(9)]
    load(paired, numbered, valid_fraction=0)
    assert "negative_1, negative_2: not read of" in caplog.text
    caplog.clear()
    load(paired, numbered, valid_fraction=0, columns={"negative": "negative_2"})
    assert "negative_1: not read of" in caplog.text


@pytest.mark.parametrize("label", [[0, 0, 1], [1.0, 0.0, 0.0], [True, False], "0|1|0"])
def test_a_mark_for_each_class_is_not_read_as_the_classes_that_apply(load, label):
    several = functools.partial(labelled, kind="several")
    with pytest.raises(UserError, match="reads as a 0 or 1 for each class: give the classes that apply"):
        load(several, [{"text": f"text {i}", "label": label} for i in range(30)])
    got = load(several, [{"text": f"text {i}", "label": [0, 1][i % 2 :]} for i in range(30)], valid_fraction=0)
    assert got.label_names == ["0", "1"]


@pytest.mark.parametrize("written", ['["a", "b"]', "a,b", "a; b"])
def test_classes_of_a_cell_that_are_parted_otherwise_are_told(load, caplog, written):
    rows = [{"text": f"text {i}", "label": written if i % 2 else "c"} for i in range(30)]
    load(functools.partial(labelled, kind="several"), rows, valid_fraction=0)
    assert f"no text has more than one class, and {written!r} counts as one: put | between" in caplog.text
    caplog.clear()
    load(functools.partial(labelled, kind="several"), [*rows, {"text": "more", "label": "a|c"}], valid_fraction=0)
    load(
        functools.partial(labelled, kind="several"),
        [row | {"label": "b" if row["label"] == written else "c"} for row in rows],
        valid_fraction=0,
    )
    assert not caplog.text


def test_measurements_too_large_for_their_spread_are_refused(load):
    rows = [{"text": f"text {i}", "label": 1e300 * (i % 3)} for i in range(30)]
    with pytest.raises(UserError, match="reach 2e\\+300, too far for their spread: scale them down"):
        load(functools.partial(labelled, kind="number"), rows)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_quote_that_begins_a_field_and_does_not_end_it_is_refused(tmp_path, suffix):
    """pandas takes all rows between two of them for one text."""
    sign, path = {"csv": ",", "tsv": "\t"}[suffix], tmp_path / f"a.{suffix}"
    rows = [f"{chr(34) if i in (5, 35) else ''}question {i}{sign}{'ab'[i % 2]}" for i in range(50)]
    path.write_text("\n".join([f"text{sign}label", *rows]) + "\n")
    config = DataConfig(train=str(path))
    with pytest.raises(UserError, match=rf"a\.{suffix} line 7: a field begins with a quote that does not end where"):
        labelled(config, cache_dir=tmp_path / "cache")
    fine = [f'"a ""quoted"" word{sign} and\nanother line {i}"{sign}{"ab"[i % 2]}' for i in range(50)]
    path.write_text("\r\n".join([f"text{sign}label", *fine]))
    got = labelled(DataConfig(train=str(path), valid_fraction=0), cache_dir=tmp_path / "cache")
    assert got.train[0]["text"] == f'a "quoted" word{sign} and\nanother line 0'
    assert len(got.train) == 50


def test_a_query_is_on_one_side_only(load):
    rows = [{"query": f"q {i % 50}" if i % 2 else f" Q {i % 50}", "positive": f"p {i}"} for i in range(400)]
    got = load(paired, rows, valid_fraction=0.2)
    sides = [{row["query"].strip().lower() for row in side.rows(range(len(side)))} for side in (got.train, got.valid)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 50
    assert len(got.valid) == 8 * len(sides[1])
    few = [{"query": "ab"[i % 2], "positive": f"p {i}"} for i in range(400)]
    assert 0 < len(load(paired, few, valid_fraction=0.05).valid) < 50  # not half of them


@pytest.mark.parametrize("reader", [labelled, paired])
def test_so_many_rows_are_held_out_at_most(load, reader):
    rows = [{"text": f"text {i}", "query": f"query {i}", "label": "ab"[i % 2]} for i in range(300)]
    held = [
        {str(row) for row in got.valid.rows(range(len(got.valid)))}
        for got in (load(reader, rows, valid_fraction=0.3, valid_rows=most) for most in (None, 40, 20, 1))
    ]
    assert 60 < len(held[0]) < 120
    assert [len(rows) for rows in held[1:]] == [40, 20, 1]
    assert held[3] < held[2] < held[1] < held[0]  # in one order
    twice = load(reader, [row for row in rows for _ in range(2)], valid_fraction=0.3, valid_rows=3, deduplicate=False)
    assert len(twice.valid) == 2  # the copies of a text stay together
    with pytest.raises(UserError, match=r"data.valid_rows must be at least 1 \(or left out\), got 0"):
        load(reader, rows, valid_rows=0)


def test_a_teachers_scores_come_along_where_they_are_lists_beside_negatives(load):
    rows = [
        {"query": f"q {i}", "positive": f"a {i}", "negatives": ["x", "y"], "scores": [3.5, i / 2, 0.0]}
        for i in range(9)
    ]
    got = load(paired, rows, valid_fraction=0)
    assert got.train[4] == {"query": "q 4", "positive": "a 4", "negative": ["x", "y"], "scores": [3.5, 2.0, 0.0]}
    for other in ({"scores": 4.0}, {"scores": [1.0], "negatives": None}):  # some other column of that name
        plain = [{"query": row["query"], "positive": row["positive"]} | other for row in rows]
        plain = [{name: value for name, value in row.items() if value is not None} for row in plain]
        assert load(paired, plain, valid_fraction=0).train[4] == {"query": "q 4", "positive": "a 4"}


def test_held_out_pairs_may_have_other_names_and_no_negatives(load):
    rows = [{"query": f"q {i}", "positive": f"a {i}", "negatives": ["x"], "scores": [1.0, 0.5]} for i in range(9)]
    held = [{"summary": f"q {i}", "description": f"a {i}", "other": "o"} for i in (3, 20)]
    got = load(paired, rows, held)
    assert got.valid.rows([0, 1]) == [{"query": f"q {i}", "positive": f"a {i}"} for i in (3, 20)]
    assert (len(got.train), got.facts["overlap"]) == (8, 1)
    with pytest.raises(UserError, match=r"has no column 'query'"):  # named by hand, so it is not guessed
        load(paired, rows, held, columns={"query": "query"})
    with pytest.raises(UserError, match=r"no positive column"):
        load(paired, rows, [{"summary": "q"}])


def test_rows_of_a_table_by_index_and_together():
    rows = TableRows(datasets.Dataset.from_list(ROWS), np.array([5, 3]), columns={"said": "text"})
    assert rows[0] == {"said": "utterance 5"}
    assert rows.rows([1, 0]) == [{"said": "utterance 3"}, {"said": "utterance 5"}]
    assert [row["said"] for row in (rows.take(np.array([1]))[0],)] == ["utterance 3"]
    with pytest.raises(IndexError):
        rows[2]


def test_white_space_around_a_label_is_no_part_of_it(load):
    rows = [{"text": f"t {i}", "label": ("a", " a", "b ", " ")[i % 4]} for i in range(40)]
    got = load(labelled, rows, [{"text": "other", "label": "b"}])
    assert (got.label_names, got.facts["unlabelled"]) == (["a", "b"], 10)
    lists = [{"text": row["text"], "label": [row["label"], "c"]} for row in rows]
    assert load(lambda config, **options: labelled(config, kind="several", **options), lists).label_names == list("abc")
    tags = [{"tokens": ["x", f"{i}"], "tags": ["O ", ("B", "B ")[i % 2]]} for i in range(20)]
    assert load(tagged, tags).label_names == ["B", "O"]


def test_labels_are_named_as_the_data_writes_them(load, tmp_path):
    rows = [{"text": f"t {i}", "label": bool(i % 2)} for i in range(20)]
    assert load(labelled, rows).label_names == ["false", "true"]
    for name, labels in {"zeros": ["000", "001"], "words": ["False", "True"], "numbers": ["-1", "10"]}.items():
        path = tmp_path / f"{name}.csv"
        path.write_text("text,label\n" + "".join(f"t {i},{labels[i % 2]}\n" for i in range(20)))
        assert labelled(DataConfig(train=str(path)), cache_dir=tmp_path / "cache").label_names == labels


@pytest.mark.parametrize(
    ("reader", "rows"),
    [
        (labelled, ROWS),
        (paired, [{"query": f"q {i}", "positive": "p"} for i in range(9)]),
        (tagged, [{"tokens": [f"{i}", "x"], "tags": ["A", "B"]} for i in range(9)]),
    ],
)
def test_training_rows_that_are_all_held_out_are_one_clear_line(load, reader, rows):
    with pytest.raises(UserError, match=r"everything in data.train .* is also in data.valid .*give another data.valid"):
        load(reader, rows, [*rows, *rows])


def test_a_class_whose_rows_are_all_held_out_is_said_to_be(load):
    only_a = [row for row in ROWS if row["label"] == "a"]
    with pytest.raises(UserError, match=r"label 'a' of data.valid never occurs in data.train \(30 of its rows are in"):
        load(labelled, ROWS, only_a)
    with pytest.raises(UserError, match=r"1 class among its labels \(60 of its rows are in data.valid too"):
        load(labelled, ROWS, [row for row in ROWS if row["label"] != "a"])


def test_texts_out_of_scope_are_rows_like_the_held_out_ones_without_blanks(load, tmp_path):
    rows = [{"sentence1": f"one {i}", "sentence2": f"two {i}", "label": "ab"[i % 2]} for i in range(30)]
    others = [{"sentence1": "u", "sentence2": "v"}, {"sentence1": None, "sentence2": "v"}, {"sentence1": "w"}]
    tables = load(labelled, rows, valid_fraction=0.2)
    config = DataConfig(out_of_scope=write(tmp_path / "others.jsonl", others))
    found = out_of_scope(config, tables, cache_dir=tmp_path)
    assert found.rows(range(len(found))) == [{"text": "u", "text_pair": "v", "label": -100}]


@pytest.mark.parametrize(
    ("others", "valid_fraction", "message"),
    [
        ([{"utterance": "u"}], 0.2, "has no column 'text', which data.train has"),
        ([{"text": " "}], 0.2, "holds no text"),
        ([{"text": "u"}], 0, "give data.valid=FILE"),
    ],
)
def test_texts_out_of_scope_that_tell_nothing_are_refused(load, tmp_path, others, valid_fraction, message):
    tables = load(labelled, ROWS, valid_fraction=valid_fraction)
    with pytest.raises(UserError, match=message):
        out_of_scope(DataConfig(out_of_scope=write(tmp_path / "others.jsonl", others)), tables, cache_dir=tmp_path)


def test_unlabelled_pairs_have_both_texts_and_are_not_those_that_are_held_out(load, tmp_path):
    rows = [{"sentence1": "one", "sentence2": f"two {i}", "label": "ab"[i % 2]} for i in range(30)]
    tables = load(labelled, rows, rows[:4])
    more = [*rows[:6], {"sentence1": "one", "sentence2": "new"}, {"sentence1": "one", "sentence2": ""}]
    config = DataConfig(unlabelled=write(tmp_path / "more.jsonl", more))
    found, left_out = unlabelled(config, tables, cache_dir=tmp_path)
    assert found.rows(range(len(found))) == [{"text": "one", "text_pair": "new", "label": -100}]
    assert left_out == 7


@pytest.mark.parametrize(
    ("reader", "row", "columns"),
    [
        (labelled, {" Text ": "a", "note": "n", "LABEL": 1}, {"text": " Text ", "label": "LABEL"}),
        (labelled, {"Premise": "a", "Hypothesis": "b", "Label": 1}, {"text": "Premise", "text_pair": "Hypothesis"}),
        (labelled, {"Premise": "a", "Hypothesis": "b", "text": "c", "label": 1}, {"text": "text"}),
        (labelled, {"Text": 1, "body": "b", "label": 1, "Label": 2}, {"text": "body", "label": "label"}),
        (paired, {"Query": "q", "Answer": "p", "Negative": "n"}, {"query": "Query", "positive": "Answer"}),
        (tagged, {"Tokens": ["a"], "NER_tags": ["B"]}, {"words": "Tokens", "label": "NER_tags"}),
    ],
)
def test_usual_names_are_found_in_capitals_where_none_is_as_usual(load, reader, row, columns):
    more = {str: "{}", int: 2, list: ["x"]}
    other = {name: more[type(value)] for name, value in row.items()}
    found = load(reader, [row, other], valid_fraction=0.0).facts["columns"]
    assert columns.items() <= found.items()
    assert ("text_pair" in found) == ("text_pair" in columns)


def test_of_two_columns_alike_but_for_capitals_neither_is_taken(load):
    with pytest.raises(UserError, match=r"no label column; its columns are text, Label, LABEL: say data\.label=NAME"):
        load(labelled, [{"text": f"{i}", "Label": i, "LABEL": i} for i in range(4)])


def test_rows_of_a_tag_that_would_be_held_out_alone_train(load):
    rows = [{"tokens": [f"w{i}"], "tags": [f"B-{i}"]} for i in range(8)]
    rows += [{"tokens": [f"x{i}"], "tags": ["O"]} for i in range(90)]
    got = load(tagged, rows, valid_fraction=0.5)
    assert sum(got.counts.values()) == len(got.train)
    assert got.counts.items() >= {f"B-{i}": 1 for i in range(8)}.items()
    tags = {tag for row in got.valid.rows(range(len(got.valid))) for tag in row["label"]}
    assert tags == {got.label_names.index("O")}


def test_words_without_a_tag_to_learn_are_not_of_the_last_class(tmp_path):
    words, marks = datasets.Value("string"), datasets.ClassLabel(names=["O", "B"])
    of = datasets.Features({"tokens": datasets.List(words), "tags": datasets.List(marks)})
    rows = {"tokens": [["a", "b", "c"], ["d"], None], "tags": [[0, -1, -100], [1], None]}
    datasets.Dataset.from_dict(rows, features=of).to_parquet(tmp_path / "a.parquet")
    config = DataConfig(train=str(tmp_path / "a.parquet"), valid_fraction=0.0)
    got = tagged(config, cache_dir=tmp_path / "cache")
    assert [row["label"] for row in got.train.rows([0, 1])] == [[0, -100, -100], [1]]
    assert (got.label_names, got.counts, got.facts["empty"]) == (["O", "B"], {"O": 1, "B": 1}, 1)


def test_held_out_words_do_not_train_under_other_tags(load):
    """A sentence that two people tagged differently is one text."""
    one = [{"tokens": [f"w{i}", "x"], "tags": ["A", "B"]} for i in range(60)]
    other = [row | {"tags": ["B", "B"]} for row in one]
    got = load(tagged, one + other, valid_fraction=0.3)
    train, valid = ({row["words"][0] for row in part.rows(range(len(part)))} for part in (got.train, got.valid))
    assert train.isdisjoint(valid)
    assert (got.facts["rows"], got.facts["duplicates"]) == (2 * len(train), 0)  # both of them train
    got = load(tagged, one, valid=[other[0]])
    assert (got.facts["overlap"], got.facts["rows"]) == (1, 59)


def test_tags_are_called_as_labels_are(load):
    rows = [{"tokens": ["a", "b"], "tags": [True, False]}, {"tokens": ["c"], "tags": [True]}]
    assert load(tagged, rows, valid_fraction=0.0).label_names == ["false", "true"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", 1], "tags": ["O", "B"]}, "row 2 has 1 among its words; write every word as text"),
        ({"tokens": ["a", None], "tags": ["O", "B"]}, "row 2 has None among its words"),
        ({"tokens": ["a", "b"], "tags": ["B", None]}, "row 2 has no tag for 'b'; name one for words outside, e.g. O"),
        ({"tokens": ["a", "b"], "tags": [" ", "B"]}, "row 2 has no tag for 'a'"),
    ],
)
def test_words_and_tags_that_are_none_are_refused_with_their_row(load, row, message):
    with pytest.raises(UserError, match=message):
        load(tagged, [{"tokens": ["x"], "tags": ["O"]}, row])


def test_several_labels_in_a_cell_are_told_from_names_with_the_sign(load, caplog):
    rows = [{"text": f"a {n}", "label": label} for n, label in enumerate(["med", "fin", "med|fin", "fin|code"] * 3)]
    load(labelled, rows, valid_fraction=0)
    assert "each label such as 'fin|code' counts as a class of its own" in caplog.text
    assert "objective.name=multi_label" in caplog.text
    caplog.clear()
    load(labelled, [{**row, "label": row["label"].replace("fin|code", "x|")} for row in rows[:2] + rows[3:4]])
    load(labelled, [{"text": f"a {n}", "label": label} for n, label in enumerate(["in|out", "up|down"] * 3)])
    assert not caplog.text
