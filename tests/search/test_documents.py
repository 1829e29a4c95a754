import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sslnlp.errors import UserError
from sslnlp.search.documents import Columns, Document, data_fingerprint, read_documents
from sslnlp.search.sources import Texts
from sslnlp.search.store import DocumentStore, write_documents

ROWS = [
    {"id": "007", "title": "A, B", "text": 'quotes " and\nlines'},
    {"id": "8", "title": "", "text": "naïve 学习"},
]
EXPECTED = [Document(**row) for row in ROWS]


def _write(folder: Path, suffix: str) -> Path:
    path = folder / f"docs{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    opener = gzip.open if suffix.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if ".jsonl" in suffix:
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
        else:
            writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if ".tsv" in suffix else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".parquet"])
def test_every_format_gives_the_same_documents_with_ids_as_written(tmp_path: Path, suffix: str) -> None:
    assert list(read_documents(_write(tmp_path, suffix))) == EXPECTED


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}


@pytest.mark.parametrize("compressed", COMPRESS)
def test_a_folder_of_compressed_parts_is_one_table(tmp_path: Path, compressed: str) -> None:
    for part, row in enumerate(ROWS):
        content = COMPRESS[compressed](json.dumps(row).encode())
        (tmp_path / f"part-{part}.jsonl{compressed}").write_bytes(content)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.jsonl").write_text("hidden: not read")
    assert list(read_documents(tmp_path)) == EXPECTED
    before = data_fingerprint(tmp_path)
    (tmp_path / f"part-1.jsonl{compressed}").write_bytes(COMPRESS[compressed](b'{"id": "8", "text": "other"}'))
    assert data_fingerprint(tmp_path) != before


@pytest.mark.parametrize("compressed", COMPRESS)
def test_a_compressed_file_that_was_cut_short_is_refused(tmp_path: Path, compressed: str) -> None:
    content = COMPRESS[compressed]("".join(f'{{"text": "{n * 7919}"}}\n' for n in range(9999)).encode())
    (path := tmp_path / f"d.jsonl{compressed}").write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"cannot read .*d\.jsonl"):
        list(read_documents(path))


def test_rows_without_ids_are_numbered_through_all_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\ntwo\n")
    (tmp_path / "b.csv").write_text("text\nthree\n")
    assert [(d.id, d.text) for d in read_documents(tmp_path)] == [("0", "one"), ("1", "two"), ("2", "three")]
    (tmp_path / "b.csv").write_text("id,text\nx,three\n")
    with pytest.raises(UserError, match=r"b\.csv row 2 names its document by id and the first row by its number"):
        list(read_documents(tmp_path))
    (tmp_path / "c.tsv").write_text("text\nfour\n")
    with pytest.raises(UserError, match=r"mixes \.csv, \.tsv files: name one of them"):
        list(read_documents(tmp_path))


def test_a_text_file_has_documents_between_blank_lines_or_else_in_lines(tmp_path: Path) -> None:
    (path := tmp_path / "d.txt").write_text("one\nmore\n\n\ntwo\n\n")
    assert list(read_documents(path)) == [Document("0", "", "one\nmore"), Document("1", "", "two")]
    (path := tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"one\ntwo"))
    assert list(read_documents(path)) == [Document("0", "", "one"), Document("1", "", "two")]


def test_tables_beside_texts_are_said_not_to_be_read(tmp_path: Path) -> None:
    (folder := tmp_path / "snapshot").mkdir()
    (folder / "README.md").write_text("A data set.")
    for part in "ab":
        (folder / f"{part}.jsonl").write_text('{"text": "one"}\n')
    (out := tmp_path / "out").mkdir()
    said: list[str] = []
    assert Texts(folder, Columns()).write(out, lambda *_: None, said.append)["count"] == 1
    assert said == [f"{folder} was read as a folder of texts; tables in it were not: {folder / 'a.jsonl'} and 1 more"]


def test_columns_are_refused_where_text_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UserError, match="text without columns: leave out"):
            list(read_documents(path, Columns(text="body")))


def test_a_folder_of_texts_is_read_in_order_with_paths_as_ids(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("two")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"three\r\nfour"))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "old.md").write_text("hidden")
    expected = [("a.txt", "one"), ("c.md.gz", "three\nfour"), ("sub/b.md", "two")]
    assert list(read_documents(tmp_path)) == [Document(name, "", text) for name, text in expected]


def test_a_beir_folder_is_read_through_its_corpus_file(corpus: Path) -> None:
    assert [document.id for document in read_documents(corpus)] == ["007", "8", "n-9", "10", "11"]


def test_columns_by_name_and_rows_without_ids(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"q": "one", "text": "no"}\n\n{"q": "two", "text": "no"}\n')
    assert [(d.id, d.text) for d in read_documents(path, Columns(text="q"))] == [("0", "one"), ("1", "two")]


