"""Every shipped recipe that starts from text runs as it comes, from the text on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from sslnlp.recipe import load_recipe, read_result, run
from sslnlp.recipe.load import shipped

SMALL = ["model.size=nano", "train.steps=3", "train.batch_size=4", "tokenizer.vocab_size=600", "data.seq_length=32"]
FROM_TEXT = sorted(name for name in shipped() if name.startswith(("pretrain_", "embed_")) and name != "pretrain_vit")


@pytest.mark.parametrize("name", FROM_TEXT)
def test_a_recipe_runs_as_it_comes(name: str, text_file: Path, tmp_path: Path) -> None:
    out = run(load_recipe(name, [*SMALL, f"data.train={text_file}", f"out={tmp_path / 'run'}"]))
    assert math.isfinite(read_result(out)["measures"]["loss"])
    tokenizer = AutoTokenizer.from_pretrained(out / "export")
    model, report = AutoModel.from_pretrained(out / "export", output_loading_info=True)
    assert not {key for key in report["missing_keys"] if "pooler" not in key}
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)
