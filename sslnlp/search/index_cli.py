"""`sslnlp search index | add | delete`: the commands that write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from sslnlp.errors import UserError
from sslnlp.quiet import passing_bars
from sslnlp.search.options import IndexArgument, ModelOption

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A folder of text files, a BEIR folder, .jsonl/.csv/.tsv/.parquet (one file or a folder of them) or .txt; "
        "pictures, if the model reads them.",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Texts encoded at once.")]
IdColumnOption = Annotated[str | None, typer.Option(help="Column with the document's id.")]
TitleColumnOption = Annotated[str | None, typer.Option(help="Column with its title.")]
TextColumnOption = Annotated[str | None, typer.Option(help="Column with its text; of a picture, its captions.")]
ImageColumnOption = Annotated[str | None, typer.Option(help="Column with the picture, or the name of its file.")]


def index_command(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Where the index goes; an index already there is replaced at the end.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="An encoder (a run's export folder or a hub name): adds vectors for dense and fused search. "
            "The export of a clip_image_text run: DATA are pictures, found by words."
        ),
    ] = None,
    reranker: Annotated[
        str | None, typer.Option(help="A cross-encoder to remember: it orders the first results of a query anew.")
    ] = None,
    ann: Annotated[
        bool, typer.Option("--ann", help="Also a graph over the vectors, for approximate search (query --ann).")
    ] = False,
    language: Annotated[
        str, typer.Option(help="Stemmer and stop words of the text's language; 'none' for neither.")
    ] = "english",
    dtype: Annotated[str, typer.Option(help="float16 or float32 vectors.")] = "float16",
    whiten: Annotated[
        bool | None,
        typer.Option(
            help="A map fitted to the documents takes out of their vectors what all share; unless said, where the "
            "model does not say how its vectors are made and these lie beside each other.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchOption = 32,
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    text_column: TextColumnOption = None,
    image_column: ImageColumnOption = None,
) -> None:
    """Index documents for searching. Interrupted or killed, the same command goes on where it was.

    Example: sslnlp search index notes/ --out notes.index --model out/ranker/export
    """
    from sslnlp.search.documents import Columns, check_documents
    from sslnlp.search.loading import reads_pictures

    columns = Columns(id_column, title_column, text_column, image_column)
    if model is None or not reads_pictures(model):
        check_documents(data, columns)
    from sslnlp.search.index import Index, build_index

    with _bars() as progress:
        facts = build_index(
            data,
            out,
            model=model,
            reranker=reranker,
            ann=ann,
            language=language,
            dtype=dtype,
            whiten=whiten,
            batch_size=batch_size,
            columns=columns,
            progress=progress,
            say=_say,
        )
    counts, dense = facts["documents"], facts["dense"]
    made = Index(out, verify=False)
    parts = [] if made.wordless else ["BM25"]
    parts += [f"{dense['dimension']}-dimensional {dense['dtype']} vectors"] if dense else []
    parts += [name for name, there in (("graph", ann), ("reranker", reranker)) if there]
    what = "pictures" if made.pictures else "documents"
    left_out = _left_out(counts["empty"], counts.get("broken", {}))
    no_words = " (no captions, so no BM25)" if made.wordless else ""
    typer.echo(f"Indexed {_counted(counts['count'], what)}{left_out}: {' + '.join(parts)}{no_words}.")
    if dense and not dense["described"]:
        less = ", less what all documents share (--no-whiten: not so)" if dense["whitened"] else ""
        typer.echo(
            f"{model} does not say what it makes of a text's tokens, so their mean was taken{less}. Was it not "
            "trained for that, `sslnlp train finetune_ranking` (of pairs) and `embed_moco` (of text alone) make an "
            "encoder of it."
        )
    typer.echo(f'Try: sslnlp search query {out} "your words"')


def add_command(
    index: IndexArgument,
    data: DataArgument,
    replace: Annotated[
        bool, typer.Option("--replace", help="Documents whose id is there already take the old ones' place.")
    ] = False,
    model: ModelOption = None,
    batch_size: BatchOption = 32,
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    text_column: TextColumnOption = None,
    image_column: ImageColumnOption = None,
) -> None:
    """Add documents to an index: only they are read and encoded. Interrupted, the same command goes on where it was.

    Example: sslnlp search add notes.index newer-notes/ --replace
    """
    from sslnlp.search.documents import Columns
    from sslnlp.search.index import Index, add_documents

    with _bars() as progress:
        added = add_documents(
            index,
            data,
            model=model,
            replace=replace,
            batch_size=batch_size,
            columns=Columns(id_column, title_column, text_column, image_column),
            progress=progress,
            say=_say,
        )
    replaced = f", {added.replaced:,} of them in place of older ones" if added.replaced else ""
    what = "pictures" if Index(index, verify=False).pictures else "documents"
    typer.echo(f"Added {_counted(added.documents, what)}{replaced}{_left_out(added.empty, added.broken)}.")


def delete_command(
    index: IndexArgument,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of documents.")] = None,
    file: Annotated[Path | None, typer.Option("--ids", help="A file with ids, one a line.")] = None,
) -> None:
    """Delete documents from an index.

    Example: sslnlp search delete notes.index drafts/old.md drafts/older.md
    """
    from sslnlp.search.index import delete_documents

    deleted = delete_documents(index, [*(ids or ()), *(_lines(file) if file else ())])
    typer.echo(f"Deleted {_counted(deleted, 'documents')}.")


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: an id may hold a line separator of Unicode, as the name of a file can.
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what.removesuffix('s') if number == 1 else what}"


def _left_out(empty: int, broken: Mapping[str, int]) -> str:
    if broken:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in broken.items())
        return f", {sum(broken.values()):,} broken left out ({reasons})"
    return f", {empty:,} without text left out" if empty else ""


def _say(line: str) -> None:
    typer.echo(line, err=True)


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each stage, shown once the stage begins."""
    with passing_bars() as shown:
        names = {"pictures": "pictures", "bm25": "words", "whitening": "whitening", "dense": "vectors", "ann": "graph"}
        tasks = {stage: shown.add_task(name, total=None, visible=stage == "bm25") for stage, name in names.items()}
        yield lambda stage, done, total: shown.update(tasks[stage], advance=done, total=total, visible=True)
