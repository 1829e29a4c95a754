"""`sslnlp search serve`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer


def serve_command(
    index: Annotated[Path, typer.Argument(help="A folder made by `sslnlp search index`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes any free port.")] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen at; the default is reached from this machine only.")] = (
        "127.0.0.1"
    ),
    model: Annotated[
        str | None, typer.Option(help="The encoder's folder or hub name, where it is no longer where the index says.")
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(help="A cross-encoder (folder or hub name): adds the mode reranked.")
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare every file's checksum first (a second per gigabyte).")] = True,
) -> None:
    """A local page to try queries, and to see which part of the pipeline ranked what. Ctrl-C ends it.

    Example: sslnlp search serve notes.index
    """
    from sslnlp.search.index import Index
    from sslnlp.search.serve import LiveIndex, Server

    live = LiveIndex(index, lambda: Index(index, model=model, reranker=reranker, verify=verify))
    with Server(live, index.resolve().name, host, port) as server, contextlib.suppress(KeyboardInterrupt):
        if not server.loopback:
            typer.echo(f"Warning: at {host} anybody who reaches this machine can search the index.", err=True)
        typer.echo(f"Searching {index} at {server.url} (Ctrl-C ends it)")
        server.serve_forever()
