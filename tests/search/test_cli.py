"""The commands, as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sslnlp.errors import UserError
from sslnlp.search import changes, loading
from sslnlp.search.cli import search_app
from sslnlp.search.index import Hit, Index


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(search_app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


@pytest.fixture
def index(tmp_path: Path, corpus: Path) -> Path:
    assert _run("index", corpus, "--out", tmp_path / "i").exit_code == 0
    return tmp_path / "i"


def test_index_then_query(tmp_path: Path, corpus: Path, index: Path) -> None:
    result = _run("query", index, "wing slipstream", "-k", 1)
    assert result.exit_code == 0
    assert "007" in result.output
    assert "lift of a wing in a slipstream" in result.output
    assert "Plates" not in result.output


def test_a_dense_index_answers_fused(tmp_path: Path, corpus: Path, make_encoder: Callable[..., Path]) -> None:
    made = _run("index", corpus, "--out", tmp_path / "i", "--model", make_encoder(tmp_path / "m"), "--dtype", "float32")
    assert "16-dimensional float32 vectors" in made.output
    assert "does not say what it makes" not in made.output
    (make_encoder(tmp_path / "bare") / "modules.json").unlink()
    bare = _run("index", corpus, "--out", tmp_path / "j", "--model", tmp_path / "bare")
    assert "does not say what it makes of a text's tokens, so their mean was taken" in bare.output
    assert "  1  0.03" in _run("query", tmp_path / "i", "noise", "--fusion", "ranks").output  # 1/61 + at least 1/65
    assert "  1  2.9" in _run("query", tmp_path / "i", "noise").output  # the best of BM25, and a cosine of nearly 1
    stop_words = _run("query", tmp_path / "i", "of the")
    assert "contributed nothing" in stop_words.output
    assert "007" in stop_words.output
    table = _run("evaluate", tmp_path / "i", corpus).output
    assert all(mode in table for mode in ("bm25", "dense", "fused"))


def test_a_query_of_stop_words_says_so_and_succeeds(index: Path) -> None:
    result = _run("query", index, "of the and")
    assert result.exit_code == 0
    assert "only stop words" in result.output
    assert "or signs (emoji too)" in _run("query", index, "🙂").output
    assert "No document matches" in _run("query", index, "zeppelin").output


def test_a_query_while_the_index_is_replaced_finds_what_is_there_now(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": "new", "text": "another wing"}\n')
    inner, calls = Index.search, []

    def search(self: Index, *arguments: Any) -> list[Hit]:
        calls.append(1)
        if len(calls) == 1:  # between opening and reading, where a model takes its seconds to load
            changes.build_index(tmp_path / "d.jsonl", index)
        return inner(self, *arguments)

    monkeypatch.setattr(Index, "search", search)
    result = _run("query", index, "wing")
    assert result.exit_code == 0
    assert result.output.split()[2] == "new"
    monkeypatch.setattr(Index, "search", lambda *arguments: (tmp_path / "gone").read_bytes())
    assert isinstance(_run("query", index, "wing").exception, FileNotFoundError)  # and not for ever


def test_markup_in_documents_and_queries_is_text(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": "[red]x", "title": "[/b]", "text": "an [bold]engine[/bold] <script>"}\n')
    _run("index", tmp_path / "d.jsonl", "--out", tmp_path / "i")
    result = _run("query", tmp_path / "i", "[bold] engine")
    assert result.exit_code == 0
    assert "[red]x" in result.output
    assert "an [bold]engine[/bold] <script>" in result.output


def test_a_long_id_is_one_piece(tmp_path: Path) -> None:
    name = "/".join(["notes about wings"] * 12) + ".txt"
    row = {"id": name, "title": "wings " * 30, "text": "a wing"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    _run("index", tmp_path / "d.jsonl", "--out", tmp_path / "i")
    assert name in _run("query", tmp_path / "i", "wing").output.splitlines()[0]


def test_add_and_delete(tmp_path: Path, index: Path) -> None:
    (tmp_path / "new.jsonl").write_text(
        '{"id": "new", "text": "A zeppelin of helium."}\n{"id": "8", "text": "Helium."}\n{"id": "none", "text": ""}\n'
    )
    assert "'8' among them" in str(refused := _run("add", index, tmp_path / "new.jsonl").exception)
    assert "called by its number: give other documents ids" in str(refused)  # another file's row 8 is no newer one
    added = _run("add", index, tmp_path / "new.jsonl", "--replace")
    assert "Added 2 documents, 1 of them in place of older ones, 1 without text left out." in added.output
    assert [row.split()[2] for row in _run("query", index, "helium").output.splitlines()[::2]] == ["8", "new"]
    (tmp_path / "ids").write_text("new\n\nn-9\n")
    assert "Deleted 3 documents." in _run("delete", index, "8", "--ids", tmp_path / "ids").output
    assert "No document matches." in _run("query", index, "helium").output
    assert "are not in the index" in str(_run("delete", index, "8").exception)
    assert "no index" in str(_run("add", tmp_path, tmp_path / "new.jsonl").exception)
    assert "cannot read" in str(_run("delete", index, "--ids", tmp_path / "absent").exception)


def test_ids_of_a_file_end_where_its_lines_do(tmp_path: Path) -> None:
    rows = [{"id": name, "text": "a wing"} for name in ("u\u2028x", "next\x85line", "kept")]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _run("index", tmp_path / "d.jsonl", "--out", tmp_path / "i")
    (tmp_path / "ids").write_bytes("u\u2028x\r\nnext\x85line\n".encode())
    assert "Deleted 2 documents." in _run("delete", tmp_path / "i", "--ids", tmp_path / "ids").output


def test_a_reranker_and_a_graph_are_remembered(
    tmp_path: Path, corpus: Path, make_encoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Longest:
        name, fingerprint = "longest", "0"

        def score(self, query: str, texts: list[str], *, batch_size: int = 32) -> list[float]:
            return [float(len(text)) for text in texts]

    for module in (loading, changes):
        monkeypatch.setattr(module, "load_reranker", lambda name: Longest())
    options = ("--model", make_encoder(tmp_path / "m"), "--ann", "--reranker", "any")
    made = _run("index", corpus, "--out", tmp_path / "i", *options)
    assert "16-dimensional float16 vectors + graph + reranker." in made.output
    alone = ("--rerank-weight", 1)
    first = _run("query", tmp_path / "i", "plate", "-k", 1, *alone)
    assert "007" in first.output  # the longest text, which lacks the word
    assert "007" not in _run("query", tmp_path / "i", "plate", "-k", 1).output, "half of the say does not do that"
    assert "007" not in _run("query", tmp_path / "i", "plate", "-k", 1, "--mode", "bm25").output
    assert _run("query", tmp_path / "i", "plate", "-k", 1, "--ann", *alone).output == first.output
    fused = _run("query", tmp_path / "i", "plate", "-k", 1, "--mode", "fused").output.split()[2]
    assert _run("query", tmp_path / "i", "plate", "-k", 1, "--depth", 1).output.split()[2] == fused
    monkeypatch.setattr(Longest, "fingerprint", "1")
    assert "changed since" in str(_run("query", tmp_path / "i", "plate").exception)
    assert _run("query", tmp_path / "i", "plate", "-k", 1, "--reranker", "other", *alone).output == first.output


def test_wrong_use_is_a_user_error(tmp_path: Path, corpus: Path, index: Path) -> None:
    cases = [
        (("query", tmp_path / "none", "x"), "no index"),
        (("query", index, " "), "empty"),
        (("query", index, "x", "--mode", "dense"), "no vectors"),
        (("query", index, "x", "--model", tmp_path), "--model has no use"),
        (("index", corpus, "--out", tmp_path / "j", "--text-column", "txt"), "no column 'txt'"),
    ]
    for arguments, message in cases:
        error = _run(*arguments).exception
        assert isinstance(error, UserError), arguments
        assert message in str(error)
        assert "\n" not in str(error)


def test_showing_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, sslnlp.search.cli; sys.exit(bool({'torch', 'bm25s', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_bm25_search_never_loads_torch_nor_does_its_measurement(index: Path, tmp_path: Path) -> None:
    queries, qrels = tmp_path / "queries.tsv", tmp_path / "qrels.txt"
    queries.write_text("q\tplate\n")
    qrels.write_text(f"q 0 {Index(index).search('plate')[0].id} 1\n")
    program = (
        "import sys\nfrom sslnlp.cli import run_command\nfrom sslnlp.search.index import Index\n"
        "index, queries, qrels = sys.argv[1:]\n"
        "assert Index(index).search('plate')\n"
        "assert run_command(['search', 'evaluate', index, '--queries', queries, '--qrels', qrels]) == 0\n"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, str(index), str(queries), str(qrels)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
