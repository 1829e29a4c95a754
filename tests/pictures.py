"""Pictures of one colour each, and nano models of pictures built directly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    BertConfig,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from sslnlp.recipe import load_recipe
from sslnlp.recipe.schema import to_dict
from tests.contract import small_tokenizer

SIDE = 16
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 230)}
_NANO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.4,
}
"""Weights so large that the vectors of two pictures, and of two texts, differ."""


def vision_config() -> ViTConfig:
    return ViTConfig(**_NANO, image_size=SIDE, patch_size=8)


def save_dual(folder: Path) -> Path:
    """A dual encoder with drawn weights, as an export has it."""
    text = BertConfig(**_NANO, vocab_size=len(small_tokenizer()), max_position_embeddings=32)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision_config(), text, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _save(VisionTextDualEncoderModel(config), folder, words=True)


def save_tower(folder: Path) -> Path:
    """A vision tower alone, without a tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _save(ViTModel(vision_config()), folder, words=False)


def _save(model: PreTrainedModel, folder: Path, *, words: bool) -> Path:
    model.save_pretrained(folder)
    if words:
        small_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("# A model\n")
    return folder


def shades(folder: Path, number: int = 12, *, darker: int = 0) -> Path:
    """Pictures n = 0, 1, ... with two captions and the name of the colour in `kind`, in a list beside them."""
    folder.mkdir(parents=True)
    lines = []
    for n in range(number):
        name, colour = list(COLOURS.items())[n % 3]
        Image.new("RGB", (20, 18), tuple(max(0, c - 4 * (n // 3) - darker) for c in colour)).save(folder / f"{n}.png")
        row = {"file_name": f"{n}.png", "caption": [f"the cat sees {name}", f"a dog, number {n}"], "kind": name}
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_run(folder: Path, losses: list[float], *keys: str, chance: float = 3.0) -> Path:
    """What a run of image-text training leaves behind beside its export."""
    folder.mkdir(parents=True)
    recipe = to_dict(load_recipe("clip_image_text", [f"out={folder}", *keys]))
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe, "tokenizer": None}))
    lines = [
        {"step": step, "train/loss": loss, "train/chance_loss": chance, "train/accuracy": 0.25}
        for step, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
