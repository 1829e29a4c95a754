"""An index that grows and shrinks ranks as one built from what is left; wrong changes are one line and no change."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from sslnlp.errors import UserError
from sslnlp.search import ann, changes, loading, manifest
from sslnlp.search.index import Index, add_documents, build_index, delete_documents
from sslnlp.search.segments import first_to_join
from tests.search.counting import Letters

WORDS = ["abacus", "beech", "cabbage", "dough", "edge", "feed", "glade", "hedge", "the", "cafe", "bead"]
QUERIES = ["beech feed", "hedge", "the cafe bead", "glade glade abacus edge"]


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Letters:
    encoder = Letters()
    for module in (changes, loading):
        monkeypatch.setattr(module, "load_encoder", lambda name: encoder)
    return encoder


def _write(path: Path, documents: Mapping[str, str]) -> Path:
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in documents.items()))
    return path


def _texts(draw: random.Random, names: list[str]) -> dict[str, str]:
    return {name: " ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for name in names}


def _found(path: Path, mode: str, **options: bool) -> list[list[tuple[str, float]]]:
    index = Index(path, **options)
    rankings = index.rank(QUERIES, mode, 50)
    return [[(hit.id, pytest.approx(hit.score, rel=1e-6)) for hit in index.hits(found)] for found in rankings]


@pytest.mark.parametrize("seed", range(4))
def test_after_any_changes_an_index_ranks_as_one_built_from_what_is_left(
    tmp_path: Path, letters: Letters, seed: int
) -> None:
    draw = random.Random(seed)
    left = _texts(draw, [f"d{n}" for n in range(80)])
    build_index(_write(tmp_path / "0.jsonl", left), tmp_path / "i", model="letters")
    most = 0
    for step in range(1, 9):
        if draw.random() < 0.5:
            gone = draw.sample(sorted(left), draw.randint(1, len(left) // 6))
            assert delete_documents(tmp_path / "i", gone) == len(gone)
            left = {name: text for name, text in left.items() if name not in gone}
        else:
            new = _texts(draw, [f"s{step}-{n}" for n in range(draw.randint(1, 8))])
            new |= _texts(draw, draw.sample(sorted(left), 2))  # two that are there already
            assert add_documents(tmp_path / "i", _write(tmp_path / "n.jsonl", new), replace=True).replaced == 2
            left = {name: text for name, text in left.items() if name not in new} | new
        index = Index(tmp_path / "i")
        most = max(most, len(index.facts["segments"]))
        assert len(index.documents) == index.facts["documents"]["count"] == len(left)
        assert {document.id: document.text for document in index.documents} == left
    assert most > 1  # there were several segments to rank over
    build_index(_write(tmp_path / "left.jsonl", left), tmp_path / "scratch", model="letters")
    for mode in ("bm25", "dense", "fused"):
        assert _found(tmp_path / "scratch", mode) == _found(tmp_path / "i", mode), mode


def test_only_what_is_new_is_encoded(tmp_path: Path, letters: Letters) -> None:
    build_index(_write(tmp_path / "a.jsonl", {"1": "bead", "2": "cafe", "3": "edge"}), tmp_path / "i", model="letters")
    letters.encoded.clear()
    add_documents(tmp_path / "i", _write(tmp_path / "b.jsonl", {"4": "feed"}))
    delete_documents(tmp_path / "i", ["1", "2"])  # most of the first segment: joined with the second
    assert letters.encoded == ["feed"]
    assert [segment["documents"] for segment in Index(tmp_path / "i").facts["segments"]] == [2]
    assert sum(path.is_dir() for path in (tmp_path / "i").iterdir()) == 2


def test_segments_are_joined_when_small_or_mostly_deleted() -> None:
    assert first_to_join([200, 40, 10], [200, 40, 10]) is None
    assert first_to_join([200, 40, 20], [200, 40, 20]) == 1
    assert first_to_join([200, 40, 9], [200, 19, 9]) == 1
    assert first_to_join([200, 40, 4], [99, 40, 4]) == 0
    assert first_to_join([5], [5]) is None
    sizes: list[int] = []
    longest = 0
    for _ in range(3000):  # one document at a time
        sizes.append(1)
        if (first := first_to_join(sizes, sizes)) is not None:
            sizes[first:] = [sum(sizes[first:])]
        longest = max(longest, len(sizes))
    assert sum(sizes) == 3000
    assert longest <= 12


@pytest.fixture
def small(tmp_path: Path, letters: Letters) -> Path:
    build_index(_write(tmp_path / "a.jsonl", {"1": "bead", "2": "cafe", "3": "edge"}), tmp_path / "i", model="letters")
    return tmp_path / "i"


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_refused_change_is_one_line_and_no_change(
    tmp_path: Path, small: Path, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = _write(tmp_path / "more.jsonl", {"2": "x", "9": "y", "3": "z"})
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "7", "text": "a"}\n{"id": "7", "text": "b"}\n')
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: add_documents(small, more), r"2 of 3 ids are in the index already, '2' among them: --replace"),
        (lambda: add_documents(small, twice), "two documents have the id '7'"),
        (lambda: add_documents(small, _write(tmp_path / "empty.jsonl", {"8": ""})), "all without text"),
        (lambda: add_documents(tmp_path / "none", more), "no index"),
        (lambda: add_documents(tmp_path, more), "no index"),
        (lambda: delete_documents(small, ["1", "nine", "ten"]), r"2 of 3 ids are not in the index, 'nine' among them"),
        (lambda: delete_documents(small, []), "at least one"),
        (lambda: delete_documents(small, ["1", "2", "3"]), "no document would be left"),
        (lambda: delete_documents(tmp_path / "none", ["1"]), "no index"),
        (lambda: build_index(more, tmp_path / "j", ann=True), "give --model with --ann"),
    ]
    before = _files(tmp_path)
    for change, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            change()
        assert "\n" not in str(raised.value)
        (tmp_path / "empty.jsonl").unlink(missing_ok=True)
        assert _files(tmp_path) == before
    letters.fingerprint = "1"
    with pytest.raises(UserError, match="another model"):
        add_documents(small, more, replace=True)
    assert _files(tmp_path) == before


def test_what_would_leave_no_word_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    build_index(_write(tmp_path / "a.jsonl", {"1": "bead", "2": "the", "3": "of", "4": "!"}), tmp_path / "i")
    wordless = _write(tmp_path / "more.jsonl", {"1": "and"})
    before = _files(tmp_path)
    for change in (
        lambda: delete_documents(tmp_path / "i", ["1"]),
        lambda: delete_documents(tmp_path / "i", ["1", "3", "4"]),  # its segment is made anew
        lambda: add_documents(tmp_path / "i", wordless, replace=True),
    ):
        with pytest.raises(UserError, match="what would be left holds no searchable word: the index is as it was"):
            change()
        assert _files(tmp_path) == before
    with pytest.raises(UserError, match="no document holds a searchable word"):
        build_index(wordless, tmp_path / "j")
    assert not (tmp_path / "j").exists()


def test_vectors_of_two_dimensions_are_refused(tmp_path: Path, small: Path) -> None:
    add_documents(small, _write(tmp_path / "b.jsonl", {"9": "feed"}))
    assert len(Index(small).facts["segments"]) == 2
    index = Index(small)
    np.save(sorted(small.glob("*/vectors.npy"))[0], np.zeros((1, 4), np.float16))
    with pytest.raises(UserError, match="mixes dimensions"):
        index.search("bead", "dense")


def test_an_index_without_vectors_takes_no_model(tmp_path: Path) -> None:
    build_index(_write(tmp_path / "a.jsonl", {"1": "bead"}), tmp_path / "i")
    with pytest.raises(UserError, match="no vectors"):
        add_documents(tmp_path / "i", _write(tmp_path / "b.jsonl", {"2": "cafe"}), model="letters")
    assert add_documents(tmp_path / "i", tmp_path / "b.jsonl") == (1, 0, 0, {})


def test_rows_the_graph_cannot_reach_are_found_when_all_are_asked_for(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors_ND)
    ann.write_ann(tmp_path / ann.NAME, vectors_ND[:50])  # as good as unlinked: a large enough graph may hold such rows
    near = ann.AnnIndex([tmp_path / "vectors.npy"], deleted=[3, 55])
    (found,) = near.search(vectors_ND[:1].astype(np.float32), 1000)
    assert sorted(found.rows.tolist()) == [n for n in range(60) if n not in (3, 55)]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_the_graph_finds_what_the_exact_search_finds(tmp_path: Path, letters: Letters) -> None:
    draw = random.Random(0)
    texts = {f"d{n}": "".join(draw.choices("abcdefgh", k=30)) for n in range(400)}
    build_index(_write(tmp_path / "a.jsonl", texts), tmp_path / "i", model="letters", ann=True)
    add_documents(tmp_path / "i", _write(tmp_path / "b.jsonl", {"new": "a" * 30, "newer": "b" * 30}))
    gone = draw.sample(sorted(texts), 150)
    delete_documents(tmp_path / "i", gone)
    exact, near = Index(tmp_path / "i"), Index(tmp_path / "i", ann=True)
    assert len(exact.facts["segments"]) == 2
    queries = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(20)]
    shared = 0
    for wanted, found in zip(exact.rank(queries, "dense", 10), near.rank(queries, "dense", 10), strict=True):
        assert not set(gone) & {hit.id for hit in near.hits(found)}
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        scores = dict(zip(wanted.rows.tolist(), wanted.scores.tolist(), strict=True))
        assert all(scores.get(row, score) == score for row, score in zip(*map(np.ndarray.tolist, found), strict=True))
        shared += sum(found.scores >= wanted.scores[-1])  # among equals, any will do
    assert shared >= 190
    assert near.search("aaaa", "dense", 1)[0].id == "new"
    assert len(near.search("a", "dense", 1000)) == len(exact.documents) == 252
    assert {row for row, _ in enumerate(near.rank(["a"], "fused", 5)[0].rows)} == set(range(5))


def test_a_reader_whom_a_writer_overtakes_opens_the_new_index(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checksum, data = manifest.sha256_of, _write(tmp_path / "b.jsonl", {"9": "feed"})

    def overtaken(path: Path) -> str:
        monkeypatch.setattr(manifest, "sha256_of", checksum)
        add_documents(small, data)
        return "what was there before"

    monkeypatch.setattr(manifest, "sha256_of", overtaken)
    assert len(Index(small).documents) == 4


def test_a_graph_there_is_not_or_no_library_for_is_said(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="index again with --ann"):
        Index(small, ann=True)
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(UserError, match=r"pip install 'sslnlp\[search\]'"):
        ann.require_ann()
