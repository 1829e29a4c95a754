"""`sslnlp search serve`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from sslnlp.search import options
from sslnlp.search.defaults import RERANK_WEIGHT


def serve_command(
    index: options.IndexArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes any free port.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen at; the default is reached from this machine only.")] = (
        "127.0.0.1"
    ),
    model: options.ModelOption = None,
    reranker: options.RerankerOption = None,
    rerank_weight: options.WeightOption = RERANK_WEIGHT,
    ann: options.AnnOption = False,
    fusion: options.FusionOption = None,
    verify: options.VerifyOption = True,
) -> None:
    """A local page to try queries, and to see which part of the pipeline ranked what. Ctrl-C ends it.

    Example: sslnlp search serve notes.index
    """
    from sslnlp.search.index import Index
    from sslnlp.search.serve import LiveIndex, Server

    def opened() -> Index:
        return Index(
            index, model=model, reranker=reranker, rerank_weight=rerank_weight, ann=ann, fusion=fusion, verify=verify
        )

    live = LiveIndex(index, opened)
    with Server(live, index.resolve().name, host, port) as server, contextlib.suppress(KeyboardInterrupt):
        if not server.loopback:
            typer.echo(f"Warning: at {host} anybody who reaches this machine can search the index.", err=True)
        typer.echo(f"Searching {index} at {server.url} (Ctrl-C ends it)")
        server.serve_forever()
