"""`sslnlp search index | query | evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslnlp.search.evaluate_cli import evaluate_command
from sslnlp.search.mine_cli import mine_command
from sslnlp.search.serve_cli import serve_command

if TYPE_CHECKING:
    from rich.text import Text

    from sslnlp.search.index import Hit, Index

search_app = typer.Typer(
    name="search",
    no_args_is_help=True,
    help="BM25, dense and fused search over your own documents: index them, query them, measure it.",
)

search_app.command("mine")(mine_command)
search_app.command("evaluate")(evaluate_command)
search_app.command("serve")(serve_command)

ModelOption = Annotated[
    str | None, typer.Option(help="The encoder's folder or hub name, where it is no longer where the index says.")
]
VerifyOption = Annotated[bool, typer.Option(help="Compare every file's checksum first (a second per gigabyte).")]


@search_app.command("index")
def index_command(
    data: Annotated[Path, typer.Argument(help="A folder of text files, a BEIR folder, or .jsonl/.csv/.tsv/.parquet.")],
    out: Annotated[Path, typer.Option(help="Where the index goes; an index already there is replaced at the end.")],
    model: Annotated[
        str | None,
        typer.Option(help="An encoder (a run's export folder or a hub name): adds vectors for dense and fused search."),
    ] = None,
    language: Annotated[
        str, typer.Option(help="Stemmer and stop words of the text's language; 'none' for neither.")
    ] = "english",
    dtype: Annotated[str, typer.Option(help="float16 or float32 vectors.")] = "float16",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts encoded at once.")] = 32,
    id_column: Annotated[str | None, typer.Option(help="Column with the document's id.")] = None,
    title_column: Annotated[str | None, typer.Option(help="Column with its title.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with its text.")] = None,
) -> None:
    """Index documents for searching.

    Example: sslnlp search index notes/ --out notes.index --model out/ranker/export
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sslnlp.search.documents import Columns
    from sslnlp.search.index import build_index

    console = Console(stderr=True)
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console, transient=True) as shown:
        tasks = {
            "bm25": shown.add_task("documents and BM25", total=None),
            "dense": shown.add_task("vectors", total=None, visible=model is not None),
        }

        def progress(stage: str, done: int, total: int) -> None:
            shown.update(tasks[stage], advance=done, total=total)

        facts = build_index(
            data,
            out,
            model=model,
            language=language,
            dtype=dtype,
            batch_size=batch_size,
            columns=Columns(id_column, title_column, text_column),
            progress=progress,
        )
    count, empty, dense = facts["documents"]["count"], facts["documents"]["empty"], facts["dense"]
    left_out = f", {empty:,} without text left out" if empty else ""
    parts = "BM25" + (f" + {dense['dimension']}-dimensional {dense['dtype']} vectors" if dense else "")
    typer.echo(f"Indexed {count:,} documents{left_out}: {parts}.")
    typer.echo(f'Try: sslnlp search query {out} "your words"')


@search_app.command("query")
def query_command(
    index: Annotated[Path, typer.Argument(help="A folder made by `sslnlp search index`.")],
    text: Annotated[str, typer.Argument(help="What to look for.")],
    mode: Annotated[
        str | None, typer.Option(help="bm25, dense or fused (default: fused where there are vectors).")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many results.")] = 10,
    model: ModelOption = None,
    verify: VerifyOption = True,
) -> None:
    """Show the best documents for a query, with the words that matched.

    Example: sslnlp search query notes.index "where did I write about queues" -k 5
    """
    from sslnlp.search.index import Index

    opened = Index(index, model=model, verify=verify)
    chosen = opened.resolve_mode(mode)
    hits = opened.search(text, chosen, k)
    if not opened.analyzer.terms(text) and chosen != "dense":
        what = "found nothing" if chosen == "bm25" else "contributed nothing"
        typer.echo(f"BM25 {what}: the query holds only stop words or single letters.")
    elif not hits:
        typer.echo("No document matches.")
    _print_hits(opened, text, hits)


def _print_hits(index: Index, query: str, hits: list[Hit]) -> None:
    from rich.console import Console
    from rich.text import Text

    from sslnlp.search.snippets import printable, snippet

    console = Console(highlight=False)
    for hit in hits:
        document = index.documents[hit.row]
        head = Text(f"{hit.rank:>3}  {hit.score:.4f}  ")
        head.append(printable(hit.id), style="cyan")
        if document.title:
            head.append("  ").append(_marked(*snippet(document.title, query, index.analyzer, width=120)))
        console.print(head)
        if document.text:
            console.print(Text("     ").append(_marked(*snippet(document.text, query, index.analyzer))), soft_wrap=True)


def _marked(text: str, matches: list[tuple[int, int]]) -> Text:
    from rich.text import Text

    marked = Text(text)
    for start, end in matches:
        marked.stylize("bold yellow", start, end)
    return marked
