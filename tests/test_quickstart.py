"""The quickstart's corpus: found without importing anything, split so that nothing leaks."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import socket
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sslnlp.errors import UserError
from sslnlp.evaluation.beir import load_beir
from sslnlp.models import ModelConfig
from sslnlp.quickstart import plan
from sslnlp.quickstart import run as story
from sslnlp.quickstart.corpus import MASK_WORD, held_out, name_mask, write_corpus
from sslnlp.quickstart.harvest import Entry, Harvest, Library, harvest, installed, split_summary

WORDS = ("array", "matrix", "tensor", "index", "label", "graph", "node", "edge", "frame", "series", "query", "token")


def library(root: Path, label: str, sources: dict[str, str | bytes]) -> Library:
    files = []
    for relative, source in sorted(sources.items()):
        path = root / label / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
        files.append((relative, path))
    return Library(label, (label,), tuple(files))


def documented(label: str, modules: int = 120) -> list[Entry]:
    """Made-up documentation: one entry a module, each different."""

    def sentence(i: int) -> str:
        return " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(9))

    return [
        Entry(
            label,
            f"{label}.m{i}",
            f"{label}.m{i}.f",
            f"{label} number {label[-2:]}{i}: {sentence(i)}.",
            f"With {label} {label[-2:]}{i}. " * 10 + "End.",
        )
        for i in range(modules)
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_public_docstrings_are_found_with_their_names(tmp_path: Path) -> None:
    source = '''"""A module about matrices, long enough to be worth keeping in a corpus of text."""
raise SystemExit("importing this would end the tests")
class Matrix:
    """A rectangular arrangement of numbers.

    Rows come first, then columns; both are counted from zero.
    """
    def transpose(self):
        """Return the matrix with rows and columns exchanged, sharing no memory."""
    def _hidden(self):
        """Private documentation, which is not part of the library's documentation."""
async def load(path):
    """Read a matrix from a file that was written by the companion function save."""
def short():
    """Too short."""
