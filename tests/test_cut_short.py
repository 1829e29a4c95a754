"""Texts that are longer than a row are cut, and the run says how many of them there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sslnlp.recipe import load_recipe, override
from sslnlp.recipe.build import build_parts, resolve
from sslnlp.recipe.rows import cut_short

LONG, SHORT = "one two three four five six seven eight nine ten " * 4, "one two"


def said(folder: Path, name: str, rows: list[dict[str, Any]], *options: str) -> list[str]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "data.train": str(path),
        "data.valid_fraction": "0",
        "data.cache": str(folder),
        "tokenizer.vocab_size": "400",
    }
    recipe, _ = resolve(override(load_recipe(name), keys | dict(option.split("=") for option in options)))
    return list(cut_short(build_parts(recipe)))


def labelled(text: str, number: int) -> list[dict[str, Any]]:
    return [{"text": f"{text} {n}", "label": n % 2} for n in range(number)]


@pytest.mark.parametrize("name", ["finetune_classification", "finetune_few_shot"])
def test_how_many_texts_fill_their_row(name: str, tmp_path: Path) -> None:
    rows = labelled(LONG, 10) + labelled(SHORT, 30)
    (line,) = said(tmp_path, name, rows, "collator.max_length=32")
    share = "10 of 40" if name == "finetune_classification" else "of 80"
    assert line.startswith("collator.max_length=32: ")
    assert f"{share} texts looked at fill it" in line
    assert "a larger one keeps more" in line
    assert not said(tmp_path, name, rows, "collator.max_length=200")


def test_a_few_are_no_news(tmp_path: Path) -> None:
    assert not said(
        tmp_path, "finetune_classification", labelled(LONG, 2) + labelled(SHORT, 40), "collator.max_length=32"
    )


def test_queries_and_documents_have_a_length_each(tmp_path: Path) -> None:
    rows = [{"query": f"{SHORT} {n}", "positive": f"{LONG} {n}", "negative": [f"{LONG} {n} no"]} for n in range(12)]
    lengths = "collator.query_length=32", "collator.document_length=32"
    (line,) = said(tmp_path, "finetune_ranking", rows, *lengths)
    assert line.startswith("collator.document_length=32: 24 of 24")
    (line,) = said(tmp_path, "finetune_reranker", rows, "collator.max_length=32")
    assert line.startswith("collator.max_length=32: 24 of 24")
    rows = [{"query": row["positive"], "positive": row["query"]} for row in rows]
    (line,) = said(tmp_path, "finetune_ranking", rows, *lengths)
    assert line.startswith("collator.query_length=32: 12 of 12")


def test_rows_of_tokens_lose_nothing(tmp_path: Path) -> None:
    assert not said(tmp_path, "pretrain_bert", labelled(LONG, 30), "data.text=text", "data.seq_length=32")
