"""The label curve: which cells, what is made of them, going on where it was stopped, and a small one as a whole."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sslnlp.cli import run_command
from sslnlp.curve import label_curve
from sslnlp.curve.cells import FRESH, LARGEST, LEXICAL, Cell, Measured, Results, cells, parse_labels
from sslnlp.curve.command import USUAL, curve, parse_method
from sslnlp.curve.page import shown, write_page
from sslnlp.curve.summary import summarise
from sslnlp.errors import UserError
from sslnlp.recipe import Recipe, load_recipe, run

TOPICS = {"sea": "waves and salt on the sand", "wood": "leaves and bark in the shade", "town": "bricks and glass"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, generator = tmp_path_factory.mktemp("curve"), np.random.default_rng(0)
    found = {}
    for name, count in (("train", 90), ("test", 60)):
        found[name] = folder / f"{name}.jsonl"
        with open(found[name], "w") as file:
            for n in range(count):
                label = list(TOPICS)[n % 3]
                words = generator.permutation(TOPICS[label].split()).tolist()
                file.write(json.dumps({"text": f"{name} {n}: " + " ".join(words), "label": label}) + "\n")
    return found


@pytest.fixture(scope="module")
def keys(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What all methods share: the data, and a small encoder to start from."""
    shared = [f"data.train={files['train']}", f"data.valid={files['test']}"]
    small = ["model.architecture=bert", "model.size=nano", "tokenizer.vocab_size=400"]
    out = tmp_path_factory.mktemp("base") / "base"
    run(load_recipe("finetune_few_shot", [*shared, *small, "train.steps=2", f"out={out}"]))
    return [*shared, f"model.pretrained={out / 'export'}"]


def recipes(keys: list[str]) -> dict[str, Recipe]:
    return {
        "frozen": load_recipe("finetune_few_shot", [*keys, "train.steps=0"]),
        "trained": load_recipe("finetune_classification", [*keys, "train.steps=3", "train.batch_size=4"]),
    }


def test_numbers_of_labels_are_read_in_order() -> None:
    assert parse_labels("64, 8,all") == [8, 64, None]
    for wrong in ("", "0", "8,some", "-3"):
        with pytest.raises(UserError, match="--labels"):
            parse_labels(wrong)


def test_what_no_seed_changes_has_one(keys: list[str]) -> None:
    methods: dict[str, Recipe | None] = {LEXICAL: None, **recipes(keys)}
    found = list(cells(methods, [8, None], draws=2, seeds=3))
    count = {name: sum(cell.method == name for cell in found) for name in methods}
    # Two draws of 8 and one of all: one seed each, or three.
    assert count == {LEXICAL: 3, "frozen": 3, "trained": 9}
    assert found[0] == Cell(LEXICAL, 8, 0, 0)
    assert len(set(found)) == len(found)


def measured(values: list[list[float]]) -> list[Measured]:
    """One list a draw, one value a seed."""
    return [
        Measured(Cell("m", 8, draw, seed), {"accuracy": value})
        for draw, seeds in enumerate(values)
        for seed, value in enumerate(seeds)
    ]


def test_draws_are_what_repeats() -> None:
    summary = summarise(measured([[0.5, 0.7], [0.8, 0.8], [0.9, 0.7]]), "accuracy")
    assert summary is not None
    assert summary.mean == pytest.approx((0.6 + 0.8 + 0.8) / 3)
    half = stats.t.ppf(0.975, 2) * np.std([0.6, 0.8, 0.8], ddof=1) / math.sqrt(3)
    assert (summary.low, summary.high) == pytest.approx((summary.mean - half, summary.mean + half))
    assert (summary.draws, summary.runs) == (3, 6)
    assert shown(summary) == f"73.3 ± {100 * half:.1f}"
    one = summarise(measured([[0.5]]), "accuracy")
    assert one is not None
    assert shown(one) == "50.0"
    assert summarise([], "accuracy") is None


def test_failed_runs_are_named() -> None:
    found = measured([[0.80, 0.81, 0.79], [0.82, 0.33, 0.80]])
    found.append(Measured(Cell("m", 8, 2, 0), error="the loss is NaN"))
    summary = summarise(found, "accuracy")
    assert summary is not None
    lost = "m, 8 a class, draw 2, seed 0: the loss is NaN"
    assert summary.failed == (lost, "m, 8 a class, draw 1, seed 1: accuracy 0.330")
    steady = summarise(measured([[0.80, 0.80, 0.80], [0.80, 0.79, 0.80]]), "accuracy")
    assert steady is not None
    assert steady.failed == ()


