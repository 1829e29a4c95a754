"""The whole story in one call: corpus, tokenizer, encoder, decoder, classifier, ranker, report."""

from __future__ import annotations

import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from sslnlp.errors import UserError
from sslnlp.precision import fitting_precision
from sslnlp.quickstart import baselines, samples
from sslnlp.quickstart.begun import BEGUN, begun_in
from sslnlp.quickstart.corpus import Corpus, fingerprint, write_corpus
from sslnlp.quickstart.harvest import harvest
from sslnlp.quickstart.plan import CLASSIFIER_ROWS, QUERY_LENGTH, RANKER_ROWS, TEXT_LENGTH, Plan
from sslnlp.recipe import Recipe, read_result, run
from sslnlp.recipe.build import processes
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.out import sole
from sslnlp.report import Section, Table, make_report
from sslnlp.report.measures import measure
from sslnlp.report.page import Cell, format_cell
from sslnlp.train_config import parse_duration
from sslnlp.writing import write_json

DRAWS = {8: 3, 64: 1}
"""Labels a class -> how many draws of the training rows: with few labels the draw decides much, so several are made."""
"""What it was begun with: only the same may go on in its folder."""
COLUMNS = ("task", "figure", "pretrained", "untrained", "baseline", "baseline's figure", "guessing")


@dataclass
class Story:
    """What one quickstart has done so far."""

    plan: Plan
    console: Console
    rows: list[list[Cell]] = field(default_factory=list)
    """One row a figure, under `COLUMNS`."""
    began: float = field(default_factory=time.monotonic)
    goes_on: bool = False
    """After a stop: the time since `began` is not that of the whole."""

    @property
    def corpus(self) -> Corpus:
        return self.plan.corpus

    def tell(self, text: str) -> None:
        """One line with the minutes since the start."""
        passed = time.monotonic() - self.began
        self.console.print(
            f"[dim]{int(passed // 60):2d}:{int(passed % 60):02d}[/]  {escape(text)}", highlight=False, soft_wrap=True
        )

    def add(self, *row: Cell) -> None:
        """One row of the table, told at once."""
        self.rows.append(list(row))
        task, figure, ours, fresh, baseline, theirs, _ = map(format_cell, row)
        beside = [f"untrained {fresh}"] * (row[3] is not None) + [f"{baseline} {theirs}"] * (row[5] is not None)
        self.tell(f"  {task}: {figure} {ours}" + (f" ({', '.join(beside)})" if beside else ""))

    def run(self, recipe: Recipe) -> dict[str, Any]:
        """Run a recipe quietly, or what is left of it after a stop, and return its `result`."""
        folder = Path(recipe.out)
        if not (folder / "export" / "config.json").is_file():
            run(recipe, resume=(folder / "recipe.json").is_file(), console=Console(quiet=True))
        return read_result(folder)


def quickstart(out: Path, budget: str = "5m", *, console: Console | None = None) -> Path:
    """Run the whole story into the folder `out`; returns the path of report.html.

    budget: wall clock for all training together, such as 90s or 5m; finding the corpus, measuring and exporting come
    on top. Nothing is downloaded. A call with the same `out` and `budget` goes on where the last one was stopped.
    Raises UserError when `out` holds something else, or a finished quickstart, or the budget is not a time.
    """
    parse_duration(budget)
    with sole(out, str(out), main=True):
        return _tell_all(out, budget, console or Console())


def _tell_all(out: Path, budget: str, console: Console) -> Path:
    before = begun_in(out)
    began = time.monotonic()
    found = harvest()
    given = {"seconds": parse_duration(budget), "corpus": fingerprint(found)}
    for name, what in (("seconds", "budget"), ("corpus", "installation, whose documentation is the corpus")):
        if before and before[name] != given[name]:
            raise UserError(f"{str(out)!r} holds a quickstart of another {what}; give another --out, or remove it")
    # The precision is measured: a second time it may come out otherwise, and no run would go on.
    begun: dict[str, Any] = before or given | {"precision": fitting_precision(processes().device)}
    write_json(out / BEGUN, begun)
    corpus = write_corpus(found, out / "corpus")
    story = Story(Plan(corpus, out, begun["seconds"], begun["precision"]), console, began=began, goes_on=bool(before))
    facts = corpus.facts
    story.tell(
        f"corpus: documentation of {facts['entries']:,} objects in {facts['files read']:,} source files of this "
        f"installation, {facts['characters']:,} characters; {facts['held-out entries']:,} are held out"
    )
    _pretrain(story)
    _classify(story)
    _rank(story)
    shown = _samples(story)
    page = _report(story, shown)
    _print(story, shown, page)
    return page


