"""Pictures without words: what is made of them, what is asked of them, and the tower that is left."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, ViTModel

from sslnlp.card import CardFacts
from sslnlp.collators.images import ImageViewsCollator, MaskedPatchesCollator, RotationCollator
from sslnlp.errors import UserError
from sslnlp.export import export_model
from sslnlp.nn import Pooling
from sslnlp.objectives.masked_patches import MaskedPatches
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.pictures import decode, normalised, whole
from sslnlp.recipe import load_recipe, run
from tests.contract import make_collator, make_objective, make_stream, one_batch

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8}


def rows(number: int = 4) -> list[Any]:
    return make_stream("rotation").rows(range(number))


def test_views_differ_and_are_known_by_their_picture() -> None:
    batch = ImageViewsCollator(**SIZES, views=3)(rows())
    first, second = batch["view_0"], batch["view_1"]
    assert first["pixel_values"].shape == (4, 3, 16, 16)
    assert first["attention_mask"].shape == (4, 5)
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    assert torch.equal(first["hashes"][..., 0], second["hashes"][..., 0])
    assert not (first["hashes"][..., 1] == second["hashes"][..., 1]).any()
    assert "view_2" in batch
    assert batch["present"].tolist() == [[True]] * 4


def test_the_least_crop_is_the_whole_where_it_is_said_so() -> None:
    made = ImageViewsCollator(**SIZES, augment="crop", crop_min=1.0)
    wanted = normalised(np.stack([whole(decode(row["image"]), 16) for row in rows()]))
    assert torch.equal(made(rows())["view_0"]["pixel_values"], wanted)


def test_a_turn_is_named_and_can_be_undone() -> None:
    collator = RotationCollator(**SIZES, augment="none")
    batch = collator(rows(12))
    assert set(batch["labels"].tolist()) == {0, 1, 2, 3}
    wanted = normalised(np.stack([whole(decode(row["image"]), 16) for row in rows(12)]))
    for turned, turns, plain in zip(batch["pixel_values"], batch["labels"].tolist(), wanted, strict=True):
        assert torch.equal(torch.rot90(turned, -turns, (1, 2)), plain)


def test_as_many_patches_are_hidden_in_every_row() -> None:
    masked = MaskedPatchesCollator(image_size=64, patch_size=8)(rows())["masked"]
    assert masked.sum(1).tolist() == [48] * 4
    assert not torch.equal(masked[0], masked[1])
    with pytest.raises(UserError, match="nothing is left"):
        MaskedPatchesCollator(image_size=8, patch_size=8)
    with pytest.raises(UserError, match="between 0 and 1"):
        MaskedPatchesCollator(rate=1.0)


def test_hidden_patches_are_not_seen_and_their_pixels_are_the_target() -> None:
    """The loss by hand, of a model with the same guess for each patch; and what is hidden changes the target alone."""
    objective, batch = make_objective("masked_patches").eval(), one_batch("masked_patches")
    assert isinstance(objective, MaskedPatches)
    objective.pixels.weight.data.zero_()
    objective.pixels.bias.data.fill_(0.25)
    pixels = batch["pixel_values"]
    total, number = 0.0, 0
    for row, masked in zip(pixels, batch["masked"], strict=True):
        for n in masked.nonzero()[:, 0].tolist():
            y, x = 8 * (n // 2), 8 * (n % 2)
            patch = row[:, y : y + 8, x : x + 8]
            scaled = (patch - patch.mean()) / (patch.var(unbiased=False) + 1e-6).sqrt()
            total, number = total + float(((scaled - 0.25) ** 2).mean()), number + 1
    assert objective(batch).loss.item() == pytest.approx(total / number, rel=1e-5)
    assert int(objective.num_targets(batch)) == number

    trained = make_objective("masked_patches").eval()
    hidden = batch["masked"].view(-1, 1, 2, 1, 2, 1).expand(-1, 3, 2, 8, 2, 8).reshape(pixels.shape)
    other = {**batch, "pixel_values": torch.where(hidden, 0.5 * pixels + 0.1, pixels)}  # of the same normalised target
    assert trained(other).loss.item() == pytest.approx(trained(batch).loss.item(), rel=1e-4)
    seen = {**batch, "pixel_values": torch.where(hidden, pixels, 0.5 * pixels - 0.1)}
    assert trained(seen).loss.item() != pytest.approx(trained(batch).loss.item(), rel=1e-4)


@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "pixels"])
def test_the_mean_of_each_patch_explains_nothing_of_pictures_with_an_even_ground(normalise: bool) -> None:
    batch = one_batch("masked_patches")
    pixels = batch["pixel_values"]
    pixels[:, :, :8] = 1.0  # the upper half
    objective = MaskedPatches(make_objective("masked_patches").model, normalise=normalise).eval()
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, C, 2, 2, 8, 8]
    hidden = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), 4, -1)[batch["masked"]].double()
    centred = hidden - hidden.mean(-1, keepdim=True)
    if normalise:
        centred /= (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    total = centred.square().sum()

    class Guess(torch.nn.Module):
        """Of each hidden patch its mean, which the model has not seen."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            mean = torch.zeros(len(hidden), 1) if normalise else hidden.float().mean(-1, keepdim=True)
            return mean.expand(-1, hidden.shape[1]).reshape(len(pixels), -1, hidden.shape[1])

    objective.pixels = Guess()
    explained, of = objective(batch).metrics["explained_variance"].tolist()
    assert explained == pytest.approx(0, abs=1e-3 * of)
    assert of == pytest.approx(float(total), rel=1e-4)


