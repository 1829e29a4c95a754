"""`sslnlp search build`: from text and pairs to an index, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build_command(
    pairs: Annotated[
        Path, typer.Argument(metavar="PAIRS", help="Pairs of a query and its relevant text (.jsonl, .csv, .parquet).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of all stages and of the index.")],
    documents: Annotated[Path, typer.Option(help="What is to be searched, as `sslnlp search index` reads it.")],
    text: Annotated[str | None, typer.Option(help="Text to pretrain on: a file, glob, folder or hub name.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Or an encoder to start from (an export, a hub name).")] = None,
    budget: Annotated[str, typer.Option(help="Time for all but the index, e.g. 30m, 2h.")] = "30m",
    beir: Annotated[Path | None, typer.Option(help="A BEIR folder to measure the index on in the end.")] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.KEY=VALUE", help="A key of a stage's recipe; may be repeated."),
    ] = None,
) -> None:
    """From text to search: pretrain (masked, for retrieval, contrastive), fine-tune on pairs, mine negatives, fine-tune
    on these, train a reranker, index, measure. Each stage starts from the one before; stopped, it goes on.

    Example: sslnlp search build pairs.jsonl --text corpus.txt --documents notes/ --out out/search --budget 1h
    """
    from sslnlp.search.evaluate_cli import evaluate_command
    from sslnlp.text_to_search import text_to_search

    text_to_search(
        pairs, out, documents=documents, text=text, encoder=encoder, budget=budget, beir=beir, overrides=keys or [],
        evaluate=evaluate_command,
    )  # fmt: skip
