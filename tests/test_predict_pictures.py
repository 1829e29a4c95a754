"""Pictures by the names of classes: as the stock model says, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, VisionTextDualEncoderModel

from sslnlp.cli import run_command
from sslnlp.errors import UserError
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.pictures import decode, normalised, whole
from sslnlp.predict_cli import read_labels
from sslnlp.predict_pictures import predict_pictures
from tests.pictures import SIDE, save_dual, save_tower, shades

LABELS = ["the cat", "a dog", "the old owl"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("predict")
    return {
        "dual": save_dual(folder / "dual"),
        "tower": save_tower(folder / "tower"),
        "pictures": shades(folder / "pictures", 5),
        "listed": listed(folder / "listed.csv"),
    }


def listed(path: Path) -> Path:
    path.write_text("photo,caption\n0.png,a cat\n")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_probabilities_are_those_of_the_stock_model(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "said" / "out.jsonl"
    arguments = ["predict", files["dual"], files["pictures"], "--labels", ",".join(LABELS), "--out", out]
    assert run_command([*map(str, arguments), "--template", "{}", "--top", "0", "--batch-size", "2"]) == 0
    stock: Any = VisionTextDualEncoderModel.from_pretrained(files["dual"]).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(files["dual"])
    words = tokenizer(LABELS, padding=True, return_tensors="pt", return_token_type_ids=False)
    said = lines(out)
    assert [Path(line["picture"]).name for line in said] == [f"{n}.png" for n in range(5)]
    for line in said:
        pixels = normalised(whole(decode(Path(line["picture"]).read_bytes()), SIDE)[None])
        with torch.no_grad():
            shares = stock(pixel_values=pixels, **words).logits_per_image.softmax(-1)[0].tolist()
        assert line["probabilities"] == pytest.approx(dict(zip(LABELS, shares, strict=True)), abs=1e-4)
        assert line["label"] == next(iter(line["probabilities"])) == LABELS[shares.index(max(shares))]
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_several_templates_differ_from_one_and_only_the_top_is_written(files: dict[str, Path], tmp_path: Path) -> None:
    said = []
    for name, templates in (("a", ["{}"]), ("b", ["{}", "on day 4 {} sees the fox"])):
        out = tmp_path / name
        predict_pictures(str(files["dual"]), files["pictures"], out, LABELS, templates=templates, top=2)
        said.append(lines(out))
    assert all(len(line["probabilities"]) == 2 for line in said[0])
    assert said[0] != said[1]


def test_a_file_is_written_whole_or_not_at_all(files: dict[str, Path], tmp_path: Path) -> None:
    pictures = shades(tmp_path / "pictures", 4)
    out = tmp_path / "out.jsonl"
    out.write_text("before")

    def vanish(done: int) -> None:
        raise OSError("full")

    with pytest.raises(UserError, match=r"cannot write .*out\.jsonl: full"):
        predict_pictures(str(files["dual"]), pictures, out, LABELS, progress=vanish)
    assert out.read_text() == "before"
    (pictures / "2.png").write_bytes(b"no picture")
    assert predict_pictures(str(files["dual"]), pictures, out, LABELS) == 3  # a broken one is left out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "pictures"]


def test_what_is_read_is_not_written_over(files: dict[str, Path], tmp_path: Path) -> None:
    pictures = shades(tmp_path / "pictures", 2)
    (pictures / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"lies in .*pictures, which is to be read"):
        predict_pictures(str(files["dual"]), pictures, pictures / "metadata.jsonl", LABELS)
    (tmp_path / "names.txt").write_text("\n".join(LABELS))
    names, data = str(tmp_path / "names.txt"), str(pictures)
    assert run_command(["predict", str(files["dual"]), data, "--labels", names, "--out", names]) == 2
    assert read_labels(names) == LABELS


def test_labels_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("traffic light\n\n dog, small \n")
    assert read_labels(str(tmp_path / "labels.txt")) == ["traffic light", "dog, small"]
    assert read_labels(" cat, dog") == ["cat", "dog"]
    for given, said in (("cat", "at least two"), ("cat,dog,cat", "names 'cat' twice")):
        with pytest.raises(UserError, match=said):
            read_labels(given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tower}", "{pictures}", "--labels", "cat,dog"], "no text tower"),
        (["{dual}", "{pictures}"], "reads pictures: say by which names"),
        (["{dual}", "{pictures}", "--labels", "cat"], "at least two names"),
        (["{dual}", "{pictures}", "--labels", "cat,dog", "--template", "a photo"], "has no place for the name"),
        (["{dual}", "{pictures}", "--template", "a {{}}"], "give --labels too"),
        (["{dual}", "{pictures}", "--labels", "cat,dog", "--pair", "b"], "no --pair"),
        (["{dual}", "nowhere.parquet", "--labels", "cat,dog"], "nowhere.parquet does not exist"),
        (["{dual}", "{pictures}", "--labels", "cat,dog", "--text", "photo"], "no column 'photo' (--text)"),
        (["{dual}", "{listed}", "--labels", "cat,dog"], "its columns are photo, caption: say --text NAME"),
        (["nowhere/at/all", "{pictures}", "--labels", "cat,dog"], "no model folder at nowhere/at/all"),
    ],
)
def test_one_clear_line(
    arguments: list[str], message: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(**files) for argument in arguments]
    assert run_command(["predict", *filled, "--out", str(tmp_path / "new" / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="cannot load") as said:
        PictureEncoder.load(str(tmp_path))
    assert "\n" not in str(said.value)
    tower = PictureEncoder.load(str(save_tower(tmp_path / "tower")))
    assert (tower.dual, tower.tokenizer, tower.scale) == (False, None, 1.0)