def _pretrain(story: Story) -> None:
    plan = story.plan
    story.tell(f"tokenizer and encoder: masked language modelling for {plan.budget('encoder')}")
    result = story.run(plan.encoder())
    measures = result["measures"]
    story.tell(f"  {result['steps']:,} steps, {result['tokens_seen']:,} tokens; {_shown(measures)}")
    vocabulary = _vocabulary(plan.out / "encoder")
    story.add("hidden tokens, encoder", "accuracy", measures["accuracy"], None, None, None, 1 / vocabulary)
    story.tell(f"decoder: causal language modelling for {plan.budget('decoder')}")
    result = story.run(plan.decoder())
    measures = result["measures"]
    story.tell(f"  {result['steps']:,} steps, {result['tokens_seen']:,} tokens; {_shown(measures)}")
    xz = baselines.xz_bits_per_byte(story.corpus)
    story.add("next token, decoder", "bits per byte", measures["bits_per_byte"], None, "xz -9", xz, None)


def _vocabulary(folder: Path) -> int:
    return int(read_biography(folder / "recipe.json")["tokenizer"]["figures"]["vocab_size"])


def _classify(story: Story) -> None:
    plan, corpus = story.plan, story.corpus
    runs = 2 * sum(DRAWS.values())
    for k, draws in DRAWS.items():
        passes_over_all = -(-40 * k * len(corpus.labels) // CLASSIFIER_ROWS)
        steps = plan.steps("classifier", runs, CLASSIFIER_ROWS * TEXT_LENGTH, most=passes_over_all)
        story.tell(
            f"classifier: {len(corpus.labels)} libraries, {k} labels a class, {draws} draw(s), {steps:,} steps each"
        )
        reached: dict[str, list[dict[str, float]]] = {"pretrained": [], "untrained": [], "tfidf": []}
        for seed in range(draws):
            train = baselines.few_label_file(corpus, k, seed, plan.out / "corpus" / f"labelled-{k}-draw{seed}.jsonl")
            for name in ("pretrained", "untrained"):
                recipe = plan.classifier(
                    train, classifier_name(k, seed, name), pretrained=name == "pretrained", seed=seed, steps=steps
                )
                reached[name].append(story.run(recipe)["measures"])
            reached["tfidf"].append(baselines.tfidf(corpus, train))
        what = f"classify, {k} labels a class" + (f", mean of {draws} draws" if draws > 1 else "")
        for figure in ("accuracy", "macro_f1"):
            ours, fresh, lexical = (statistics.mean(m[figure] for m in reached[name]) for name in reached)
            story.add(what, figure, ours, fresh, "TF-IDF + LR", lexical, 1 / len(corpus.labels))


def classifier_name(k: int, seed: int, name: str) -> str:
    """The run's folder for `k` labels a class, one draw, one start."""
    return f"classifier-{k}-draw{seed}-{name}"


def _rank(story: Story) -> None:
    plan = story.plan
    steps = plan.steps("ranker", 2, RANKER_ROWS * (TEXT_LENGTH + QUERY_LENGTH), most=1000)
    story.tell(f"ranker: {story.corpus.facts['pairs']:,} pairs of summary line and documentation, {steps:,} steps each")
    ours = story.run(plan.ranker("ranker", pretrained=True, steps=steps))["measures"]
    fresh = story.run(plan.ranker("ranker-untrained", pretrained=False, steps=steps))["measures"]
    lexical = baselines.bm25(story.corpus)
    documents = story.corpus.facts["search queries"]
    for figure in ("ndcg@10", "mrr@10", "recall@100"):
        values = (ours[f"beir_{figure}"], fresh[f"beir_{figure}"], "BM25", lexical[figure])
        story.add(f"search in {documents:,} texts", figure, *values, _chance(figure, documents))


def _chance(figure: str, documents: int) -> float | None:
    told = measure("ranking", figure)
    return told.chance({"num_documents": documents}) if told else None


def _shown(measures: Mapping[str, float]) -> str:
    return "held out: " + ", ".join(f"{name} {format_cell(value)}" for name, value in measures.items())


def _samples(story: Story) -> list[Table]:
    """What the exports answer, read by stock classes."""
    return [
        Table(["text", "most probable fillings"], samples.fill(story.plan), title="The encoder fills gaps"),
        Table(["beginning", "continuation"], samples.continue_text(story.plan), title="The decoder goes on"),
    ]


def go_on(out: Path) -> list[str]:
    """Three commands that go on from here; each runs as it stands."""
    corpus, pretrained = out / "corpus", f"model.pretrained={out / 'encoder' / 'export'}"
    longer = [pretrained, f"data.train={corpus / 'text-train.jsonl'}", "train.budget=20m"]
    labelled = [f"data.train={corpus / 'labelled-train.jsonl'}", f"data.valid={corpus / 'labelled-test.jsonl'}"]
    commands = [
        ["train", "pretrain_bert", *longer, f"out={out}-longer"],
        ["train", "finetune_classification", pretrained, *labelled, f"out={out}-classifier"],
        ["search", "index", f"{corpus / 'beir'}", "--model", f"{out / 'ranker' / 'export'}", "--out", f"{out}-index"],
    ]
    return [shlex.join(["sslnlp", *command]) for command in commands]


NOTES = (
    "Every figure is of text whose module was held out from all training, tokenizer included. The untrained model has "
    "the same size, fine-tuning rows and number of updates, but fresh weights. TF-IDF + LR is logistic regression on "
    "the same labelled rows; BM25 and xz have seen no other text. In classification the names of the libraries "
    "are masked out. The smaller bits per byte the better, the larger every other figure."
)


def verdict(rows: Sequence[Sequence[Cell]]) -> str:
    """Whether pretraining paid, in one sentence: the comparisons that it won."""
    pairs = [(float(ours), float(fresh)) for _, _, ours, fresh, *_ in rows if ours is not None and fresh is not None]
    won = sum(ours > fresh for ours, fresh in pairs)  # only figures of which more is better are compared
    text = f"The pretrained model is ahead of the untrained one in {won} of {len(pairs)} comparisons."
    if 2 * won <= len(pairs):
        text += " So little pretraining does not pay by itself."
    if won < len(pairs):
        text += " The first command below goes on with it."
    return text


def _report(story: Story, shown: list[Table]) -> Path:
    plan = story.plan
    took = "" if story.goes_on else f" in {(time.monotonic() - story.began) / 60:.0f} minutes"
    facts: dict[str, Cell] = {
        name: ", ".join(value) if isinstance(value, list) else value
        for name, value in story.corpus.facts.items()
        if isinstance(value, list | str | int)
    }
    sections = [
        Section(
            "What it reached, beside honest baselines",
            text=verdict(story.rows),
            tables=[Table(COLUMNS, story.rows, note=NOTES)],
        ),
        Section("What the exports answer", tables=shown),
        Section("Go on with", text="\n".join(go_on(plan.out))),
        Section(
            "The corpus",
            text="Docstrings and help topics of this Python and its libraries, read without importing anything.",
            tables=[Table(["fact", "value"], [[name, value] for name, value in facts.items()])],
        ),
    ]
    runs = [plan.out / name for name in ("decoder", classifier_name(max(DRAWS), 0, "pretrained"), "ranker")]
    return make_report(
        plan.out / "encoder",
        against=[str(path) for path in runs],
        out=str(plan.out),
        title=f"Quickstart: from text to a search engine{took}",
        sections=sections,
    )


def _print(story: Story, shown: list[Table], page: Path) -> None:
    for table in shown:
        for left, right in table.rows:
            story.tell(f"  {left} → {right}")
    grid = Grid(*COLUMNS[:5], COLUMNS[6], title="What it reached, on text held out from all training")
    for row in story.rows:
        cells = [format_cell(cell) for cell in row]
        grid.add_row(*cells[:4], f"{cells[5]} {cells[4]}" if row[5] is not None else cells[5], cells[6])
    story.console.print(grid)
    story.console.print(verdict(story.rows), highlight=False)
    story.console.print(NOTES, style="dim")
    story.console.print("\nGo on with:")
    for command in go_on(story.plan.out):
        story.console.print(f"  {command}", soft_wrap=True, highlight=False, markup=False)
    story.console.print(f"\nreport: {page}", highlight=False, markup=False, soft_wrap=True)
