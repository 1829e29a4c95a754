from __future__ import annotations

import bz2
import gzip
import json
import lzma
import time

import pyarrow as pa
import pytest

from sslnlp.data import open_source
from sslnlp.errors import UserError

ROWS = [{"id": i, "text": f"document {i}, NA"} for i in range(4)]
TEXTS = [row["text"] for row in ROWS]
CSV = "\ufeffid,text\r\n" + "".join(f'{row["id"]},"{row["text"]}"\r\n' for row in ROWS)
CONTENT = {
    "txt": "\r\n".join(TEXTS),
    "jsonl": "\n".join(map(json.dumps, ROWS)),
    "json": json.dumps(ROWS),
    "csv": CSV,
    "tsv": "id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in ROWS),
}


def zst(raw: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(raw)


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("extension", CONTENT)
def test_every_kind_of_file_gives_the_same_documents(tmp_path, extension, compression):
    path = tmp_path / f"data.{extension}{compression}"
    path.write_bytes(COMPRESS[compression](CONTENT[extension].encode()))
    source = open_source(str(path), cache=str(tmp_path / "cache"))
    assert list(source.documents()) == TEXTS
    assert "text" in source.columns
    assert source.table()["text"][:] == TEXTS


def test_parquet_folders_globs_and_lists(tmp_path):
    datasets = pytest.importorskip("datasets")
    for i, name in enumerate(("b", "a")):
        datasets.Dataset.from_list(ROWS[2 * i : 2 * i + 2]).to_parquet(tmp_path / "deep" / f"{name}.parquet")
    in_order = TEXTS[2:] + TEXTS[:2]
    assert list(open_source(str(tmp_path)).documents()) == in_order
    assert list(open_source(str(tmp_path / "**" / "*.parquet")).documents()) == in_order
    assert list(open_source([str(tmp_path / "deep" / f"{n}.parquet") for n in "ba"]).documents()) == TEXTS


def test_a_folder_with_named_splits_keeps_them_apart(tmp_path):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text")
    assert list(open_source(str(tmp_path)).documents()) == ["train text"]
    assert list(open_source(str(tmp_path), split="validation").documents()) == ["dev text"]


def test_subfolders_named_as_splits_keep_them_apart(tmp_path):
    for name in ("train/pos/a", "train/test-drive", "test/pos/a", "test/train-ride"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(open_source(str(tmp_path)).documents()) == ["train/pos/a", "train/test-drive"]
    with pytest.raises(UserError, match="holds train files but no validation files"):
        open_source(str(tmp_path), split="validation")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("auto", ["one\ntwo", "three"]),
        ("block", ["one\ntwo", "three"]),
        ("line", ["one", "two", "", "three"]),
        ("document", ["one\ntwo\n\nthree"]),
    ],
)
def test_a_text_file_as_blocks_lines_or_one_document(tmp_path, how, expected):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\r\n\r\nthree\r\n".encode())
    assert list(open_source(str(path)).documents(split_text=how)) == expected


def test_any_number_of_blank_lines_at_the_end_is_no_work(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo" + "\n" * 60_000)
    began = time.process_time()
    assert open_source(str(tmp_path / "a.txt")).columns == ["text"]
    assert next(open_source(str(tmp_path / "a.txt")).documents()) == "one"
    assert time.process_time() - began < 2  # 30 s where each blank line looks for text behind it


def test_several_text_files_are_a_document_each(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n\n{name}")
    assert list(open_source(str(tmp_path)).documents()) == ["a\n\na", "b\n\nb"]


@pytest.mark.parametrize("extension", ["csv", "json", "parquet"])
def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path, extension):
    datasets = pytest.importorskip("datasets")
    names = ("a[1]", "a1", "b*", "bc")
    for name in names:
        path = tmp_path / "[x]" / f"{name}.{extension}"
        if extension == "parquet":
            datasets.Dataset.from_list([{"text": name, "n": 1}]).to_parquet(path)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps([{"text": name, "n": 1}]) if extension == "json" else f"text,n\n{name},1\n")
    for name in names:
        source = open_source(str(tmp_path / "[x]" / f"{name}.{extension}"), cache=str(tmp_path / "cache"))
        assert list(source.documents()) == source.table()["text"][:] == [name]
    assert sorted(open_source(str(tmp_path / "[x]")).documents()) == sorted(names)


def test_the_only_column_of_strings_is_the_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1, "body": "x"}\n{"n": 2, "body": null}\n')
    assert list(open_source(str(path)).documents()) == ["x", ""]


