"""kill -9 at any point: the index opens with what was committed, and the same command goes on from what was done."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sslnlp.errors import UserError
from sslnlp.search import changes, dense, loading
from sslnlp.search.index import Index, add_documents, build_index, delete_documents
from tests.search.counting import Letters

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 4  # texts encoded and flushed at once
FIRST = {f"a{n}": f"bead {'cafe ' * n}" for n in range(10)}
MORE = {f"b{n}": f"edge {'feed ' * n}" for n in range(11)}

# Runs a change in which one function, or the encoder's third block, says that it was reached and then waits.
CHILD = """
import importlib, sys, time
from sslnlp.search import ann, changes, dense, loading, resume
from tests.search.counting import Letters

kind, index, data, point = sys.argv[1:]

def wait(*arguments, **options):
    print("reached", flush=True)
    time.sleep(600)

class Slow(Letters):
    def encode(self, texts, *arguments, **options):
        if point == "third block" and len(self.encoded) == 2 * {block}:
            wait()
        return super().encode(texts, *arguments, **options)

if point == "second save":
    ann._BLOCK = ann._SAVE = {block}
    finish = resume.Work.finish
    resume.Work.finish = lambda work, stage, facts, **options: (
        wait() if stage == "ann" and facts == 2 * {block} else finish(work, stage, facts, **options)
    )
changes.load_encoder = loading.load_encoder = lambda name: Slow()
dense._ENCODE_BLOCK = {block}
if "." in point:
    module, name = point.rsplit(".", 1)
    setattr(importlib.import_module("sslnlp.search." + module), name, wait)
if kind == "index":
    changes.build_index(data, index, model="letters")
else:
    changes.add_documents(index, data)
""".replace("{block}", str(BLOCK))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    encoder = Letters()
    for module in (changes, loading):
        monkeypatch.setattr(module, "load_encoder", lambda name: encoder)
    monkeypatch.setattr(dense, "_ENCODE_BLOCK", BLOCK)
    return encoder


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """start(kind, index, data, point) -> a process that has reached the point and waits there."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", CHILD, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"reached\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def _write(path: Path, documents: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in documents.items()))
    return path


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


POINTS = {  # where it is killed -> texts that are encoded when it goes on
    "sources.write_documents": 11,
    "segments.write_postings": 11,
    "third block": 3,
    "segments._write_graph": 0,
    "second save": 0,
}


@pytest.mark.parametrize("point", POINTS)
def test_adding_goes_on_where_it_was_killed(
    tmp_path: Path, letters: Letters, start: Callable[..., subprocess.Popen[bytes]], point: str
) -> None:
    first, more = _write(tmp_path / "first.jsonl", FIRST), _write(tmp_path / "more.jsonl", MORE)
    ann = point in ("segments._write_graph", "second save")
    build_index(first, tmp_path / "straight", model="letters", ann=ann)
    build_index(first, tmp_path / "killed", model="letters", ann=ann)
    before = Index(tmp_path / "killed").search("cafe", k=20)
    add_documents(tmp_path / "straight", more)
    _kill(start("add", tmp_path / "killed", more, point))
    assert Index(tmp_path / "killed").search("cafe", k=20) == before  # opens, and holds what was committed
    letters.encoded.clear()
    said: list[str] = []
    add_documents(tmp_path / "killed", more, say=said.append)
    assert len(letters.encoded) == POINTS[point]
    assert ["interrupted" in line for line in said] == [True] * (point != "sources.write_documents")
    if point == "third block":
        assert said == ["Going on where a run was interrupted: 11 documents read and counted, 8 encoded."]
    if point == "second save":
        assert said == ["Going on where a run was interrupted: 11 documents read and counted, 11 encoded, 4 linked."]
    if not ann:  # a graph depends on how its threads took turns; all else is the same byte by byte
        assert _files(tmp_path / "killed") == _files(tmp_path / "straight")
    killed, straight = (Index(tmp_path / name, ann=ann).search("a feed", k=20) for name in ("killed", "straight"))
    assert killed == straight


def test_a_first_indexing_goes_on_where_it_was_killed(
    tmp_path: Path, letters: Letters, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    more = _write(tmp_path / "more.jsonl", MORE)
    build_index(more, tmp_path / "straight", model="letters")
    _kill(start("index", tmp_path / "killed", more, "segments.write_table"))
    with pytest.raises(UserError, match="no index"):
        Index(tmp_path / "killed")
    letters.encoded.clear()
    build_index(more, tmp_path / "killed", model="letters")
    assert letters.encoded == []
    assert _files(tmp_path / "killed") == _files(tmp_path / "straight")


def test_deleting_that_was_stopped_is_done_by_the_same_command(
    tmp_path: Path, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _write(tmp_path / "first.jsonl", FIRST)
    for name in ("straight", "stopped"):
        build_index(first, tmp_path / name, model="letters")
    before = _files(tmp_path / "stopped")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr("sslnlp.search.segments.write_table", full)
        with pytest.raises(UserError, match="failed: no room"):
            delete_documents(tmp_path / "stopped", ["a1", "a2"])
    left = _files(tmp_path / "stopped")
    assert left.items() > before.items()  # as a killed one leaves it
    for name in ("straight", "stopped"):
        delete_documents(tmp_path / name, ["a1", "a2"])
    assert _files(tmp_path / "stopped") == _files(tmp_path / "straight")


def test_killed_right_after_the_commit_the_new_index_is_there(
    tmp_path: Path, letters: Letters, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    build_index(_write(tmp_path / "first.jsonl", FIRST), tmp_path / "i", model="letters")
    _kill(start("add", tmp_path / "i", _write(tmp_path / "more.jsonl", MORE), "manifest.drop_others"))
    assert len(Index(tmp_path / "i").documents) == 21
    delete_documents(tmp_path / "i", ["a0"])  # the next change tidies up
    names = {*Index(tmp_path / "i").facts["files"], "index.json"}
    assert set(_files(tmp_path / "i")) == names


def test_work_for_other_data_or_another_model_starts_over_and_says_so(
    tmp_path: Path, letters: Letters, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    more = _write(tmp_path / "more.jsonl", MORE)
    for change in ("data", "model"):
        _kill(start("index", tmp_path / change, more, "third block"))
        if change == "data":
            _write(more, MORE | {"b10": "changed"})
        letters.fingerprint = "1" if change == "model" else "0"
        letters.encoded.clear()
        said: list[str] = []
        build_index(more, tmp_path / change, model="letters", say=said.append)
        assert len(letters.encoded) == 11
        assert len(said) == 1
        assert "dropped" in said[0]
        assert len(list((tmp_path / change).glob("segment-*"))) == 1


def test_two_writers_are_one_too_many_until_the_first_is_dead(
    tmp_path: Path, letters: Letters, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    build_index(_write(tmp_path / "first.jsonl", FIRST), tmp_path / "i", model="letters")
    more = _write(tmp_path / "more.jsonl", MORE)
    writer = start("add", tmp_path / "i", more, "third block")
    before = _files(tmp_path / "i")
    for change in (lambda: add_documents(tmp_path / "i", more), lambda: delete_documents(tmp_path / "i", ["a1"])):
        with pytest.raises(UserError, match=rf"another process \({writer.pid}\) is writing"):
            change()
    assert _files(tmp_path / "i") == before
    assert Index(tmp_path / "i").search("cafe", "bm25")  # reading goes on
    _kill(writer)
    assert add_documents(tmp_path / "i", more).documents == 11