def test_held_out_pictures_are_whole_and_always_the_same() -> None:
    fixed = make_collator("masked_patches").for_evaluation(0)
    wanted = normalised(np.stack([whole(decode(row["image"]), 16) for row in rows()]))
    assert torch.equal(fixed(rows())["pixel_values"], wanted)
    assert torch.equal(fixed(rows())["masked"], fixed(rows())["masked"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures without a word about them, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(40):
        ramp = np.arange(24) * 10
        pixels_HWC = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 6 * n), -1).astype(np.uint8)
        Image.fromarray(pixels_HWC).save(folder / f"{n}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def _keys(pictures: Path, out: Path) -> list[str]:
    sizes = ["model.size=nano", "model.config.image_size=16", "model.config.patch_size=8"]
    short = ["train.steps=3", "train.batch_size=8", "data.valid_fraction=0.2", "train.epochs=null"]
    return [f"data.train={pictures}", f"out={out}", *sizes, *short]


def test_from_a_folder_of_pictures_to_a_tower_that_clip_starts_from(pictures: Path, tmp_path: Path) -> None:
    out = run(load_recipe("pretrain_vit", _keys(pictures, tmp_path / "vit")))
    export = out / "export"
    assert not (export / "tokenizer.json").exists()
    assert "AutoImageProcessor" in (export / "README.md").read_text()
    model = AutoModel.from_pretrained(export, add_pooling_layer=False)
    assert isinstance(model, ViTModel)
    assert model.config.pooling == "cls"
    # The stock processor reads a picture as it was read in training.
    picture = Image.open(pictures / "3.png")
    stock = AutoImageProcessor.from_pretrained(export)(picture, return_tensors="pt")["pixel_values"]
    file = io.BytesIO()
    picture.save(file, "PNG")
    ours = normalised(whole(decode(file.getvalue()), 16)[None])
    assert (stock - ours).abs().mean() < 0.03
    with torch.no_grad():
        assert model(pixel_values=ours).last_hidden_state.shape == (1, 5, 32)

    from sslnlp.objectives.clip import Clip

    objective = make_objective("clip")
    assert isinstance(objective, Clip)
    text = objective.model
    clip = Clip(text, vision=str(export), dimension=16)
    again = clip.vision.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again[name], tensor), name
    # The tower had no pooler; the new one hands on what was learned.
    assert torch.equal(clip.vision.pooler.dense.weight, torch.eye(32))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "weighted"])
def test_a_tower_is_read_as_it_was_trained(pooling: str, tmp_path: Path) -> None:
    """By the encoder of measures and by what the card tells a person to type."""
    torch.manual_seed(0)
    file, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6  # a photograph that lies on its side
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(file, exif=exif)
    model = make_objective("rotation").model
    given: dict[str, Any] = {"card": CardFacts(title="t"), "recipe": {}, "max_length": 0}
    export = export_model(model, None, tmp_path / "vit", pooling=pooling, **given)
    inputs = normalised(whole(decode(file.read_bytes()), 16)[None])
    with torch.no_grad():
        hidden = model.eval().base_model(pixel_values=inputs).last_hidden_state
    wanted = torch.nn.functional.normalize(Pooling(pooling)(hidden, torch.ones(hidden.shape[:2])), dim=-1)
    vectors = PictureEncoder.load(str(export)).pictures([file.read_bytes()])
    assert torch.allclose(torch.from_numpy(vectors), wanted, atol=1e-6)
    card = (export / "README.md").read_text()
    assert f"| pooling | `{pooling}` |" in card
    assert "library_name: transformers" in card
    assert "turns a text" not in card
    (said,) = re.findall(r"```python\n(.*?)```", card, re.S)
    typed: dict[str, Any] = {}
    exec(said.replace("PATH_OR_NAME", str(export)).replace("picture.png", str(file)), typed)
    assert torch.nn.functional.cosine_similarity(typed["whole"], wanted).item() > 0.999


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["model.architecture=bert"], "model.architecture=vit"),
        (["collator.name=views"], "gives it text"),
        (["model.config.patch_size=7"], "not a multiple"),
        (["objective.name=rotation"], "collator.name=rotation"),
        (["objective.name=masked_lm", "collator.name=masked_lm"], "gives it text"),
        (["collator.views=1"], "two views"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    pictures: Path, tmp_path: Path, keys: list[str], said: str
) -> None:
    names = {key.split("=")[0] for key in keys}
    kept = [key for key in _keys(pictures, tmp_path / "out") if key.split("=")[0] not in names]
    with pytest.raises(UserError, match=said) as error:
        run(load_recipe("pretrain_vit", [*kept, *keys]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
