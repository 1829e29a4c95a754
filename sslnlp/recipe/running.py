"""One run, from a recipe to an export: check, build, train, measure, leave behind."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sslnlp.distributed import alone, wait, world_size
from sslnlp.errors import UserError
from sslnlp.evaluation.beir import beir_measures
from sslnlp.export import export_model
from sslnlp.lora import merged
from sslnlp.metrics import REPORT
from sslnlp.models import count_parameters, dropouts_of_start, max_positions
from sslnlp.objectives.base import Objective
from sslnlp.precision import fitting_precision, float32_by_default
from sslnlp.quiet import progress_bar, quiet_loading, shows_bars
from sslnlp.recipe.adapting import adapted, begun
from sslnlp.recipe.biography import biography, card_facts
from sslnlp.recipe.build import Parts, build_objective, build_parts, processes, resolve
from sslnlp.recipe.checks import check_compared
from sslnlp.recipe.choose import apply, choose, chosen_before, settle_rate
from sslnlp.recipe.decide import decide, settle
from sslnlp.recipe.held_out import HeldOut
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.out import check_data, check_out, check_place, sole
from sslnlp.recipe.pseudo import with_pseudo_labels
from sslnlp.recipe.rows import cut_short, first_rows, remember, training_rows
from sslnlp.recipe.schema import Recipe
from sslnlp.sharding import sharding_asked
from sslnlp.tokenizer.specials import forget_last_call
from sslnlp.train import Trainer
from sslnlp.writing import room_in, write_json

if TYPE_CHECKING:
    from sslnlp.recipe.reporting import RunReport

log = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""Between two lines of figures where no terminal shows a bar."""


