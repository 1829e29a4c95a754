"""Rows of a table are padded on the right, whichever side their tokenizer was saved with: a model that counts positions
from the left end reads a text behind padding as another one, and the export pads on the right."""

from typing import Any

import datasets
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sslnlp.collators import COLLATORS, get_collator
from sslnlp.data.table_rows import TableRows
from sslnlp.tokenizer import set_framing, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran", "cats and dogs ran on a long long mat"]
LABELS = {"one": 0, "several": [0], "number": 1.5}
NAMES = [name for name in COLLATORS if get_collator(name).reads == "rows"]


def table(name: str) -> TableRows:
    """Rows of what the collator reads: three texts of unlike lengths."""
    rows: list[dict[str, Any]] = []
    for text in TEXTS:
        words = text.split()
        rows.append(
            {"words": words, "label": [0] * len(words)}
            if name == "tagging"
            else {"query": text, "positive": text[:9], "negatives": [text[2:], "a mat"]}
            if "query" in get_collator(name).columns
            else {"text": text, "label": LABELS[str(get_collator(name).label_kind)]}
        )
    return TableRows(datasets.Dataset.from_list(rows))


def leaves(batch: dict[str, Any], path: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in batch.items():
        found |= leaves(value, f"{path}{name}/") if isinstance(value, dict) else {path + name: value}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_side_that_a_tokenizer_pads_on_changes_nothing(name: str) -> None:
    rows, batches = table(name), []
    for side in ("right", "left"):
        tokenizer: PreTrainedTokenizerFast = set_framing(train_tokenizer(TEXTS * 3, vocab_size=600), "encoder")
        tokenizer.padding_side = side
        options = {"table": rows} if name == "same_class" else {}
        options |= {"label_names": ["a"]} if name == "multi_label" else {}
        batches.append(leaves(get_collator(name)(tokenizer=tokenizer, **options)(rows.rows(range(3)))))
    right, left = batches
    masks = [value for name, value in right.items() if name.endswith("attention_mask")]
    assert any(not mask.all() for mask in masks), "nothing is padded"
    assert all(mask[:, 0].all() for mask in masks)
    assert right.keys() == left.keys()
    assert all(torch.equal(right[name], left[name]) for name in right)
