"""Pictures and words: the losses by hand, what is no negative, locked towers, and the stock export."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoConfig, VisionTextDualEncoderModel, VisionTextDualEncoderProcessor

from sslnlp.errors import UserError
from sslnlp.objectives.clip import Clip
from sslnlp.objectives.siglip import Siglip
from sslnlp.recipe import load_recipe, run
from tests.contract import make_collator, make_objective, make_stream, make_trainer, one_batch


def vectors(objective: Clip, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return objective.embed_images(batch["pixel_values"]), objective.embed_text(batch["text"])


def test_the_loss_of_different_pairs_is_the_symmetric_cross_entropy() -> None:
    objective, batch = make_objective("clip").eval(), one_batch("clip")
    image, text = vectors(objective, batch)
    logits = image @ text.T / 0.07
    own = torch.arange(len(image))
    wanted = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    output = objective(batch)
    assert output.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert output.metrics["chance_loss"].item() == pytest.approx(math.log(len(image)))


def test_siglip_by_hand_and_at_chance() -> None:
    objective, batch = make_objective("siglip").eval(), one_batch("siglip")
    image, text = vectors(objective, batch)
    number = len(image)
    logits = image @ text.T / 0.1 + math.log(1 / (number - 1))
    signs = 2 * torch.eye(number) - 1
    wanted = -F.logsigmoid(signs * logits).sum() / number
    assert objective(batch).loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    # A model that tells nothing: every candidate at its share, whatever the size of the batch.
    objective.text_projection.weight.data.zero_()
    for rows in (3, 6):
        output = objective(one_batch("siglip", rows))
        chance = math.log(rows) + (rows - 1) * math.log(rows / (rows - 1))
        assert output.loss.item() == pytest.approx(chance, rel=1e-5) == output.metrics["chance_loss"].item()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_equal_captions_and_other_captions_of_a_picture_are_no_negatives(name: str) -> None:
    """Pictures 0 and 1 have the same caption, and picture 2 has two: each is left out of the sums of the other."""
    objective = make_objective(name).eval()
    collator = make_collator(name)
    rows = [dict(row) for row in make_stream(name).rows(range(3))]
    for row, captions in zip(rows, (["one dog"], [" One dog"], ["the cat", "a fox"]), strict=True):
        row["captions"] = captions
    batch = collator.for_evaluation(0)(rows)
    assert batch["text_row"].tolist() == [0, 1, 2, 2]
    image, text = vectors(objective, batch)
    cosine = image[batch["text_row"]] @ text.T
    counted = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1]]).bool()
    by_text = text @ image.T
    counted_by_text = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]).bool()
    wanted = []
    for similarity, use, own in ((cosine, counted, range(4)), (by_text, counted_by_text, [0, 1, 2, 2])):
        total = 0.0
        for values, kept, target in zip(similarity, use, own, strict=True):
            others = [float(v) for n, (v, k) in enumerate(zip(values, kept, strict=True)) if k and n != target]
            if name == "clip":
                logits = torch.tensor([float(values[target]), *others]) / 0.07
                total += float(-logits.log_softmax(0)[0])
            else:
                shift = math.log(1 / len(others))
                total += math.log1p(math.exp(-(float(values[target]) / 0.1 + shift)))
                total += sum(math.log1p(math.exp(v / 0.1 + shift)) for v in others)
        wanted.append(total / 4)
    assert objective(batch).loss.item() == pytest.approx(sum(wanted) / 2, rel=1e-4)
    # What is left out is no candidate of a model that tells nothing either.
    objective.text_projection.weight.data.zero_()
    told = objective(batch)
    assert told.metrics["chance_loss"].item() == pytest.approx(told.loss.item(), rel=1e-5)


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    batch, gradients = one_batch("clip"), []
    for size in (None, 2):
        objective = make_objective("clip")
        objective.mini_batch_size = size
        objective(batch).loss.backward()
        gradients.append({name: p.grad for name, p in objective.named_parameters()})
    assert max(float((gradients[0][n] - gradients[1][n]).abs().max()) for n in gradients[0]) < 1e-5


@pytest.mark.parametrize(("lock", "still"), [("text", "model."), ("image", "vision.")])
def test_a_locked_tower_stays_but_for_its_pooler(lock: str, still: str) -> None:
    model = make_objective("clip").model
    objective = Clip(model, vision="nano", image_size=16, lock=lock)  # type: ignore[arg-type]
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in objective.named_parameters() if n.startswith(still) and ".pooler." not in n}


def test_what_cannot_be_is_refused() -> None:
    model = make_objective("clip").model
    assert "no pooler" in str(Clip.refuses(AutoConfig.for_model("modernbert")))
    assert Clip.refuses(AutoConfig.for_model("bert")) is None
    for options, said in (
        ({"vision": "tinny"}, "Did you mean 'tiny'"),
        ({"image_size": 20, "patch_size": 8}, "not a multiple"),
        ({"temperature": 0.001}, "0.01 or above"),
        ({"patch_dropout": 1.0}, "below 1"),
        ({"dimension": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            Clip(model, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"objective\.image_size says so"):
        Clip.bound({"image_size": 32}).collator_options({"image_size": 64})
    assert Siglip.bound({"image_size": 32}).collator_options({}) == {"image_size": 32, "patch_size": 8}


def test_patches_are_left_out_by_position_in_training_alone() -> None:
    objective = make_objective("siglip")
    batch = one_batch("siglip", 4)
    pixels, position = batch["pixel_values"], batch["position"]
    with torch.no_grad():
        train = objective.train().embed_images(pixels, position)
        alone = objective.embed_images(pixels[2:3], position[2:3])
        whole = objective.eval().embed_images(pixels, position)
    assert torch.allclose(train[2:3], alone, atol=1e-6)
    assert not torch.allclose(train, whole, atol=1e-4)
    assert torch.allclose(whole, objective.embed_images(pixels), atol=1e-6)


def folder_of_shades(folder: Path, number: int = 40) -> Path:
    """Pictures of one colour each, with the name of the colour as a caption."""
    folder.mkdir()
    names = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230), "white": (250, 250, 250)}
    lines = []
    for n in range(number):
        name, colour = list(names.items())[n % 4]
        shade = tuple(max(0, c - 3 * (n // 4)) for c in colour)
        Image.new("RGB", (24, 16), shade).save(folder / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "caption": [f"a {name} square", f"{name}, number {n}"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_from_a_folder_to_a_stock_dual_encoder(tmp_path: Path) -> None:
    data = folder_of_shades(tmp_path / "shades")
    out = run(
        load_recipe(
            "clip_image_text",
            [
                *(f"data.train={data}", "data.valid_fraction=0.2", "model.size=nano", "tokenizer.vocab_size=400"),
                *("train.epochs=none", "train.steps=60", "train.batch_size=16", "train.lr=1e-3", "collator.captions=2"),
                *("objective.vision=nano", "objective.image_size=16", f"out={tmp_path / 'out'}"),
            ],
        )
    )
    export = out / "export"
    measures = json.loads((out / "recipe.json").read_text())["result"]["measures"]
    assert measures["text_to_image_median_rank"] < measures["chance_median_rank"]
    stock = VisionTextDualEncoderModel.from_pretrained(export).eval()
    processor = VisionTextDualEncoderProcessor.from_pretrained(export)
    assert processor.tokenizer.model_max_length == 64  # what `truncation=True` cuts at
    square = [Image.new("RGB", (20, 20), colour) for colour in ((208, 18, 18), (18, 188, 28), (18, 28, 218))]
    texts = [f"a {name} square" for name in ("red", "green", "blue")]
    inputs = processor(text=texts, images=square, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = stock(**inputs).logits_per_image
    assert logits.argmax(1).tolist() == [0, 1, 2]

    # The stock processor makes of a picture what the collator makes of it.
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(file, "PNG")
    row = {"image": file.getvalue(), "captions": ["x"], "picture": 0}
    ours = make_collator("clip").for_evaluation(0)([row])["pixel_values"]
    theirs = processor(images=[Image.open(file)], return_tensors="pt")["pixel_values"]
    assert torch.allclose(ours, theirs, atol=1e-2)

    # What the card tells a person to type reads a text of any length, as training and search do.
    (said,) = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.S)
    given = {"PATH_OR_NAME": export, "picture.png": data / "0.png", "first text": "red " * 500}
    for word, filled in given.items():
        said = said.replace(word, str(filled))
    typed: dict[str, Any] = {}
    exec(said, typed)
    assert typed["inputs"]["input_ids"].shape == (2, 64)


def test_a_tower_is_let_go_at_its_share_of_the_run(tmp_path: Path) -> None:
    """Half of four updates: its weights stay bit for bit, weight decay and all, and move from the third on."""
    trainer = make_trainer("siglip", tmp_path, weight_decay=0.5)
    objective = trainer.objective
    assert isinstance(objective, Siglip)
    start = {name: p.detach().clone() for name, p in objective.model.named_parameters()}
    seen: list[list[str]] = []
    after_step = objective.after_step

    def watched(progress: float) -> None:
        after_step(progress)
        seen.append([name for name, p in objective.model.named_parameters() if not torch.equal(p, start[name])])

    objective.after_step = watched  # type: ignore[method-assign]
    trainer.fit()
    assert {name.split(".")[0] for step in seen[:2] for name in step} == {"pooler"}
    assert any(name.startswith("encoder.") for name in seen[2])
    assert any(name.startswith("embeddings.") for name in seen[3])


def test_an_objective_beside_is_one_more_term_on_the_vision_tower() -> None:
    objective, batch = make_objective("clip-beside").eval(), one_batch("clip-beside")
    output = objective(batch)
    assert output.terms is not None
    assert objective.num_targets(batch).tolist() == [6, 6]
    assert output.terms[1].item() == pytest.approx(objective.beside(batch).loss.item())  # type: ignore[misc]
    assert output.metrics["captions/loss"].item() == pytest.approx(output.terms[0].item())
    assert output.metrics["captions/chance_loss"].item() == pytest.approx(math.log(6))
    assert "views/effective_rank" in output.metrics
    objective.zero_grad()
    objective(batch).terms[1].backward()
    moved = {name.split(".")[0] for name, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"vision"}
    with pytest.raises(UserError, match="does not compare views"):
        Clip(objective.model, beside="masked_lm")
    with pytest.raises(UserError, match="lock=image keeps"):
        Clip(objective.model, beside="byol", lock="image")
    with pytest.raises(UserError, match="about a locked tower"):
        Clip(objective.model, unlock=0.5)