NO_ROWS = {"csv": b"text,n\n", "tsv": b"text\tn\r\n\r\n", "jsonl": b"\n", "json": b"[]", "jsonl.gz": gzip.compress(b"")}


@pytest.mark.parametrize("extension", [*NO_ROWS, "parquet"])
def test_a_file_without_rows_adds_none_to_a_table(tmp_path, extension):
    datasets = pytest.importorskip("datasets")
    empty, full = tmp_path / f"a.{extension}", tmp_path / "b.parquet"
    datasets.Dataset.from_list([{"text": "x", "n": 1}]).to_parquet(full)
    if extension == "parquet":
        datasets.Dataset.from_dict({"text": [], "n": []}).to_parquet(empty)
    else:
        empty.write_bytes(NO_ROWS[extension])
    for files in ([empty, full], [full, empty]):
        table = open_source([str(file) for file in files], cache=str(tmp_path / "cache")).table()
        assert table[:] == {"text": ["x"], "n": [1]}
    with pytest.raises(UserError, match=rf"a\.{extension} holds no rows"):
        open_source(str(empty), cache=str(tmp_path / "cache")).table()


def test_a_table_whose_lines_end_as_on_old_macs_has_rows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,n\rone,1\rtwo,2\r")
    source = open_source(str(tmp_path / "a.csv"), cache=str(tmp_path / "cache"))
    assert source.table()["text"][:] == list(source.documents()) == ["one", "two"]


def test_a_folder_of_save_to_disk_is_not_taken_for_its_facts(tmp_path):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list([{"text": "x"}])
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "splits")
    for name in ("one", "splits", "splits/train"):
        with pytest.raises(UserError, match=r"save_to_disk.*\.to_parquet\('texts\.parquet'\)"):
            open_source(str(tmp_path / name))


def test_the_text_is_found_where_the_first_rows_have_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "t", "body": null}\n{"title": "t", "body": "x"}\n')
    with pytest.raises(UserError, match=r"title, body; say data\.text=NAME"):
        list(open_source(str(path)).documents())
    path.write_text('{}\n{"title": "t"}\n{"title": "t", "text": "x"}\n')
    assert list(open_source(str(path)).documents()) == ["", "", "x"]


def test_the_fingerprint_follows_the_content_not_the_name_or_the_time(tmp_path):
    import os

    for name, content in (("a", "same"), ("b", "same"), ("c", "else")):
        (tmp_path / f"{name}.txt").write_text(content)
        os.utime(tmp_path / f"{name}.txt", (0, 0))
    a, b, c = (open_source(str(tmp_path / f"{name}.txt")).fingerprint for name in "abc")
    assert a == b != c


