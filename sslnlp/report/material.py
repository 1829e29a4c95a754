"""What a report card measures with: held-out texts, and the files that somebody gives."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sslnlp.collators.base import Collator
from sslnlp.data.config import DataConfig
from sslnlp.data.label_kinds import KINDS
from sslnlp.data.prepare import texts_of
from sslnlp.data.sources import open_part, open_source, text_column
from sslnlp.data.store import TokenStore
from sslnlp.errors import UserError, usual_name
from sslnlp.evaluation.beir import Beir, load_beir
from sslnlp.evaluation.minimal_pairs import Pair, read_pairs
from sslnlp.evaluation.probes import tell_shared
from sslnlp.evaluation.similarity import Similar, read_similar
from sslnlp.report.config import ReportConfig

log = logging.getLogger(__name__)

HeldOut = Callable[[int], list[str]]

LABELS = ("label", "labels", "class", "category", "intent")


@dataclass
class Labelled:
    """Texts and their labels."""

    texts: list[str]
    labels: list[str]


@dataclass
class Material:
    """Everything that is read once, for however many models are measured with it."""

    texts: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    similar: Similar | None = None
    probe: tuple[Labelled, Labelled] | None = None
    beir: Beir | None = None
    collator: Collator | None = None
    """What corrupts the texts that an encoder-decoder rebuilds; None: the usual of its kind."""
    documents: int = 500

    @classmethod
    def read(cls, config: ReportConfig, held_out: HeldOut, collator: Collator | None = None) -> Material:
        """Read all that `config` names. `held_out` gives the first n texts that the run held out; `collator` is the
        run's, where it corrupts text to be rebuilt.

        Raises `UserError` for a file that is not what its key asks for.
        """
        number = config.documents
        found = cls(documents=number, collator=collator)
        if config.texts is None:
            found.texts = held_out(number)
        else:
            with _without_keys():
                found.texts = list(islice(_texts(config.texts), number))
        if config.pairs is not None:
            found.pairs = read_pairs(config.pairs)
        if config.sts is not None:
            found.similar = read_similar(open_source(config.sts).rows(), config.sts)
        if config.probe_train is not None and config.probe_test is not None:
            with _without_keys():
                found.probe = _labelled(config.probe_train, config.label), _labelled(config.probe_test, config.label)
            tell_shared(found.probe[0].texts, found.probe[1].texts)
        if config.beir is not None:
            found.beir = load_beir(config.beir)
        return found


def held_out_texts(
    data: DataConfig, facts: Mapping[str, Any], cache: Path, tokenizer: PreTrainedTokenizerBase, *, exact: bool = True
) -> HeldOut:
    """The first n held-out documents of a run: of `data.valid`, else those that the preparation of its text split off,
    decoded; none where a table held out rows. `facts` are what the preparation found: its fingerprint, and of a table
    the columns that were read, of which the text (or the relevant text of a query) is the one meant here. Where the
    tokenizer is not `exact`, as its contract says, what is decoded is not the text as it was, which is said."""
    columns = facts.get("columns", {})
    data = replace(data, text=data.text or columns.get("text") or columns.get("positive"))

    def first(number: int) -> list[str]:
        if data.valid is not None:
            try:
                texts = texts_of(open_part(data, "valid", None), data)
                # The preparation left out the blank ones too.
                return list(islice((text for text in texts if text.strip()), number))
            except UserError as error:  # not on this machine
                log.warning("the held-out text of the run cannot be read, so texts=FILE is needed: %s", error)
                return []
        store = cache / f"text-{facts.get('fingerprint')}" / "valid"
        if not store.is_dir():
            return []
        if not exact:
            log.warning(
                "the held-out text is decoded from its tokens, and this tokenizer does not give back every text as it "
                "was, which the figures are then not of; give texts=FILE to measure the text itself"
            )
        documents = TokenStore(store)
        ids = (documents.tokens(i).tolist() for i in range(min(number, len(documents))))
        return [str(tokenizer.decode(one, skip_special_tokens=True)) for one in ids]

    return first


@contextmanager
def _without_keys() -> Iterator[None]:
    """What is wrong with the data names the key that a recipe has for a column of texts, and a report has none."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("say data.text=NAME", "call the column text")) from error


def _texts(spec: str) -> Iterator[str]:
    yield from (text for text in open_source(spec).documents() if text.strip())


def _labelled(spec: str, label: str | None) -> Labelled:
    """`UserError` where the columns are not to be found."""
    texts, labels = [], []
    names: tuple[str, str] | None = None
    for row in open_source(spec).rows():
        names = names or _columns(row, spec, label)
        text, value = (row.get(name) for name in names)
        try:
            name = KINDS["one"].read(value, None, names[1])  # as training reads it: 1.0, of a column with gaps, is 1
        except UserError as error:  # without the advice, which is of objectives
            raise UserError(f"{spec}: {re.split('[:;] for ', str(error))[0]}; a probe needs one class a text") from None
        if name is not None and text is not None and text == text and str(text).strip():
            texts.append(str(text))
            labels.append(str(name))
    if not texts:
        raise UserError(f"{spec} holds no labelled text")
    return Labelled(texts, labels)


def _columns(row: dict[str, Any], spec: str, wanted: str | None) -> tuple[str, str]:
    accepted = LABELS if wanted is None else (wanted,)
    label = usual_name(row, accepted) if wanted is None or wanted in row else None
    if label is None:
        raise UserError(f"{spec} has no label column ({', '.join(accepted)}); it has {', '.join(row)}")
    return text_column({name: value for name, value in row.items() if name != label}, None, spec, DataConfig()), label
