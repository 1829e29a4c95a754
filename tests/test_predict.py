"""Classifiers from a table to a prediction: one class, several, a number, few labels; and stock tools beside them."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, pipeline

from sslnlp import text_files
from sslnlp.cli import run_command
from sslnlp.distributed import own_device
from sslnlp.errors import UserError
from sslnlp.predict import UNKNOWN, Predictor, predict_file
from sslnlp.recipe import load_recipe, run
from sslnlp.report import make_report

SMALL = [
    "model.architecture=bert",
    "model.size=nano",
    "train.batch_size=16",
    "tokenizer.vocab_size=400",
    "train.lr=3e-3",
    "train.eval_every=20",
    "train.save_every=20",
]
COLOURS = {"red": "a rose and a cherry", "green": "a leaf and the grass", "blue": "the sea and a clear sky"}


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences that name things of one or two colours, a number in each."""
    generator, names = np.random.default_rng(seed), list(COLOURS)
    rows = []
    for n in range(count):
        chosen = sorted(generator.choice(3, size=int(generator.integers(1, 3)), replace=False).tolist())
        number = int(generator.integers(0, 9))
        text = (
            f"In picture {n} of {seed} there is " + " with ".join(COLOURS[names[c]] for c in chosen) + " seen" * number
        )
        rows.append(
            {"text": text, "one": names[chosen[0]], "several": [names[c] for c in chosen], "number": number / 3}
        )
    return rows


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tables")
    found = {}
    for name, count in (("train", 160), ("valid", 80)):
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in texts(count, count)))
    found["other"] = folder / "other.jsonl"
    found["other"].write_text(
        "".join(json.dumps({"text": f"quite another matter, number {n}"}) + "\n" for n in range(40))
    )
    return found


def trained(recipe: str, files: dict[str, Path], out: Path, *keys: str) -> Path:
    data = [f"data.train={files['train']}", f"data.valid={files['valid']}", "data.text=text", f"out={out}"]
    return run(load_recipe(recipe, [*SMALL, *data, *keys]))