def test_a_curve_from_end_to_end_goes_on_where_it_was_stopped(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Measured] = []

    def stop(found: Measured, done: int, total: int) -> None:
        seen.append(found)
        if len(seen) == 3:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"labels": [2, 100], "draws": 1, "seeds": 1}
    methods = {"trained": recipes(keys)["trained"]}
    with pytest.raises(KeyboardInterrupt):
        label_curve(methods, tmp_path, told=stop, **options)
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"cell": {"method": "froz')  # the kill came in the middle of a line
    told: list[int] = []
    page = label_curve(methods, tmp_path, told=lambda found, done, total: told.append(done), **options)
    lines = [line for line in (tmp_path / "results.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len(lines) == len(set(lines)) == len(told) == 3 * 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sections"][0]["tables"][0]["columns"] == ["× 100", "2 a class", "100 a class (30 there)"]
    rows = {row[0]: row[1:] for row in report["sections"][0]["tables"][0]["rows"]}
    assert set(rows) == {LEXICAL, "trained", FRESH, LARGEST, "draws (runs)"}
    assert len(set(rows[LARGEST])) == 1  # of the test rows, whatever there was to learn from
    assert rows["draws (runs)"] == ["1 (1)", "1 (1)"]
    all_of_them = [json.loads(line) for line in lines if json.loads(line)["cell"]["labels"] == 100]
    lexical = next(m for m in all_of_them if m["cell"]["method"] == LEXICAL)
    assert lexical["measures"]["accuracy"] == 1.0  # every topic has words of its own
    assert page.is_file()
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.setattr("sslnlp.curve.run.run", lambda *args, **kwargs: pytest.fail("measured again"))
    label_curve(methods, tmp_path, **options)


def test_a_column_says_where_there_are_fewer_labels_than_asked_for(tmp_path: Path) -> None:
    for rows, heads in (
        ([46, 70], ["8 a class", "60 a class (46–60 there)", "1000 a class (46–70 there)", "all a class"]),
        ([60, 60], ["8 a class", "60 a class", "1000 a class (60 there)", "all a class"]),
    ):
        write_page(Results(tmp_path, {}), ["m"], [8, 60, 1000, None], rows, tmp_path)
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["sections"][0]["tables"][0]["columns"] == ["× 100", *heads]


def test_another_method_of_the_same_name_is_refused(keys: list[str], tmp_path: Path) -> None:
    Results(tmp_path, recipes(keys))
    with pytest.raises(UserError, match="another method called 'frozen'"):
        Results(tmp_path, {"frozen": recipes(keys)["trained"]})


def test_other_texts_under_the_same_name_are_refused(keys: list[str], files: dict[str, Path], tmp_path: Path) -> None:
    """Else one table would have figures of both, a column of these beside a column of those."""
    texts = tmp_path / "train.jsonl"
    shutil.copy(files["train"], texts)
    methods = {"frozen": load_recipe("finetune_few_shot", [*keys[1:], f"data.train={texts}", "train.steps=0"])}
    options: dict[str, Any] = {"draws": 1, "seeds": 1}
    label_curve(methods, tmp_path / "out", labels=[2], **options)
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:60]))
    with pytest.raises(UserError, match="holds results of other texts or labels"):
        label_curve(methods, tmp_path / "out", labels=[2, 4], **options)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_a_full_disk_at_the_next_start_leaves_the_list_of_methods(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Results(tmp_path, recipes(keys))
    before = (tmp_path / "methods.json").read_bytes()

    def full(path: Path, *args: Any, **options: Any) -> None:
        path.open("w").close()  # as the system does it: the file is emptied, then nothing fits
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr("sslnlp.writing.os.replace", lambda *paths: full(tmp_path / "aside"))
    with pytest.raises((UserError, OSError), match="No space left"):
        Results(tmp_path, recipes(keys))
    assert (tmp_path / "methods.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "finetune_few_shot"], "is not 'NAME: RECIPE"),
        (["--method", "a: finetune_few_shot nothing.at=all"], "unknown key 'nothing.at'"),
        (["--labels", "none"], "--labels 'none'"),
        (["out=elsewhere"], "out=elsewhere would do nothing: a curve sets it for each of its runs; give --out"),
        (["--method", "a: finetune_few_shot train.seed=3"], "give --seeds"),
        ([], "needs test rows"),
    ],
)
def test_wrong_arguments_are_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (train := tmp_path / "train.csv").write_text("text,label\n")
    assert run_command(["curve", f"data.train={train}", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_method_is_a_name_a_recipe_and_its_keys() -> None:
    name, recipe = parse_method("my own: finetune_few_shot train.steps=7", ["train.lr=1e-3", "train.steps=5"])
    assert (name, recipe.train.steps, recipe.train.lr) == ("my own", 7, 1e-3)


@pytest.mark.parametrize("shared", ["train.epochs=3", "train.budget=30s", "train.steps=5"])
def test_how_long_all_methods_train_leaves_frozen_features_frozen(
    shared: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipes = dict(parse_method(method, [shared]) for method in USUAL)
    frozen = recipes["frozen + LR"].train
    assert (frozen.steps, frozen.epochs, frozen.budget) == (0, None, None)
    key, _, value = shared.partition("=")
    assert str(getattr(recipes["fine-tuned"].train, key.removeprefix("train."))).removesuffix(".0") == value
    assert not caplog.messages  # nothing was given twice


@pytest.mark.parametrize("second", ["a", "TF-IDF + LR", "untrained"])
def test_two_methods_of_one_name_are_refused(second: str, tmp_path: Path) -> None:
    methods = ["a: finetune_few_shot train.steps=0", f"{second}: finetune_few_shot"]
    with pytest.raises(UserError, match="is the name of another method"):
        curve([], methods, tmp_path, "8", 1, 1)
