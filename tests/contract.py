"""The bench every registered objective is put on: tiny data, a tiny model, and a trainer around them.

Also a program, for tests of real launchers and of kills: `python -m tests.contract OUT OBJECTIVE:key=value:... ...`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from sslnlp import distributed, rng
from sslnlp.collators import get_collator
from sslnlp.collators.base import Collator
from sslnlp.data.packing import PackedRows
from sslnlp.data.stream import Stream
from sslnlp.data.table_rows import TableRows
from sslnlp.data.tokens import build_store
from sslnlp.evaluation import evaluate_held_out
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.objectives.base import Objective
from sslnlp.tokenizer import framing, set_framing, train_tokenizer
from sslnlp.train import TrainConfig, Trainer
from tests import slow_paths

if slow_paths.ASKED:
    slow_paths.take()

LENGTH = 32
ROWS = 96
ARCHITECTURES = {
    # Auto class the objective wraps -> architectures it is tried with
    "AutoModelForMaskedLM": ("bert", "modernbert", "roberta"),
    "AutoModelForCausalLM": ("gpt2", "llama", "qwen3"),
    "AutoModelForSequenceClassification": ("bert", "modernbert"),
    "AutoModelForTokenClassification": ("bert", "modernbert"),
    "AutoModel": ("bert", "modernbert", "vit"),
    "AutoModelForSeq2SeqLM": ("bart", "t5"),
    "AutoModelForPreTraining": ("electra",),
}
_PICTURES = {"vision": "nano", "image_size": 16, "patch_size": 8, "dimension": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "clip": _PICTURES | {"mini_batch_size": 5},
    "clip-beside": _PICTURES | {"beside": "moco"},
    "siglip": _PICTURES | {"patch_dropout": 0.25, "lock": "text", "unlock": 0.5},
    "info_nce": {"mini_batch_size": 5},  # the batch in parts; the other objectives between views take it at once
    "ranking": {"distill": "kl"},  # with InfoNCE at half the weight
    "joint": {
        "weights": {"masked_lm": 1.0, "data2vec": 0.1, "masked_diffusion": 0.5},
        "options": {"data2vec": {"momentum": 0.9}},
    },
}
"""Options that an objective cannot do without, or whose other value the contract should see."""
VARIANTS = {"byol-pictures": ("byol", "image_views"), "clip-beside": ("clip", "image_text")}
"""An objective between views on views of pictures, and one beside the captions: what stands for it in the tests ->
objective and collator."""
LABELS: dict[str, Callable[[int], Any]] = {
    "one": lambda n: n % 3,
    "several": lambda n: [c for c in range(3) if n >> c & 1],
    "number": lambda n: float(n % 7) - 3,
    "tags": lambda n: [c % 3 for c in range(len(corpus()[n].split()))],
}
LEARNS: dict[str, float] = {
    "few_shot": 0.55,  # a text has several others of its class to name: sharing among three of them costs ln 3
    "vicreg": 0.85,  # a handful of documents cannot make 256 features vary and not covary: its terms work against it
}
"""Share of its first loss that an objective comes down to when it learns one batch by heart; 0.3 where none is said."""
RATES: dict[str, float] = {"clip": 1e-3, "clip-beside": 1e-3, "siglip": 3e-4}
"""Learning rate at which it does, where the quick 3e-3 is too much."""


@functools.cache
def corpus() -> list[str]:
    """Two hundred different short documents with some structure to learn, written by arithmetic."""
    animals = ["the cat", "a dog", "the old owl", "one mouse", "a river otter", "the fox"]
    verbs = ["sees", "follows", "forgets", "remembers", "runs past", "listens to"]
    places = ["in the garden", "by the lake", "on a hill", "under the bridge", "behind the house", "near the station"]
    documents = []
    for n in range(200):
        sentences = [
            f"{animals[(n * 5 + i) % 6]} {verbs[(n + i * i) % 6]} {animals[(n + 3 * i + 1) % 6]} {places[n * i % 6]}."
            for i in range(1 + n % 5)
        ]
        documents.append(f"On day {n} " + " ".join(sentences))
    return documents


@functools.cache
def small_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(corpus(), vocab_size=520)


def objective_class(name: str) -> type[Objective]:
    registered, _ = VARIANTS.get(name, (name, ""))
    return get_objective(registered).bound(OPTIONS.get(name, {}))


def collator_class(name: str) -> type[Collator]:
    _, collator = VARIANTS.get(name, ("", objective_class(name).collator))
    return get_collator(collator)


@functools.cache
def architectures(name: str) -> tuple[str, ...]:
    cls = objective_class(name)
    tried = ARCHITECTURES[cls.wraps.__name__]
    of_text = collator_class(name).reads_text
    return tuple(one for one in tried if (one != "vit") == of_text and cls.refuses(AutoConfig.for_model(one)) is None)


def make_objective(name: str, architecture: str | None = None, *, seed: int = 0, dropout: float = 0.0) -> Objective:
    """A copy of one that is built once: a third of the time."""
    return copy.deepcopy(build_objective(name, architecture or architectures(name)[0], seed, dropout))


@functools.cache
def build_objective(name: str, architecture: str, seed: int = 0, dropout: float = 0.0) -> Objective:
    cls = objective_class(name)
    collator = collator_class(name)
    extra = cls.config_fields(["a", "b", "c"] if collator.label_kind else [])
    config = ModelConfig(architecture=architecture, size="nano", dropout=dropout)
    if not collator.reads_text:
        config.config = {"image_size": 16, "patch_size": 8}
    tokenizer = small_tokenizer() if collator.reads_text else None
    model = build_model(config, tokenizer, cls.wraps, max_length=LENGTH, seed=seed, **extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "objective"))
        return cls(model, **OPTIONS.get(name, {}))


def make_collator(name: str, seed: int = 0) -> Collator:
    cls = objective_class(name)
    collator = collator_class(name)
    if not collator.reads_text:
        pictures: Any = collator
        return pictures(seed=seed, image_size=16, patch_size=8)  # type: ignore[no-any-return]
    tokenizer = set_framing(small_tokenizer(), cls.framing)
    options: dict[str, Any] = dict.fromkeys(getattr(collator, "lengths", ()), LENGTH)
    if collator.label_kind in ("several", "tags"):
        options["label_names"] = ["a", "b", "c"]
    if "table" in {field.name for field in dataclasses.fields(collator)}:
        options["table"] = make_stream(name).source
    return collator(tokenizer=tokenizer, seed=seed, **cls.collator_options(options))


@functools.cache
def _store() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="sslnlp-tests-")) / "store"
    return build_store(corpus(), small_tokenizer(), folder, fingerprint="tests")


@functools.cache
def _pictures() -> list[bytes]:
    """A small picture for each document of the corpus, as files."""
    found = []
    for n in range(len(corpus())):
        row = np.arange(20)
        shade_HW = (row[:, None] * (n % 7) + row * (n % 11)) % 5 * 50
        pixels_HWC = np.stack([shade_HW, np.full_like(shade_HW, n), 255 - shade_HW], -1).astype(np.uint8)
        Image.fromarray(pixels_HWC).save(file := io.BytesIO(), "PNG")
        found.append(file.getvalue())
    return found


@functools.cache
def _table(reads: str, label_kind: str) -> datasets.Dataset:
    halves = [text.split(". ", 1) for text in corpus()]
    if reads == "pictures":
        columns: dict[str, Any] = {"image": _pictures(), "captions": halves, "picture": list(range(len(halves)))}
    else:
        columns = {
            "text": corpus(),
            "words": [text.split() for text in corpus()],
            "label": [LABELS[label_kind](n) for n in range(len(halves))],
            "query": [half[0] for half in halves],
            "positive": [half[-1] for half in halves],
            "negative": [corpus()[n - 7] for n in range(len(halves))],
            "scores": [[5.0, n % 3] for n in range(len(halves))],
        }
    return datasets.Dataset.from_dict(columns)


def make_stream(name: str, seed: int = 0) -> Stream:
    cls = objective_class(name)
    own = collator_class(name)
    if own.reads == "tokens":
        frame = framing(small_tokenizer(), cls.framing)
        collator = make_collator(name)
        rows: Any = PackedRows(
            _store(), collator.source_length(LENGTH), frame.prefix, frame.suffix,
            suffix_every_piece=cls.framing != "decoder", reserve=collator.reserve,
        )  # fmt: skip
    else:
        rows = TableRows(_table(own.reads, own.label_kind or "one"))
    return Stream(rows, seed)


def make_trainer(
    name: str, out: Path, *, architecture: str | None = None, dropout: float = 0.0, evaluate: Any = None, **train: Any
) -> Trainer:
    # Adam divides a gradient by its own size; the larger eps keeps it from blowing up the rounding of one near zero.
    options: dict[str, Any] = {"steps": 4, "batch_size": 8, "lr": 1e-3, "eps": 1e-4, "seed": 3, "log_every": 1}
    options |= {"warmup": 1, "save_every": 1000} | train  # the last state is saved all the same
    collator, stream = make_collator(name, seed=3), make_stream(name, seed=3)
    if evaluate is None and "eval_every" in train:
        evaluate = functools.partial(evaluate_held_out, collator=collator, stream=stream, batch_size=8)
    return Trainer(
        make_objective(name, architecture, dropout=dropout),
        collator,
        stream,
        TrainConfig(**options),
        out=out,
        evaluate=evaluate,
    )


def one_batch(name: str, rows: int = 6, start: int = 0) -> Any:
    return make_collator(name)(make_stream(name).rows(range(start, start + rows)))


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest absolute difference of two state dicts."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


def digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes of a state dict."""
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode() + state[name].detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def train_jobs(folder: Path, *jobs: str) -> None:
    """Train what each of `objective:key=value:key=value` says, with dropout, and leave its state in the folder."""
    for job in jobs:
        objective, *pairs = job.split(":")
        given = dict(pair.split("=") for pair in pairs)
        place = given.pop("out", objective)
        values: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, value in given.items()}
        resume = bool(values.pop("resume", 0))
        trainer = make_trainer(objective, folder / place, dropout=0.1, **values)
        trainer.fit(resume)
        if trainer.accelerator.is_main_process:
            torch.save(trainer.objective.state_dict(), folder / f"{place}.pt")
        trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_jobs(Path(sys.argv[1]), *sys.argv[2:])
    distributed.leave()
