"""Rows of a `datasets.Dataset` in another format than Python's, as loops of one's own have them."""

from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from sslnlp.collators import get_collator
from sslnlp.types import Batch
from tests.contract import corpus, small_tokenizer

TEXT = {"text": corpus()[:4]}
PAIRS = {"query": corpus()[:4], "positive": corpus()[4:8], "negatives": [corpus()[8:10]] * 4}
SEVERAL: list[list[int]] = [[0], [1, 2], [], [2]]
CASES: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "classification": (TEXT | {"label": [0, 1, 2, -100]}, {}),
    "multi_label": (TEXT | {"label": SEVERAL}, {"label_names": ["a", "b", "c"]}),
    "regression": (TEXT | {"label": [1.5, 2.0, -3.0, 0.0]}, {}),
    "tagging": ({"words": [["the", "fox"]] * 4, "label": [[0, 1]] * 4}, {}),
    "ranking": (PAIRS | {"scores": [[1.0, 2.0, 3.0]] * 4}, {}),
    "reranking": (PAIRS, {}),
    "masked_lm": ({"input_ids": [list(range(100, 120))] * 4, "position": [3, 4, 5, 6]}, {}),
}


def leaves(batch: Batch, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in batch.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("form", ["torch", "numpy"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_format_of_a_data_set_changes_nothing(name: str, form: str) -> None:
    columns, options = CASES[name]
    table = datasets.Dataset.from_dict(columns)
    collator = get_collator(name)(tokenizer=small_tokenizer(), **options)
    expected, found = (leaves(collator([rows[n] for n in range(4)])) for rows in (table, table.with_format(form)))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value), key