CUT_ZST = pa.compress(b'{"text": "x"}\n' * 99999, "zstd", asbytes=True)[:-5]
WRONG = {
    "invalid utf-8": ("a.txt", b"good\nbad \xff\n", r"line 2, byte 9"),
    "nul": ("a.txt", b"good\nb\0d\n", r"NUL byte \(line 2, byte 6\)"),
    "utf-16": ("a.txt", "text".encode("utf-16"), "UTF-16"),
    "binary": ("a.txt", bytes(range(256)), "NUL byte"),
    "invalid utf-8 json": ("a.jsonl", b'{"text": "ok"}\n{"text": "\xff"}\n', r"line 2"),
    "broken json": ("a.jsonl", b'{"text": "ok"}\n{"text": \n', r"line 2 is not JSON"),
    "nul in csv": ("a.csv", b"text\nx\0y\n", "NUL byte"),
    "broken parquet": ("a.parquet", b"PAR1 nothing of the kind", r"a\.parquet"),
    "broken gz": ("a.txt.gz", b"not gzip at all", r"a\.txt\.gz"),
    "bars": ("a.csv", b"text|label\nhello|1\n", r"a\.csv has one column, 'text\|label'.* save it with ','"),
    "commas in a tsv": ("a.tsv", b"text,label\nhello,1\n", r"its separator seems to be ','"),
    "null first": ("a.json", b'[null, {"text": "x"}]', r"a\.json begins with null"),
    "cut gz": ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 999)[:-20], r"a\.jsonl\.gz"),
    "cut xz": ("a.txt.xz", lzma.compress(b"text\n" * 999)[:-20], r"a\.txt\.xz"),
    "cut bz2": ("a.txt.bz2", b"BZh9 not", r"a\.txt\.bz2"),
    "cut zst": ("a.jsonl.zst", CUT_ZST, r"a\.jsonl\.zst: Truncated"),
    "cut zst of columns": ("a.csv.zst", CUT_ZST, r"a\.csv\.zst: Truncated"),
    "broken zst": ("a.txt.zst", b"not zstd", r"a\.txt\.zst"),
    "ambiguous": ("a.jsonl", b'{"title": "x", "body": "y"}\n', r"title, body; say data\.text=NAME"),
    "no text": ("a.jsonl", b'{"text": [1, 2]}\n', "holds list"),
    "commas not in quotes": ("a.csv", b"text,label\nWell, yes,1\nNo, no,2\n", r"more values in its first row"),
    "another separator": ("a.csv", b"text|label\nWell, yes|1\nNo|2\n", r"text\|label.*separate columns by ','"),
    "decimal commas": ("a.csv", b"Text|Label|Cost\nHi|yes|0,37\n", r"'Text\|Label\|Cost': its separator .* '\|'"),
    "empty": ("a.txt", b"", "is empty"),
    "unknown kind": ("a.docx", b"x", r"unknown kind of file.*\.parquet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_is_one_clear_line(tmp_path, case):
    name, content, message = WRONG[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(open_source(str(tmp_path / name)).documents())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", sorted(WRONG.keys() - {"ambiguous", "no text", "empty", "unknown kind"}))
def test_wrong_content_of_a_table_is_one_clear_line(tmp_path, case):
    name, content, message = WRONG[case]
    (tmp_path / name).write_bytes(content)
    source = open_source(str(tmp_path / name), cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message) as caught:
        source.table()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("second", [b"text,label\nna\xefve,1\n", gzip.compress(b"")], ids=["latin-1", "empty gz"])
def test_one_wrong_file_of_several_is_named(tmp_path, second):
    wrong = tmp_path / ("b.csv.gz" if second[:2] == b"\x1f\x8b" else "b.csv")
    wrong.write_bytes(second)
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    source = open_source([str(tmp_path / "a.csv"), str(wrong)], cache=str(tmp_path / "cache"))
    for read in (lambda: list(source.documents()), source.table):
        with pytest.raises(UserError, match=rf"{wrong.name}\b"):
            read()


def test_rows_of_json_lines_may_differ_and_words_stay_words(tmp_path):
    rows = [{"text": "2020-01-01", "n": 1}, {"text": "007", "n": "one", "new": {"k": []}}, {"n": 2}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(open_source(str(tmp_path / "a.jsonl")).documents()) == ["2020-01-01", "007", ""]
    (tmp_path / "a.csv").write_text("text,n\n007,1\nnull,2\n")
    assert list(open_source(str(tmp_path / "a.csv")).documents()) == ["007", "null"]


@pytest.mark.parametrize("more", [1, 1 << 20], ids=["small", "large"])
def test_a_json_list_whose_values_change_their_type_keeps_its_texts(tmp_path, more):
    rows = [
        {"text": 'say "a"\n', "n": 1},
        {"text": 3, "n": "x"},
        {"text": None, "n": None},
        {"text": "x" * more, "n": 2},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    source = open_source(str(tmp_path / "a.json"))
    assert list(source.documents()) == ['say "a"\n', "3", "", "x" * more]
    assert [row["n"] for row in source.rows()] == [1, "x", None, 2]


def test_json_files_may_differ_in_what_is_not_the_text(tmp_path):
    rows = [{"text": "a", "date": "2020-01-01", "by": None}, {"text": "2020-01-02", "date": "once", "by": ["x"]}]
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.json").write_text(json.dumps([row] if i else row))
    source = open_source(str(tmp_path))
    assert list(source.documents()) == ["a", "2020-01-02"]
    assert list(source.rows()) == rows


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no/such/file.txt", "does not exist"),
        ("missing.jsonl.gz", "does not exist"),
        ("no/such/*.txt", "nothing matches"),
        ("[a.txt,b.gz]", r"""give a\.txt,b\.txt or, in quotes, '\["a\.txt","b\.txt"\]'"""),
        ("https://example.org/a.txt", "addresses are not read"),
        ([], "no data was given"),
    ],
)
def test_a_wrong_spec_is_one_clear_line(spec, message):
    with pytest.raises(UserError, match=message):
        open_source(spec)


def test_a_folder_without_text_or_of_mixed_kinds_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no"):
        open_source(str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"mixes \.jsonl, \.txt"):
        open_source(str(tmp_path))


def test_a_wrong_column_names_the_near_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"content": "x", "title": "y"}\n')
    with pytest.raises(UserError, match="Did you mean 'content'"):
        list(open_source(str(path)).documents("contents"))


def test_a_hub_name_without_network_is_one_clear_line(monkeypatch):
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(UserError, match="hub cannot be reached") as caught:
        list(open_source("owner/name").documents())
    assert "\n" not in str(caught.value)


def test_a_hub_name_that_is_not_in_the_cache_may_be_a_mistyped_folder(monkeypatch):
    monkeypatch.setattr("sslnlp.data.readers.hub_revision", lambda name: "cached")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: 1 / 0)
    with pytest.raises(UserError, match="'owner/name' is no file or folder here, and the hub gives no split 'train'"):
        list(open_source("owner/name").documents())


