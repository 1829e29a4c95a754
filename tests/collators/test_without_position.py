"""Rows of tables and pictures from a loop of one's own, without a position: draws are new for each row and each call,
where one row's would otherwise be every row's, in each batch and epoch."""

from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from sslnlp.collators import get_collator
from sslnlp.data.table_rows import TableRows
from sslnlp.types import Row
from tests.contract import corpus, make_stream, small_tokenizer

ROWS = 8


def table(**columns: list[Any]) -> TableRows:
    return TableRows(datasets.Dataset.from_dict(columns))


def without_position(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "position"}


def text_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A row and the options of the collator."""
    if name == "ranking":
        return {"query": "a dog", "positive": "the fox", "negatives": corpus()[:12]}, {"num_negatives": 1}
    if name == "reranking":
        pairs = table(query=corpus()[:40], positive=corpus()[40:80])
        return {"query": "a dog", "positive": "the fox"}, {"table": pairs, "num_negatives": 1}
    texts = table(text=corpus()[:40], label=[0] * 40)
    return {"text": "a dog", "label": 0}, {"table": texts}


DRAWN: dict[str, Callable[[Any], Tensor]] = {
    "ranking": lambda batch: batch["negative_hash"],
    "reranking": lambda batch: batch["pairs"]["input_ids"][1::2],
    "same_class": lambda batch: batch["second"]["input_ids"],
    "image_text": lambda batch: batch["pixel_values"],
    "image_views": lambda batch: batch["view_0"]["pixel_values"],
    "masked_patches": lambda batch: batch["masked"],
    "rotation": lambda batch: batch["pixel_values"],
}
"""What each collator that draws makes of them, a row for each row."""


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_draws_are_new_for_each_row_and_call(name: str) -> None:
    cls: Any = get_collator(name)
    if cls.reads == "pictures":
        row = without_position(make_stream("clip").rows([3])[0])
        options: dict[str, Any] = {"image_size": 16, "patch_size": 4}
    else:
        row, options = text_case(name)
    if cls.reads_text:
        options["tokenizer"] = small_tokenizer()
    collator = cls(**options)
    first, second = (DRAWN[name](collator([row] * ROWS)) for _ in range(2))
    assert len(torch.unique(first, dim=0)) > ROWS // 2
    assert first.shape != second.shape or not torch.equal(first, second)
    if cls.reads == "pictures":  # objectives draw by it too: which patches are left out
        assert cls.makes <= set(collator([row]))
    placed = [{**row, "position": 5}] * ROWS
    first, second = (DRAWN[name](collator(placed)) for _ in range(2))
    assert len(torch.unique(first, dim=0)) == 1
    assert torch.equal(first, second)
