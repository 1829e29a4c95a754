"""What an exported classifier says of new texts: labels, and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sslnlp.errors import UserError
from sslnlp.search.encoder import Encoder, quiet_loading, resolve

UNKNOWN = "unknown"
"""What a text is called that looks like none of the classes (`unknown_below` in the configuration)."""
BLOCK = 1024
Floats = npt.NDArray[np.float32]


class Prediction(NamedTuple):
    """What is said of one text."""

    label: str | list[str] | float
    """A class, the classes of a multi-label model (maybe none), or a number."""
    probabilities: dict[str, float]
    """Of every class, most probable first; empty for a number."""


class Predictor:
    """A classifier's export, ready to read texts: a stock sequence classifier or a few-shot one."""

    def __init__(self, config: Any, score: Any) -> None:
        self.config = config
        self._score = score
        self.names = [str(config.id2label[c]) for c in range(config.num_labels)]

    @classmethod
    def load(cls, name: str) -> Predictor:
        """The classifier in folder `name`, or of that name on the hub. Raises `UserError` for any other model."""
        folder = resolve(name)
        config = AutoConfig.from_pretrained(folder)
        architecture = (config.architectures or [""])[0]
        if (folder / "3_Dense" / "model.safetensors").is_file():
            return cls(config, _few_shot(folder))
        if architecture.endswith("ForTokenClassification"):
            raise UserError(
                f"{name} tags words: read it with transformers' pipeline('token-classification', "
                "aggregation_strategy='first')"
            )
        if architecture.endswith("ForSequenceClassification"):
            return cls(config, _stock(folder))
        if hasattr(config, "vision_config"):
            raise UserError(f"{name} reads pictures: say by which names to classify them, --labels cat,dog")
        raise UserError(
            f"{name} is a {architecture or 'model'} and no classifier; fine-tune one: finetune_classification"
        )

    @property
    def problem(self) -> str:
        """In the words of transformers: single_label_classification, multi_label_classification or regression."""
        if self.config.problem_type:
            return str(self.config.problem_type)
        return "regression" if self.config.num_labels == 1 else "single_label_classification"

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32
    ) -> list[Prediction]:
        """One prediction a text (or a text and its pair), in their order."""
        if not texts:
            return []
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: little padding
        logits_NC = np.zeros((len(texts), max(1, self.config.num_labels)), np.float32)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            second = None if pairs is None else [pairs[i] for i in part]
            logits_NC[part] = self._score([texts[i] for i in part], second)
        return [self._told(logits_C) for logits_C in logits_NC]

    def _told(self, logits_C: Floats) -> Prediction:
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
    with quiet_loading():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} weights of a classifier, {missing[0]} among them")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).eval()
    segments = getattr(model.config, "type_vocab_size", 0) > 1

    def score(texts: list[str], pairs: list[str] | None) -> Floats:
        batch = tokenizer(
            texts,
            pairs,
            truncation=True,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=segments if pairs is not None else False,
        ).to(device)
        with torch.no_grad():
            found: Floats = model(**batch).logits.float().cpu().numpy()
        return found

    return score


def _few_shot(folder: Path) -> Any:
    encoder, head = Encoder.load(str(folder), head=True), load_file(folder / "3_Dense" / "model.safetensors")
    weight: Tensor = head["linear.weight"].float()
    bias: Tensor = head["linear.bias"].float()

    def score(texts: list[str], pairs: list[str] | None) -> Floats:
        if pairs is not None:
            raise UserError("a few-shot classifier reads single texts; these are pairs")
        vectors_BH = torch.from_numpy(encoder.encode(texts, "document", batch_size=len(texts)))
        found: Floats = torch.nn.functional.linear(vectors_BH, weight, bias).numpy()
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

    `data`: `.jsonl`, `.csv`, `.tsv`, `.parquet`, or `.txt` with a text a line. A line has the row's `text` (and its
    `id`, where there is one), `label`, and the `top` most probable classes (0: all). `out` appears whole or not at all.
    """
    predictor, count = Predictor.load(name), 0
    aside = out.with_name(f".{out.name}.unfinished")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            for rows in _blocks(data, text, pair):
                pairs = [row["text_pair"] for row in rows] if pair is not None else None
                for row, found in zip(
                    rows, predictor([row["text"] for row in rows], pairs, batch_size=batch_size), strict=True
                ):
                    shown = dict(list(found.probabilities.items())[: top or None])
                    said = {"label": found.label} | ({"probabilities": shown} if shown else {})
                    file.write(json.dumps(row | said, ensure_ascii=False) + "\n")
                count += len(rows)
                progress(len(rows))
        if not count:
            raise UserError(f"{data} holds no text to classify")
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return count


def _blocks(data: Path, text: str | None, pair: str | None) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    for row in _rows(data, text, pair):
        block.append(row)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _rows(data: Path, text: str | None, pair: str | None) -> Iterator[dict[str, Any]]:
    from sslnlp.search.documents import ID_COLUMNS, TEXT_COLUMNS, find_column, read_rows, string_of

    if not data.is_file():
        raise UserError(f"there is no file {data}")
    if data.suffix.lower() == ".txt":
        with open(data, encoding="utf-8-sig") as lines:
            try:
                yield from ({"text": line.rstrip("\r\n")} for line in lines if line.strip())
            except UnicodeDecodeError as error:
                raise UserError(f"{data} is not UTF-8 text (byte {error.start}): convert it first") from error
        return
    for number, row in read_rows(data):
        column = find_column(data, row, text, (*TEXT_COLUMNS, "sentence", "sentence1", "question"))
        if column is None:
            raise UserError(f"which column of {data} is the text? It has {', '.join(row)}; say --text NAME")
        name = find_column(data, row, None, ID_COLUMNS)
        found = {"id": string_of(data, number, row, name)} if name is not None else {}
        found["text"] = string_of(data, number, row, column)
        if pair is not None:
            other = find_column(data, row, pair, ())
            assert other is not None
            found["text_pair"] = string_of(data, number, row, other)
        yield found
