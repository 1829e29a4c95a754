"""A run's folder into report sections: what was run, what it reached, how it got there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.evaluation.chance import CHANCE, accuracy_of, is_chance, loss_of
from sslnlp.report.answers import answer_sections
from sslnlp.report.card import Card
from sslnlp.report.measure import Measure
from sslnlp.report.measures import card_measure, measure
from sslnlp.report.page import Cell, Chart, Report, Section, Table
from sslnlp.report.run_facts import HELD_OUT, MEASURED, TRAINING, RunFacts, is_export, read_runs
from sslnlp.report.sections import card_sections, write_figures, write_pictures
from sslnlp.writing import naming


def make_report(
    run: Path,
    *,
    against: Sequence[str] = (),
    out: str | None = None,
    title: str | None = None,
    sections: Sequence[Section] = (),
    cards: Mapping[str, Card] | None = None,
) -> Path:
    """Write report.json, report.html and figures/ for one run, or for several side by side; returns the page's path.

    against: folders of further runs to compare with. out: where to write (default: the run's folder). sections: put
    before the run's own, for a caller that has more to tell. cards: what was measured of each run, by its name.
    """
    runs = read_runs([run, *map(Path, against)])
    names = ", ".join(r.name for r in runs)
    answers = [section for one in runs for section in answer_sections(one.name, one.path)]
    shown = [*sections, *_alarms(runs), *_unfinished(runs)]
    shown += [*card_sections(cards or {}, named=len(runs) > 1), *answers, *run_sections(runs)]
    plain = {name: card.to_dict() for name, card in (cards or {}).items()}
    report = Report(title or f"Report: {names}", subtitle=_subtitle(runs[0]), sections=shown, cards=plain)
    folder = Path(out) if out else Path(run)
    if is_export(folder):
        raise UserError(f"out={folder} is an export, and what lies in it is published: name another folder")
    page = report.write(folder)
    figures = folder / "figures"
    with naming(figures):
        write_figures([chart for section in shown for chart in section.charts], figures)
        write_pictures([picture for section in shown for picture in section.pictures], figures)
    return page


def run_sections(runs: Sequence[RunFacts]) -> list[Section]:
    """The sections every report has, for runs side by side."""
    made = [_held_out(runs), _curves(runs), _facts(runs), _contract(runs), _recipes(runs)]
    return [section for section in made if section.tables or section.charts]


def _alarms(runs: Sequence[RunFacts]) -> list[Section]:
    """What is wrong with a run, before anything that it reached."""
    said = []
    for run in runs:
        for key in _chances(run):
            if (wrong := run.at_chance(key)) is not None:
                where = f" ({key.removeprefix(TRAINING)})" if key != TRAINING + CHANCE else ""
                said.append(f"{run.name}: {wrong}{where}")
        for line in run.history:
            if line.get("event") == "nonfinite_gradient":
                then = "stopped there" if line.get("policy") == "stop" else "went back and skipped its rows"
                said.append(f"{run.name}: the gradient of step {line['step']} was not finite, and the run {then}")
    return [Section("Alarm", text="\n".join(said))] if said else []


def _unfinished(runs: Sequence[RunFacts]) -> list[Section]:
    """Which runs have not ended, so that nobody takes the figures on their way for what they reached."""
    said = [
        f"{run.name}: its log ends at step {run.history[-1]['step'] if run.history else 0}, and the held-out figures "
        "are the newest in it"
        for run in runs
        if "result" not in run.biography
    ]
    return [Section("Not finished", text="\n".join(said))] if said else []


def _chances(run: RunFacts) -> list[str]:
    """What a run logged of chance while it trained."""
    return list(
        dict.fromkeys(key for line in run.history for key in line if key.startswith(TRAINING) and is_chance(key))
    )


def _held_out(runs: Sequence[RunFacts]) -> Section:
    rows: list[list[Cell]] = []
    meanings = []
    for run in runs:
        chance_facts = _chance_facts(run)
        for figure, value in sorted(run.held_out().items()):
            told = _told(run.objective, figure)
            chance = told.chance(chance_facts) if told else None
            meanings.append(told.meaning if told else "")
            explained: list[Cell] = [told.unit, told.better] if told else ["", ""]
            rows.append([figure, *([run.name] if len(runs) > 1 else []), value, chance, *explained])
    columns = ["figure", *(["run"] if len(runs) > 1 else []), "held out", "chance", "unit", "better"]
    note = "Chance is what a model scores that finds all answers equally likely; a dash where it is not known."
    said = [
        f"{run.name}: {line}" if len(runs) > 1 else line
        for run in runs
        for line in (run.biography.get("result") or {}).get("notes", [])
    ]
    tables = [Table(columns, rows, note=note, meanings=meanings)] if rows else []
    return Section("What it reached", text="\n".join(said), tables=tables)


def _curves(runs: Sequence[RunFacts]) -> Section:
    """One chart per figure, training and held-out together; only runs of one objective share a chart."""
    charts = []
    for objective in dict.fromkeys(run.objective for run in runs):
        group = [run for run in runs if run.objective == objective]
        known = {f for run in group for f in run.held_out()}
        known |= {
            key.removeprefix(HELD_OUT)
            for run in group
            for line in run.history
            for key in line
            if key.startswith(MEASURED)
        }
        chances = {key.removeprefix(TRAINING) for run in group for key in _chances(run)}
        known |= {accuracy_of(name) for name in chances}
        known -= chances  # drawn beside the loss
        figures = sorted(known, key=lambda f: (f.startswith("report/"), f != "loss", f))
        for figure in dict.fromkeys(["loss", *figures]):
            keys = [("training", TRAINING + figure), ("held out", HELD_OUT + figure)]
            keys += [("chance", TRAINING + name) for name in chances if loss_of(name) == figure]
            series = {}
            for run in group:
                prefix = f"{run.name}: " if len(group) > 1 else ""
                for label, key in keys:
                    if points := run.series(key):
                        series[f"{prefix}{label}"] = points
            told = _told(objective, figure)
            if any(len(points) > 1 for points in series.values()):
                charts.append(Chart(f"{figure} ({objective})", "step", told.unit if told else figure, series))
        rates = {run.name: run.series(TRAINING + "lr") for run in group}
        if any(len(points) > 1 for points in rates.values()):
            charts.append(Chart(f"learning rate ({objective})", "step", "learning rate", rates))
    return Section("How it got there", charts=charts)


def _told(objective: str, figure: str) -> Measure | None:
    bare = figure.removeprefix("report/")
    return measure(objective, figure) if bare == figure else card_measure(bare)


def _facts(runs: Sequence[RunFacts]) -> Section:
    per_run = [_flat(_without(run.biography, "recipe", "tokenizer", "label_names")) for run in runs]
    return Section("What it was made from", tables=_side_by_side(runs, per_run, "fact"))


def _recipes(runs: Sequence[RunFacts]) -> Section:
    return Section("Recipe", tables=_side_by_side(runs, [_flat(run.recipe) for run in runs], "key", "All keys"))


def _contract(runs: Sequence[RunFacts]) -> Section:
    tables = _side_by_side(runs, [_flat(run.biography.get("tokenizer") or {}) for run in runs], "figure", "All figures")
    return Section("Tokenizer contract", tables=tables)


def _side_by_side(
    runs: Sequence[RunFacts], columns: Sequence[Mapping[str, Cell]], head: str, folded: str = ""
) -> list[Table]:
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows: list[list[Cell]] = [[key, *(column.get(key) for column in columns)] for key in keys]
    return [Table([head, *(run.name for run in runs)], rows, title=folded, folded=bool(folded))] if rows else []


def _subtitle(run: RunFacts) -> str:
    model = run.recipe.get("model", {})
    base = model.get("pretrained") or f"{model.get('architecture', 'model')} {model.get('size', '')}".strip()
    return f"{run.objective or 'run'} · {base}"


def _chance_facts(run: RunFacts) -> dict[str, Any]:
    figures = (run.biography.get("tokenizer") or {}).get("figures", {})
    facts = {name: figures[name] for name in ("vocab_size", "bytes_per_token") if name in figures}
    return facts | {"num_labels": len(run.biography.get("label_names") or [])}


def _without(plain: Mapping[str, Any], *names: str) -> dict[str, Any]:
    # The held-out figures have a table of their own, and what is to be said of them stands above it.
    kept = {key: value for key, value in plain.items() if key not in names}
    return kept | ({"result": _without(kept["result"], "measures", "notes")} if "result" in kept else {})


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Cell]:
    """Nested mappings as dotted keys; lists as a comma-separated line, long ones cut."""
    rows: dict[str, Cell] = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            rows[name] = ", ".join(str(v) for v in value[:20]) + (" ..." if len(value) > 20 else "")
        elif value is None or isinstance(value, str | int | float | bool):
            rows[name] = value
    return rows