@pytest.fixture(scope="module")
def single(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "single"
    keys = ["data.label=one", "train.epochs=none", "train.steps=40", f"data.out_of_scope={files['other']}"]
    return trained("finetune_classification", files, out, *keys)


@pytest.fixture(scope="module")
def few(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "few"
    keys = ["data.label=one", "train.steps=20", "data.labels_per_class=6", f"data.unlabelled={files['train']}"]
    return trained("finetune_few_shot", files, out, *keys)


def measures(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "recipe.json").read_text())["result"]["measures"]
    return found


def test_the_stock_pipeline_says_what_we_say_and_as_sure(single: Path) -> None:
    asked = [row["text"] for row in texts(10, 3)]
    ours = Predictor.load(str(single / "export"))(asked)
    stock = pipeline("text-classification", model=str(single / "export"), top_k=None)(asked)
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine.probabilities == pytest.approx({one["label"]: one["score"] for one in theirs}, abs=1e-5)


def test_the_export_is_as_sure_as_it_is_right(single: Path) -> None:
    """The temperature is in the exported weights: dividing once more by what is fitted to them changes nothing."""
    from sslnlp.evaluation.calibration import fit_temperature

    answers = [json.loads(line) for line in (single / "held_out.jsonl").read_text().splitlines()]
    names = list(AutoConfig.from_pretrained(single / "export").id2label.values())
    found = Predictor.load(str(single / "export"))([a["text"] for a in answers])
    logits = np.log([[p.probabilities[name] for name in names] for p in found])
    assert fit_temperature(logits, np.array([names.index(a["label"]) for a in answers])) == pytest.approx(1, abs=0.02)
    assert [p.label for p in found if p.label != UNKNOWN] == [
        a["predicted"] for a, p in zip(answers, found, strict=True) if p.label != UNKNOWN
    ]
    assert measures(single)["accuracy"] == np.mean([a["label"] == a["predicted"] for a in answers])


def test_what_looks_like_no_class_is_unknown(single: Path) -> None:
    figures, config = measures(single), AutoConfig.from_pretrained(single / "export")
    assert config.unknown_below == pytest.approx(figures["unknown_below"], abs=1e-6)
    asked = [json.loads(line)["text"] for line in (single / "held_out.jsonl").read_text().splitlines()]
    called = [p.label == UNKNOWN for p in Predictor.load(str(single / "export"))(asked)]
    assert np.mean(called) == pytest.approx(0.05, abs=0.02)
    assert 0 <= figures["unknown_auroc"] <= 1


def test_several_classes_with_thresholds(files: dict[str, Path], tmp_path: Path) -> None:
    keys = ["objective.name=multi_label", "data.label=several", "train.epochs=none", "train.steps=40"]
    out = trained("finetune_classification", files, tmp_path / "several", *keys)
    answers = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    both, answered = (sum(len(found) for found in lists) for lists in _answered(answers))
    told = sum(len(a["label"]) for a in answers)
    assert 2 * both / (told + answered) >= max(0.75, measures(out)["micro_f1"])
    config = AutoConfig.from_pretrained(out / "export")
    assert config.problem_type == "multi_label_classification"
    assert "top_k=None" in (out / "export" / "README.md").read_text()
    assert len(config.thresholds) == 3
    asked = ["there is a leaf and the grass with the sea and a clear sky"]
    (said,) = Predictor.load(str(out / "export"))(asked)
    assert set(said.label) == {name for name, share in said.probabilities.items() if share >= threshold(config, name)}
    (stock,) = pipeline("text-classification", model=str(out / "export"), top_k=None)(asked)
    assert said.probabilities == pytest.approx({one["label"]: one["score"] for one in stock}, abs=1e-5)


def _answered(answers: list[dict[str, Any]]) -> tuple[list[set[str]], list[set[str]]]:
    said = [set(a["predicted"]) for a in answers]
    return [found & set(a["label"]) for found, a in zip(said, answers, strict=True)], said


def threshold(config: Any, name: str) -> float:
    return float(config.thresholds[config.label2id[name]])


def test_numbers_come_back_in_their_unit(files: dict[str, Path], tmp_path: Path) -> None:
    keys = ["objective.name=regression", "data.label=number", "train.epochs=none", "train.steps=40"]
    out = trained("finetune_classification", files, tmp_path / "number", *keys)
    figures = measures(out)
    assert figures["r2"] > 0.5
    answers = [json.loads(line) for line in (out / "held_out.jsonl").read_text().splitlines()]
    found = [p.label for p in Predictor.load(str(out / "export"))([a["text"] for a in answers])]
    assert found == pytest.approx([a["predicted"] for a in answers], abs=1e-4)
    assert np.mean(np.abs(np.subtract(found, [a["label"] for a in answers]))) == pytest.approx(
        figures["mean_absolute_error"], abs=1e-4
    )


def test_a_few_shot_classifier_is_a_sentence_transformer_that_encodes_to_logits(few: Path) -> None:
    from sentence_transformers import SentenceTransformer

    asked = [row["text"] for row in texts(12, 5)]
    ours = Predictor.load(str(few / "export"))(asked)
    logits = SentenceTransformer(str(few / "export"), device="cpu").encode(asked, convert_to_tensor=True)
    names = AutoConfig.from_pretrained(few / "export").label_names
    for mine, shares in zip(ours, torch.softmax(logits, -1), strict=True):
        expected = {names[c]: float(share) for c, share in enumerate(shares)}
        assert mine.probabilities == pytest.approx(expected, abs=1e-5)
        assert mine.label == max(expected, key=lambda name: expected[name])


def test_no_stock_classifier_answers_with_the_labels_of_a_few_shot_one(few: Path) -> None:
    """It would have a new random head: nothing of the export may give that the names of real classes."""
    from transformers import AutoModelForSequenceClassification

    random_head = AutoModelForSequenceClassification.from_pretrained(few / "export")
    assert not set(random_head.config.id2label.values()) & COLOURS.keys()
    assert "pipeline_tag: feature-extraction" in (few / "export" / "README.md").read_text()


def test_unlabelled_texts_are_counted_without_those_that_are_measured(few: Path, files: dict[str, Path]) -> None:
    facts = json.loads((few / "recipe.json").read_text())["data"]
    assert facts["rows"] == 18
    assert facts["unlabelled_rows"] == 160 - 18
    assert facts["unlabelled_left_out"] == 18
    assert facts["pseudo_labelled_rows"] == pytest.approx(0.8 * (160 - 18), abs=3)
    assert measures(few)["accuracy"] > 0.6


def test_a_file_is_predicted_whole_or_not_at_all(
    single: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "said" / "predictions.jsonl"
    arguments = ["predict", str(single / "export"), str(files["valid"]), "--out", str(out), "--top", "2"]
    assert run_command(arguments) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["text"] for line in lines] == [
        json.loads(row)["text"] for row in files["valid"].read_text().splitlines()
    ]
    assert all(len(line["probabilities"]) == 2 for line in lines)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"text": "a rose"}) + "\n{nothing\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        predict_file(str(single / "export"), broken, tmp_path / "none.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "said"]
    assert run_command(arguments) == 2
    assert f"{out} is there already: name another file, or add --overwrite" in capsys.readouterr().err
    arguments[arguments.index("--top") + 1] = "1"
    assert run_command([*arguments, "--overwrite"]) == 0
    assert len(json.loads(out.read_text().splitlines()[0])["probabilities"]) == 1


