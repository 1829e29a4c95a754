import gzip
from pathlib import Path

import pytest

from sslnlp.errors import UserError
from sslnlp.search.trec import read_qrels, read_queries, read_run, write_run


def test_a_run_survives_its_file_to_the_last_digit(tmp_path: Path) -> None:
    run = {"q1": {"d2": 1 / 61 + 1 / 62, "d1": 1 / 63}, "q2": {"d9": -3.5e-9}}
    write_run(tmp_path / "new" / "run.trec", run, "tag")
    assert (tmp_path / "new" / "run.trec").read_text().splitlines()[1] == f"q1 Q0 d1 2 {1 / 63!r} tag"
    assert read_run(tmp_path / "new" / "run.trec") == run
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run.trec"]


def test_trec_and_beir_judgements_are_one(tmp_path: Path) -> None:
    (tmp_path / "trec").write_text("q1 0 d1 2\nq1 0 d2 -1\n\nq2\t0\td1\t0\n")
    (tmp_path / "bare").write_text("q1\td1\t2 \nq1\td2\t-1\nq2\td1\t0\n")
    (tmp_path / "beir").write_text("query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq1\td2\t-1\r\nq2\td1\t0\r\n")
    expected = {"q1": {"d1": 2, "d2": -1}, "q2": {"d1": 0}}
    assert read_qrels(tmp_path / "trec") == expected
    assert read_qrels(tmp_path / "beir") == expected
    assert read_qrels(tmp_path / "bare") == expected


def test_beir_ids_may_hold_blanks(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("query-id\tcorpus-id\tscore\na query\tsome file.txt\t1\n")
    assert read_qrels(tmp_path / "q") == {"a query": {"some file.txt": 1}}
    with pytest.raises(UserError, match="blanks"):
        write_run(tmp_path / "run", {"q": {"some file.txt": 1.0}}, "tag")


def test_queries_from_json_lines_and_from_tabs(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"_id": "01", "text": "one"}\n{"_id": "2", "text": "two words"}\n')
    (tmp_path / "q.tsv").write_text("01\tone\n2\ttwo words\n")
    (tmp_path / "header.tsv").write_text("id\ttext\n01\tone\n2\ttwo words\n")
    for name in ("q.jsonl", "q.tsv", "header.tsv"):
        assert read_queries(tmp_path / name) == {"01": "one", "2": "two words"}
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert read_queries(tmp_path / f"{name}.gz") == {"01": "one", "2": "two words"}


def test_compressed_judgements_and_runs(tmp_path: Path) -> None:
    (tmp_path / "qrels.gz").write_bytes(gzip.compress(b"q 0 d 1\n"))
    (tmp_path / "run.gz").write_bytes(gzip.compress(b"q Q0 d 1 2.5 tag\n"))
    assert read_qrels(tmp_path / "qrels.gz") == {"q": {"d": 1}}
    assert read_run(tmp_path / "run.gz") == {"q": {"d": 2.5}}
    for content in (b"q 0 d 1\n", gzip.compress(b"q 0 d 1\n")[:-9]):
        (tmp_path / "qrels.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*qrels"):
            read_qrels(tmp_path / "qrels.gz")


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_qrels, None, "no file"),
        (read_qrels, "", "no judgements"),
        (read_qrels, "q 0 d 1\nq 0 d high\n", "line 2 is not"),
        (read_qrels, "q d\nq d\n", "line 2 is not"),
        (read_qrels, "q 0 d 1.0\n", "line 1 is not .* with a whole number"),
        (read_qrels, "q 0 d 1\nq 0 d ²\n", "line 2 is not"),
        (read_qrels, "q 0 d 1\nq 0 d --1\n", "line 2 is not"),
        (read_qrels, "q 0 d 1\nq 0 d 1\nq 0 d 0\n", "line 3 judges 'd' for query 'q' another way"),
        (read_run, "q Q0 d 1 nan tag\n", "line 1: the score is not a number"),
        (read_run, "q Q0 d 1 high tag\n", "line 1 is not"),
        (read_run, "q Q0 d 1\n", "line 1 is not"),
        (read_run, "q Q0 d 1 2.0 t\nq Q0 d 2 1.0 t\n", "twice"),
        (read_run, "", "no results"),
        (read_queries, "1 no tab\n", "TAB"),
        (read_queries, "1\ta\n1\tb\n", "id '1' twice"),
        (read_queries, "1\t \n", "'1' is empty"),
        (read_queries, "", "no queries"),
        (read_queries, "id\ttext", "no queries"),
    ],
)
def test_malformed_files_are_named_with_their_line(tmp_path: Path, read, content, message) -> None:  # type: ignore[no-untyped-def]
    if content is not None:
        (tmp_path / "f.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "f.tsv")
