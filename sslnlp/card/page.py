"""The page of a model card: metadata for a hub, then sections of text and tables for a person.

Every value may come from a file name, a label or a column of somebody's data, so nothing is trusted: text goes into
code spans or is escaped, metadata goes through a YAML writer, and paths of the machine are cut to their last part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from sslnlp.card.facts import CardFacts, ReportRow
from sslnlp.card.text import code, plain, public, public_text, slug
from sslnlp.card.usage import RANKERS, modes, snippet, task_of


def model_card(facts: CardFacts | Mapping[str, Any]) -> str:
    """The whole README.md: YAML front matter, then Markdown. Raises `UserError` for a fact it does not know."""
    facts = CardFacts.of(facts)
    sections = [
        f"# {plain(facts.title)}",
        _summary(facts),
        "## How to load\n\n" + snippet(facts),
        modes(facts),
        _table("Model", _model_rows(facts)),
        _table("Training data", _data_rows(facts)),
        _table("Training", _training_rows(facts)),
        _table("Held-out measures", [(k, _figure(v)) for k, v in facts.measures.items()]),
        *(plain(note) for note in facts.notes),
        report_section(facts.report),
        "## Intended use and limits\n\n" + _use(facts),
        _table("Versions", list(facts.versions.items())),
    ]
    return f"---\n{_metadata(facts)}\n---\n\n" + "\n\n".join(s for s in sections if s) + "\n"


_REPORT = "## Report card"


def report_section(rows: Sequence[ReportRow]) -> str:
    """The section of a card with the figures of the report card; an empty string without any."""
    if not rows:
        return ""
    lines = ["| measure | value | 95 % interval | chance | of | |", "|---|---|---|---|---|---|"]
    for row in rows:
        interval = "–" if row.low != row.low else f"{row.low:.4g} to {row.high:.4g}"
        chance = "–" if row.chance is None else f"{row.chance:.3g}"
        lines.append(
            f"| {plain(row.name)} | {row.value:.4g} | {interval} | {chance} | {row.number:,} | {plain(row.meaning)} |"
        )
    return "\n".join([_REPORT, "", *lines])


def with_report(card: str, rows: Sequence[ReportRow]) -> str:
    """A card that was written before, with this report card in place of the one it has, or at its end."""
    before, found, rest = card.partition(f"\n{_REPORT}\n")
    if not found:
        return f"{card.rstrip()}\n\n{report_section(rows)}\n"
    _, heading, after = rest.partition("\n## ")
    return f"{before}\n{report_section(rows)}\n{heading}{after}"


def _metadata(facts: CardFacts) -> str:
    embedder = facts.pooling is not None and not facts.pictures
    tags = ["sslnlp", "self-supervised"]
    if embedder:
        tags += ["sentence-transformers"]
        tags += ["text-classification"] if facts.head else ["feature-extraction", "sentence-similarity"]
    if facts.ranks is not None:
        tags += ["sentence-transformers", RANKERS[facts.ranks][1], "reranker"]
    if facts.objective:
        tags.append(slug(facts.objective))
    entries: dict[str, Any] = {
        "library_name": "sentence-transformers" if embedder or facts.ranks is not None else "transformers",
        "pipeline_tag": task_of(facts)[0],
        "tags": tags,
    }
    if facts.base_model and _HUB_NAME.fullmatch(facts.base_model) and not Path(facts.base_model).exists():
        entries["base_model"] = facts.base_model
    return ModelCardData(**{k: v for k, v in entries.items() if v is not None}).to_yaml().strip()


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def _summary(facts: CardFacts) -> str:
    kind = f"A {code(facts.architecture)} model" if facts.architecture else "A model"
    if facts.pooling is not None and not facts.pictures:
        kind += " that turns a text into one vector" + (", and that into logits" if facts.head else "")
    if facts.pictures:
        kind += " that turns a picture into one vector, and one for each of its patches"
    if "DualEncoder" in facts.architecture:
        kind += " that turns a picture or a text into one vector"
    if facts.ranks is not None:
        kind += " that scores how well a text answers a query"
    how = f", trained with the objective {code(facts.objective)}" if facts.objective else ""
    start = f", continued from {code(public(facts.base_model))}" if facts.base_model else ""
    return f"{kind}{how}{start}. Written by sslnlp from what the run recorded."


def _model_rows(facts: CardFacts) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("architecture", facts.architecture), ("parameters", facts.parameters)]
    rows += [("longest input (tokens)", facts.max_length or None), ("pooling", facts.pooling)]
    if facts.mapped:
        rows.append(("behind the pooling", "a linear map, `2_Dense`"))
    if facts.pooling is not None and not facts.pictures:
        rows.append(("vectors of length one", "yes" if facts.normalize else "no"))
    if labels := list(facts.label_names):
        shown = ", ".join(labels[:50]) + (f", … ({len(labels)} in all)" if len(labels) > 50 else "")
        rows.append(("labels", shown))
    return rows


def _data_rows(facts: CardFacts) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    if "sources" not in facts.data:
        rows.append(("sources", public(list(facts.sources))))
    rows += _flat(facts.data)
    return [*rows, ("licence of the data", facts.data_license)]


def _training_rows(facts: CardFacts) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("objective", facts.objective), *_flat(facts.objective_options, "objective.")]
    rows += [("collator", facts.collator), *_flat(facts.collator_options, "collator.")]
    rows += [("tokens seen", facts.tokens_seen), *_flat(facts.hyperparameters)]
    return rows


def _use(facts: CardFacts) -> str:
    if facts.head:
        use = "Sorting texts like those it was trained on into the labels above."
    elif facts.ranks is not None:
        use = "Ranking the texts that a search found, where queries and texts are like those it was trained on."
    elif facts.pictures:
        use = "A starting point for models of pictures like those it was trained on, such as `clip_image_text`."
    elif facts.pooling is not None:
        use = "Search, clustering and comparison of texts like those it was trained on."
    elif "DualEncoder" in facts.architecture:
        use = "Finding pictures by words, and words by pictures, like those it was trained on."
    elif "ForSequenceClassification" in facts.architecture and facts.label_names:
        use = "Sorting texts like those it was trained on into the labels above."
    else:
        use = "A starting point for fine-tuning, and study, on texts like those it was trained on."
    limits = (
        "It knows only what its training data holds and repeats its errors and biases; it was not checked for safety, "
        "fairness or facts. Measure it on your own data before relying on it."
    )
    return f"{plain(use)}\n\n{plain(limits)}"


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in public(options).items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A section with a two-column table; an empty string when no row has a value."""
    lines = [f"| {plain(public(name))} | {_cell(value)} |" for name, value in rows if value not in (None, "", [], {})]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines]) if lines else ""


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return code(public_text(text)).replace("|", "\\|")
    return f"{value:,}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
