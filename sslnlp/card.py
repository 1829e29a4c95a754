"""The model card: what a run knows about itself, as a README that a hub and a person can both read.

Every value may come from a file name, a label or a column of somebody's data, so nothing is trusted: text goes into
code spans or is escaped, metadata goes through a YAML writer, and paths of the machine are cut to their last part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from sslnlp.errors import UserError, suggest

_LICENSES = frozenset((
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "odc-by", "odbl", "gpl-2.0", "gpl-3.0",
    "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "unlicense", "wtfpl", "pddl", "gfdl", "other", "unknown",
))  # fmt: skip
"""Identifiers a hub knows; any other licence becomes `other` with its name beside it."""

# The task a hub files a class under, and the Auto class that loads it.
_TASKS = (
    ("ForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
    ("ForCausalLM", "text-generation", "AutoModelForCausalLM"),
    ("LMHeadModel", "text-generation", "AutoModelForCausalLM"),
    ("ForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
    ("ForTokenClassification", "token-classification", "AutoModelForTokenClassification"),
    ("ForConditionalGeneration", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ("ForPreTraining", None, "AutoModelForPreTraining"),
)


class ReportRow(NamedTuple):
    """A measure of the report card (`sslnlp report`)."""

    name: str
    value: float
    low: float
    high: float
    chance: float | None
    number: int
    meaning: str


@dataclass(kw_only=True)
class CardFacts:
    """What the card is written from. All optional but the title: a fact that is not known is left out, never guessed.

    `export_model` fills in `architecture`, `parameters`, `max_length`, `pooling`, `normalize` and `label_names` from
    the model itself, and `modes`; the caller brings what only the run knows.
    """

    title: str
    """Heading of the card; the last part of the run's folder or the repository's name."""
    objective: str = ""
    """Registry name of the last objective."""
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    collator: str = ""
    """Registry name of what made the targets."""
    collator_options: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the loop: steps, batch size, learning rate, precision, seed, ..."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Held-out figures by name."""
    report: Sequence[ReportRow] = ()
    """The report card's short form."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library name to version."""
    sources: Iterable[str] = ()
    """Names of the training data: hub names as they are, files by their last part only."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Documents, tokens, bytes, duplicates removed, fingerprint: whatever the preparation counted."""
    tokens_seen: int | None = None
    """Tokens that went through the model in training, repeats counted."""
    datasets: Iterable[str] = ()
    """Hub ids of training data, for the metadata; files do not belong here."""
    base_model: str | None = None
    """What this run continued from; it enters the metadata when it is a hub name and no local folder."""
    license: str | None = None
    """Licence of the model, written only if given."""
    data_license: str | None = None
    language: str | Iterable[str] | None = None
    """ISO 639 codes."""
    intended_use: str = ""
    limits: str = ""
    architecture: str = ""
    """Class name in `transformers`."""
    parameters: int | None = None
    max_length: int | None = None
    """Tokens."""
    pooling: str | None = None
    """Set for an embedder: how token vectors become one."""
    normalize: bool = True
    label_names: Iterable[str] = ()
    head: bool = False
    """An embedder whose vectors go on through a linear head, to one logit a label."""
    ranks: str | None = None
    """What a reranker compares: `pairs`, read together by a cross-encoder, or `tokens` (late interaction)."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What stands before each `query` and `document`."""
    modes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Ways the model is meant to be used: name -> fields of the configuration."""

    @classmethod
    def of(cls, facts: CardFacts | Mapping[str, Any]) -> CardFacts:
        """The facts themselves, or a mapping of them with unknown names refused."""
        if isinstance(facts, CardFacts):
            return facts
        accepted = {f.name for f in fields(cls)}
        for name in facts:
            if name not in accepted:
                raise UserError(f"unknown model card fact {name!r}.{suggest(str(name), accepted)}")
        return cls(**facts)


def public(value: Any) -> Any:
    """`value` with every path of this machine cut to its last part: what may leave it in a published file.

    Mappings and sequences are followed; hub names, URLs and relative paths inside the working folder stay.
    """
    if isinstance(value, Mapping):
        return {public(str(k)): public(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [public(v) for v in value]
    if isinstance(value, (str, PurePosixPath, PureWindowsPath)):
        return _public_text(str(value))
    return value


_INNER_PATH = re.compile(r"(?<![\w.:/*?])(?:file://)?(?:/[^\s/,;:'\"]+){2,}/?")


def _public_text(text: str) -> str:
    bare = text.removeprefix("file://")
    if bare.startswith(("/", "~", "../", "./")) and "\n" not in bare:
        return PurePosixPath(bare).name or bare
    if PureWindowsPath(bare).drive and "\\" in bare:  # `q: ` is a query prefix, `C:\\texts` a place
        return PureWindowsPath(bare).name
    return _INNER_PATH.sub(lambda match: PurePosixPath(match[0]).name, text)


def model_card(facts: CardFacts | Mapping[str, Any]) -> str:
    """The whole README.md: YAML front matter, then Markdown. Raises `UserError` for a fact it does not know."""
    facts = CardFacts.of(facts)
    sections = [
        f"# {_plain(facts.title)}",
        _summary(facts),
        "## How to load\n\n" + _snippet(facts),
        _modes(facts),
        _table("Model", _model_rows(facts)),
        _table("Training data", _data_rows(facts)),
        _table("Training", _training_rows(facts)),
        _table("Held-out measures", [(k, _figure(v)) for k, v in facts.measures.items()]),
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
            f"| {_plain(row.name)} | {row.value:.4g} | {interval} | {chance} | {row.number:,} | {_plain(row.meaning)} |"
        )
    return "\n".join([_REPORT, "", *lines])


def with_report(card: str, rows: Sequence[ReportRow]) -> str:
    """A card that was written before, with this report card in place of the one it has, or at its end."""
    before, found, rest = card.partition(f"\n{_REPORT}\n")
    if not found:
        return f"{card.rstrip()}\n\n{report_section(rows)}\n"
    _, heading, after = rest.partition("\n## ")
    return f"{before}\n{report_section(rows)}\n{heading}{after}"


# How a hub files what ranks, and how sentence-transformers calls it.
_RANKERS = {"pairs": ("text-ranking", "cross-encoder"), "tokens": ("sentence-similarity", "multi-vector")}


def _task(facts: CardFacts) -> tuple[str | None, str]:
    if facts.ranks is not None:
        return _RANKERS[facts.ranks][0], "AutoModel"
    if facts.pooling is not None:
        return "text-classification" if facts.head else "sentence-similarity", "AutoModel"
    for ending, task, auto in _TASKS:
        if facts.architecture.endswith(ending):
            return task, auto
    return "feature-extraction", "AutoModel"


def _metadata(facts: CardFacts) -> str:
    embedder = facts.pooling is not None
    tags = ["sslnlp", "self-supervised"]
    if embedder:
        tags += ["sentence-transformers"]
        tags += ["text-classification"] if facts.head else ["feature-extraction", "sentence-similarity"]
    if facts.ranks is not None:
        tags += ["sentence-transformers", _RANKERS[facts.ranks][1], "reranker"]
    if facts.objective:
        tags.append(_slug(facts.objective))
    entries: dict[str, Any] = {
        "library_name": "sentence-transformers" if embedder or facts.ranks is not None else "transformers",
        "pipeline_tag": _task(facts)[0],
        "tags": tags,
        "language": [facts.language] if isinstance(facts.language, str) else [*(facts.language or ())] or None,
        "datasets": [d for d in facts.datasets if _HUB_NAME.fullmatch(d)] or None,
    }
    if facts.license:
        known = facts.license.strip().lower()
        entries["license"] = known if known in _LICENSES else "other"
        if known not in _LICENSES:
            entries["license_name"] = _slug(facts.license)
    if facts.base_model and _HUB_NAME.fullmatch(facts.base_model) and not Path(facts.base_model).exists():
        entries["base_model"] = facts.base_model
    return ModelCardData(**{k: v for k, v in entries.items() if v is not None}).to_yaml().strip()


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def _summary(facts: CardFacts) -> str:
    kind = f"A {_code(facts.architecture)} model" if facts.architecture else "A model"
    if facts.pooling is not None:
        kind += " that turns a text into one vector" + (", and that into logits" if facts.head else "")
    if facts.ranks is not None:
        kind += " that scores how well a text answers a query"
    how = f", trained with the objective {_code(facts.objective)}" if facts.objective else ""
    start = f", continued from {_code(public(facts.base_model))}" if facts.base_model else ""
    return f"{kind}{how}{start}. Written by sslnlp from what the run recorded."


def _snippet(facts: CardFacts) -> str:
    # The folder is named by a placeholder: the card cannot know under which name it will be published.
    task, auto = _task(facts)
    if facts.ranks is not None:
        return _python(_ranking(facts)) + "\n\n" + _RERANKING
    if facts.head:
        lines = [
            "from sentence_transformers import SentenceTransformer",
            "from transformers import AutoConfig",
            "",
            'model, names = SentenceTransformer("PATH_OR_NAME"), AutoConfig.from_pretrained("PATH_OR_NAME").id2label',
            'logits = model.encode(["first text", "second text"])',
            "print([names[int(c)] for c in logits.argmax(1)])",
        ]
        return f"{_python(lines)}\n\nWith probabilities, for a file: `sslnlp predict PATH_OR_NAME texts.csv`."
    if facts.pooling is not None:
        lines = [
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("PATH_OR_NAME")',
            'vectors = model.encode(["first text", "second text"])',
        ]
        return f"{_python(lines)}\n\nWithout sentence-transformers, the same vectors:\n\n{_python(_vectors(facts))}"
    elif task in ("fill-mask", "text-generation", "text-classification", "token-classification"):
        text = 'f"One {pipe.tokenizer.mask_token} word."' if task == "fill-mask" else '"One text"'
        lines = [
            "from transformers import pipeline",
            "",
            f'pipe = pipeline("{task}", model="PATH_OR_NAME")',
            f"print(pipe({text}))",
        ]
    else:
        lines = [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")',
            f'model = {auto}.from_pretrained("PATH_OR_NAME")',
        ]
    return _python(lines)


def _python(lines: Sequence[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


_POOLED = {
    "mean": "(hidden * mask).sum(1) / mask.sum(1)",
    "cls": "hidden[:, 0]",
    "last": "hidden[torch.arange(len(hidden)), batch.attention_mask.sum(1) - 1]",
    "weighted": "(hidden * (place := mask.cumsum(1) * mask)).sum(1) / place.sum(1)",
    "max": "hidden.masked_fill(mask == 0, -torch.inf).amax(1)",
}
"""What sentence-transformers does with hidden [B, S, H] and mask [B, S, 1], padding on the right."""


_RERANKING = (
    'To put what a search finds in its order: `sslnlp search query INDEX "a question" --reranker PATH_OR_NAME`.'
)


def _ranking(facts: CardFacts) -> list[str]:
    given = 'query, texts = "a question", ["first text", "second text"]'
    if facts.ranks == "tokens":
        return [
            "from sentence_transformers import MultiVectorEncoder  # version 6 or later",
            "",
            'model = MultiVectorEncoder("PATH_OR_NAME")',
            given,
            "scores = model.similarity(model.encode_query([query]), model.encode_document(texts))[0]",
        ]
    # CrossEncoder puts no prompt before the second text.
    query, text = (
        f"{facts.prompts[kind]!r} + {name}" if facts.prompts.get(kind) else name
        for kind, name in (("query", "query"), ("document", "text"))
    )
    return [
        "from sentence_transformers import CrossEncoder",
        "",
        'model = CrossEncoder("PATH_OR_NAME")',
        given,
        f"scores = model.predict([({query}, {text}) for text in texts])",
    ]


def _vectors(facts: CardFacts) -> list[str]:
    pooled = _POOLED[facts.pooling or "mean"]
    if facts.normalize:
        pooled = f"torch.nn.functional.normalize({pooled}, dim=-1)"
    return [
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer, model = (auto.from_pretrained("PATH_OR_NAME") for auto in (AutoTokenizer, AutoModel))',
        'batch = tokenizer(["first text", "second text"], padding=True, padding_side="right", truncation=True, '
        'return_token_type_ids=False, return_tensors="pt")',
        "with torch.no_grad():",
        "    hidden, mask = model(**batch).last_hidden_state, batch.attention_mask[..., None]",
        f"vectors = {pooled}",
    ]


def _modes(facts: CardFacts) -> str:
    """How to load the model in each of its ways; an empty string where it has only one."""
    if not facts.modes:
        return ""
    _, auto = _task(facts)
    lines = [f"from transformers import AutoConfig, {auto}", "", 'config = AutoConfig.from_pretrained("PATH_OR_NAME")']
    for name, settings in facts.modes.items():
        lines += [f"config.{key} = {value!r}  # {_one_line(name)}" for key, value in settings.items()]
        lines.append(
            f'{re.sub(r"[^a-z0-9]+", "_", name.lower())} = {auto}.from_pretrained("PATH_OR_NAME", config=config)'
        )
    names = " and ".join(_code(name) for name in facts.modes)
    text = (
        f"The same weights work in several ways: {names}. In each, the logits at a position are for the next token; "
        "where the model reads in both directions, they fill a mask that stands there."
    )
    check = (
        "A version of transformers that does not know these settings ignores them without a word. "
        "`self_check.safetensors` holds the logits of each way on a probe; "
        "`python -c \"from sslnlp.export import self_check; self_check('FOLDER')\"` compares."
    )
    return "\n\n".join(["## Ways to use it", text, "```python\n" + "\n".join(lines) + "\n```", check])


def _model_rows(facts: CardFacts) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [("architecture", facts.architecture), ("parameters", facts.parameters)]
    rows += [("longest input (tokens)", facts.max_length), ("pooling", facts.pooling)]
    if facts.pooling is not None:
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
    if facts.intended_use:
        use = facts.intended_use
    elif facts.head:
        use = "Sorting texts like those it was trained on into the labels above."
    elif facts.ranks is not None:
        use = "Ranking the texts that a search found, where queries and texts are like those it was trained on."
    elif facts.pooling is not None:
        use = "Search, clustering and comparison of texts like those it was trained on."
    elif "ForSequenceClassification" in facts.architecture and facts.label_names:
        use = "Sorting texts like those it was trained on into the labels above."
    else:
        use = "A starting point for fine-tuning, and study, on texts like those it was trained on."
    limits = facts.limits or (
        "It knows only what its training data holds and repeats its errors and biases; it was not checked for safety, "
        "fairness or facts. Measure it on your own data before relying on it."
    )
    return f"{_plain(public(use))}\n\n{_plain(public(limits))}"


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in public(options).items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A section with a two-column table; an empty string when no row has a value."""
    lines = [f"| {_plain(public(name))} | {_cell(value)} |" for name, value in rows if value not in (None, "", [], {})]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines]) if lines else ""


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return _code(_public_text(text)).replace("|", "\\|")
    return f"{value:,}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _code(text: str) -> str:
    """A code span, fenced by one backtick more than the text has in a row: nothing inside it is Markdown or HTML."""
    text = _one_line(str(text))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _plain(text: str) -> str:
    """Running text: every character that could start Markdown or HTML is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~$])", r"\\\1", _one_line(text))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80] or "unnamed"
