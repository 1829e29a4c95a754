"""The report card of whole runs: what is measured of which model, while it trains and after, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslnlp.card import ReportRow, report_section, with_report
from sslnlp.cli import run_command
from sslnlp.data.config import DataConfig
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure
from sslnlp.recipe import load_recipe, run
from sslnlp.report.card import Card, measure
from sslnlp.report.command import report_runs
from sslnlp.report.config import ReportConfig
from sslnlp.report.material import Material, held_out_texts
from sslnlp.report.runs import make_report
from sslnlp.report.subject import in_memory, subject_of
from tests.contract import corpus

TINY = ["model.size=nano", "train.steps=4", "train.batch_size=2", "tokenizer.vocab_size=520", "data.seq_length=32"]
ALWAYS = {"known_item_recall@1", "known_item_mrr", "effective_rank", "anisotropy", "uniformity", "alignment"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each key."""
    folder = tmp_path_factory.mktemp("files")
    texts = [text for text in corpus() if len(text) > 40][:24]
    labelled = [{"text": text, "label": "long" if len(text) > 80 else "short"} for text in texts]
    if len({row["label"] for row in labelled}) < 2:
        labelled[0]["label"] = "other"
    similar = [{"sentence1": a, "sentence2": b, "score": i % 5} for i, (a, b) in enumerate(pairwise(texts))]
    pairs = [
        {"sentence_good": text[:20], "sentence_bad": text[19::-1], "UID": f"u{i % 2}"}
        for i, text in enumerate(texts[:8])
    ]
    return {
        "texts": write(folder / "texts.jsonl", [{"text": text} for text in texts]),
        "sts": write(folder / "sts.jsonl", similar),
        "pairs": write(folder / "pairs.jsonl", pairs),
        "probe_train": write(folder / "train.jsonl", labelled),
        "probe_test": write(folder / "test.jsonl", labelled),
    }


