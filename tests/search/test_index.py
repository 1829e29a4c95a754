"""An index as a whole: what it answers, and that it is never half there."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sslnlp.errors import UserError
from sslnlp.search import loading, segments
from sslnlp.search.changes import delete_documents
from sslnlp.search.defaults import RERANK_WEIGHT
from sslnlp.search.index import Index, build_index


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, make_encoder: Callable[..., Path]) -> Path:
    return make_encoder(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def built(tmp_path: Path, corpus: Path, encoder: Path) -> Path:
    build_index(corpus, tmp_path / "built", model=str(encoder))
    return tmp_path / "built"


def test_facts_and_results_with_the_ids_of_the_file(built: Path, encoder: Path) -> None:
    index = Index(built)
    assert index.facts["documents"] == {"count": 5, "empty": 0}
    assert index.facts["dense"]["model"] == str(encoder.resolve())
    assert index.facts["dense"]["dimension"] == 16
    assert [hit.id for hit in index.search("wings in a slipstream", "bm25")] == ["007", "11"]
    assert [hit.rank for hit in index.search("wings in a slipstream", "bm25")] == [1, 2]
    assert index.search("zzz of the", "bm25") == []


def test_dense_is_the_cosine_and_fused_joins_both(tmp_path: Path, corpus: Path, encoder: Path) -> None:
    build_index(corpus, tmp_path / "i", model=str(encoder), dtype="float32")
    index = Index(tmp_path / "i")
    query = "flat plate"
    vectors = index.encoder.encode([document.content for document in index.documents], "document")
    cosine = (vectors @ index.encoder.encode([query], "query").T)[:, 0]
    dense = index.search(query, "dense", k=5)
    assert [hit.row for hit in dense] == np.argsort(-cosine, kind="stable").tolist()
    assert [hit.score for hit in dense] == pytest.approx(sorted(cosine, reverse=True), abs=1e-5)
    bm25 = index.search(query, "bm25", k=5)
    ranks: dict[str, float] = {}
    scores: dict[str, float] = {}
    for hit in [*bm25, *dense]:
        ranks[hit.id] = ranks.get(hit.id, 0.0) + 1 / (60 + hit.rank)
    for hit in dense:
        scores[hit.id] = 2 * max(hit.score, 0) ** 2
    for hit in bm25:
        scores[hit.id] += hit.score / bm25[0].score
    by_ranks = Index(tmp_path / "i", fusion="ranks").search(query, k=3)
    for found, sums in ((index.search(query, k=3), scores), (by_ranks, ranks)):  # fused is the default with vectors
        assert [(hit.id, hit.score) for hit in found] == [
            (name, pytest.approx(total, abs=1e-5)) for name, total in sorted(sums.items(), key=lambda x: -x[1])[:3]
        ]


def test_an_index_that_is_replaced_is_named(tmp_path: Path, corpus: Path) -> None:
    said: list[str] = []
    build_index(corpus, tmp_path / "i", say=said.append)
    assert said == []
    delete_documents(tmp_path / "i", [Index(tmp_path / "i").documents[0].id])
    build_index(corpus, tmp_path / "i", say=said.append)
    assert said == [f"The index of 4 documents that is at {tmp_path / 'i'} will be replaced, at the end."]


def test_scores_of_single_documents_are_those_of_the_list(tmp_path: Path) -> None:
    """Of documents behind the end of the list, too, and after some are gone."""
    draw = random.Random(0)
    lines = [{"id": f"d{n}", "text": " ".join(draw.choices(["lift", "drag", "wing", "the"], k=6))} for n in range(80)]
    lines.append({"id": "other", "text": "nothing of it"})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_index(tmp_path / "d.jsonl", tmp_path / "i")
    delete_documents(tmp_path / "i", ["d3", "d7", "d50"])
    index = Index(tmp_path / "i")
    for query in ("lift", "drag drag wing", "nothing", "the unknown", ""):
        found = index.bm25.search([query], 1000)[0]
        rows = np.array([row for row in range(81) if row not in (3, 7, 50)])
        expected = np.zeros(81, np.float32)
        expected[found.rows] = found.scores
        np.testing.assert_array_equal(index.bm25.scores(query, rows), expected[rows])
    assert len(index.bm25.scores("lift", rows[:0])) == 0


def test_what_a_list_cut_off_has_its_own_score(
    tmp_path: Path, corpus: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(corpus, tmp_path / "i", model=str(encoder), dtype="float32")
    queries = ["wings flat plate slipstream", "noise", "heat of the plate", "flat"]
    whole = [Index(tmp_path / "i").search(query, k=5) for query in queries]
    monkeypatch.setattr("sslnlp.search.index.DEPTH", 1)  # every list has one document: what is joined, two
    for query, hits in zip(queries, whole, strict=True):
        (best,) = Index(tmp_path / "i").search(query, k=1)
        assert best.score == pytest.approx({hit.id: hit.score for hit in hits}[best.id])


def test_dot_products_are_fused_by_ranks(tmp_path: Path, corpus: Path, make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(tmp_path / "m", similarity_fn_name="dot")
    steps = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([step for step in steps if not step["type"].endswith("Normalize")]))
    build_index(corpus, tmp_path / "i", model=str(folder))
    by_ranks = Index(tmp_path / "i", fusion="ranks").search("flat plate")
    assert Index(tmp_path / "i").search("flat plate") == by_ranks
    with pytest.raises(UserError, match="give dot products no cosines to add up: --fusion ranks"):
        Index(tmp_path / "i", fusion="scores").search("flat plate")
    with pytest.raises(UserError, match=r"unknown fusion 'score'\. Did you mean 'scores'"):
        Index(tmp_path / "i", fusion="score")


def test_an_empty_query_among_many_has_no_results(built: Path) -> None:
    found = Index(built).rank(["plate", " ", "\udcff"], "dense", 2)
    assert [len(ranking.rows) for ranking in found] == [2, 0, 2]


@pytest.mark.parametrize(("query", "mode", "message"), [(" ", None, "empty"), ("a", "bm52", "Did you mean 'bm25'")])
def test_wrong_questions(built: Path, query: str, mode: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Index(built).search(query, mode)


def test_k_below_one_is_refused(built: Path) -> None:
    for ask in (Index(built).search, Index(built).explain):
        with pytest.raises(UserError, match="k must be at least 1, got 0"):
            ask("plate", k=0)


def test_without_vectors_only_bm25(tmp_path: Path, corpus: Path) -> None:
    build_index(corpus, tmp_path / "i")
    index = Index(tmp_path / "i")
    assert index.resolve_mode(None) == "bm25"
    with pytest.raises(UserError, match="no vectors"):
        index.search("plate", "fused")


def test_another_model_is_refused_and_the_same_elsewhere_is_not(
    tmp_path: Path, built: Path, encoder: Path, make_encoder: Callable[..., Path]
) -> None:
    moved = shutil.copytree(encoder, tmp_path / "moved")
    assert Index(built, model=str(moved)).search("plate", "dense", 1) == Index(built).search("plate", "dense", 1)
    other = make_encoder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another model"):
        Index(built, model=str(other)).search("plate", "dense")


def test_any_damaged_file_is_found(built: Path) -> None:
    files = Index(built).facts["files"]
    assert {"vectors.npy", "documents.jsonl", "ids.json", "offsets.npy"} <= {Path(name).name for name in files}
    for name in files:
        path = built / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=r"broken.*checksum"):
            Index(built)
        path.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=r"broken.*bytes instead of"):
            Index(built, verify=False)
        path.write_bytes(whole)
    next(built.glob("*/ids.json")).unlink()
    with pytest.raises(UserError, match=r"ids.json is missing"):
        Index(built)


def test_a_changed_or_cut_manifest_is_found(built: Path) -> None:
    manifest = built / "index.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"english"', '"german"'))
    with pytest.raises(UserError, match="was changed"):
        Index(built)
    manifest.write_text(whole[:100])
    with pytest.raises(UserError, match="damaged"):
        Index(built)


def test_vectors_of_another_shape_are_refused(built: Path) -> None:
    index = Index(built)
    np.save(next(built.glob("*/vectors.npy")), np.zeros((5, 8), np.float16))
    with pytest.raises(UserError, match="mixes dimensions"):
        index.search("plate", "dense")


def test_no_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sslnlp search index DATA"):
        Index(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_rebuild_leaves_the_old_index_and_its_own_work(
    monkeypatch: pytest.MonkeyPatch, built: Path, corpus: Path, error: BaseException
) -> None:
    before = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}

    def fail(*args: object) -> None:
        raise error

    expected, message = (UserError, "No space left.*goes on") if isinstance(error, OSError) else (type(error), None)
    with monkeypatch.context() as broken:
        broken.setattr(segments, "write_table", fail)
        with pytest.raises(expected, match=message):
            build_index(corpus, built)
    assert {path: path.read_bytes() for path in before} == before
    assert len(Index(built).search("plate", "bm25")) == 3
    said: list[str] = []
    build_index(corpus, built, say=said.append)
    assert said == [
        f"The index of 5 documents that is at {built} will be replaced, at the end.",
        "Going on where a run was interrupted: 5 documents read and counted.",
    ]
    assert Index(built).modes == ("bm25",)


def test_a_failed_first_build_leaves_nothing(tmp_path: Path, corpus: Path) -> None:
    with open(corpus / "corpus.jsonl", "a") as file:
        file.write(json.dumps({"_id": "007", "text": "again"}) + "\n")
    with pytest.raises(UserError, match="'007'"):
        build_index(corpus, tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match="is no index"):
        build_index(corpus, corpus)
    with pytest.raises(UserError, match="is a file"):
        build_index(corpus, corpus / "corpus.jsonl")
    with pytest.raises(UserError, match="vector type"):
        build_index(corpus, tmp_path / "i", dtype="int8")


class WordCount:
    """A reranker whose score is arithmetic: how often the query's words stand in the text."""

    name, fingerprint = "counts", "0"

    def score(self, query: str, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        return np.array([sum(t.lower().split().count(w) for w in query.split()) for t in texts], np.float32)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> WordCount:
    reranker = WordCount()
    monkeypatch.setattr(loading, "load_reranker", lambda name: reranker)
    return reranker


def test_reranked_orders_the_head_of_the_fused_list_and_keeps_the_rest(built: Path, counts: WordCount) -> None:
    index = Index(built, reranker="any", depth=3, rerank_weight=1)
    assert index.modes == ("bm25", "dense", "fused", "reranked")
    fused, reranked = index.search("noise plate", "fused", 5), index.search("noise plate", k=5)
    wanted = counts.score("noise plate", [index.documents[hit.row].content for hit in fused[:3]])
    order = np.argsort(-wanted, kind="stable")
    assert [hit.id for hit in reranked] == [*(fused[at].id for at in order), fused[3].id, fused[4].id]
    assert [hit.score for hit in reranked[:3]] == wanted[order].tolist()
    assert [hit.score for hit in reranked[3:]] == [wanted.min() - 1, wanted.min() - 2]
    assert [len(found.rows) for found in index.rank(["noise", " "], "reranked", 2)] == [2, 0]


def test_the_first_stage_keeps_its_share_of_the_say(built: Path, counts: WordCount) -> None:
    query = "flat plate and noise"
    first = Index(built).search(query, "fused", 5)
    new = counts.score(query, [Index(built).documents[hit.row].content for hit in first[:4]])
    old = np.array([hit.score for hit in first[:4]])
    assert np.ptp(new)
    for weight in (0.0, 0.3, RERANK_WEIGHT):
        sums = weight * (new - new.min()) / np.ptp(new) + (1 - weight) * (old - old.min()) / np.ptp(old)
        found = Index(built, reranker="any", depth=4, rerank_weight=weight).search(query, k=5)
        order = np.argsort(-sums, kind="stable")
        assert [hit.id for hit in found[:4]] == [first[at].id for at in order]
        assert [hit.score for hit in found[:4]] == pytest.approx(sums[order].tolist())
        assert found[4] == (5, first[4].row, first[4].id, -1)
    for wrong in (-0.1, 1.5):
        with pytest.raises(UserError, match="share from 0 to 1"):
            Index(built, reranker="any", rerank_weight=wrong)


def test_explain_names_the_place_in_every_part(built: Path, counts: WordCount) -> None:
    index = Index(built, reranker="any", depth=2)
    explained = index.explain("noise plate", k=4)
    assert [found.hit for found in explained] == index.search("noise plate", k=4)
    for mode in index.modes:
        ranks = {hit.id: (hit.rank, hit.score) for hit in index.search("noise plate", mode, 5)}
        assert [found.places[mode] for found in explained] == [ranks.get(found.hit.id) for found in explained]
    assert [found.places["bm25"] for found in explained].count(None) == 4 - len(
        {found.hit.id for found in explained} & {hit.id for hit in index.search("noise plate", "bm25", 5)}
    )
    plain = index.explain("noise plate", 2, "bm25")
    assert [(found.places["dense"], found.places["reranked"]) for found in plain] == [(None, None)] * 2


def test_without_a_reranker_no_reranking(built: Path) -> None:
    with pytest.raises(UserError, match="--reranker"):
        Index(built).search("plate", "reranked")
    with pytest.raises(UserError, match="depth must be at least 1"):
        Index(built, reranker="any", depth=0)