def test_what_is_read_is_not_written_over(single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, link = tmp_path / "new.jsonl", tmp_path / "link.jsonl"
    data.write_text(before := json.dumps({"text": "a rose"}) + "\n")
    link.symlink_to(data)
    read = "is what is to be read"
    for out, said in ((data, read), (link, read), (tmp_path, f"cannot write {tmp_path}: it is a folder")):
        assert run_command(["predict", str(single / "export"), str(data), "--out", str(out)]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="/dev/null: it is no ordinary file"):
        predict_file(str(single / "export"), data, Path("/dev/null"))
    assert data.read_text() == before
    assert link.is_symlink()


def test_a_full_disk_names_the_file(single: Path, files: dict[str, Path], tmp_path: Path) -> None:
    def full(done: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=rf"cannot write {out}: No space left on device; free some space and run"):
        predict_file(str(single / "export"), files["valid"], out, progress=full)
    assert not list(tmp_path.iterdir())


def test_a_row_without_text_gets_no_label(single: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, out = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    rows = [{"text": text} for text in ("", "a rose and a cherry", None, " \n", "the sea", math.nan)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predict_file(str(single / "export"), data, out) == 6
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["label"] is None for line in said] == [True, False, True, True, False, True]
    assert said[4]["probabilities"] == pytest.approx(Predictor.load(str(single / "export"))(["the sea"])[0][1])
    assert "4 rows of" in caplog.text
    lines = tmp_path / "new.txt"  # line n of the answers is of line n of the texts there too
    lines.write_bytes(b"a rose\rand a cherry\n\n \t\r\nthe sea\r\n")
    assert predict_file(str(single / "export"), lines, out) == 4
    said = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["label"] is None for line in said] == [False, True, True, False]
    assert [line["text"] for line in said] == list(text_files.lines(lines))
    data.write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(UserError, match="holds no text to classify"):
        predict_file(str(single / "export"), data, out)


def test_pairs_are_read_as_a_stock_pipeline_and_training_read_them(single: Path) -> None:
    """Our tokenizers mark no segments: the embedding of the second one is as random as it was made."""
    first, second = [row["text"] for row in texts(4, 1)], [row["text"] for row in texts(4, 2)]
    stock = pipeline("text-classification", model=str(single / "export"), top_k=None, device=own_device())
    answers = stock([{"text": a, "text_pair": b} for a, b in zip(first, second, strict=True)], truncation=True)
    for answer, found in zip(answers, Predictor.load(str(single / "export"))(first, second), strict=True):
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(found.probabilities, abs=1e-5)


def test_single_texts_and_pairs_are_told_apart(single: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    data.write_text(json.dumps({"sentence1": "a rose", "sentence2": "a cherry"}) + "\n")
    with pytest.raises(UserError, match="single texts \\('text'\\): leave --pair sentence2 out"):
        predict_file(str(single / "export"), data, out, pair="sentence2")
    with pytest.raises(UserError, match=r"two texts a row \(sentence1, sentence2\).* say which to read, --text NAME"):
        predict_file(str(single / "export"), data, out)
    assert predict_file(str(single / "export"), data, out, text="sentence1") == 1

    pairs = tmp_path / "pairs"
    shutil.copytree(single / "export", pairs)
    story = json.loads((pairs / "recipe.json").read_text())
    story["data"]["columns"] = {"text": "sentence1", "text_pair": "sentence2", "label": "one"}
    (pairs / "recipe.json").write_text(json.dumps(story))
    with pytest.raises(UserError, match=r"pairs of texts \('sentence1' and 'sentence2'\).* --pair NAME"):
        predict_file(str(pairs), data, out)
    assert predict_file(str(pairs), data, out, pair="sentence2") == 1
    (tmp_path / "new.txt").write_text("a rose\n")
    with pytest.raises(UserError, match="one text a line"):
        predict_file(str(pairs), tmp_path / "new.txt", out, pair="sentence2")
    with pytest.raises(UserError, match="no column 'sentence': leave --text out"):
        predict_file(str(single / "export"), tmp_path / "new.txt", out, text="sentence")
    (pairs / "recipe.json").unlink()  # somebody else's export does not say
    assert predict_file(str(pairs), data, out, text="sentence1") == 1


def test_the_column_that_training_read_is_read_where_it_is_there(single: Path, tmp_path: Path) -> None:
    export, data, out = shutil.copytree(single / "export", tmp_path / "one"), tmp_path / "new.jsonl", tmp_path / "out"
    story = json.loads((export / "recipe.json").read_text())
    for columns, pair in (({"text": "Headline"}, None), ({"text": "question", "text_pair": "sentence"}, "sentence")):
        story["data"]["columns"] = columns
        (export / "recipe.json").write_text(json.dumps(story))
        data.write_text(json.dumps({"text": "a rose", columns["text"]: "a cherry", "sentence": "the sea"}) + "\n")
        predict_file(str(export), data, out, pair=pair)
        assert json.loads(out.read_text())["text"] == "a cherry"
    data.write_text(json.dumps({"text": "a rose"}) + "\n")
    story["data"]["columns"] = {"text": "Headline"}
    (export / "recipe.json").write_text(json.dumps(story))
    predict_file(str(export), data, out)
    assert json.loads(out.read_text())["text"] == "a rose"


def test_the_report_shows_confusions_and_mistakes(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslnlp.report.runs.write_figures", lambda charts, folder: [])
    page = make_report(single, out=str(tmp_path))
    sections = {s["title"]: s for s in json.loads((tmp_path / "report.json").read_text())["sections"]}
    tables = {table["title"]: table for table in sections[f"What it answers ({single.name})"]["tables"]}
    matrix = tables["Confusion matrix"]["rows"]
    answers = [json.loads(line) for line in (single / "held_out.jsonl").read_text().splitlines()]
    assert sum(sum(row[1:]) for row in matrix) == len(answers)
    assert sum(row[1 + i] for i, row in enumerate(matrix)) == sum(a["label"] == a["predicted"] for a in answers)
    wrong = [a for a in answers if a["label"] != a["predicted"]]
    assert len(tables["Most confident mistakes"]["rows"]) == min(20, len(wrong))
    assert "What it answers" in page.read_text()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.label=several"], "take objective.name=multi_label"),
        (["data.label=number"], "take objective.name=regression"),
        (["data.label=one", "objective.name=regression"], "regression needs one"),
        (["data.label=one", "collator.label_names=red,green"], "label 'blue' of"),
    ],
)
def test_a_label_of_another_kind_is_one_clear_line(
    keys: list[str], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trained("finetune_classification", files, tmp_path / "none", *keys)
    assert not (tmp_path / "none").exists()


def test_other_models_are_no_classifiers(few: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=20)).save_pretrained(
        tmp_path
    )
    with pytest.raises(UserError, match="no classifier"):
        Predictor.load(str(tmp_path))


def test_fine_tuning_takes_the_surest_unlabelled_texts_too(few: Path, files: dict[str, Path], tmp_path: Path) -> None:
    keys = ["data.label=one", "train.epochs=none", "train.steps=2", "data.labels_per_class=6"]
    keys += [f"model.pretrained={few / 'export'}", f"data.unlabelled={files['train']}", "objective.pseudo_labels=0.5"]
    out = trained("finetune_classification", files, tmp_path / "out", *keys)
    facts = json.loads((out / "recipe.json").read_text())["data"]
    assert (facts["rows"], facts["unlabelled_rows"]) == (18, 160 - 18)
    assert facts["pseudo_labelled_rows"] == pytest.approx(0.5 * (160 - 18), abs=3)
    with pytest.raises(UserError, match="a share from 0 to 1"):
        trained("finetune_classification", files, tmp_path / "no", "data.label=one", "objective.pseudo_labels=2")


def test_a_model_goes_on_learning_from_unlabelled_text_first(few: Path, files: dict[str, Path], tmp_path: Path) -> None:
    keys = [
        "data.label=one",
        "train.steps=0",
        f"model.pretrained={few / 'export'}",
        f"data.unlabelled={files['train']}",
    ]
    out = trained("finetune_few_shot", files, tmp_path / "c", *keys, "adapt.steps=3", "adapt.batch_size=8")
    story = json.loads((out / "recipe.json").read_text())
    assert story["recipe"]["model"]["pretrained"] == str(tmp_path / "c-adapted" / "export")
    before = json.loads((tmp_path / "c-adapted" / "recipe.json").read_text())
    assert before["recipe"]["objective"]["name"] == "info_nce"
    assert before["result"]["steps"] == 3
    with pytest.raises(UserError, match=r"c-adapted holds a stage with another train\.steps"):
        trained("finetune_few_shot", files, tmp_path / "c", *keys, "adapt.steps=4", "adapt.batch_size=8")
    with pytest.raises(UserError, match=r"give data\.unlabelled=FILE"):
        trained("finetune_few_shot", files, tmp_path / "d", *keys[:3], "adapt.steps=3")
    held_out = [f"data.unlabelled={files['valid']}", "adapt.steps=3"]
    with pytest.raises(UserError, match=r"data\.unlabelled and data\.valid are both"):
        trained("finetune_few_shot", files, tmp_path / "e", *keys[:3], *held_out)
