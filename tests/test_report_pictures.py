"""The report of models of pictures: what is measured of which, against the stock model, and what the page shows."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslnlp.cli import run_command
from sslnlp.data.config import DataConfig
from sslnlp.data.pictured import every_picture
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.recipe import load_recipe, run
from sslnlp.report.card import Card
from sslnlp.report.command import report_runs
from sslnlp.report.config import ReportConfig
from sslnlp.report.contact_sheet import OWN, Line, _font_of, box, draw, found
from sslnlp.report.picture_material import PictureMaterial
from tests.pictures import COLOURS, save_dual, save_tower, shades, write_run
from tests.test_report import Page

FALLING, FLAT = [3.0 - 0.1 * n for n in range(16)], [2.99] * 16


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of a dual encoder and of a vision tower alone, and labelled pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    valid = shades(folder / "valid")
    runs = {}
    for name, save, losses in (("dual", save_dual, FALLING), ("tower", save_tower, FLAT)):
        keys = (f"data.train={valid}", f"data.valid={valid}", f"data.cache={folder / 'cache'}")
        runs[name] = write_run(folder / name, losses, *keys)
        save(runs[name] / "export")
    (runs["tower"] / "export" / "preprocessor_config.json").write_text("{}")  # as an export of pictures alone has one
    return {**runs, "valid": valid, "train": shades(folder / "train", 9, darker=2), "test": shades(folder / "test", 7)}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslnlp.report.runs.write_figures", lambda charts, folder: [])


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def card_of(folder: Path, name: str) -> Card:
    return Card.from_dict(report_of(folder)["cards"][name])


def test_pictures_that_a_probe_learns_from_and_is_tested_on_are_told(
    files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    for test, told in (("test", 0), ("train", 9)):
        caplog.clear()
        config = ReportConfig(probe_train=str(files["train"]), probe_test=str(files[test]), label="kind")
        PictureMaterial.read(config, DataConfig(train=str(files["valid"])), files["train"].parent / "cache")
        said = [record.getMessage() for record in caplog.records if "test items" in record.getMessage()]
        assert [line.partition(" test items")[0] for line in said] == ([f"{told} of the {told}"] if told else [])


def test_a_dual_encoder_is_measured_by_its_pictures_and_captions(files: dict[str, Path], tmp_path: Path) -> None:
    probes = {"probe_train": str(files["train"]), "probe_test": str(files["test"]), "label": "kind"}
    report_runs([files["dual"]], out=str(tmp_path), **probes)  # type: ignore[arg-type]
    card = card_of(tmp_path, "dual")
    assert not card.left_out
    sides = ("text_to_image", "image_to_text")
    assert {f"{side}_{what}" for side in sides for what in ("recall@1", "recall@5", "recall@10", "median_rank")} | {
        *("zero_shot_accuracy", "zero_shot_macro_f1", "zero_shot_majority", "picture_knn", "picture_linear_probe"),
        *("picture_effective_rank", "caption_effective_rank", "picture_anisotropy", "caption_uniformity"),
    } <= card.figures.keys()
    assert card.figures["text_to_image_recall@1"].number == 15  # 3 captions of colours, 12 of numbers
    assert card.figures["image_to_text_recall@1"].number == 12
    assert card.figures["zero_shot_accuracy"].number == card.figures["picture_knn"].number == 7
    assert set(card.by_class) == set(COLOURS)
    assert "recall@1" in (files["dual"] / "export" / "README.md").read_text()

    # The ranks, from what the stock model says of each pair.
    encoder = PictureEncoder.load(str(files["dual"] / "export"))
    rows = every_picture(DataConfig(train=str(files["valid"])), "train")[0].rows(range(12))
    words = [caption for row in rows for caption in row["captions"]]
    different = list(dict.fromkeys(words))
    tokenizer: Any = encoder.tokenizer
    inputs = tokenizer(different, padding=True, return_tensors="pt", return_token_type_ids=False)
    pixels = [np.array(Image.open(io.BytesIO(row["image"])).resize((16, 16), box=(1, 0, 19, 18))) for row in rows]
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    with torch.no_grad():
        logits = encoder.model(pixel_values=batch, **inputs).logits_per_text.numpy()
    ranks = []
    for caption, line in zip(different, logits, strict=True):
        own = [caption in row["captions"] for row in rows]
        ranks.append(1 + int((line[np.invert(own)] >= line[own].max()).sum()))
    assert card.figures["text_to_image_median_rank"].value == np.median(ranks)
    assert card.figures["text_to_image_recall@5"].value == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert [place for caption, place in card.found] == [ranks[different.index(caption)] for caption, _ in card.found]


def test_a_vision_tower_alone_needs_no_tokenizer(files: dict[str, Path], tmp_path: Path) -> None:
    report_runs(
        [files["tower"]],
        out=str(tmp_path),
        probe_train=str(files["train"]),
        probe_test=str(files["test"]),
        label="kind",
    )
    card = card_of(tmp_path, "tower")
    assert {"picture_knn", "picture_linear_probe", "picture_effective_rank"} <= card.figures.keys()
    lacking = {"retrieval", "zero-shot classification", "geometry of captions", "contact sheet"}
    assert card.left_out == dict.fromkeys(lacking, "the model has no text tower")
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("order", [1, -1], ids=["texts first", "pictures first"])
def test_runs_of_texts_and_of_pictures_are_measured_beside_each_other(
    order: int, files: dict[str, Path], text_file: Path, tmp_path: Path
) -> None:
    keys = ["model.size=nano", "train.steps=1", "train.batch_size=2", "tokenizer.algorithm=bytes", "data.seq_length=32"]
    keys += [f"data.train={text_file}", f"data.cache={tmp_path / 'cache'}", f"out={tmp_path / 'gpt'}"]
    report_runs([run(load_recipe("pretrain_gpt", keys)), files["dual"]][::order], out=str(tmp_path))
    assert "bits_per_byte" in card_of(tmp_path, "gpt").figures
    assert "text_to_image_recall@1" in card_of(tmp_path, "dual").figures


def test_what_was_not_given_is_left_out_with_the_reason(files: dict[str, Path], tmp_path: Path) -> None:
    again = shutil.copytree(files["dual"], tmp_path / "dual")
    story = json.loads((again / "recipe.json").read_text())
    story["recipe"]["data"]["valid"] = str(tmp_path / "elsewhere")
    (again / "recipe.json").write_text(json.dumps(story))
    report_runs([again])
    reasons = card_of(again, "dual").left_out
    assert reasons["retrieval"] == reasons["geometry of pictures"] == "no held-out pictures: give pictures=FILE"
    assert "give probe_train=FILE" in reasons["probes"]
    report_runs([again], pictures=str(files["train"]), documents=4)
    card = card_of(again, "dual")
    assert card.figures["image_to_text_recall@1"].number == 4
    assert set(card.left_out) == {"probes", "zero-shot classification"}


def test_labels_that_are_numbers_name_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    paths = [str(shades(tmp_path / name, 6)) for name in ("a", "b")]
    for path in paths:
        table = Path(path) / "metadata.jsonl"
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        table.write_text("\n".join(json.dumps(row | {"category": n % 2}) for n, row in enumerate(rows)))
    report_runs([files["dual"]], out=str(tmp_path / "out"), probe_train=paths[0], probe_test=paths[1])
    card = card_of(tmp_path / "out", "dual")
    assert "picture_knn" in card.figures
    assert "labels are numbers" in card.left_out["zero-shot classification"]


def test_the_run_s_own_names_of_columns_count_where_a_file_has_them(files: dict[str, Path], tmp_path: Path) -> None:
    """The captions of `valid` are in another column; the file given has none of that name."""
    other = shades(tmp_path / "other", 6)
    text = (other / "metadata.jsonl").read_text()
    (other / "metadata.jsonl").write_text(text.replace('"caption"', '"caption_de"').replace('"kind"', '"art"'))
    keys = (f"data.train={other}", f"data.valid={other}", "data.columns.caption=caption_de", "data.columns.label=art")
    made = write_run(tmp_path / "run", FALLING, *keys, f"data.cache={tmp_path / 'cache'}")
    shutil.copytree(files["dual"] / "export", made / "export")
    report_runs([made])
    assert card_of(made, "run").figures["image_to_text_recall@1"].number == 6
    assert card_of(made, "run").figures["zero_shot_accuracy"].number == 6  # the held-out pictures have labels
    report_runs([made], pictures=str(files["valid"]))
    assert card_of(made, "run").figures["image_to_text_recall@1"].number == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures=absent.parquet"], "absent.parquet does not exist"),
        (["templates=a photo"], "'a photo' has no place for the name"),
        (["probe_train={train}", "probe_test={test}"], "holds no labelled pictures: say label=NAME"),
        (["probe_train={train}", "probe_test={test}", "label=sort"], "has no column 'sort'"),
        (["picture={train}"], "unknown key 'picture'. Did you mean 'pictures'?"),
    ],
)
def test_one_clear_line(
    arguments: list[str], message: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(**files) for argument in arguments]
    before = (files["dual"] / "export" / "README.md").read_text()
    assert run_command(["report", str(files["dual"]), f"out={tmp_path / 'out'}", *filled]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert (files["dual"] / "export" / "README.md").read_text() == before


def test_a_card_of_texts_has_no_new_parts() -> None:
    assert set(Card().to_dict()) == {"figures", "samples", "embedding_map", "left_out"}


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_chance_and_says_when_nothing_was_learnt(files: dict[str, Path], tmp_path: Path) -> None:
    report_runs([files["dual"], files["tower"]], out=str(tmp_path), measures=False)
    sections = {section["title"]: section for section in report_of(tmp_path)["sections"]}
    assert sections["Alarm"]["text"] == "tower: the loss is at chance: 2.99, and a model that tells nothing has 3"
    assert report_of(tmp_path)["sections"][0]["title"] == "Alarm"
    charts = {chart["title"]: chart["series"] for chart in sections["How it got there"]["charts"]}
    assert charts["loss (clip)"]["dual: chance"] == [[step, 3.0] for step in range(1, 17)]
    assert set(charts["accuracy (clip)"]) == {"dual: training", "tower: training"}
    assert not any("chance" in title for title in charts)
    report_runs([files["dual"]], out=str(tmp_path / "one"), measures=False)
    assert "Alarm" not in {section["title"] for section in report_of(tmp_path / "one")["sections"]}


def test_the_contact_sheet_stands_in_the_page_and_is_shown_again(files: dict[str, Path], tmp_path: Path) -> None:
    again = shutil.copytree(files["dual"], tmp_path / "dual")
    report_runs([again])
    sheet = (again / "figures" / "contact-sheet-dual.png").read_bytes()
    page = Page((again / "report.html").read_text())
    sources = [source for source in page.fetched if source != "img"]
    assert [source[:22] for source in sources] == ["data:image/png;base64,"]
    assert "The captions, from the top" in "".join(page.text)
    assert Image.open(io.BytesIO(sheet)).size[0] > 500
    shutil.rmtree(again / "export")  # so that nothing can be measured
    report_runs([again], out=str(tmp_path / "out"), measures=False)
    assert (tmp_path / "out" / "figures" / "contact-sheet-dual.png").read_bytes() == sheet


def test_the_contact_sheet_holds_the_right_pictures(tmp_path: Path) -> None:
    """Vectors are colours: a caption that names one finds its shades from the brightest; every picture is in place."""
    rows, _ = every_picture(DataConfig(train=str(shades(tmp_path / "shades", 6))), "train")
    pictures = np.array([*COLOURS.values(), *COLOURS.values()], np.float32) / 255
    pictures[:3] += 0.1  # the brighter ones

    def texts(captions: Any) -> np.ndarray:
        return np.array([[float(name in caption) for name in COLOURS] for caption in captions], np.float32)

    captions = [[f"a {name} square"] for name in [*COLOURS, *COLOURS]]
    captions[5] = ["red by mistake"]
    lines = {line.caption: line for line in found(rows.extra["picture"], captions, pictures, texts)}
    assert lines["a red square"] == Line("a red square", [0, 3, 1, 2, 4], {0, 3}, 1)
    assert lines["red by mistake"].own == {5}
    assert lines["red by mistake"].place == 6
    assert set(lines) == {"a red square", "a green square", "a blue square", "red by mistake"}

    sheet = Image.open(io.BytesIO(draw([lines["a red square"], lines["red by mistake"]], rows)))
    for row in range(2):
        for column, at in enumerate([0, 3, 1, 2, 4]):
            left, top, right, bottom = box(row, column)
            shade = np.array(COLOURS[list(COLOURS)[at % 3]]) - 4 * (at // 3)
            assert np.array_equal(sheet.getpixel(((left + right) // 2, (top + bottom) // 2)), shade)
            framed = sheet.getpixel((left - 2, top + 9)) == OWN
            assert framed == (row == 0 and at in (0, 3))


# --- while a run trains -----------------------------------------------------------------------------------------------


def test_a_run_measures_itself_while_it_trains(files: dict[str, Path], tmp_path: Path) -> None:
    keys = [f"data.train={files['train']}", f"data.valid={files['valid']}", f"data.cache={tmp_path / 'cache'}"]
    keys += ["model.size=nano", "tokenizer.vocab_size=400", "objective.vision=nano", "objective.image_size=16"]
    keys += ["train.epochs=none", "train.steps=2", "train.eval_every=1", "report.every=1", f"out={tmp_path / 'run'}"]
    out = run(load_recipe("clip_image_text", [*keys, "train.batch_size=4"]))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "valid/report/text_to_image_recall@1" in line]
    assert [line["step"] for line in measured] == [1, 2]
    # The same pictures, captions and weights as in the held-out pass.
    for line in measured:
        assert line["valid/report/image_to_text_median_rank"] == line["valid/image_to_text_median_rank"]
    assert (out / "figures" / "contact-sheet-run.png").is_file()
    report_runs([out])
    figure = card_of(out, "run").figures["text_to_image_recall@5"].value
    best = json.loads((out / "recipe.json").read_text())["result"]["measures"]["text_to_image_recall@5"]
    assert figure == pytest.approx(best)


def test_a_caption_is_written_in_a_font_that_has_its_letters() -> None:
    pytest.importorskip("matplotlib")
    assert _font_of("plain words") is None  # Pillow's own will do
    font = _font_of("flag: Curaçao, über, кот")
    assert font is not None
    assert "DejaVu" in str(font.getname())
