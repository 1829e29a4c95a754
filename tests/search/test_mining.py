"""What becomes a negative and what does not, on corpora where the answer is known by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from sslnlp.data import DataConfig
from sslnlp.data.hashes import hash_same
from sslnlp.data.paired import paired
from sslnlp.errors import UserError
from sslnlp.search import mining
from sslnlp.search.changes import build_index
from sslnlp.search.cli import search_app
from sslnlp.search.encoder import Encoder
from sslnlp.search.mining import Mined, mine
from sslnlp.search.negatives import Mining
from tests.search.conftest import DOCUMENTS

# Each has one "zebra" for the query, and the longer it is the lower BM25 puts it.
ZEBRAS = [f"zebra {' '.join(f'word{n}x{i}' for i in range(2 + 3 * n))}" for n in range(6)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_of(texts: Sequence[str], queries: Sequence[str] = ()) -> list[dict[str, str]]:
    """Query number n asks for text number n."""
    return [
        {"query": queries[n] if n < len(queries) else f"nothing{n}", "positive": text} for n, text in enumerate(texts)
    ]


@pytest.fixture
def negatives(tmp_path: Path) -> Callable[..., tuple[list[str], Mined]]:
    """negatives(rows, negatives=2, ...) -> those of the first row, and what `mine` counted over all rows."""

    def run(rows: Sequence[dict[str, Any]], **given: Any) -> tuple[list[str], Mined]:
        names = set(Mining.__dataclass_fields__)
        options = Mining(**{"margin": 0.0, "negatives": 2} | {name: given.pop(name) for name in names & set(given)})
        mined = mine(write(tmp_path / "pairs.jsonl", rows), tmp_path / "out.jsonl", options=options, **given)
        assert sorted(path.name for path in tmp_path.glob("*out.jsonl*")) == ["out.jsonl"]
        first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
        assert (first["query"], first["positive"]) == (rows[0]["query"], rows[0]["positive"])
        return first["negatives"], mined

    return run


def test_the_best_ranked_that_are_not_the_positive(negatives: Callable[..., Any]) -> None:
    found, mined = negatives(pairs_of(ZEBRAS, ["zebra"]))
    assert found == ZEBRAS[1:3]
    assert (mined.pairs, mined.written, mined.documents) == (6, 6, 6)
    found, _ = negatives(pairs_of(ZEBRAS, ["zebra"]), skip_top=2)
    assert found == ZEBRAS[3:5]


def test_what_any_pair_calls_relevant_to_the_query_is_left_out(negatives: Callable[..., Any]) -> None:
    rows = pairs_of(ZEBRAS, ["zebra", " ZEBRA"])  # the query once more, otherwise written, with the second text
    rows.append({"query": "Zebra", "positive": ZEBRAS[2].upper() + "\n"})  # and with the third, otherwise written
    found, mined = negatives(rows)
    assert found == ZEBRAS[3:5]
    assert mined.documents == 6
    # Three for each of the three; the other queries find nothing by BM25.
    assert mined.counts["relevant"] == 9


def test_the_query_itself_and_near_copies_of_the_positive_are_left_out(negatives: Callable[..., Any]) -> None:
    words = [f"stripe{n}" for n in range(19)]
    positive = " ".join(["zebra", *words])
    near, far = " ".join(["zebra", *words[:-1], "other"]), " ".join(["zebra", *words[:-2], "some", "others"])
    # 19 of 21 terms are common (0.905), and 18 of 22 (0.82).
    texts = [positive, near, far, "zebra", ZEBRAS[5]]
    found, mined = negatives(pairs_of(texts, ["zebra"]))
    assert set(found) == {far, ZEBRAS[5]}
    assert (mined.counts["copies"], mined.counts["relevant"]) == (1, 2)


def test_what_scores_like_the_positive_is_left_out(negatives: Callable[..., Any]) -> None:
    """The positive comes third: two score above it, and with the margin those just below it go too."""
    rows = pairs_of([ZEBRAS[2], *ZEBRAS[:2], *ZEBRAS[3:]], ["zebra"])
    assert negatives(rows)[0] == ZEBRAS[:2]
    found, mined = negatives(rows, margin=1.0)
    assert found == ZEBRAS[3:5]
    assert mined.counts["margin"] == 2
    # Lucene's tf part is 1 / (1 + norm), norm = 1.5 (0.25 + 0.75 length / mean); of the positive (9 words; 10.5 is
    # the mean) 1 / 2.339; of 12 words 1 / 2.661, which is 0.879 of it, and of 15 words 1 / 2.982, 0.784.
    assert negatives(rows, margin=0.9, negatives=1)[0] == [ZEBRAS[3]]
    found, mined = negatives(rows, margin=0.85, negatives=1)
    assert found == [ZEBRAS[4]]
    assert mined.counts["margin"] == 3


def test_where_the_ranking_ends_before_the_positive_all_of_it_scores_higher(negatives: Callable[..., Any]) -> None:
    rows = pairs_of(["a horse", *ZEBRAS], ["zebra"])
    found, mined = negatives(rows, margin=0.5)
    assert mined.counts["margin"] == 6
    assert mined.counts["filled"] == 2 * 7
    assert len(set(found)) == 2  # drawn at random, which no margin judges
    assert set(found) <= set(ZEBRAS)


def test_pairs_are_filled_up_by_draws_or_left_out(negatives: Callable[..., Any]) -> None:
    rows = pairs_of(["a horse", "a cow", "a goat", "a pig"])
    rows.append({"query": "nothing0", "positive": "a cow"})
    found, mined = negatives(rows)
    assert sorted(found) == ["a goat", "a pig"]
    assert (mined.pairs, mined.written, mined.counts["filled"]) == (5, 5, 10)
    rows.append({"query": "nothing1", "positive": "a goat"})
    rows.append({"query": "nothing1", "positive": "a pig"})  # to this query only the horse is irrelevant
    _, mined = negatives(rows)
    assert (mined.pairs, mined.written) == (7, 4)


def test_draws_are_from_the_whole_ranking_by_seed_and_pair(negatives: Callable[..., Any], tmp_path: Path) -> None:
    rows = pairs_of([f"zebra {n}x" for n in range(40)], ["zebra", "zebra unheard"])
    drawn = [negatives(rows, negatives=5, depth=30, sample=True, seed=seed)[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0] + drawn[2]) <= {f"zebra {n}x" for n in range(1, 30)}  # 30 deep, equal scores in their order
    assert len(set(drawn[0])) == 5
    # The two queries rank alike, but for their own texts: the same draw would give nearly the same texts.
    first, second = (
        set(json.loads(line)["negatives"]) for line in (tmp_path / "out.jsonl").read_text().splitlines()[:2]
    )
    assert len(first & second) < 4


def test_a_corpus_gives_the_negatives_and_scores_the_positives(negatives: Callable[..., Any], tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", [{"id": n, "body": text} for n, text in enumerate([*ZEBRAS[1:], ""])])
    found, mined = negatives(pairs_of([ZEBRAS[0], "zebra z"], ["zebra"]), corpus=corpus, negatives=3)
    assert found == ZEBRAS[1:4]  # never the second pair's positive
    assert mined.documents == 5


def test_a_title_in_the_corpus_makes_no_other_document_of_a_positive(
    negatives: Callable[..., Any], tmp_path: Path
) -> None:
    titled = [{"id": n, "title": f"zebra title{n}a title{n}b", "text": text} for n, text in enumerate(ZEBRAS)]
    corpus = write(tmp_path / "corpus.jsonl", titled)
    found, mined = negatives(pairs_of(ZEBRAS[:2], ["zebra", "Zebra "]), corpus=corpus, negatives=2)
    assert found == [f"{row['title']} {row['text']}" for row in titled[2:4]]  # neither pair's positive
    assert (mined.documents, mined.counts["relevant"]) == (6, 4)


def test_dense_and_fused_search_by_vectors_and_judge_by_cosine(
    negatives: Callable[..., Any], tmp_path: Path, make_encoder: Callable[..., Path]
) -> None:
    model = str(make_encoder(tmp_path / "m"))
    texts = [row["text"] for row in DOCUMENTS]
    query = "hot plate heat"
    encoder = Encoder.load(model)
    cosines = encoder.encode(texts, "document") @ encoder.encode([query], "query")[0]
    order = np.argsort(-cosines)
    positive = int(order[2])
    rows = pairs_of([texts[positive], *(text for text in texts if text != texts[positive])], [query])
    for bm25 in (False, True):
        found, _ = negatives(rows, model=model, bm25=bm25, margin=1.0)
        assert set(found) == {texts[n] for n in order[3:]}
    assert negatives(rows, model=model, bm25=False)[0] == [texts[n] for n in order[:2]]


class Judge:
    """Scores a text by a table; the query must come along."""

    name = "judge"

    def __init__(self, table: dict[str, float]) -> None:
        self.table, self.batches = table, 0

    def score(self, query: str, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        self.batches += 1
        return np.array([self.table.get(text, -9.0) if query == "zebra" else 0.0 for text in texts], np.float32)


def test_a_reranker_judges_and_teaches(
    negatives: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # exp(score - 3) against a margin of 0.5: 2.5 is 0.61 of the positive's odds, and goes; 2 is 0.37, and stays.
    judge = Judge({ZEBRAS[0]: 3.0, ZEBRAS[1]: 2.5, ZEBRAS[2]: 2.0, ZEBRAS[3]: 4.0, ZEBRAS[4]: -1.0})
    monkeypatch.setattr(mining, "load_reranker", lambda name: judge)
    found, mined = negatives(pairs_of(ZEBRAS, ["zebra"])[:5], reranker="judge", margin=0.5)
    assert found == [ZEBRAS[2], ZEBRAS[4]]
    assert mined.counts["margin"] == 2
    rows = paired(DataConfig(train=str(tmp_path / "out.jsonl"), valid_fraction=0), cache_dir=tmp_path / "c").train
    assert rows[0] == {
        "query": "zebra", "positive": ZEBRAS[0], "negative": [ZEBRAS[2], ZEBRAS[4]], "scores": [3.0, 2.0, -1.0]
    }  # fmt: skip
    judge.table[ZEBRAS[0]] = float("nan")
    with pytest.raises(UserError, match="judge gives scores that are not finite"):
        negatives(pairs_of(ZEBRAS, ["zebra"]), reranker="judge")


@pytest.mark.parametrize("how", ["bm25", "fused"])
def test_the_file_is_the_same_whatever_is_in_memory_at_once(
    how: str, tmp_path: Path, make_encoder: Callable[..., Path]
) -> None:
    rows = pairs_of([*ZEBRAS, *(row["text"] for row in DOCUMENTS)], ["zebra", "zebra word2x1", "a plate", "the"])
    pairs = write(tmp_path / "pairs.jsonl", rows)
    model = str(make_encoder(tmp_path / "m")) if how == "fused" else None
    files = []
    for block in (1, 4, 256):
        mine(pairs, tmp_path / "o.jsonl", model=model, block=block, options=Mining(negatives=4, sample=True))
        files.append((tmp_path / "o.jsonl").read_bytes())
    assert files[0] == files[1] == files[2]


def test_under_a_limit_some_pairs_have_the_negatives_that_they_have_without(tmp_path: Path) -> None:
    rows = pairs_of([*ZEBRAS, *(row["text"] for row in DOCUMENTS)], ["zebra", "zebra word2x1", "a plate", "the"])
    pairs, options = write(tmp_path / "pairs.jsonl", rows), Mining(negatives=2, sample=True, margin=0.0)
    counted = mine(pairs, tmp_path / "all.jsonl", options=options)
    whole = (tmp_path / "all.jsonl").read_text().splitlines()
    some = mine(pairs, tmp_path / "some.jsonl", options=options, limit=4)
    found = (tmp_path / "some.jsonl").read_text().splitlines()
    assert (some.asked, some.written, some.pairs, some.documents) == (4, 4, len(rows), counted.documents)
    assert found == [line for line in whole if line in found]  # in the order of the pairs
    first = sorted(hash_same([row["query"] for row in rows]).tolist())[:4]
    assert sorted(hash_same([json.loads(line)["query"] for line in found]).tolist()) == first
    # What training holds out of all pairs is among them, and so it is held out of these.
    parts = [
        paired(DataConfig(train=str(path), valid_fraction=0.5, valid_rows=3), cache_dir=tmp_path / "c").valid
        for path in (pairs, tmp_path / "some.jsonl")
    ]
    assert all(part is not None and len(part) == 3 for part in parts)
    assert [[row["query"] for row in part.rows(range(3))] for part in parts if part] == [
        [row["query"] for row in rows if hash_same([row["query"]])[0] in first[:3]]
    ] * 2


def test_under_a_corpus_limit_negatives_come_from_so_many_documents(tmp_path: Path) -> None:
    rows = pairs_of([*ZEBRAS, *(row["text"] for row in DOCUMENTS)], ["zebra", "zebra word2x1", "a plate", "the"])
    pairs, out = write(tmp_path / "pairs.jsonl", rows), tmp_path / "out.jsonl"
    texts = [f"{text} zebra" for text in ZEBRAS] + [f"plain {n}" for n in range(40)]
    corpus = write(tmp_path / "corpus.jsonl", [{"text": text} for text in [*texts, *texts]])
    options = Mining(negatives=2, margin=0.0)

    def first(some: Sequence[str], number: int) -> set[str]:
        return {text for _, text in sorted(zip(hash_same(some).tolist(), some, strict=True))[:number]}

    mined = mine(pairs, out, options=options, corpus=corpus, corpus_limit=9)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert (mined.documents, len(found)) == (9, len(rows))
    assert {text for row in found for text in row["negatives"]} <= first(texts, 9)
    # Without a corpus the positives of the pairs that get some are there in any case.
    mined = mine(pairs, out, options=options, limit=3, corpus_limit=4)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    there = first([row["positive"] for row in rows], 4) | {row["positive"] for row in found}
    assert mined.documents == len(there)
    assert {text for row in found for text in row["negatives"]} <= there
    assert mine(pairs, out, options=options, corpus_limit=900).documents == len(rows)


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    return CliRunner().invoke(search_app, ["mine", *map(str, arguments)], env={"COLUMNS": "120"})


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    rows = [{"ask": row["query"], "said": row["positive"], "text": "x"} for row in pairs_of(ZEBRAS, ["zebra"])]
    pairs = write(tmp_path / "pairs.jsonl", [*rows, rows[0]])
    columns = ("--query-column", "ask", "--positive-column", "said")
    result = command(pairs, "--out", tmp_path / "new" / "mined.jsonl", "--negatives", 2, "--margin", 0, *columns)
    assert result.exit_code == 0, result.exception
    assert "2 negatives for 6 pairs, out of 6 documents; left out: 1 known to be relevant, 0 near-copies; " in (
        result.output
    )
    assert "10 filled up at random; 1 rows are empty or repeated." in result.output
    assert len((tmp_path / "new" / "mined.jsonl").read_text().splitlines()) == 6


def test_wrong_use_is_one_line_and_leaves_the_former_file(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", pairs_of(ZEBRAS))
    none = write(tmp_path / "none.jsonl", [{"query": "a", "positive": " "}])
    same = write(tmp_path / "same.jsonl", [{"query": f"q{n}", "positive": "one"} for n in range(9)])
    out = tmp_path / "mined.jsonl"
    out.write_text("former")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((none, "--out", out), "has no row with both"),
        ((same, "--out", out), "holds 1 different documents: too few for 8 negatives"),
        ((pairs, "--out", out), "holds 6 different documents"),
        ((pairs, "--out", out, "--negatives", 2, "--query-column", "qury"), "no column 'qury'"),
        ((pairs, "--out", out, "--negatives", 2, "--text-column", "body"), "columns of a --corpus"),
        ((pairs, "--out", out, "--negatives", 2, "--model", tmp_path / "nowhere" / "m"), "no model folder"),
        ((pairs, "--out", out, "--negatives", 2, "--reranker", tmp_path / "nowhere" / "m"), "no model folder"),
        ((pairs, "--out", out, "--negatives", 2, "--corpus", tmp_path / "nowhere"), "nothing to index"),
        ((pairs, "--out", out, "--negatives", 2, "--language", "klingon"), "unknown language"),
        ((pairs, "--out", out, "--margin", 2), "margin must be between 0"),
        ((pairs, "--out", out, "--skip-top", 100), "leaves nothing"),
        ((pairs, "--out", tmp_path / "mined.csv"), "ends in .jsonl"),
        ((tmp_path / "gone.jsonl", "--out", out), "gone.jsonl"),
    ]
    for arguments, message in cases:
        error = command(*arguments, "--overwrite").exception
        assert isinstance(error, UserError), (arguments, error)
        assert message in str(error)
        assert "\n" not in str(error)
        assert out.read_text() == "former"
        assert not list(tmp_path.glob(".*unfinished"))
    error = command(pairs, "--out", out, "--negatives", 2).exception
    assert str(error) == f"{out} is there already: name another file, or add --overwrite"
    assert out.read_text() == "former"
    assert command(pairs, "--out", out, "--negatives", 2, "--overwrite").exit_code == 0
    assert len(out.read_text().splitlines()) == 6


def test_pairs_and_corpus_are_not_written_over(tmp_path: Path) -> None:
    pairs, corpus = write(tmp_path / "pairs.jsonl", pairs_of(ZEBRAS)), tmp_path / "corpus.jsonl"
    before = write(corpus, [{"id": str(n), "text": text} for n, text in enumerate(ZEBRAS)]).read_bytes()
    for out in (pairs, corpus):
        with pytest.raises(UserError, match="is what is to be read"):
            mine(pairs, out, corpus=corpus)
    assert corpus.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl", "pairs.jsonl"]


def test_a_missing_column_is_named_by_the_option_of_this_command(tmp_path: Path) -> None:
    data = write(tmp_path / "labelled.jsonl", [{"text": "a", "label": "b"}])
    found = CliRunner().invoke(search_app, ["mine", str(data), "--out", str(tmp_path / "out.jsonl")])
    assert "say --query-column NAME" in str(found.exception)
    found = CliRunner().invoke(
        search_app, ["mine", str(data), "--out", str(tmp_path / "out.jsonl"), "--query-column", "nothing"]
    )
    assert "'nothing' (--query-column)" in str(found.exception)
    same = ["--query-column", "text", "--positive-column", "text"]
    found = CliRunner().invoke(search_app, ["mine", str(data), "--out", str(tmp_path / "out.jsonl"), *same])
    assert str(found.exception).endswith("name them: --positive-column NAME")


def test_two_at_once_do_not_work_in_one_folder(tmp_path: Path) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", pairs_of(ZEBRAS)), tmp_path / "mined.jsonl"
    with mining._workshop(out) as folder:
        (folder / "corpus.jsonl").write_text("of the first")
        with pytest.raises(UserError, match=r"another process \(\d+\) is mining into .*mined.jsonl: wait for it"):
            mine(pairs, out, options=Mining(negatives=2))
        assert (folder / "corpus.jsonl").read_text() == "of the first"
    mine(pairs, out, options=Mining(negatives=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined.jsonl", "pairs.jsonl"]


def test_an_interrupted_mining_leaves_its_index_to_the_next_of_the_same_model(
    tmp_path: Path, make_encoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", pairs_of([row["text"] for row in DOCUMENTS])), tmp_path / "out.jsonl"
    models = [make_encoder(tmp_path / "m"), make_encoder(tmp_path / "n", seed=1)]
    made: list[Path] = []

    def build(corpus: Path, place: Path, **given: Any) -> Any:
        made.append(place)
        return build_index(corpus, place, **given)

    def mined(model: Path) -> str:
        mine(pairs, out, model=str(model), bm25=False, options=Mining(negatives=2, margin=0.0))
        return out.read_text()

    straight = [mined(model) for model in models]
    out.unlink()
    monkeypatch.setattr(mining, "build_index", build)
    for model, indexed in ((0, 1), (1, 2)):  # the next of another model would take the vectors of the first for its own
        made.clear()
        with monkeypatch.context() as patched:
            patched.setattr(mining.Miner, "mined", interrupted)
            with pytest.raises(KeyboardInterrupt):
                mined(models[0])
        assert not out.exists()
        assert mined(models[model]) == straight[model]
        assert len(made) == indexed
        assert not list(tmp_path.glob(".*"))
        out.unlink()


def interrupted(*_: object) -> Any:
    raise KeyboardInterrupt