'''
    found = harvest([library(tmp_path, "lib", {"lib/m.py": source})])
    assert [e.name for e in found.entries] == ["lib.m", "lib.m.Matrix", "lib.m.Matrix.transpose", "lib.m.load"]
    matrix = found.entries[1]
    assert matrix.summary == "A rectangular arrangement of numbers."
    assert matrix.body == "Rows come first, then columns; both are counted from zero."
    assert {e.module for e in found.entries} == {"lib.m"}


def test_files_that_do_not_parse_are_counted_not_fatal(tmp_path: Path) -> None:
    good = '"""Documentation that is long enough to be kept, with an odd letter: \xe9\xe9\xe9\xe9\xe9."""\n'
    bad = {"lib/syntax.py": "def (:", "lib/latin.py": b'"""caf\xe9 \xff"""', "lib/nul.py": b"x = 1\0"}
    found = harvest(
        [
            library(
                tmp_path,
                "lib",
                {**bad, "lib/good.py": good, "lib/declared.py": b"# coding: latin-1\n" + good.encode("latin-1")},
            )
        ]
    )
    assert found.counts["files read"] == 2
    assert sum(n for reason, n in found.counts.items() if reason.startswith("files skipped")) == 3
    assert len(found.entries) == 1  # the same text in two encodings is one text
    assert found.counts["duplicates dropped"] == 1


def test_a_file_that_went_away_is_skipped(tmp_path: Path) -> None:
    gone = Library("lib", ("lib",), (("lib/gone.py", tmp_path / "gone.py"),))
    assert harvest([gone]).entries == []


def test_order_and_content_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    sources: dict[str, str | bytes] = {
        f"lib/m{i}.py": f'"""Module {i} of a library whose modules all have documentation of some length."""'
        for i in range(9)
    }
    given = library(tmp_path, "lib", sources)
    turned = Library(given.label, given.names, tuple(reversed(given.files)))
    assert harvest([given]).entries == harvest([turned]).entries


def test_source_bytes_cap_each_library(tmp_path: Path) -> None:
    text = "word " * 200
    given = library(tmp_path, "lib", {f"lib/m{i}.py": f'"""{i} {text}"""' for i in range(20)})
    assert 0 < len(harvest([given], source_bytes=4000).entries) < 8


@pytest.mark.parametrize(
    ("text", "summary", "body"),
    [
        ("One line.", "One line.", ""),
        ("First\n    second.\n\n    Body\n      indented.", "First second.", "Body\n  indented."),
        ("Title\n=====\n\nBody.", "Title", "Body."),
        ("A\x00b\x07c\n\n\tD", "Abc", "D"),
    ],
)
def test_docstrings_are_cleaned(text: str, summary: str, body: str) -> None:
    assert split_summary(text) == (summary, body)


@pytest.fixture(scope="module")
def present() -> dict[str, Library]:
    return {library.label: library for library in installed()}


def test_the_installation_is_found_without_tests_or_vendored_copies(present: dict[str, Library]) -> None:
    found = present
    assert {"python", "numpy", "torch", "transformers", "scikit-learn"} <= found.keys()
    assert "sklearn" in found["scikit-learn"].names
    relative = [path for path, _ in found["python"].files]
    assert "pydoc_data/topics.py" in relative
    for library in found.values():
        assert not any(re.search(r"(^|/)(tests?|_vendor|site-packages)/", path) for path, _ in library.files)


def test_help_topics_are_read_from_the_standard_library(present: dict[str, Library]) -> None:
    topics = [file for file in present["python"].files if file[0] == "pydoc_data/topics.py"]
    found = harvest([Library("python", ("python",), tuple(topics))])
    names = {e.name for e in found.entries}
    assert {"pydoc_data.topics.while", "pydoc_data.topics.exceptions"} <= names
    assert len({e.module for e in found.entries}) == len(found.entries)  # each topic is split on its own


@pytest.fixture
def made(tmp_path: Path) -> tuple[Harvest, Any]:
    found = Harvest(entries=[e for name in ("alpha", "beta", "gamma") for e in documented(name)])
    return found, write_corpus(found, tmp_path / "corpus", per_class=60, test=10, least=20)


def test_no_held_out_text_is_in_a_training_file(made: tuple[Harvest, Any]) -> None:
    found, corpus = made
    hidden = [e for e in found.entries if held_out(e)]
    assert 0.08 < len(hidden) / len(found.entries) < 0.25  # 15 % of 360 modules
    train = {row["text"] for row in rows(corpus.train_text)}
    assert train.isdisjoint(row["text"] for row in rows(corpus.valid_text))
    assert train.isdisjoint(e.text for e in hidden)
    queries = {row["query"] for row in rows(corpus.pairs)}
    assert queries.isdisjoint(e.summary for e in hidden)
    assert {row["text"] for row in rows(corpus.labelled["train"])}.isdisjoint(
        row["text"] for row in rows(corpus.labelled["test"])
    )


def test_labels_are_balanced_in_the_test_file_and_not_given_in_the_text(made: tuple[Harvest, Any]) -> None:
    _, corpus = made
    assert corpus.labels == ("alpha", "beta", "gamma")
    test = rows(corpus.labelled["test"])
    assert Counter(row["label"] for row in test) == {"alpha": 10, "beta": 10, "gamma": 10}
    for row in test + rows(corpus.labelled["train"]):
        assert not re.search("alpha|beta|gamma", row["text"], re.IGNORECASE)
        assert MASK_WORD in row["text"]


def test_texts_that_differ_only_in_the_masked_name_are_kept_once(tmp_path: Path) -> None:
    twins = [
        Entry(name, f"{name}.v{i}", f"{name}.v{i}", f"The version {i} of {name} as text.", "")
        for name in ("alpha", "beta")
        for i in range(40)
    ]
    found = Harvest(entries=[*documented("alpha"), *documented("beta"), *twins])
    corpus = write_corpus(found, tmp_path, per_class=200, test=10, least=20)
    texts = [row["text"] for name in ("train", "test") for row in rows(corpus.labelled[name])]
    assert len(texts) == len(set(texts))


def test_libraries_with_little_documentation_are_no_labels(tmp_path: Path) -> None:
    found = Harvest(entries=[*documented("alpha"), *documented("beta"), *documented("small", modules=12)])
    assert write_corpus(found, tmp_path, test=10, least=20).labels == ("alpha", "beta")


def test_names_are_masked_as_words_in_every_spelling() -> None:
    mask = name_mask({"scikit-learn": ("sklearn", "scikit-learn"), "numpy": ("numpy",)})
    text = "import numpy as np; np.array; NumPy, Scikit-learn, scikit_learn, sklearn.svm; snp, numpyro"
    assert mask.sub("_", text) == "import _ as _; _.array; _, _, _, _.svm; snp, numpyro"


def test_the_search_task_is_a_beir_folder_whose_ids_tell_nothing(made: tuple[Harvest, Any]) -> None:
    found, corpus = made
    beir = load_beir(corpus.beir)
    by_summary = {e.summary: e.body for e in found.entries if held_out(e)}
    assert len(beir.queries) == len(by_summary)
    for query, judged in beir.qrels.items():
        (document,) = judged
        assert beir.corpus[document] == by_summary[beir.queries[query]]


def test_an_installation_without_documentation_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few for the quickstart"):
        write_corpus(Harvest(entries=documented("alpha")), tmp_path / "corpus", test=10, least=20)


def test_the_whole_story_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part runs, on a made-up corpus and models of a few thousand parameters, and the table has no gap; stopped
    on the way, it goes on."""

    def refuse(*_: object) -> None:
        raise AssertionError("the quickstart must not open a connection")

    small = ModelConfig(architecture="modernbert", size="nano", config={"hidden_size": 16, "intermediate_size": 16})
    entries = [e for name in ("alpha", "beta", "gamma") for e in documented(name)]
    write = functools.partial(write_corpus, per_class=60, test=10, least=20)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(
        story,
        "harvest",
        lambda: Harvest(entries=entries, counts=Counter({"entries": 360, "files read": 360, "characters": 1})),
    )
    monkeypatch.setattr(story, "write_corpus", write)
    monkeypatch.setattr(story, "DRAWS", {4: 2})
    monkeypatch.setattr(plan, "VOCABULARY", 512)
    monkeypatch.setattr(plan, "ENCODER", small)
    monkeypatch.setattr(
        plan, "DECODER", ModelConfig(architecture="llama", size="nano", config={"num_hidden_layers": 1})
    )
    out, printed = tmp_path / "quickstart", Console(file=StringIO(), width=120)

    def stopped(corpus: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(story.baselines, "bm25", stopped)
        with pytest.raises(KeyboardInterrupt):
            story.quickstart(out, budget="2s", console=printed)
    left = {path.parent: path.stat().st_mtime_ns for path in out.glob("*/recipe.json")}
    assert len(left) == 8  # encoder and decoder; classifiers of two draws and a ranker, each with its untrained twin
    shutil.rmtree(out / "decoder" / "export")  # as if it had been stopped there
    log = (out / "decoder" / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="another budget"):
        story.quickstart(out, budget="3s", console=printed)
    with monkeypatch.context() as patched:
        patched.setattr(story, "harvest", lambda: Harvest(entries=entries[1:]))
        with pytest.raises(UserError, match="another installation"):
            story.quickstart(out, budget="2s", console=printed)

    page = story.quickstart(out, budget="2s", console=printed)

    again = {path.parent.name for path in out.glob("*/recipe.json") if path.stat().st_mtime_ns != left[path.parent]}
    assert again == {"decoder"}
    assert (out / "decoder" / "metrics.jsonl").read_text() == log  # its last checkpoint was there
    assert page == out / "report.html"
    sections = {s["title"]: s for s in json.loads((out / "report.json").read_text())["sections"]}
    table = sections["What it reached, beside honest baselines"]["tables"][0]
    assert tuple(table["columns"]) == story.COLUMNS
    by_figure = {(row[0].split()[0], row[1]): row[2:] for row in table["rows"]}
    assert by_figure.keys() == {
        ("hidden", "accuracy"), ("next", "bits per byte"), ("classify,", "accuracy"), ("classify,", "macro_f1"),
        ("search", "ndcg@10"), ("search", "mrr@10"), ("search", "recall@100"),
    }  # fmt: skip
    assert by_figure["classify,", "accuracy"][-1] == pytest.approx(1 / 3)  # guessing among three libraries
    for (task, _), row in by_figure.items():
        if task in ("classify,", "search"):
            assert None not in row
    steps = {json.loads(path.read_text())["result"]["steps"] for path in out.glob("classifier-4-*/recipe.json")}
    assert len(steps) == 1  # what is compared was trained alike
    assert (out / "ranker" / "export" / "model.safetensors").is_file()
    assert "report:" in printed.file.getvalue()  # type: ignore[attr-defined]

    with pytest.raises(UserError, match="is not empty"):
        story.quickstart(out, budget="2s", console=printed)


def test_a_budget_that_is_no_time_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="duration"):
        story.quickstart(tmp_path / "out", budget="soon")
    assert not (tmp_path / "out").exists()


def test_the_commands_to_go_on_with_survive_a_folder_with_a_space() -> None:
    for command in story.go_on(Path("my runs/first")):
        words = shlex.split(command)
        assert words[0] == "sslnlp"
        assert any("my runs/first" in word for word in words)


def test_what_a_model_wrote_is_told_as_it_is() -> None:
    screen = StringIO()
    told = story.Story(plan=None, console=Console(file=screen, width=80))
    told.tell("  Parameters → x [int] of [/x]")
    assert "Parameters → x [int] of [/x]" in screen.getvalue()


def test_the_verdict_counts_the_comparisons() -> None:
    rows = [["a", "accuracy", 0.3, None, None, None, 0.1], ["b", "accuracy", 0.3, 0.2, None, None, 0.1]]
    assert story.verdict(rows) == "The pretrained model is ahead of the untrained one in 1 of 1 comparisons."
    assert "in 1 of 2 comparisons. So little pretraining" in story.verdict(
        [*rows, ["c", "mrr@10", 0.1, 0.2, "BM25", 0.5, 0.0]]
    )
