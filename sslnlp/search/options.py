"""Options that the commands which open an index share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder made by `sslnlp search index`.")]
ModelOption = Annotated[
    str | None, typer.Option(help="The encoder's folder or hub name, where it is no longer where the index says.")
]
RerankerOption = Annotated[
    str | None,
    typer.Option(help="A cross-encoder (folder or hub name) that orders the first results anew: mode reranked."),
]
DepthOption = Annotated[int, typer.Option("--depth", min=1, help="How many results the reranker reads.")]
WeightOption = Annotated[
    float,
    typer.Option(
        "--rerank-weight", min=0, max=1, help="The reranker's say in the order; the first stage has the rest. 1: all."
    ),
]
AnnOption = Annotated[bool, typer.Option("--ann", help="Search the vectors by their graph, not exactly.")]
FusionOption = Annotated[
    str | None,
    typer.Option(
        "--fusion",
        help="How BM25 and vectors are joined: by their scores (where those of the vectors are cosines of texts, the "
        "default), or by their ranks.",
    ),
]
VerifyOption = Annotated[bool, typer.Option(help="Compare every file's checksum first (a second per gigabyte).")]