def test_only_the_column_of_the_text_is_read_and_it_has_to_be_in_every_file(tmp_path):
    import datasets

    rows = {"title": ["a", "b"], "text": ["one", None], "n": [1, 2]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "1.parquet")
    datasets.Dataset.from_dict({"title": ["c"]}).to_parquet(tmp_path / "2.parquet")
    assert list(open_source(str(tmp_path / "1.parquet")).documents()) == ["one", ""]
    assert list(open_source(str(tmp_path / "1.parquet")).documents("n")) == ["1", "2"]
    assert list(open_source(str(tmp_path / "*.parquet")).documents("title")) == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"2\.parquet has no column 'text'; it has title"):
        list(open_source(str(tmp_path / "*.parquet")).documents())


def tables(folder, **contents):
    """A file for each `kind_name=rows`, in order; the list of them as a spec."""
    for name, rows in contents.items():
        kind, _ = name.split("_")
        path = folder / f"{name}.{kind}"
        if kind == "csv":
            path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]))
        else:
            path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    return [str(folder / f"{name}.{name.split('_')[0]}") for name in contents]


def test_files_of_several_kinds_become_one_table(tmp_path):
    spec = tables(
        tmp_path,
        csv_a=[{"text": "one", "label": 4, "n": 1, "x": 1}],
        csv_b=[{"label": 5, "text": "two"}],
        jsonl_c=[{"text": "three", "label": "b", "n": 3, "x": 0.5, "y": None}],
        json_d=[{"text": "four", "y": ["z"]}],
    )
    spec.insert(2, spec[0])
    table = open_source(spec, cache=str(tmp_path / "cache")).table()
    assert table["text"][:] == ["one", "two", "one", "three", "four"]
    assert table["label"][:] == ["4", "5", "4", "b", None]
    assert table["n"][:] == [1, None, 1, 3, None]
    assert table["x"][:] == [1.0, None, 1.0, 0.5, None]
    assert table["y"][:] == [None, None, None, None, ["z"]]
    assert list(open_source(spec).documents()) == ["one", "two", "one", "three", "four"]


OTHER = [{"sentence": "two", "intent": "b"}]


@pytest.mark.parametrize("kinds", [("csv", "jsonl"), ("csv", "csv"), ("jsonl", "jsonl"), ("json", "json")])
def test_a_file_with_other_columns_is_refused_not_counted_as_empty(tmp_path, kinds):
    first, second = kinds
    spec = tables(tmp_path, **{f"{first}_a": [{"text": "one", "label": "a"}], f"{second}_b": OTHER})
    source = open_source(spec, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"different columns: \S*_a\S* has text, label; \S*_b\S* has sentence, intent"):
        source.table()
    with pytest.raises(UserError, match=r"different columns: \S*_b\S* has no 'text', but sentence, intent"):
        list(source.documents())


def test_types_that_do_not_go_together_are_one_clear_line(tmp_path):
    spec = tables(tmp_path, csv_a=[{"text": "one", "n": "a"}], jsonl_b=[{"text": "two", "n": [1]}])
    with pytest.raises(UserError, match=r"column 'n' of .* has types that do not go together") as caught:
        open_source(spec, cache=str(tmp_path / "cache")).table()
    assert "\n" not in str(caught.value)


def test_numbers_of_csv_are_numbers_unless_that_changes_them(tmp_path):
    (tmp_path / "a.csv").write_text(
        "whole,part,zeros,gap,long,word\n1,0.5,007,1,12345678901234567890,True\n-20,1,010,,2,False\n"
    )
    row = open_source(str(tmp_path / "a.csv"), cache=str(tmp_path / "cache")).table()[0]
    assert row == {
        "whole": 1, "part": 0.5, "zeros": "007", "gap": "1", "long": "12345678901234567890", "word": "True",
    }  # fmt: skip


def test_an_empty_text_file_among_several_is_an_empty_document(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").touch()
    every = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for spec in (str(tmp_path), str(tmp_path / "*.txt"), every):
        assert list(open_source(spec).documents()) == ["one", ""]
    with pytest.raises(UserError, match="is empty"):
        open_source(every[1])