@float32_by_default()
@quiet_loading()  # `models` says it in one line
def run(recipe: Recipe, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run a recipe and return its folder, `out`; its `export/` is a plain Hugging Face folder.

    Everything that can be refused is refused before `out` is touched, and a run that fails before its first update
    leaves no `out` behind. With `resume`, goes on from the newest valid checkpoint. Raises `UserError` for bad input,
    and when another process trains in `out`.
    """
    main = processes().is_main_process
    console = console or Console(stderr=True, quiet=not main)
    if recipe.adapt.steps:
        resolve(recipe)  # what is wrong with the labelled part is said before the long one
        if not begun(recipe):
            check_place(recipe.out, resume=resume)  # so is what is wrong with the folder
        # Stopped in the stage before, that one goes on, and after it the run begins.
        resume = resume and (Path(recipe.out).expanduser() / "recipe.json").is_file()
        recipe = adapted(recipe, lambda before, there: run(before, resume=there, console=console))
    recipe, inherited = resolve(recipe)
    out = Path(recipe.out).expanduser()
    with sole(out, recipe.out, main=main):
        _run(recipe, inherited, out, resume=resume, console=console)
    return out


def _run(recipe: Recipe, inherited: Mapping[str, Any], out: Path, *, resume: bool, console: Console) -> None:
    """A resolved recipe, in a folder that no other run is in."""
    main = processes().is_main_process
    before = chosen_before(out) if resume else {}
    recipe = apply(recipe, before)
    check_out(recipe, resume=resume)
    _tell(console, "inherited from " + str(recipe.model.pretrained), inherited)
    parts = build_parts(recipe, tokenizer_path=out / "tokenizer" if resume else None)
    if resume:
        check_data(recipe, parts.facts)
    if parts.contract is not None:
        console.print(parts.contract.table(), style="dim", highlight=False, markup=False)
    _tell(console, "data", {name: count for name, count in parts.facts.items() if isinstance(count, int | float)})
    counted = "words of each tag" if "words" in parts.facts else "rows of each class"
    _tell(console, counted, parts.facts.get("classes", {}))
    for line in () if resume else cut_short(parts):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    parts = replace(parts, chosen=before) if resume else choose(parts)
    if not resume:  # which compares as many rows as before, whatever the size of a batch
        check_compared(parts, world_size())
    objective = build_objective(parts)
    _tell_size(console, objective)
    parts = settle_rate(parts, objective)
    _tell(console, "chosen (give a key to choose otherwise)", parts.chosen)
    report = _report(parts)
    if _half_would_do(parts.recipe):
        console.print("this machine has units for bf16: train.precision=bf16 trains faster", style="dim")
    if (objective.begins or objective.pseudo_labels) and sharding_asked() is None:
        objective.to(processes().device)  # the trainer's own place for it: what is read before training is read there
    learnt = with_pseudo_labels(parts, objective)
    if objective.begins:  # on a resume too: there may be no checkpoint yet; one that there is overwrites it
        with alone():
            objective.begin(first_rows(learnt, learnt.stream, objective.device, objective.begin_rows))
    remember(parts, objective)
    story = biography(learnt, objective, read_biography(out / "recipe.json") if resume else None)
    if not resume:
        wait()  # nobody is still checking `out` when it appears
        if main:
            _begin(out, parts, story)
        wait()
    # Figures of rows that are compared depend on how many there are: as many as the loss compares, and after a stop as
    # many as before it, since the best is chosen among all of the run. Without gradients they fit where a part does.
    size = int(story["recipe"]["train"]["batch_size"])
    if objective.couples_rows:
        size *= int(story["processes"])
    held_out = HeldOut(parts, parts.valid, batch_size=size) if parts.valid is not None else None
    try:
        trainer = _train(parts, learnt, objective, held_out, out, story, console, resume, report)
    except Exception:  # out of memory, too
        if main and not resume and not _trained(out):
            shutil.rmtree(out, ignore_errors=True)
        raise
    _finish(parts, objective, held_out, trainer, out, story, console, report)


def _report(parts: Parts) -> RunReport | None:
    """None where the recipe asks for no report card. Raises `UserError` for files that cannot be used."""
    if not parts.recipe.report.asked:
        return None
    from sslnlp.recipe.reporting import RunReport  # with all that measures

    return RunReport(parts)


def _half_would_do(recipe: Recipe) -> bool:
    """Whether it trains in float32 unasked, on a device that is faster in half precision."""
    unasked = recipe.train.precision == "no" and "train.precision" not in recipe.given and recipe.train.steps != 0
    return unasked and fitting_precision(processes().device) == "bf16"


def _begin(out: Path, parts: Parts, story: Mapping[str, Any]) -> None:
    """Make `out` with everything a resume needs, at once: written beside its place, then renamed."""
    aside = out.with_name(f".{out.name}.beginning")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        if parts.tokenizer is not None and parts.contract is not None:
            forget_last_call(parts.tokenizer)
            with room_in(out):
                parts.tokenizer.save_pretrained(aside / "tokenizer")
            write_json(aside / "tokenizer" / "contract.json", parts.contract.to_dict())
        write_json(aside / "recipe.json", story)
        os.rename(aside, out)
    except OSError as error:
        raise UserError(f"cannot write to out={parts.recipe.out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _trained(out: Path) -> bool:
    metrics = out / "metrics.jsonl"
    return (metrics.is_file() and metrics.stat().st_size > 0) or any((out / "state").glob("step-*"))


def _train(
    parts: Parts,
    learnt: Parts,
    objective: Objective,
    held_out: HeldOut | None,
    out: Path,
    story: Mapping[str, Any],
    console: Console,
    resume: bool,
    report: RunReport | None,
) -> Trainer:
    evaluate = held_out if report is None else report.beside(held_out)
    if objective.concludes:  # until then there is nothing to measure
        evaluate = None
    timed = held_out.part() if held_out is not None and evaluate is held_out else None
    with _progress(console) as on_progress:
        trainer = Trainer(
            objective, learnt.collator, learnt.stream, parts.recipe.train,
            out=out, evaluate=evaluate, timed=timed, facts=story, on_progress=on_progress,
        )  # fmt: skip
        trainer.fit(resume)
    with alone():
        if objective.refits:
            objective.refit(*(first_rows(learnt, rows, objective.device, objective.begin_rows)
                              for rows in (learnt.stream, parts.valid)))  # fmt: skip
        if objective.concludes:
            objective.conclude(training_rows(parts, objective.device))
    return trainer


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """What the loop calls after each log: a bar on a terminal; elsewhere a line now and then, and the last figures."""
    said, printed, bars = "", time.monotonic(), shows_bars(console)
    try:
        with progress_bar(console) as bar:
            task = bar.add_task("", total=None)

            def show(step: int, steps: int, metrics: Mapping[str, float]) -> None:
                nonlocal said, printed
                shown = [f"{n.replace('_', ' ')} {metrics[n]:,.4g}" for n in ("loss", "valid_loss") if n in metrics]
                if (speed := metrics.get("tokens_per_second")) is not None:
                    shown.append(f"{speed:,.0f} tokens/s")
                said = f"{step}/{steps}  {'  '.join(shown)}"
                bar.update(task, completed=step, total=steps, description="  ".join(shown))
                if not bars and time.monotonic() - printed >= LINE_SECONDS:
                    console.print(said, highlight=False, soft_wrap=True)
                    said, printed = "", time.monotonic()

            yield show
    finally:
        if said and not bars:
            console.print(said, highlight=False, soft_wrap=True)


def _goes_on(parts: Parts, objective: Objective) -> bool:
    """Whether the export is its start again, which went on learning from raw text and is yet to be fine-tuned."""
    model, reads = parts.recipe.model, parts.recipe.collator_class.reads
    return model.pretrained is not None and not model.fresh and reads == "tokens" and objective.pooling is None


def _longest(parts: Parts, objective: Objective) -> int:
    """Tokens that the export reads: those of a row, and what a start read before it went on."""
    own = parts.max_length
    if parts.tokenizer is None or not _goes_on(parts, objective):
        return own
    stated, positions = int(parts.tokenizer.model_max_length), max_positions(objective.exported.config)
    known = [length for length in (stated, positions) if length is not None and length < 10**6]  # 10^30: not said
    return max([own, *([min(known)] if known else [])])


def _finish(
    parts: Parts,
    objective: Objective,
    held_out: HeldOut | None,
    trainer: Trainer,
    out: Path,
    story: dict[str, Any],
    console: Console,
    report: RunReport | None,
) -> None:
    """Final figures, on the weights that are left behind, and the export. The main process alone."""
    if processes().is_main_process:
        measures = _measure(parts, objective, held_out, trainer)
        with alone():
            decided = decide(parts, objective, held_out, out)
        settle(objective, decided)
        measures |= decided.figures
        words = parts.tokenizer
        samples = objective.samples(words, seed=parts.recipe.train.seed) if words is not None else {}
        seen = trainer.progress.tokens
        result = {"steps": trainer.progress.steps, "tokens_seen": seen, "measures": measures, "samples": samples}
        result["notes"] = notes = held_out.notes if held_out is not None else []
        story |= {"result": result}
        write_json(out / "recipe.json", story)
        card = report.card(objective) if report is not None else None
        facts = card_facts(parts, story)
        if report is not None and card is not None:
            facts = replace(facts, report=report.rows(card))
        whole = merged(objective.exported)
        if _goes_on(parts, objective):
            whole.config.update(dropouts_of_start(parts.recipe.model))
        export_model(
            whole, parts.tokenizer, out / "export",
            card=facts, recipe=story, pooling=objective.pooling,
            prompts=parts.collator.prompts, lengths=parts.collator.text_lengths, per_token=objective.per_token,
            modes=objective.modes, vector_map=objective.vector_map, head=objective.linear_head,
            max_length=_longest(parts, objective),
        )  # fmt: skip
        if objective.vector_map is not None:
            console.print("vectors: through a linear map fitted to them, 2_Dense of the export", highlight=False)
        _tell(console, "held-out", measures)
        for note in notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        for title, lines in samples.items():
            console.print(f"{title}:", *(f"  {line}" for line in lines), sep="\n", highlight=False, markup=False)
        if report is not None and card is not None:
            _tell(console, "report card", {name: figure.value for name, figure in card.figures.items()})
            console.print(f"report: {report.page(card, out)}", highlight=False, markup=False)
        console.print(f"done: {out / 'export'}", highlight=False, markup=False)
    wait()


def _measure(parts: Parts, objective: Objective, held_out: HeldOut | None, trainer: Trainer) -> dict[str, float]:
    progress = trainer.progress
    with alone():
        # The last evaluation of the run is final unless an earlier one was better, whose weights are back by now, or
        # what it predicted and noted was lost: the run was resumed after it. Or something has changed since.
        final = progress.best_step in (None, progress.step) and not objective.refits
        lost = held_out is None or not held_out.called
        figures = dict(progress.valid) if final and not lost else {}
        if held_out is not None and not figures:
            figures = held_out(objective)
        if (folder := parts.recipe.data.beir) is not None:
            embedder: Any = objective
            collator: Any = parts.collator
            figures |= beir_measures(embedder, collator, folder, batch_size=parts.recipe.train.batch_size)
    # The card's, of an evaluation that had one, are measured once more at the end, and told with their intervals.
    return {name: float(value) for name, value in figures.items() if not name.startswith(REPORT)}


def _tell(console: Console, title: str, facts: Mapping[str, Any]) -> None:
    shown = [f"{' '.join(str(name).split())} {_figure(value)}" for name, value in facts.items() if value is not None]
    if shown:  # the name of a class may have line ends
        console.print(f"{title}: {'  '.join(shown)}", highlight=False, markup=False, soft_wrap=True)


def _tell_size(console: Console, objective: Objective) -> None:
    own, whole = count_parameters(objective.model), count_parameters(objective)
    added = f" ({whole:,} with what objective {objective.name} adds)" if whole != own else ""
    console.print(f"{type(objective.model).__name__}: {own:,} parameters{added}", soft_wrap=True)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
