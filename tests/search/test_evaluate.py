"""Rankings measured and compared: from an index, from run files, as a person types it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel
from typer.testing import CliRunner, Result

from sslnlp.errors import UserError
from sslnlp.search import loading
from sslnlp.search.cli import search_app
from sslnlp.search.evaluate import KNOWN_ITEM, evaluate_runs, parse_measures
from sslnlp.search.trec import write_run

QRELS = {f"q{i}": {"a": 1, "b": 1 if i == 0 else 0} for i in range(6)}
GOOD = {f"q{i}": {"a": 2.0, "b": 1.0} for i in range(6)}
BAD = {f"q{i}": {"c": 2.0, "a": 1.0} for i in range(5)}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(search_app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def _rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]


@pytest.fixture
def index(tmp_path: Path, corpus: Path) -> Path:
    assert _run("index", corpus, "--out", tmp_path / "i").exit_code == 0
    return tmp_path / "i"


def test_evaluate_measures_writes_a_run_and_measures_it_again(tmp_path: Path, corpus: Path, index: Path) -> None:
    files = ("--queries", corpus / "queries.jsonl", "--qrels", corpus / "qrels" / "test.tsv")
    run = tmp_path / "out.trec"
    first = _run("evaluate", index, *files, "--run", run)
    assert first.exit_code == 0
    assert "over 2 queries" in first.output
    assert "1 queries without a relevant document" in first.output
    assert "1 relevant documents are not in the index" in first.output
    [row] = _rows(first.output)  # one system: nothing to compare it with
    again = _run("evaluate", index, *files, "--mode", "bm25", "--compare", run)
    means = [found for found in _rows(again.output) if len(found) == 5]
    assert [found[0] for found in means] == ["bm25", "out.trec"]
    assert means[0][1:] == means[1][1:] == row[1:]
    ranks = {line.split()[2]: int(line.split()[3]) for line in run.read_text().splitlines() if line.startswith("q1")}
    assert ranks["11"] == 1
    assert f"{100 * (1 / ranks['007'] + 1) / 2:.1f}" == row[2]
    compared = [found for found in _rows(again.output) if len(found) == 8]
    assert {tuple(found[2:]) for found in compared} == {("+0.0", "+0.0 to +0.0", "1.000", "1.000", "0", "0")}


def test_a_cut_off_beyond_the_usual_depth_sees_as_many_results(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("id,text\n" + "".join(f"{n:04},wing\n" for n in range(1200)))
    (tmp_path / "q.tsv").write_text("q\twing\n")
    (tmp_path / "qrels").write_text("".join(f"q 0 {n:04} 1\n" for n in range(1200)))
    _run("index", tmp_path / "d.csv", "--out", tmp_path / "i")
    files = ("--queries", tmp_path / "q.tsv", "--qrels", tmp_path / "qrels")
    result = _run("evaluate", tmp_path / "i", *files, "--measures", "recall@1100,recall@600")
    assert _rows(result.output) == [["bm25", "91.7", "50.0"]]


def test_a_compressed_beir_folder_is_measured(tmp_path: Path, corpus: Path, index: Path) -> None:
    expected = _run("evaluate", index, corpus).output
    plain = corpus / "queries.jsonl"
    (corpus / "queries.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    qrels = ("--qrels", corpus / "qrels" / "test.tsv")
    assert _run("evaluate", index, corpus).output == _run("evaluate", index, corpus, *qrels).output == expected


def test_what_is_written_is_neither_in_the_index_nor_one_file_twice(tmp_path: Path, corpus: Path, index: Path) -> None:
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    for option, name in (("--json", "index.json"), ("--json", "figures.json"), ("--run", "out.trec")):
        assert "lies in the index" in str(_run("evaluate", index, corpus, option, index / name).exception)
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before
    both = ("--run", tmp_path / "out", "--json", tmp_path / "x" / ".." / "out")
    assert "would both write" in str(_run("evaluate", index, corpus, *both).exception)
    assert not (tmp_path / "out").exists()


def test_ids_that_no_run_can_hold_do_not_cost_the_figures(tmp_path: Path) -> None:
    rows = [{"_id": "two words", "text": "a wing"}, {"_id": "b", "text": "a plate"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "q.tsv").write_text("q1\twing\n")
    (tmp_path / "qrels").write_text("q1\t0\ttwo words\t1\n")
    _run("index", tmp_path / "d.jsonl", "--out", tmp_path / "i")
    files = ("--queries", tmp_path / "q.tsv", "--qrels", tmp_path / "qrels")
    result = _run("evaluate", tmp_path / "i", *files, "--run", tmp_path / "o.trec", "--json", tmp_path / "o.json")
    assert "cannot stand in a TREC run" in str(result.exception)
    assert _rows(result.output) == [["bm25", "100.0", "100.0", "100.0"]]
    assert "The index holds 2 documents: a ranking of so few is good whatever ranks them." in result.output
    assert json.loads((tmp_path / "o.json").read_text())["means"]["bm25"]["mrr"] == 1
    with pytest.raises(UserError, match="no UTF-8"):
        write_run(tmp_path / "o.trec", {"q": {"bad\udcffname": 1.0}}, "tag")
    assert not (tmp_path / "o.trec").exists()


def test_a_run_to_compare_with_is_not_written_over(
    tmp_path: Path, corpus: Path, make_encoder: Callable[..., Path]
) -> None:
    _run("index", corpus, "--out", tmp_path / "i", "--model", make_encoder(tmp_path / "m"))
    other = tmp_path / "out.bm25.trec"
    other.write_text("q1 Q0 007 1 2.5 tag\n")
    result = _run("evaluate", tmp_path / "i", corpus, "--run", tmp_path / "out.trec", "--compare", other)
    assert "is what is to be read" in str(result.exception)
    assert other.read_text() == "q1 Q0 007 1 2.5 tag\n"


def test_judged_queries_without_a_text_are_counted(tmp_path: Path, corpus: Path, index: Path) -> None:
    (tmp_path / "q.tsv").write_text("q1\tslipstream plate\n")
    qrels = corpus / "qrels" / "test.tsv"
    result = _run("evaluate", index, "--queries", tmp_path / "q.tsv", "--qrels", qrels)
    assert "over 1 queries" in result.output
    assert "1 judged queries have no text in" in result.output  # q2; q3 has nothing to be found


def test_a_single_query_has_no_interval(tmp_path: Path) -> None:
    """Drawn anew it is always itself: from +50 to +50 would look as sure as can be."""
    (tmp_path / "qrels").write_text("q0 0 a 1\nq1 0 a 1\n")
    for name, run in (("bad", BAD), ("good", GOOD)):
        (tmp_path / name).write_text("".join(f"{q} Q0 {d} 1 {s} t\n" for q in ("q0", "q1") for d, s in run[q].items()))
    files = ("--compare", tmp_path / "bad", "--compare", tmp_path / "good", "--measures", "mrr")
    rows = _rows(_run("evaluate", "--qrels", tmp_path / "qrels", *files).output)
    assert rows[-1][2:4] == ["+50.0", "+50.0 to +50.0"]
    (tmp_path / "qrels").write_text("q0 0 a 1\n")
    rows = _rows(_run("evaluate", "--qrels", tmp_path / "qrels", *files).output)
    assert rows[-1][2:4] == ["+50.0", ""]


def test_run_files_alone_are_measured_and_compared(tmp_path: Path) -> None:
    qrels = tmp_path / "qrels"
    qrels.write_text("".join(f"{q} 0 {d} {g}\n" for q, judged in QRELS.items() for d, g in judged.items()))
    for name, run in (("bad", BAD), ("good", GOOD)):
        (tmp_path / name).write_text(
            "".join(f"{q} Q0 {d} 1 {s} t\n" for q, found in run.items() for d, s in found.items())
        )
    files = ("--qrels", qrels, "--compare", tmp_path / "bad", "--compare", tmp_path / "good")
    found = _run("evaluate", *files, "--json", tmp_path / "out.json", "--measures", "recall@1,mrr")
    assert found.exit_code == 0
    assert "Difference from bad" in found.output
    assert "bad does not answer 1 of the queries; they count as 0." in found.output
    # Means of 1, 1/2, 0, ...: `bad` has the first relevant document second on 5 of 6 queries.
    assert _rows(found.output)[:2] == [
        ["bad", "0.0", f"{100 * 2.5 / 6:.1f}"],
        ["good", f"{100 * 5.5 / 6:.1f}", "100.0"],
    ]
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["measures"] == ["recall@1", "mrr"]
    assert written["baseline"] == "bad"
    assert written["queries"]["bad"]["q5"] == {"recall@1": 0, "mrr": 0}
    assert written["means"]["good"]["recall@1"] == pytest.approx(5.5 / 6)
    compared = written["comparisons"]["good"]["mrr"]
    assert compared["p"] == compared["p_holm"] == 2 / 2**6  # better on each of six queries
    assert (compared["better"], compared["worse"], compared["equal"]) == (6, 0, 0)
    assert compared["p_t"] == pytest.approx(ttest_rel([1.0] * 6, [0.5] * 5 + [0.0]).pvalue)
    turned = _run("evaluate", *files, "--baseline", "good")
    assert "Difference from good" in turned.output


def test_no_name_is_cut_short_where_there_is_no_room(tmp_path: Path) -> None:
    names = [f"a-run-of-a-long-name-{end}.trec" for end in ("one", "two")]
    for name in names:
        write_run(tmp_path / name, GOOD, "t")
    (tmp_path / "qrels").write_text("".join(f"{q} 0 {d} {g}\n" for q, found in QRELS.items() for d, g in found.items()))
    measures = "ndcg@10,ndcg@100,recall@10,recall@100,map@10,map@100"
    arguments = ["evaluate", "--qrels", str(tmp_path / "qrels"), "--measures", measures]
    for name in names:
        arguments += ["--compare", str(tmp_path / name)]
    output = CliRunner().invoke(search_app, arguments, env={"COLUMNS": "60"}).output
    assert "×100 over 6 queries" in output
    assert "…" not in output


def test_a_reranker_is_one_more_system(index: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backwards:
        fingerprint, name = "", "backwards"

        def score(self, query: str, texts: list[str], **options: object) -> np.ndarray:
            return np.arange(len(texts), dtype=np.float32)

    monkeypatch.setattr(loading, "load_reranker", lambda name: Backwards())
    found = _run("evaluate", index, corpus, "--reranker", "any")
    assert [row[0] for row in _rows(found.output)[:2]] == ["bm25", "reranked"]
    assert "Difference from bm25" in found.output
    bm25, reranked = (float(row[2]) for row in _rows(found.output)[:2])
    assert bm25 > reranked  # what stood first is last now


def test_the_baseline_is_bm25_where_it_is_and_p_is_corrected_for_the_number_of_systems() -> None:
    found = evaluate_runs({"other": GOOD, "bm25": BAD, "same": BAD}, QRELS, measures=["mrr"])
    assert found.baseline == "bm25"
    assert list(found.comparisons) == ["other", "same"]
    one = found.comparisons["other"]["mrr"]
    assert (one.p, one.p_holm) == (2 / 2**6, 4 / 2**6)
    assert found.comparisons["same"]["mrr"].p_holm == 1
    assert evaluate_runs({"one": GOOD}, QRELS).comparisons == {}


def test_the_order_of_files_changes_no_p() -> None:
    qrels = {f"q{i}": {"a": 1} for i in range(40)}
    run = {q: {"b": 2.0, "a": 1.0 + 2 * (i % 3 == 0)} for i, q in enumerate(qrels)}
    worse = {q: {"b": 2.0, "c": 2.0 - i % 2, "a": 1.5} for i, q in enumerate(qrels)}
    forth = evaluate_runs({"one": run, "two": worse}, qrels)
    back = evaluate_runs({"one": run, "two": worse}, dict(reversed(qrels.items())))
    assert forth.comparisons == back.comparisons
    assert 0 < forth.comparisons["two"]["mrr"].p < 1


def test_known_items_are_measured_by_whether_they_come_first() -> None:
    single = {query: {"a": 1, "b": 0} for query in QRELS}
    assert evaluate_runs({"r": GOOD}, single).measures == KNOWN_ITEM
    assert evaluate_runs({"r": GOOD}, single).means() == {"r": {"recall@1": 1.0, "recall@10": 1.0, "mrr": 1.0}}
    assert "ndcg@10" in evaluate_runs({"r": GOOD}, QRELS).measures


def test_measures_are_parsed() -> None:
    assert parse_measures("ndcg@5, mrr recall@1,mrr") == ("ndcg@5", "mrr", "recall@1")
    for wrong in ("", " ,", "ndcg@x"):
        with pytest.raises(UserError, match="measure"):
            parse_measures(wrong)


def test_wrong_use_is_a_user_error(tmp_path: Path, corpus: Path, index: Path) -> None:
    (tmp_path / "qrels").write_text("other 0 007 1\n")
    (tmp_path / "run").write_text("q1 Q0 007 1 2.5 tag\n")
    (tmp_path / "folder").mkdir()
    test = corpus / "qrels" / "test.tsv"
    cases = [
        (("evaluate",), "name an index to search, or run files"),
        (("evaluate", index), "BEIR folder, or both"),
        (("evaluate", "--compare", tmp_path / "run"), "for run files alone: --qrels"),
        (("evaluate", index, tmp_path), "no qrels"),
        (("evaluate", index, corpus, "--mode", "al"), "unknown mode"),
        (("evaluate", index, corpus, "--measures", "ndcg@10,p@5"), "unknown measure 'p@5'"),
        (("evaluate", index, corpus, "--baseline", "bm52"), "Did you mean 'bm25'"),
        (("evaluate", index, corpus, "--qrels", tmp_path / "qrels"), "do their ids match"),
        (("evaluate", "--qrels", tmp_path / "qrels", "--compare", tmp_path / "run"), "among the judged ones"),
        (("evaluate", "--qrels", test, "--compare", tmp_path / "run", "--run", tmp_path / "o"), "name the index"),
        (("evaluate", "--qrels", test, "--compare", tmp_path / "no"), "no file with a run"),
        (("evaluate", "--qrels", test, *("--compare", tmp_path / "run") * 3), "given twice"),
        (("evaluate", "--qrels", test, "--compare", tmp_path / "run", "--json", tmp_path / "folder"), "cannot write"),
    ]
    for arguments, message in cases:
        error = _run(*arguments).exception
        assert isinstance(error, UserError), arguments
        assert message in str(error)
        assert "\n" not in str(error)
    assert not list(tmp_path.glob("*.tmp"))
