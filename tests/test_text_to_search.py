"""From text and pairs to an index that is searched, in one call; stopped, it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from sslnlp.cli import run_command
from sslnlp.errors import UserError
from sslnlp.recipe import Recipe
from sslnlp.search.index import Index
from sslnlp.text_to_search import LEAST_MINED, RECIPES, Journey, text_to_search
from sslnlp.train_config import parse_duration
from tests.contract import corpus


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("journey")
    found = {name: folder / f"{name}.jsonl" for name in ("pairs", "documents")}
    found["text"] = folder / "text.txt"
    found["text"].write_text("\n\n".join(corpus()))
    with open(found["pairs"], "w") as pairs, open(found["documents"], "w") as documents:
        for n, text in enumerate(corpus()):
            documents.write(json.dumps({"id": f"d{n}", "text": text}) + "\n")
            if n % 4 == 0:
                pairs.write(json.dumps({"query": f"what happened on day {n}", "positive": text}) + "\n")
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{n}", "text": f"on day {n}"}) + "\n" for n in range(1, 40, 2))
    )
    lines = "".join(f"q{n}\td{n}\t1\n" for n in range(1, 40, 2))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)
    return found | {"beir": beir}


def short(*stages: str) -> list[str]:
    """Two updates of each stage, and a small model where it begins."""
    keys = [f"{stage}.train.steps=2" for stage in stages] + [f"{stage}.train.batch_size=4" for stage in stages]
    if "masked" in stages:
        keys += ["masked.model.size=nano", "masked.tokenizer.vocab_size=520", "masked.data.seq_length=64"]
    return keys


@pytest.mark.slow
def test_from_text_to_a_measured_index(files: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["search", "build", str(files["pairs"]), "--text", str(files["text"])]
    arguments += ["--documents", str(files["documents"]), "--beir", str(files["beir"]), "--out", str(tmp_path / "out")]
    for key in short(*RECIPES):
        arguments += ["--set", key]
    assert run_command(arguments) == 0
    starts = {
        stage: json.loads((tmp_path / "out" / stage / "recipe.json").read_text())["recipe"]["model"]["pretrained"]
        for stage in RECIPES
    }
    exports = {stage: str(tmp_path / "out" / stage / "export") for stage in RECIPES}
    assert starts == {
        "masked": None,
        "retrieval": exports["masked"],
        "contrastive": exports["retrieval"],
        "pairs": exports["contrastive"],
        "mined": exports["pairs"],
        "reranker": exports["contrastive"],
    }
    index = Index(tmp_path / "out" / "index")
    assert index.modes == ("bm25", "dense", "fused", "reranked")
    assert index.search("on day 17", "bm25", 1)[0].id == "d17"


def test_from_an_encoder_and_on_from_where_it_was_stopped(files: dict[str, Path], tmp_path: Path) -> None:
    from sslnlp.recipe import load_recipe, run

    small = ["model.size=nano", "tokenizer.vocab_size=520", "data.seq_length=64", "train.steps=2", "train.batch_size=4"]
    encoder = run(load_recipe("pretrain_bert", [*small, f"data.train={files['text']}", f"out={tmp_path / 'e'}"]))
    said: list[str] = []
    for _ in range(2):
        console = Console(file=open(tmp_path / "said.txt", "w"), width=200)  # noqa: SIM115
        index = text_to_search(
            files["pairs"], tmp_path / "out", documents=files["documents"], encoder=str(encoder / "export"),
            overrides=short("pairs", "mined", "reranker"), console=console,
        )  # fmt: skip
        console.file.close()
        said.append((tmp_path / "said.txt").read_text())
    assert Index(index).modes == ("bm25", "dense", "fused", "reranked")
    assert not (tmp_path / "out" / "masked").exists()
    assert "2 steps; held out" in said[0]
    assert "found finished" not in said[0]
    assert said[1].count("found finished") == 3
    assert "negatives: found" in said[1]
    # What was made from something else is not taken for this.
    other = tmp_path / "other.jsonl"
    other.write_text(files["pairs"].read_text().replace("what happened", "tell me what happened"))
    keys = short("pairs", "mined", "reranker")
    for pairs, start, given, message in (
        (other, encoder / "export", keys, "the stage pairs in .* was made from other pairs"),
        (files["pairs"], tmp_path / "out" / "pairs" / "export", keys, "was made from another encoder: choose another"),
        (files["pairs"], encoder / "export", [*keys, "mined.train.lr=1e-3"], "the stage mined .* with other keys"),
    ):
        with pytest.raises(UserError, match=message):
            text_to_search(
                pairs, tmp_path / "out", documents=files["documents"], encoder=str(start), overrides=given,
                console=Console(quiet=True),
            )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of them"),
        (["--text", "a", "--encoder", "b"], "one of them"),
        (["--text", "a", "--set", "nothing.train.steps=3"], "is not STAGE.key=value"),
        (["--text", "a", "--set", "masked.train.nothing=3"], "unknown key 'train.nothing'"),
        (
            ["--text", "a", "--set", "reranker.objective.mini_batch_size=8"],
            "'objective.mini_batch_size' for late",
        ),
        (["--text", "a", "--budget", "soon"], "soon"),
        (["--text", "a", "--beir", "nowhere"], "nowhere does not exist"),
        (["--encoder", "e", "--documents", "{same}"], "two documents have the id 'd1': ids must be unique"),
        (["--encoder", "e", "--beir", "{other}"], "has no document that {other}/qrels/test.tsv judges: do their ids"),
        (["--text", "{two}"], "which column of {two} is the text? It has a, b; say --set masked.data.text=NAME"),
        (["--text", "{two}", "--set", "masked.data.text=a"], "say --set retrieval.data.text=NAME"),
        (["--encoder", "e", "--set", "pairs.data.columns.query=nothing"], "has no column 'nothing'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    arguments: list[str], message: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = tmp_path / "two.jsonl"
    two.write_text(json.dumps({"a": "one text", "b": "another"}) + "\n")
    other = shutil.copytree(files["beir"], tmp_path / "other")
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps({"id": f"d{n % 9}", "text": "a text"}) + "\n" for n in range(1, 12)))
    judged = (other / "qrels" / "test.tsv").read_text()
    (other / "qrels" / "test.tsv").write_text(judged.replace("\td", "\tdoc"))
    begin = ["search", "build", str(files["pairs"]), "--documents", str(files["documents"])]
    filled = [argument.format(two=two, other=other, same=same) for argument in arguments]
    assert run_command([*begin, "--out", str(tmp_path / "out"), *filled]) == 2
    assert message.format(two=two, other=other) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_left_alone(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    begin = ["search", "build", str(files["pairs"]), "--documents", str(files["documents"]), "--text"]
    assert run_command([*begin, str(files["text"]), "--out", str(tmp_path)]) == 2
    assert "already holds other files (notes.txt): choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_budget_is_divided_over_the_stages_that_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is no stage's (imports, mining) taken off those to come, but half of a stage's share in any case."""
    now = 0.0
    monkeypatch.setattr("sslnlp.text_to_search.time.monotonic", lambda: now)
    journey = Journey(tmp_path, 700.0, {}, Console(quiet=True), ("pairs", "mined", "reranker"))  # 0.1, 0.1 and 0.15
    assert journey.seconds_for("pairs") == pytest.approx(200)
    now = 250.0
    assert journey.seconds_for("mined") == pytest.approx(450 * 0.1 / 0.25)
    now = 450.0
    assert journey.seconds_for("reranker") == pytest.approx(250)
    now = 690.0
    assert journey.seconds_for("reranker") == pytest.approx(150)
    (tmp_path / "pairs" / "export").mkdir(parents=True)
    (tmp_path / "pairs" / "export" / "config.json").touch()
    assert Journey(tmp_path, 700.0, {}, Console(quiet=True), journey.stages).seconds_for("mined") == pytest.approx(200)