def test_a_row_may_lack_the_named_column_of_titles_and_not_all_rows(tmp_path: Path) -> None:
    (path := tmp_path / "d.jsonl").write_text('{"text": "one"}\n{"text": "two", "name": "T"}\n')
    expected = [Document("0", "", "one"), Document("1", "T", "two")]
    assert list(read_documents(path, Columns(title="name"))) == expected
    with pytest.raises(UserError, match="no row has a column 'nam'"):
        list(read_documents(path, Columns(title="nam")))
    with pytest.raises(UserError, match=r"d\.jsonl row 1 has no column 'name'; it has: text"):
        list(read_documents(path, Columns(text="name")))
    (path := tmp_path / "d.csv").write_text("text\none\n")
    with pytest.raises(UserError, match=r"d\.csv row 2 has no column 'name'"):
        next(read_documents(path, Columns(title="name")))


def test_columns_of_usual_names_may_be_in_capitals(tmp_path: Path) -> None:
    (path := tmp_path / "d.csv").write_text("ID, Title ,TEXT\n007,t,x\n")
    assert list(read_documents(path)) == [Document("007", "t", "x")]


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz"])
def test_a_csv_of_semicolons_is_read_as_excel_writes_it(tmp_path: Path, name: str) -> None:
    content = '\ufeffid;text\r\n1;"a; b"\r\n2;c, d\r\n'.encode()
    (path := tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_documents(path)) == [Document("1", "", "a; b"), Document("2", "", "c, d")]


def test_of_two_columns_of_a_name_the_first_counts(tmp_path: Path) -> None:
    (path := tmp_path / "d.csv").write_text("text,text,title\nx,y,t\n")
    assert list(read_documents(path)) == [Document("0", "t", "x")]
    assert list(read_documents(path, Columns(text="text.1"))) == [Document("0", "t", "y")]


def test_half_characters_are_replaced_so_every_tokenizer_takes_the_text(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": 7, "title": null, "text": "a\\ud83d b \\ud83d\\ude00"}\n')
    assert list(read_documents(tmp_path / "d.jsonl")) == [Document("7", "", "a\ufffd b \U0001f600")]


BAD = {
    "missing.jsonl": (None, "no such file"),
    "x.pdf": (b"%PDF", "give a folder"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
    "list.jsonl": (b"[1]\n", "a JSON list"),
    "columns.jsonl": (b'{"words": "a"}\n', "no text column.*it has: words; name one with --text-column$"),
    "title.jsonl": (b'{"title": "a"}\n', "--text-column, or give a row of a title alone an empty text$"),
    "type.jsonl": (b'{"text": ["a"]}\n', "is a list, not text"),
    "latin.jsonl": (b'{"text": "na\xefve"}\n', "not UTF-8"),
    "noid.jsonl": (b'{"id": "", "text": "a"}\n', "empty 'id'"),
    "someid.jsonl": (
        b'{"id": "a", "text": "a"}\n{"text": "b"}\n',
        "row 2 .* by its number and the first row by id: give",
    ),
    "lateid.jsonl": (b'{"text": "a"}\n{"id": "a", "text": "b"}\n', "row 2 .* by id and the first row by its number"),
    "ragged.csv": (b"id,text\n1,a,b\n", "fields"),
    "short.csv": (b"id,text\n1\n", "fields"),
    "bad.parquet": (b"PAR1 no", "not a readable Parquet"),
    "bad.jsonl.gz": (b"not gzip", "cannot read"),
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable_input_is_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        list(read_documents(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_captions_beside_pictures_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a dog\n")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match="holds pictures and no texts"):
        list(read_documents(tmp_path))


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text file"):
        list(read_documents(tmp_path))


def test_the_store_gives_back_what_was_written_by_row(tmp_path: Path) -> None:
    strange = [*EXPECTED, Document("x", "", ""), Document("y", "\ud800", "lone surrogate")]
    assert write_documents(tmp_path, strange) == (3, 1)
    store = DocumentStore([tmp_path])
    assert [store[row] for row in (2, 0, 1)] == [strange[3], *EXPECTED]
    assert list(store) == [*EXPECTED, strange[3]]
    assert store.ids == ["007", "8", "y"]


@pytest.mark.parametrize(
    ("documents", "message"),
    [([], "no documents"), ([Document("a", "", " ")], "all without text"), ([EXPECTED[0]] * 2, "id '007'")],
)
def test_empty_corpus_and_duplicate_ids_are_refused(tmp_path: Path, documents: list[Document], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_documents(tmp_path, documents)


def test_a_row_of_other_fields_than_the_header_says_what_separates_them(tmp_path):
    (tmp_path / "a.csv").write_text("Text|Cost\nHi|0,37\n")
    with pytest.raises(UserError, match=r"line 2 .* the header \(Text\|Cost\): .* separate columns by ','"):
        list(read_documents(tmp_path / "a.csv"))
