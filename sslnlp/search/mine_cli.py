"""`sslnlp search mine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslnlp.errors import UserError
from sslnlp.quiet import passing_bars

if TYPE_CHECKING:
    from sslnlp.search.mining import Mined


def mine_command(
    pairs: Annotated[
        Path,
        typer.Argument(metavar="PAIRS", help="Pairs of query and relevant text: .jsonl, .csv, .tsv or .parquet."),
    ],
    out: Annotated[Path, typer.Option(help="Where the pairs go with their negatives (.jsonl).")],
    model: Annotated[str | None, typer.Option(help="Search by this encoder (an export folder or a hub name).")] = None,
    bm25: Annotated[
        bool, typer.Option("--bm25", help="Search by BM25 (so it is without --model); with --model: both, fused.")
    ] = False,
    reranker: Annotated[
        str | None, typer.Option(help="A cross-encoder that judges the negatives; its scores are written too.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of each pair.")] = 8,
    depth: Annotated[int, typer.Option(min=1, help="Documents of a ranking in which they are looked for.")] = 100,
    skip_top: Annotated[int, typer.Option(min=0, help="Pass over so many of the best ranked.")] = 0,
    margin: Annotated[
        float, typer.Option(help="Leave out what does not score below this share of the positive's score; 0: nothing.")
    ] = 0.95,
    sample: Annotated[bool, typer.Option("--sample", help="Draw from the ranking instead of taking its best.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only for so many pairs, those of the smallest hash of the query.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Take negatives from these documents (as `search index` reads them).")
    ] = None,
    corpus_limit: Annotated[
        int | None, typer.Option(min=1, help="Take negatives from so many documents, those of the smallest hash.")
    ] = None,
    language: Annotated[str, typer.Option(help="Stemmer and stop words of BM25; 'none' for neither.")] = "english",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts encoded at once.")] = 32,
    query_column: Annotated[str | None, typer.Option(help="Column of PAIRS with the query.")] = None,
    positive_column: Annotated[str | None, typer.Option(help="Column of PAIRS with the relevant text.")] = None,
    title_column: Annotated[str | None, typer.Option(help="Column of the corpus with a title.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the corpus with the text.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of a file that is there.")] = False,
) -> None:
    """Give each pair hard negatives: what a search ranks high and is not relevant.

    Example: sslnlp search mine pairs.jsonl --out mined.jsonl --model out/ranker/export
    """
    from sslnlp.data.files import check_there
    from sslnlp.search.documents import Columns, check_documents
    from sslnlp.search.model_folder import resolve
    from sslnlp.writing import check_new, check_output

    corpus_columns = Columns(None, title_column, text_column)
    if corpus is None and (title_column is not None or text_column is not None):
        raise UserError("--title-column and --text-column are columns of a --corpus: name that too")
    check_there(str(pairs))
    check_output(out, pairs, corpus)
    check_new(out, overwrite)
    if corpus is not None:
        check_documents(corpus, corpus_columns)
    for name in filter(None, (model, reranker)):
        resolve(name)
    from sslnlp.search.mining import mine
    from sslnlp.search.negatives import Mining

    options = Mining(negatives=negatives, depth=depth, skip_top=skip_top, margin=margin, sample=sample, seed=seed)
    named = {"query": query_column, "positive": positive_column}
    with passing_bars() as shown:
        tasks = {
            "bm25": shown.add_task("documents and BM25", total=None),
            "dense": shown.add_task("vectors", total=None, visible=model is not None),
            "mine": shown.add_task("negatives", total=None),
        }

        def progress(stage: str, done: int, total: int) -> None:
            shown.update(tasks[stage], advance=done, total=total)

        mined = mine(
            pairs,
            out,
            model=model,
            bm25=bm25 or model is None,
            reranker=reranker,
            options=options,
            language=language,
            corpus=corpus,
            limit=limit,
            corpus_limit=corpus_limit,
            columns={ours: theirs for ours, theirs in named.items() if theirs is not None},
            corpus_columns=corpus_columns,
            batch_size=batch_size,
            progress=progress,
        )
    typer.echo(_summary(mined, options.negatives, margin))
    typer.echo(f"Try: sslnlp train finetune_ranking data.train={out}")


def _summary(mined: Mined, negatives: int, margin: float) -> str:
    counts, lost = mined.counts, mined.asked - mined.written
    parts = [f"{counts['relevant']:,} known to be relevant", f"{counts['copies']:,} near-copies"]
    if margin > 0:
        parts.append(f"{counts['margin']:,} not below {margin:g} of the positive's score")
    line = f"{negatives} negatives for {mined.written:,} pairs, out of {mined.documents:,} documents"
    line += f"; left out: {', '.join(parts)}; {counts['filled']:,} filled up at random"
    if mined.read > mined.pairs:
        line += f"; {mined.read - mined.pairs:,} rows are empty or repeated"
    return line + (f"; {lost:,} pairs have too few." if lost else ".")