def test_as_much_is_mined_as_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslnlp.text_to_search.time.monotonic", lambda: 0.0)
    (tmp_path / "pairs" / "export").mkdir(parents=True)
    (tmp_path / "pairs" / "export" / "config.json").touch()
    train = {"batch_size": 16, "accumulate": 2}
    story = {"recipe": {"train": train}, "processes": 2, "result": {"steps": 10, "tokens_seen": 64_000}}  # 100 a pair
    (tmp_path / "pairs" / "recipe.json").write_text(json.dumps(story))
    lines = [
        {"step": n, "train/loss": 1.0, "train/tokens_per_second": speed} for n, speed in enumerate((9e3, 20e3, 5e4))
    ]
    (tmp_path / "pairs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def limits(seconds: float, *keys: str) -> tuple[int | None, int | None]:
        stages = ("pairs", "mined", "reranker")
        journey = Journey(tmp_path, seconds, {"mined": list(keys)}, Console(quiet=True), stages)
        return journey.limits()

    # 200 pairs a second: those of the 300 s of the reranker, at half of that, and documents of the 200 s of mined.
    assert limits(700.0) == (200 * 300 // 2, 200 * 200 * 3)
    assert limits(7.0) == (LEAST_MINED, LEAST_MINED)
    assert limits(700.0, "train.lr=1e-3") == limits(700.0)
    assert limits(700.0, "train.epochs=1") == (None, None)


def test_a_stage_that_was_stopped_goes_on_with_its_own_budget_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would make it another run, which a resume refuses."""
    asked: list[tuple[str | None, str, bool]] = []

    def run(recipe: Recipe, *, resume: bool, console: Console) -> None:
        train = recipe.train
        asked.append((train.budget, train.precision, resume))
        begun = {"budget": train.budget, "precision": train.precision}
        Path(recipe.out).mkdir(parents=True, exist_ok=True)
        (Path(recipe.out) / "recipe.json").write_text(
            json.dumps({"recipe": {"train": begun}, "result": {"steps": 1, "measures": {}}})
        )

    monkeypatch.setattr("sslnlp.recipe.run", run)
    for seconds, fits in ((100.0, "bf16"), (900.0, "no")):
        monkeypatch.setattr("sslnlp.precision.fitting_precision", lambda device, fits=fits: fits)
        Journey(tmp_path, seconds, {}, Console(quiet=True), ("pairs",)).train("pairs", None, "pairs.jsonl")
    (budget, precision, fresh), again = asked
    assert (fresh, again) == (False, (budget, precision, True))
    assert parse_duration(budget or "") == pytest.approx(100, abs=1)
    assert precision == "bf16"
    said = {"pairs": ["train.precision=no", "train.steps=2"]}
    Journey(tmp_path / "other", 100.0, said, Console(quiet=True), ("pairs",)).train("pairs", None, "pairs.jsonl")
    assert asked[-1] == (None, "no", False)