@pytest.fixture(scope="module")
def runs(text_file: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished run a kind; the masked one measures itself while it trains."""
    folder = tmp_path_factory.mktemp("runs")
    shared = [*TINY, f"data.train={text_file}", f"data.cache={folder / 'cache'}"]
    own = ["train.eval_every=2", "report.every=1", *(f"report.{key}={path}" for key, path in files.items())]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sslnlp.report.runs.write_figures", lambda charts, folder: [])
        for name, keys in {"bert": own, "gpt": [], "bart": []}.items():
            run(load_recipe(f"pretrain_{name}", [*shared, *keys, f"out={folder / name}"]))
    return {name: folder / name for name in ("bert", "gpt", "bart")}


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of figures/ take most of a report's time: they are drawn where a test looks at them."""
    if "figures" not in request.node.name:
        monkeypatch.setattr("sslnlp.report.runs.write_figures", lambda charts, folder: [])


def card_of(folder: Path, run_name: str) -> Card:
    return Card.from_dict(json.loads((folder / "report.json").read_text())["cards"][run_name])


def test_a_run_measures_itself_while_it_trains_and_at_its_end(runs: dict[str, Path]) -> None:
    out = runs["bert"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "valid/report/known_item_mrr" in line]
    assert [line["step"] for line in measured] == [2, 4]
    assert 0 <= measured[0]["valid/report/sts_spearman"] + 1 <= 2
    card = card_of(out, "bert")
    wanted = ALWAYS | {"mask_loss", "pseudo_loss", "minimal_pairs", "minimal_pairs/u1", "sts_spearman", "knn"}
    assert wanted <= card.figures.keys()
    assert measured[1]["valid/report/known_item_mrr"] == pytest.approx(card.figures["known_item_mrr"].value)
    assert card.embedding_map
    assert json.loads((out / "recipe.json").read_text())["result"]["measures"].keys() == {"loss", "accuracy"}
    assert "## Report card" in (out / "export" / "README.md").read_text()
    sections = {s["title"]: s for s in json.loads((out / "report.json").read_text())["sections"]}
    charts = [chart["title"] for chart in sections["How it got there"]["charts"]]
    assert any(title.startswith("report/known_item_mrr") for title in charts)


def test_what_is_measured_fits_the_model(runs: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    report_runs([runs["gpt"], runs["bart"]], out=str(tmp_path), texts=str(files["texts"]), pairs=str(files["pairs"]))
    gpt, bart = (card_of(tmp_path, name) for name in ("gpt", "bart"))
    assert {"bits_per_byte", "repetition@4", "repetition@4/people", "minimal_pairs"} | ALWAYS <= gpt.figures.keys()
    assert {"reconstruction_exact", "reconstruction_similarity"} | ALWAYS <= bart.figures.keys()
    assert not {"mask_loss", "pseudo_loss"} & gpt.figures.keys()
    assert not {"bits_per_byte", "minimal_pairs"} & bart.figures.keys()
    assert gpt.samples
    assert bart.samples
    assert "no scored sentence pairs" in gpt.left_out["sentence similarity"]
    for figure in (*gpt.figures.values(), *bart.figures.values()):
        assert not figure.high < figure.low


def test_figures_are_files_too(runs: dict[str, Path], tmp_path: Path) -> None:
    """A chart of the page, as PNG and as SVG."""
    report_runs([runs["gpt"]], out=str(tmp_path), measures=False)
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    charts = [chart for section in sections for chart in section["charts"] if any(chart["series"].values())]
    assert len(charts) > 2
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(names) == 2 * len(charts)
    assert {name.rpartition(".")[2] for name in names} == {"png", "svg"}
    assert (tmp_path / "figures" / "loss--causal-lm.png").read_bytes().startswith(b"\x89PNG")


def test_bits_per_byte_of_the_card_are_those_of_the_held_out_pass(text_file: Path, tmp_path: Path) -> None:
    """Short documents, each scored whole by both: the same code length but for the ends of texts."""
    texts = [text for text in dict.fromkeys(corpus()) if text.strip()][:12]
    valid = write(tmp_path / "valid.jsonl", [{"text": text} for text in ["", *texts, " "]])  # two are no texts
    keys = [*TINY, f"data.train={text_file}", f"data.valid={valid}", "data.seq_length=128", f"out={tmp_path / 'gpt'}"]
    out = run(load_recipe("pretrain_gpt", [*keys, f"data.cache={tmp_path / 'cache'}", "data.deduplicate=false"]))
    report_runs([out])
    held_out = json.loads((out / "recipe.json").read_text())["result"]["measures"]["bits_per_byte"]
    figure = card_of(out, "gpt").figures["bits_per_byte"]
    assert figure.number == len(texts)
    assert figure.value == pytest.approx(held_out, rel=0.1)


def test_held_out_text_that_was_split_off_is_read_from_the_preparation(runs: dict[str, Path], tmp_path: Path) -> None:
    again = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    report_runs([again])
    assert "bits_per_byte" in card_of(again, "gpt").figures


def test_a_run_without_its_data_is_still_reported(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    story = json.loads((moved / "recipe.json").read_text())
    story["recipe"]["data"]["valid"] = str(tmp_path / "elsewhere.txt")
    (moved / "recipe.json").write_text(json.dumps(story))
    report_runs([moved])
    card = card_of(moved, "gpt")
    assert card.left_out["bits per byte"] == "no held-out text: give texts=FILE"
    assert "elsewhere.txt" in caplog.text


def test_an_export_is_measured_as_its_run_and_never_written_into(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    before = sorted(path.name for path in (moved / "export").iterdir())
    assert report_runs([moved / "export"], measures=False) == moved / "report.html"
    alone = shutil.copytree(moved / "export", tmp_path / "alone")
    for arguments, message in (
        ([str(alone)], "is an export without its run; give the run's folder"),
        ([str(moved), f"out={alone}", "measures=false"], "is an export, and what lies in it is published"),
    ):
        assert run_command(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
    for folder in (moved / "export", alone):
        assert sorted(path.name for path in folder.iterdir()) == before


def test_a_run_whose_card_cannot_be_written_is_reported_elsewhere(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    (moved / "export" / "README.md.tmp").mkdir()  # a folder is in the way, whoever runs this
    before = (moved / "export" / "README.md").read_bytes()
    page = report_runs([moved], out=str(tmp_path / "elsewhere"))
    assert page == tmp_path / "elsewhere" / "report.html"
    assert json.loads((page.parent / "report.json").read_text())["cards"]["gpt"]["figures"]
    assert (moved / "export" / "README.md").read_bytes() == before
    assert "gpt: its model card stays as it is: cannot write" in caplog.text


def test_a_damaged_export_says_what_it_lacks_and_what_to_do(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    # Without `out` it would go on with the run that this is a copy of.
    again = f"make it again: sslnlp train {moved / 'recipe.json'} out={moved} --resume"
    cases = (
        ("model.safetensors", b"{", "model.safetensors in .* is damaged"),
        ("tokenizer.json", b"{", "cannot measure the model in"),
        ("config.json", b"{", "config.json in .* is damaged"),
        ("model.safetensors", None, "lacks model.safetensors"),
    )
    for name, content, message in cases:
        path = moved / "export" / name
        whole = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        assert run_command(["report", str(moved)]) == 2
        said = capsys.readouterr().err.strip()
        assert re.search(message, said)
        assert said.endswith(again)
        path.write_bytes(whole)


def test_nothing_measured_is_said_with_the_reasons(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    report_runs([moved])
    before = (moved / "export" / "README.md").read_text()
    story = json.loads((moved / "recipe.json").read_text())
    story["data"]["fingerprint"] = "of a table, whose rows were split off"
    (moved / "recipe.json").write_text(json.dumps(story))
    report_runs([moved])
    assert "gpt: nothing was measured: no held-out text: give texts=FILE; " in caplog.text
    assert "## Report card" in (moved / "export" / "README.md").read_text() == before  # what was measured is still so


def test_held_out_pairs_are_read_by_the_columns_that_the_run_read(runs: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(3)]
    data = DataConfig(train="x", valid=str(write(tmp_path / "pairs.jsonl", rows)))
    facts = {"columns": {"query": "query", "positive": "positive"}}
    held_out = held_out_texts(data, facts, tmp_path, subject_of(runs["gpt"] / "export").tokenizer)
    assert held_out(2) == ["answer 0", "answer 1"]


def test_an_interval_that_is_no_number_is_shown_again(runs: dict[str, Path], tmp_path: Path) -> None:
    moved = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    figures = {"effective_rank": Figure(1.5, math.nan, math.nan, 2)}
    make_report(moved, cards={"gpt": Card(figures)})
    report_runs([moved], measures=False)
    found = card_of(moved, "gpt").figures["effective_rank"]
    assert (found.value, math.isnan(found.low)) == (1.5, True)


@pytest.mark.parametrize("keys", [["texts"], ["probe_train", "probe_test"]])
def test_a_column_that_no_key_of_a_report_could_name_is_to_be_called_text(tmp_path, keys):
    file = tmp_path / "t.csv"
    file.write_text("body,note,label\nwords,x,1\n")
    with pytest.raises(UserError, match=r"which column of .*t\.csv is the text\?.*; call the column text$"):
        Material.read(ReportConfig(**dict.fromkeys(keys, str(file))), lambda n: [])


def test_the_labelled_texts_of_a_report_may_be_called_in_capitals(tmp_path):
    (file := tmp_path / "t.csv").write_text("Text,note,Label\nwords,x,1\nwords,x,\n")  # the second row has no label
    found = Material.read(ReportConfig(probe_train=str(file), probe_test=str(file)), lambda n: [])
    assert [(part.texts, part.labels) for part in found.probe] == [(["words"], ["1"])] * 2


def test_the_labels_of_probes_are_named_as_training_names_them(tmp_path: Path) -> None:
    """Numbers that pandas wrote as floats, where one is missing, are those of the other file."""
    rows = [{"text": "words", "label": label} for label in (1.0, None, " a ", True)]
    (first := tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (second := tmp_path / "b.csv").write_text("text,label\nwords,1\nwords,2\n")
    found = Material.read(ReportConfig(probe_train=str(first), probe_test=str(second)), lambda n: [])
    assert [part.labels for part in found.probe or ()] == [["1", "a", "true"], ["1", "2"]]
    first.write_text(json.dumps({"text": "words", "label": 2.5}) + "\n")
    with pytest.raises(
        UserError, match=r"a\.jsonl: label column 'label' holds 2\.5: .* numbers; a probe needs one class"
    ):
        Material.read(ReportConfig(probe_train=str(first), probe_test=str(second)), lambda n: [])


def test_a_card_is_the_same_every_time(runs: dict[str, Path], files: dict[str, Path]) -> None:
    material = Material.read(ReportConfig(texts=str(files["texts"])), lambda n: [])
    subject = subject_of(runs["gpt"] / "export")
    first, second = (measure(subject, material).to_dict() for _ in range(2))
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)


def test_an_embedder_is_measured_by_its_own_pooling(runs: dict[str, Path], text_file: Path, tmp_path: Path) -> None:
    keys = [
        f"data.train={text_file}",
        f"model.pretrained={runs['bert'] / 'export'}",
        "train.steps=2",
        "train.batch_size=4",
        "objective.pooling=cls",
    ]
    out = run(load_recipe("embed_simcse", [*keys, f"out={tmp_path / 'simcse'}", f"data.cache={tmp_path / 'cache'}"]))
    subject = subject_of(out / "export")
    assert (subject.kind, subject.settings.pooling) == ("encoder", "cls")
    vector = subject.encoder.encode(["one text"], "query")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "run folder 'nowhere' does not exist"),
        (["sts=x.jsonl"], "say which run"),
        (["{gpt}", "stss=x.jsonl"], "unknown key 'stss'. Did you mean 'sts'?"),
        (["{gpt}", "probe_train={sts}"], "both report.probe_train and report.probe_test"),
        (["{gpt}", "pairs={sts}"], "no column 'sentence_good'"),
        (["{gpt}", "sts={pairs}"], "no 'sentence1'"),
        (["{gpt}", "probe_train={sts}", "probe_test={sts}"], "no label column"),
        (["{gpt}", "documents=2"], "report.documents=2 is too few"),
        (["{gpt}", "texts=absent.txt"], "absent.txt"),
        (["{gpt}", "beir=absent"], "no folder absent"),
    ],
)
def test_one_clear_line(
    arguments: list[str],
    message: str,
    runs: dict[str, Path],
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (runs["gpt"] / "export" / "README.md").read_text()
    filled = [argument.format(**runs, **files) for argument in arguments]
    assert run_command(["report", *filled]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert (runs["gpt"] / "export" / "README.md").read_text() == before


def test_wrong_files_are_told_before_anything_is_trained(
    text_file: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    keys = [*TINY, f"data.train={text_file}", f"out={tmp_path / 'run'}", f"report.sts={files['pairs']}"]
    with pytest.raises(Exception, match="no 'sentence1'"):
        run(load_recipe("pretrain_bert", [*keys, f"data.cache={tmp_path / 'cache'}"]))
    assert not (tmp_path / "run").exists()


# --- the model card ---------------------------------------------------------------------------------------------------


def test_the_short_form_replaces_the_one_before() -> None:
    rows = [ReportRow("knn", 0.5, 0.4, 0.6, 0.1, 1000, "accuracy: of <neighbours>")]
    card = with_report("---\nx: 1\n---\n\n# Title\n\n## Training\n\ntext\n", rows)
    assert card.count("## Report card") == 1
    assert "| knn | 0.5 | 0.4 to 0.6 | 0.1 | 1,000 | accuracy: of \\<neighbours\\> |" in card
    changed = with_report(card, [rows[0]._replace(value=0.75)])
    assert changed.count("## Report card") == 1
    assert "0.75" in changed
    assert "| 0.5 |" not in changed
    middle = f"# Title\n\n{report_section(rows)}\n\n## Versions\n\nlast\n"
    assert with_report(middle, [rows[0]._replace(value=0.75)]).endswith("## Versions\n\nlast\n")
    assert report_section([]) == ""


# --- runs side by side ------------------------------------------------------------------------------------------------


def test_runs_of_one_name_keep_apart(runs: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    """`a/run` and `b/run`: two columns, each with its own figures."""
    for name, folder in (("gpt", "a"), ("bart", "b")):
        shutil.copytree(runs[name], tmp_path / folder / "run")
    report_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"], out=str(tmp_path / "out"), texts=str(files["texts"]))
    first, second = card_of(tmp_path / "out", "a/run"), card_of(tmp_path / "out", "b/run")
    assert "bits_per_byte" in first.figures
    assert "reconstruction_exact" in second.figures


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "namesake"])
def test_what_was_measured_before_is_shown_again(
    beside: bool, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = shutil.copytree(runs["gpt"], tmp_path / "gpt")
    report_runs([again, runs["gpt"]] if beside else [again])
    monkeypatch.chdir(again)
    for called in (again, Path()):
        report_runs([called], out=str(tmp_path / "out"), measures=False)
        assert card_of(tmp_path / "out", "gpt") == card_of(again, f"{tmp_path.name}/gpt" if beside else "gpt")


def test_a_resumed_run_is_measured_at_the_same_evaluations(
    text_file: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    keys = [*TINY, f"data.train={text_file}", f"data.cache={tmp_path / 'cache'}", f"report.texts={files['texts']}"]
    keys += ["train.eval_every=1", "train.save_every=1", "train.keep=9", "report.every=2", "report.documents=8"]
    out = run(load_recipe("pretrain_bert", [*keys, f"out={tmp_path / 'run'}"]))

    def measured() -> list[int]:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["step"] for line in lines if "valid/report/known_item_mrr" in line]

    assert measured() == [2, 4]
    for step in (2, 3, 4):
        shutil.rmtree(out / "state" / f"step-{step:08d}")
    run(load_recipe("pretrain_bert", [*keys, f"out={tmp_path / 'run'}"]), resume=True)
    assert measured() == [2, 4]


def test_measuring_leaves_the_tokenizer_as_it_is(runs: dict[str, Path]) -> None:
    subject = subject_of(runs["gpt"] / "export")
    subject.tokenizer.pad_token = None
    with_padding = in_memory(subject.model, subject.tokenizer, settings=subject.settings)
    assert with_padding.tokenizer.pad_token is not None
    assert subject.tokenizer.pad_token is None
