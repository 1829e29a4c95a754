"""The contenders of `benchmarks.data`: ours, and the peers on the same text; each is a process of its own."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Gate
from sslnlp.errors import UserError

RATE = 0.15


def read_texts(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        if "text" not in (names := pq.read_schema(path).names):
            raise UserError(f"{path} has no column 'text', only {', '.join(names)}")
        texts: list[str] = pq.read_table(path, columns=["text"])["text"].to_pylist()
        return texts
    return re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if path.endswith(".json"):
        return PreTrainedTokenizerFast(tokenizer_file=path)
    return AutoTokenizer.from_pretrained(path)


# --- encode -----------------------------------------------------------------------------------------------------------


def digest(ids: list[Any], lengths: Any) -> str:
    """Of all ids and of where each text ends."""
    found = hashlib.blake2b(np.asarray(lengths, np.int64).tobytes(), digest_size=16)
    for part in ids:
        found.update(np.asarray(part, np.int32).tobytes())
    return found.hexdigest()


def encode_ours(gate: Gate, *, corpus: Path, tokenizer: str) -> None:
    from sslnlp.data.encoding import Encoder, by_size

    own, texts = load_tokenizer(tokenizer), read_texts(corpus)
    size = sum(len(text.encode()) for text in texts)

    def run() -> tuple[list[Any], list[Any]]:
        encoder = Encoder(own)
        found = [encoder.encode(batch) for batch in by_size(texts, len, 1 << 23, 1 << 15)]
        return [part.ids for part in found], [part.lengths for part in found]

    ids, lengths = run()
    gate(digest=digest(ids, np.concatenate(lengths)))
    while True:
        ids, lengths = run()
        gate(units=size, tokens=sum(map(len, ids)))


def encode_tokenizers(gate: Gate, *, corpus: Path, tokenizer: str, parallel: bool) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if parallel else "false"
    from sslnlp.data.encoding import by_size, plain_tokenizer

    own, texts = load_tokenizer(tokenizer), read_texts(corpus)
    size = sum(len(text.encode()) for text in texts)

    def run() -> list[Any]:
        backend = plain_tokenizer(own)
        return [
            np.array(encoding.ids, np.int32)
            for batch in by_size(texts, len, 1 << 22)
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)
        ]

    ids = run()
    gate(digest=digest(ids, list(map(len, ids))))
    while True:
        ids = run()
        gate(units=size, tokens=sum(map(len, ids)))


# --- prepare and scale ------------------------------------------------------------------------------------------------


def first_batch(
    corpus: str, tokenizer: Any, cache: str, *, length: int, batch: int, processes: int | None = 1
) -> tuple[Any, int]:
    """Ours: the first masked batch, and the tokens of text that were prepared."""
    from sslnlp.collators.masked_lm import MaskedLMCollator
    from sslnlp.data.config import DataConfig
    from sslnlp.data.packing import PackedRows
    from sslnlp.data.prepare import prepare_text
    from sslnlp.data.stream import Stream
    from sslnlp.tokenizer import framing

    column = "text" if corpus.endswith("parquet") else None
    config = DataConfig(train=corpus, text=column, valid_fraction=0, processes=processes)
    prepared = prepare_text(config, tokenizer, cache_dir=cache)
    frame = framing(tokenizer, "encoder")
    rows = PackedRows(prepared.train, length, frame.prefix, frame.suffix, pad_id=tokenizer.pad_token_id)
    collator = MaskedLMCollator(tokenizer=tokenizer, rate=RATE, replace="bert")
    return collator(Stream(rows, 0).rows(range(batch))), prepared.train.num_tokens


def prepare_ours(gate: Gate, *, corpus: Path, tokenizer: str, length: int, batch: int, processes: int = 1) -> None:
    own, size = load_tokenizer(tokenizer), sum(len(text.encode()) for text in read_texts(corpus))
    tokens = 0
    while True:
        gate(units=size, tokens=tokens)
        with tempfile.TemporaryDirectory() as cache:
            made, tokens = first_batch(str(corpus), own, cache, length=length, batch=batch, processes=processes)
        assert made["input_ids"].shape == (batch, length)


def prepare_datasets(
    gate: Gate, *, corpus: Path, tokenizer: str, length: int, batch: int, processes: int | None, lean: bool
) -> None:
    import datasets
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForLanguageModeling

    datasets.disable_progress_bars()
    own, size = load_tokenizer(tokenizer), sum(len(text.encode()) for text in read_texts(corpus))
    own.model_max_length = 10**9  # no warning about long texts; nothing is cut in either case
    special = len(own("")["input_ids"])

    def tokenise(examples: dict[str, list[str]]) -> Any:
        if lean:
            return own(examples["text"], return_attention_mask=False, return_token_type_ids=False)
        return own(examples["text"], return_special_tokens_mask=True)

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: [i for ids in column for i in ids] for name, column in examples.items()}
        total = len(joined["input_ids"]) // length * length
        return {name: [ids[i : i + length] for i in range(0, total, length)] for name, ids in joined.items()}

    tokens = 0
    while True:
        gate(units=size, tokens=tokens)
        with tempfile.TemporaryDirectory() as cache:
            kind, options = ("parquet", {"columns": ["text"]}) if corpus.suffix == ".parquet" else ("text", {})
            if kind == "text":
                options = {"sample_by": "paragraph"}
            raw = datasets.load_dataset(kind, data_files=str(corpus), split="train", cache_dir=cache, **options)
            whole = raw.map(tokenise, batched=True, remove_columns=raw.column_names, num_proc=processes)
            rows = whole.map(group, batched=True, num_proc=processes)
            collator = DataCollatorForLanguageModeling(own, mlm_probability=RATE)
            loader = DataLoader(rows, batch_size=batch, shuffle=True, collate_fn=collator)
            if len(rows) < batch:
                raise UserError(f"{corpus.name} makes {len(rows)} rows of {length} tokens; lower --batch from {batch}")
            assert next(iter(loader))["input_ids"].shape == (batch, length)
            # All rows but for the tail of each thousand documents, which grouping drops: counted as if it were not.
            tokens = len(rows) * length - special * len(raw)
            del raw, whole, rows, loader


def scaled(gate: Gate, *, corpus: Path, warm: Path, size: int, tokenizer: str, length: int, batch: int) -> None:
    """Two rounds: text to the first batch, and again from the store that is there by then, as training starts.

    A little text goes first, so that what is loaded once does not flatter the slope.
    """
    own = load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory(dir=corpus.parent) as cache:
        first_batch(str(warm), own, cache, length=length, batch=batch)
        gate()
        while True:
            _, tokens = first_batch(str(corpus), own, cache, length=length, batch=batch)
            gate(units=size, tokens=tokens)


# --- mask -------------------------------------------------------------------------------------------------------------


def mask_facts(labels: list[Any], ids: list[Any], special: Any) -> dict[str, Any]:
    """What masking did: the share of tokens that became targets, of text and of special tokens."""
    chosen, before = np.concatenate(labels) != -100, np.concatenate(ids)
    text = ~special[before]
    return {"share": float(chosen[text].mean()), "specials": int(chosen[~text].sum())}


def mask_ours(gate: Gate, *, rows: str, tokenizer: str, batch: int) -> None:
    from sslnlp.collators.masked_lm import MaskedLMCollator
    from sslnlp.tokenizer.specials import special_mask

    own, made = load_tokenizer(tokenizer), np.load(rows)
    ids, documents = made["input_ids"], made["document_ids"]
    pairs = enumerate(zip(ids, documents, strict=True))
    features = [{"input_ids": a, "document_ids": b, "position": n} for n, (a, b) in pairs]
    batches = [features[n : n + batch] for n in range(0, len(features), batch)]
    collator = MaskedLMCollator(tokenizer=own, rate=RATE, replace="bert")
    labels = [collator(one)["labels"].numpy() for one in batches]
    gate(**mask_facts(labels, [ids], special_mask(own)))
    while True:
        for one in batches:
            collator(one)
        gate(units=ids.size)


def mask_transformers(gate: Gate, *, rows: str, tokenizer: str, batch: int, form: str) -> None:
    import torch
    from transformers import DataCollatorForLanguageModeling

    from sslnlp.tokenizer.specials import special_mask

    own, ids = load_tokenizer(tokenizer), np.load(rows)["input_ids"]
    special = special_mask(own)
    features: list[dict[str, Any]] = []
    for row in ids:
        mask = special[row].astype(np.int64)
        if form == "lists":
            lists = {"input_ids": row.tolist(), "special_tokens_mask": mask.tolist()}
            features.append({**lists, "attention_mask": [1] * len(row)})
        else:
            features.append({"input_ids": torch.from_numpy(row), "special_tokens_mask": torch.from_numpy(mask)})
    batches = [features[n : n + batch] for n in range(0, len(features), batch)]
    collator = DataCollatorForLanguageModeling(own, mlm_probability=RATE)
    labels = [collator([dict(row) for row in one])["labels"].numpy() for one in batches]
    gate(**mask_facts(labels, [ids], special))
    while True:
        for one in batches:
            collator([dict(row) for row in one])  # it takes the mask out of what it is given
        gate(units=ids.size)
