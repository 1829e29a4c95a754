"""What an exported classifier says of new texts: labels, and how sure it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from sslnlp.distributed import own_device
from sslnlp.errors import UserError
from sslnlp.export import LABEL_NAMES
from sslnlp.objectives.text_head import model_inputs
from sslnlp.predict_rows import check_rows, columns_read, is_few_shot, nothing_in, rows_of
from sslnlp.search.encoder import Encoder, load_stock
from sslnlp.search.model_folder import read_json, resolve
from sslnlp.search.reranker import pair_tokenizer
from sslnlp.writing import check_output, replacing

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
"""What a text is called that looks like none of the classes (`unknown_below` in the configuration)."""
BLOCK = 1024
Logits = npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """What is said of one text."""

    label: str | list[str] | float
    """A class, the classes of a multi-label model (maybe none), or a number."""
    probabilities: dict[str, float]
    """Of every class, most probable first; empty for a number."""


class Predictor:
    """A classifier's export, ready to read texts: a stock sequence classifier or a few-shot one."""

    def __init__(self, config: Any, score: Any, names: Sequence[str], columns: Mapping[str, str]) -> None:
        self.config = config
        self.columns = columns
        """What `columns_read` says of it."""
        self._score = score
        self.names = names

    @classmethod
    def load(cls, name: str) -> Predictor:
        """The classifier in folder `name`, or of that name on the hub. Raises `UserError` for any other model."""
        folder = resolve(name)
        few_shot = is_few_shot(name, folder)
        config = AutoConfig.from_pretrained(folder)
        names = [str(config.id2label[c]) for c in range(config.num_labels)]
        if few_shot:
            return cls(config, _few_shot(folder), getattr(config, LABEL_NAMES, names), columns_read(folder))
        return cls(config, _stock(folder), names, columns_read(folder))

    @property
    def problem(self) -> str:
        """In the words of transformers: single_label_classification, multi_label_classification or regression."""
        if self.config.problem_type:
            return str(self.config.problem_type)
        return "regression" if len(self.names) == 1 else "single_label_classification"

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> list[Prediction]:
        """One prediction a text (or a text and its pair), in their order."""
        if not texts:
            return []
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: little padding
        logits_NC = np.zeros((len(texts), max(1, len(self.names))), np.float32)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            second = None if pairs is None else [pairs[i] for i in part]
            logits_NC[part] = self._score([texts[i] for i in part], second)
        return [self._told(logits_C) for logits_C in logits_NC]

    def _told(self, logits_C: Logits) -> Prediction:
        if self.problem == "regression":
            return Prediction(float(logits_C[0]), {})
        logits = torch.from_numpy(logits_C).double()
        several = self.problem == "multi_label_classification"
        shares = (logits.sigmoid() if several else logits.softmax(-1)).tolist()
        ranked = sorted(zip(self.names, shares, strict=True), key=lambda pair: -pair[1])
        probabilities = dict(ranked)
        if several:
            least = dict(zip(self.names, getattr(self.config, "thresholds", None) or [0.5] * len(shares), strict=True))
            return Prediction([name for name, share in ranked if share >= least[name]], probabilities)
        unsure = ranked[0][1] < (getattr(self.config, "unknown_below", None) or 0.0)
        return Prediction(UNKNOWN if unsure else ranked[0][0], probabilities)


def _stock(folder: Path) -> Any:
    model, tokenizer = load_stock(AutoModelForSequenceClassification, folder, f"the classifier {folder}")
    device = own_device()
    model.to(device).eval()
    segments = getattr(model.config, "type_vocab_size", 0) > 1
    facts = read_json(folder / "config_sentence_transformers.json")
    # A cross-encoder puts its prefixes before the texts and reads a query no further than in training.
    reads = pair_tokenizer(model, tokenizer, folder, facts) if facts.get("model_type") == "CrossEncoder" else None
    accepted = model_inputs(model)

    def score(texts: list[str], pairs: list[str] | None) -> Logits:
        if reads is not None and pairs is not None:
            batch = {name: ids for name, ids in reads.pad(reads(texts, pairs)).items() if name in accepted}
        else:
            batch = tokenizer(
                texts,
                pairs,
                truncation=True,
                padding=True,
                padding_side="right",
                return_tensors="pt",
                # As in training: segments where the tokenizer marks them; new ones of ours do not.
                return_token_type_ids=None if pairs is not None and segments else False,
            )
        with torch.no_grad():
            found: Logits = model(**{name: ids.to(device) for name, ids in batch.items()}).logits.float().cpu().numpy()
        return found

    return score


def _few_shot(folder: Path) -> Any:
    encoder, head = Encoder.load(str(folder), head=True), load_file(folder / "3_Dense" / "model.safetensors")
    weight: Tensor = head["linear.weight"].float()
    bias: Tensor = head["linear.bias"].float()

    def score(texts: list[str], pairs: list[str] | None) -> Logits:
        if pairs is not None:
            raise UserError("a few-shot classifier reads single texts; these are pairs")
        vectors_BH = torch.from_numpy(encoder.encode(texts, "document", batch_size=len(texts)))
        found: Logits = torch.nn.functional.linear(vectors_BH, weight, bias).numpy()
        return found

    return score


def predict_file(
    name: str,
    data: Path,
    out: Path,
    *,
    text: str | None = None,
    pair: str | None = None,
    top: int = 5,
    batch_size: int = 32,
    progress: Any = lambda done: None,
) -> int:
    """Write a prediction for every row of `data` as JSON lines to `out`, and return how many there are.

    `data`: `.jsonl`, `.csv`, `.tsv`, `.parquet`, or `.txt` with a text a line. `text`: its column; None for the one
    that training read, else one of a usual name. A line has the row's `text` (and its `id`, where there is one),
    `label`, and the `top` most probable classes (0: all). The label of a row without text (of a pair: without one of
    the two) is null. `out` appears whole or not at all.

    Raises `UserError` for an `out` that is `data`, and for single texts where the model was trained on pairs, or pairs
    where it was not.
    """
    check_output(out, data)
    check_rows(name, data, text, pair)
    predictor, count, blank = Predictor.load(name), 0, 0
    with replacing(out) as file:
        for rows in _blocks(data, text, pair, predictor.columns):
            told = [row for row in rows if _has_text(row)]
            pairs = [row["text_pair"] for row in told] if pair is not None else None
            answers = iter(predictor([row["text"] for row in told], pairs, batch_size=batch_size))
            for row in rows:
                said = _said(next(answers), top) if _has_text(row) else {"label": None}
                file.write(json.dumps(row | said, ensure_ascii=False) + "\n")
            count += len(rows)
            blank += len(rows) - len(told)
            progress(len(rows))
        if count == blank:
            raise nothing_in(data)
    if blank:
        log.warning("%s rows of %s hold no text: their label is null", f"{blank:,}", data)
    return count


def _has_text(row: Mapping[str, Any]) -> bool:
    return all(row[name].strip() for name in ("text", "text_pair") if name in row)


def _said(found: Prediction, top: int) -> dict[str, Any]:
    shown = dict(list(found.probabilities.items())[: top or None])
    return {"label": found.label} | ({"probabilities": shown} if shown else {})


def _blocks(
    data: Path, text: str | None, pair: str | None, columns: Mapping[str, str]
) -> Iterator[list[dict[str, Any]]]:
    rows = rows_of(data, text, pair, columns)
    while block := list(islice(rows, BLOCK)):
        yield block
