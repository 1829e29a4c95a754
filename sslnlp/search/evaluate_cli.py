"""`sslnlp search evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslnlp.errors import UserError
from sslnlp.search.defaults import RERANK_DEPTH, RERANK_WEIGHT
from sslnlp.search.options import (
    AnnOption,
    DepthOption,
    FusionOption,
    ModelOption,
    RerankerOption,
    VerifyOption,
    WeightOption,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from sslnlp.search.evaluate import Evaluation, Judged
    from sslnlp.search.significance import Comparison
    from sslnlp.search.trec import Run

SIGNIFICANT = 0.05
"""p-values below it are printed bold."""


def evaluate_command(
    index: Annotated[
        Path | None,
        typer.Argument(
            metavar="INDEX", help="A folder made by `sslnlp search index`; without it, only --compare's runs."
        ),
    ] = None,
    beir: Annotated[
        Path | None,
        typer.Argument(metavar="BEIR", help="A BEIR folder: its queries.jsonl and qrels/test.tsv are used."),
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries: .jsonl, or id<TAB>text lines.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements in TREC or BEIR form.")] = None,
    mode: Annotated[str, typer.Option(help="One mode (bm25, dense, ...), or all that the index has.")] = "all",
    measures: Annotated[
        str | None, typer.Option(help="What to measure: ndcg, mrr, recall or map, each with @k where wanted.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The mode or run that the others are tested against (default: bm25, or the first)."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Write the results as a TREC run; with several modes, one file each.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="A TREC run of any other system to measure beside; may be repeated.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything here too, query by query, as JSON.")] = None,
    model: ModelOption = None,
    reranker: RerankerOption = None,
    depth: DepthOption = RERANK_DEPTH,
    rerank_weight: WeightOption = RERANK_WEIGHT,
    ann: AnnOption = False,
    fusion: FusionOption = None,
    verify: VerifyOption = True,
) -> None:
    """Measure rankings (nDCG@10, MRR@10, recall@100, MAP) and test whether they differ by more than luck.

    Examples: sslnlp search evaluate my.index --queries queries.jsonl --qrels qrels/test.tsv --run out.trec

    sslnlp search evaluate --qrels qrels.txt --compare mine.trec --compare theirs.trec
    """
    from sslnlp.evaluation.ranking import LEAST
    from sslnlp.search import evaluate
    from sslnlp.search.index import Index
    from sslnlp.search.trec import write_run
    from sslnlp.writing import check_output, write_json

    asked = None if measures is None else evaluate.parse_measures(measures)
    if beir is not None:
        found = evaluate.beir_files(beir) if qrels is None else (evaluate.beir_queries(beir), qrels)
        queries, qrels = queries or found[0], found[1]
    if index is None and not compare:
        raise UserError("name an index to search, or run files to measure (--qrels FILE --compare RUN)")
    if qrels is None or (index is not None and queries is None):
        raise UserError("give a BEIR folder, or both --queries and --qrels (for run files alone: --qrels)")
    if index is None and run is not None:
        raise UserError("--run writes what an index finds: name the index too")
    for written in filter(None, (run, json)):
        check_output(written, queries, qrels, *(compare or []))
        if index is not None and written.resolve().is_relative_to(index.resolve()):
            raise UserError(f"{written} lies in the index, which holds its own files alone: name a file elsewhere")
    opened = None
    if index is not None:
        opened = Index(
            index, model=model, reranker=reranker, depth=depth, rerank_weight=rerank_weight, ann=ann, fusion=fusion,
            verify=verify,
        )  # fmt: skip
    modes = [] if opened is None else evaluate.modes_of(opened, mode)
    targets = {} if run is None else _run_files(run, modes)
    for written in targets.values():
        check_output(written, queries, qrels, *(compare or []))
        if json is not None and written.resolve() == json.resolve():
            raise UserError(f"--run and --json would both write {written}: name two files")
    judged = evaluate.load_judged(opened, queries, qrels)
    others = evaluate.read_runs(compare or [], judged.qrels, modes)
    evaluate.resolve_baseline(baseline, [*modes, *others])  # a wrong name is told before the long work
    runs: dict[str, Run] = {}
    if opened is not None:
        deep = evaluate.run_depth(asked)
        runs = {name: evaluate.run_queries(opened, judged.queries, name, deep) for name in modes}
    evaluation = evaluate.evaluate_runs({**runs, **others}, judged.qrels, measures=asked, baseline=baseline)
    if json is not None:
        write_json(json, evaluation.as_json())
    print_evaluation(evaluation, len(judged.queries))
    for line in _not_measured(judged, others, queries):
        typer.echo(line)
    if opened is not None and (number := len(opened.documents)) < LEAST:
        held = "one document" if number == 1 else f"{number} documents"
        typer.echo(f"The index holds {held}: a ranking of so few is good whatever ranks them.")
    for name, target in targets.items():  # last: ids that such a file cannot hold do not cost the figures
        write_run(target, runs[name], f"sslnlp-{name}")


def _run_files(run: Path, modes: Sequence[str]) -> dict[str, Path]:
    """Where the ranking of each mode is written."""
    return {name: run if len(modes) == 1 else run.with_name(f"{run.stem}.{name}{run.suffix}") for name in modes}


def _not_measured(judged: Judged, others: Mapping[str, Run], queries: Path | None) -> Iterator[str]:
    """What the figures are not of, a line each."""
    if judged.unjudged_queries:
        yield f"{judged.unjudged_queries:,} queries without a relevant document are left out."
    if judged.absent_queries:
        yield f"{judged.absent_queries:,} judged queries have no text in {queries}; they are left out."
    if judged.absent_documents:
        yield f"{judged.absent_documents:,} relevant documents are not in the index; they count as not found."
    for name, other in others.items():
        if missing := len(judged.queries.keys() - other.keys()):
            yield f"{name} does not answer {missing:,} of the queries; they count as 0."


def print_evaluation(evaluation: Evaluation, queries: int) -> None:
    """Means, and differences from the baseline where there is one."""
    from rich.console import Console

    console = Console()
    console.print(_means(evaluation, queries))
    if evaluation.baseline is not None:
        console.print(_differences(evaluation))
        several = ", Holm-corrected for the number of systems" if len(evaluation.comparisons) > 1 else ""
        typer.echo(f"p: paired randomisation test{several}. p (t): paired t-test. ▲ ▼: queries better and worse.")


def _means(evaluation: Evaluation, queries: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"×100 over {queries:,} queries", title_justify="left")
    # Where there is no room a name goes over lines: cut short, two would look the same.
    table.add_column("", overflow="fold")
    for name in evaluation.measures:
        table.add_column(name, justify="right", overflow="fold")
    for system, figures in evaluation.means().items():
        table.add_row(Text(system), *(f"{100 * value:.1f}" for value in figures.values()))
    return table


def _differences(evaluation: Evaluation) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"Difference from {evaluation.baseline}, ×100"), title_justify="left")
    for name in ("", "", "difference", "95 % interval", "p", "p (t)", "▲", "▼"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for system, by_measure in evaluation.comparisons.items():
        for at, (measure, found) in enumerate(by_measure.items()):
            last = at == len(by_measure) - 1
            table.add_row(Text(system if at == 0 else ""), measure, *_cells(found), end_section=last)
    return table


def _cells(found: Comparison) -> list[Text]:
    from rich.text import Text

    sure = found.p_holm < SIGNIFICANT
    alone = found.better + found.worse + found.equal == 1  # drawn anew, one query is itself
    return [
        Text(f"{100 * found.difference:+.1f}", style="bold" if sure else ""),
        Text("" if alone else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"),
        Text(_p(found.p_holm), style="bold" if sure else ""),
        Text("" if found.p_t is None else _p(found.p_t)),
        Text(f"{found.better:,}"),
        Text(f"{found.worse:,}"),
    ]


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
