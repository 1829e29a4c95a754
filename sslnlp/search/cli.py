"""`sslnlp search`: its commands, and `query` itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslnlp.errors import UserError
from sslnlp.search.defaults import RERANK_DEPTH, RERANK_WEIGHT
from sslnlp.search.evaluate_cli import evaluate_command
from sslnlp.search.index_cli import add_command, delete_command, index_command
from sslnlp.search.mine_cli import mine_command
from sslnlp.search.options import (
    AnnOption,
    DepthOption,
    FusionOption,
    IndexArgument,
    ModelOption,
    RerankerOption,
    VerifyOption,
    WeightOption,
)
from sslnlp.search.serve_cli import serve_command

if TYPE_CHECKING:
    from rich.text import Text

    from sslnlp.search.documents import Document
    from sslnlp.search.index import Hit, Index

search_app = typer.Typer(
    name="search",
    no_args_is_help=True,
    help="BM25, dense, fused and reranked search over your own documents: index them, query them, measure it.",
)

search_app.command("index")(index_command)
search_app.command("add")(add_command)
search_app.command("delete")(delete_command)
search_app.command("mine")(mine_command)
search_app.command("evaluate")(evaluate_command)
search_app.command("serve")(serve_command)


@search_app.command("query")
def query_command(
    index: IndexArgument,
    text: Annotated[str | None, typer.Argument(metavar="WORDS", help="What to look for.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Look for what is like the picture in this file instead (an index of pictures).")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="bm25, dense, fused or reranked (default: the last that the index can do).")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many results.")] = 10,
    model: ModelOption = None,
    reranker: RerankerOption = None,
    depth: DepthOption = RERANK_DEPTH,
    rerank_weight: WeightOption = RERANK_WEIGHT,
    ann: AnnOption = False,
    fusion: FusionOption = None,
    verify: VerifyOption = True,
) -> None:
    """Show the best documents for a query, with the words that matched.

    Examples: sslnlp search query notes.index "where did I write about queues" -k 5

    sslnlp search query pictures.index --picture beach.jpg
    """
    from sslnlp.search.index import Index
    from sslnlp.search.manifest import steady

    if (text is None) == (picture is None):
        raise UserError("give either words to look for or a --picture")
    if picture is not None and (mode not in (None, "dense") or reranker is not None):
        raise UserError("a picture is compared by vectors alone: leave out --mode and --reranker")

    def answer() -> tuple[Index, list[tuple[Hit, Document]]]:
        opened = Index(
            index, model=model, reranker=reranker, depth=depth, rerank_weight=rerank_weight, ann=ann, fusion=fusion,
            verify=verify,
        )  # fmt: skip
        hits = opened.search(text or "", mode, k) if picture is None else opened.search_picture(_content(picture), k)
        return opened, [(hit, opened.documents[hit.row]) for hit in hits]

    opened, hits = steady(index, answer)
    chosen = "dense" if text is None else opened.resolve_mode(mode)
    text = text or ""
    if note := opened.wordless_query(text, chosen):
        typer.echo(note)
    elif not hits:
        typer.echo("No document matches.")
    _print_hits(opened, text, hits)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _print_hits(index: Index, query: str, hits: list[tuple[Hit, Document]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from sslnlp.search.snippets import printable, snippet

    console = Console(highlight=False)
    for hit, document in hits:
        head = Text(f"{hit.rank:>3}  {hit.score:.4f}  ")
        head.append(printable(hit.id), style="cyan")
        if document.title:
            head.append("  ").append(_marked(*snippet(document.title, query, index.analyzer, width=120)))
        console.print(head, soft_wrap=True)  # a break within an id would be another id for who pipes this on
        if document.text:
            console.print(Text("     ").append(_marked(*snippet(document.text, query, index.analyzer))), soft_wrap=True)


def _marked(text: str, matches: list[tuple[int, int]]) -> Text:
    from rich.text import Text

    marked = Text(text)
    for start, end in matches:
        marked.stylize("bold yellow", start, end)
    return marked
