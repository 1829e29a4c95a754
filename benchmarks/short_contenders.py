"""The contenders of `benchmarks.short`: ours, and the peers on the same texts; each is a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Gate

RATE = 0.15
LEARNING_RATE = {"masked": 3e-4, "contrastive": 5e-5}
"""That of the other benchmarks, and the peer's default."""
OPTIMISER = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
EAGER = {"attn_implementation": "eager"}
TEMPERATURE = 0.05


def load(work: Mapping[str, Any], auto: Any, dropout: float = 0.0, **options: Any) -> tuple[Any, Any, Any]:
    """Model, tokenizer and texts."""
    os.environ |= {"ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false"}
    from transformers import AutoTokenizer

    folder = Path(work["folder"])
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = auto.from_pretrained(folder / "model", **rates, **options)
    return model, AutoTokenizer.from_pretrained(folder / "model"), json.loads((folder / "texts.json").read_text())


# --- turns ------------------------------------------------------------------------------------------------------------


class Rounds:
    """Keeps what the steps of a round did, and calls the gate after each round; the first one is the warm-up."""

    def __init__(self, gate: Gate, steps: int, said: Mapping[str, Any] | None = None) -> None:
        self.gate, self.steps, self.said = gate, steps, dict(said or {})
        self.ready = False
        self._begin()

    def _begin(self) -> None:
        self.losses: list[Tensor] = []
        self.weights: list[int] = []
        """Real tokens of each step: where texts of like length are together, a plain mean would favour the short."""
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.places = 0

    def see(self, ids: Tensor, mask: Tensor, places: int | None = None) -> None:
        """Counts the real tokens of an encoding by their ids, and the places that are computed for them."""
        found = torch.bincount(ids[mask.bool()], minlength=len(self.counts))
        found[: len(self.counts)] += self.counts
        self.counts = found
        self.places += ids.numel() if places is None else places

    def step(self, loss: Tensor, units: int | None = None) -> None:
        """An update is over. `units` in a round; default: its real tokens."""
        self.losses.append(loss.detach())
        self.weights.append(int(self.counts.sum()) - sum(self.weights))
        if len(self.losses) < self.steps:
            return
        real, digest = int(self.counts.sum()), hashlib.blake2b(self.counts.numpy().tobytes(), digest_size=8).hexdigest()
        facts = {"losses": [float(loss) for loss in self.losses], "digest": digest, "real": real, "places": self.places}
        facts["weights"] = self.weights
        self._begin()
        if self.ready:
            self.gate(units=real if units is None else units, **facts)
        else:
            self.ready = True
            self.gate(**facts, **self.said)


def our_trainer(
    rounds: Rounds, see: Any, units: int | None, work: Mapping[str, Any], rows: int, objective: Any, collator: Any,
    stream: Any,
) -> Any:  # fmt: skip
    """Our loop as it is; `see(rounds, batch)` counts what a step is given."""
    from sslnlp.train import TrainConfig, Trainer

    class Counted(Trainer):
        def train_step(self, window: Sequence[Any], step: int, steps: int) -> dict[str, Tensor]:
            see(rounds, window[0])
            sums = super().train_step(window, step, steps)
            rounds.step(sums["loss"] / sums["targets"], units)
            return sums

    config = TrainConfig(
        steps=10**6, batch_size=rows, schedule="constant", warmup=0, log_every=10**6, lr=work["lr"],
        precision="bf16" if work["bf16"] else "no", **OPTIMISER,
    )  # fmt: skip
    return Counted(objective, collator, stream, config, out=Path(tempfile.mkdtemp(dir=work["folder"])))


def their_trainer(base: Any, rounds: Rounds, see: Any, units: int | None, arguments: Any, **options: Any) -> Any:
    """The peer's trainer as it is, its steps counted."""
    from transformers import TrainerCallback

    class Counted(base):
        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Tensor:
            see(rounds, inputs)
            rounds.loss = super().training_step(model, inputs, *rest, **more)
            return rounds.loss

    class Turns(TrainerCallback):
        def on_step_end(self, *rest: Any, **more: Any) -> None:  # only here has the optimiser moved
            rounds.step(rounds.loss, units)

    return Counted(args=arguments, callbacks=[Turns()], **options)


def their_arguments(kind: Any, folder: str, work: Mapping[str, Any], **options: Any) -> Any:
    return kind(
        folder, per_device_train_batch_size=work["batch"], num_train_epochs=10**5, learning_rate=work["lr"],
        lr_scheduler_type="constant", weight_decay=OPTIMISER["weight_decay"], use_cpu=True, report_to="none",
        dataloader_pin_memory=False, save_strategy="no", logging_strategy="no", disable_tqdm=True, **options,
    )  # fmt: skip


# --- masked LM --------------------------------------------------------------------------------------------------------


def see_masked(rounds: Rounds, batch: Mapping[str, Tensor]) -> None:
    """The ids as they were before any was hidden."""
    rounds.see(torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"]), batch["attention_mask"])


def masked_ours(gate: Gate, *, work: dict[str, Any], packing: str) -> None:
    from transformers import BertForMaskedLM

    from sslnlp.adapt import adapt
    from sslnlp.collators.masked_lm import MaskedLMCollator
    from sslnlp.data.packing import PackedRows, PaddedRows
    from sslnlp.data.stream import Stream
    from sslnlp.data.tokens import build_store
    from sslnlp.objectives.masked_lm import MaskedLM
    from sslnlp.tokenizer import framing

    model, tokenizer, texts = load(work, BertForMaskedLM)
    adapt(model)
    frame = framing(tokenizer, "encoder")
    store = build_store(texts, tokenizer, Path(work["folder"]) / f"store-{packing}", fingerprint="short")
    kind: Any = PackedRows if packing == "pack" else PaddedRows
    source = kind(store, work["length"], frame.prefix, frame.suffix, tokenizer.pad_token_id)
    rows = work["rows"] if packing == "pack" else work["batch"]
    stream = Stream(source, 0, bucket=None if packing == "pack" else rows)
    collator = MaskedLMCollator(tokenizer=tokenizer, rate=RATE, replace="bert")
    rounds = Rounds(gate, work["steps"])
    our_trainer(rounds, see_masked, None, work, rows, MaskedLM(model), collator, stream).fit()


def masked_trainer(
    gate: Gate, *, work: dict[str, Any], dropout: float, full: bool = False, tuned: bool = False
) -> None:
    import datasets
    from transformers import BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments
    from transformers.trainer_pt_utils import get_length_grouped_indices

    class ByLength(Trainer):
        """Texts of like length together among all of a round, its batches shuffled: from long to short they learn
        something else. `train_sampling_strategy="group_by_length"` sorts 50 batches of a corpus at a time, but a
        quarter of a data set that is as small as a round."""

        def _get_train_sampler(self, *args: Any) -> Any:
            class Grouped(torch.utils.data.Sampler[int]):
                def __len__(self) -> int:
                    return len(lengths)

                def __iter__(self) -> Any:
                    size = work["batch"]
                    order, whole = get_length_grouped_indices(lengths, size, 50), len(lengths) // size
                    for n in [*torch.randperm(whole).tolist(), whole]:  # what is no whole batch stays at the end
                        yield from order[n * size : (n + 1) * size]

            return Grouped()

    half = tuned and work["bf16"]
    model, tokenizer, texts = load(work, BertForMaskedLM, dropout, **(EAGER if half else {}))
    padding: Any = "max_length" if full else False
    options = {"padding": padding, "truncation": True, "max_length": work["length"], "return_special_tokens_mask": True}
    rows = datasets.Dataset.from_dict({"text": texts}).map(
        lambda batch: tokenizer(batch["text"], **options), batched=True, remove_columns=["text"]
    )
    lengths = [len(ids) for ids in rows["input_ids"]]
    with tempfile.TemporaryDirectory() as folder:
        arguments = their_arguments(TrainingArguments, folder, work, bf16=half)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE)
        rounds = Rounds(gate, work["steps"])
        their_trainer(
            ByLength if tuned else Trainer, rounds, see_masked, None, arguments, model=model, train_dataset=rows,
            data_collator=collator,
        ).train()  # fmt: skip


# --- pairs ------------------------------------------------------------------------------------------------------------


def contrastive_ours(gate: Gate, *, work: dict[str, Any], packed: bool, dropout: float = 0.0) -> None:
    import datasets
    from transformers import BertModel

    from sslnlp.adapt import adapt
    from sslnlp.collators.ranking import RankingCollator
    from sslnlp.data.stream import Stream
    from sslnlp.data.table_rows import TableRows
    from sslnlp.objectives.ranking import Ranking

    class Padded(RankingCollator):
        def __call__(self, rows: Any) -> Any:
            return {name: value for name, value in super().__call__(rows).items() if name != "places"}

    model, tokenizer, pairs = load(work, BertModel, dropout, add_pooling_layer=False)
    adapt(model)
    table = datasets.Dataset.from_dict({"query": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    lengths = {"query_length": work["length"], "document_length": work["length"]}
    collator = (RankingCollator if packed else Padded)(tokenizer=tokenizer, **lengths)
    objective = Ranking(model, temperature=TEMPERATURE, pooling="mean")
    stream = Stream.fixed(TableRows(table))
    with torch.no_grad():
        found = objective.eval()._embed_all(collator(stream.rows(range(work["batch"]))))
    said = {"vectors": torch.stack([found["query"], found["positive"]]).numpy()}
    rounds, batch = Rounds(gate, work["steps"], said), work["batch"]
    our_trainer(rounds, see_pairs, batch * work["steps"], work, batch, objective, collator, stream).fit()


def see_pairs(rounds: Rounds, batch: Mapping[str, Any]) -> None:
    """Ours are named encodings, and perhaps the rows they are packed in; theirs have the names before their columns."""
    for side in ("query", "positive"):
        encoding = batch[side] if side in batch else {n: batch[f"{side}_{n}"] for n in ("input_ids", "attention_mask")}
        rounds.see(encoding["input_ids"], encoding["attention_mask"], 0 if "places" in batch else None)
    rounds.places += batch["places"].numel() if "places" in batch else 0


def in_order(dataset: Any, *, batch_size: int, drop_last: bool, **options: Any) -> Any:
    """A batch sampler of the peer's that goes through the rows as they are."""
    from sentence_transformers.base.sampler import DefaultBatchSampler

    return DefaultBatchSampler(
        torch.utils.data.SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last, **options
    )


def sentence_transformers_(gate: Gate, *, work: dict[str, Any], dropout: float, tuned: bool = False) -> None:
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    _, _, pairs = load(work, BertModel)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    half = tuned and work["bf16"]
    encoder = Transformer(
        f"{work['folder']}/model", max_seq_length=work["length"], config_kwargs=rates,
        model_kwargs=EAGER if half else {},
    )  # fmt: skip
    model = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension())], device="cpu")
    table = datasets.Dataset.from_dict({"query": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    first = [[pair[side] for pair in pairs[: work["batch"]]] for side in (0, 1)]
    said = {"vectors": np.stack([model.encode(texts, normalize_embeddings=True) for texts in first])}
    rounds = Rounds(gate, work["steps"], said)
    with tempfile.TemporaryDirectory() as folder:
        arguments = their_arguments(
            SentenceTransformerTrainingArguments, folder, work, batch_sampler=in_order, bf16=half
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
        their_trainer(
            SentenceTransformerTrainer, rounds, see_pairs, work["batch"] * work["steps"], arguments, model=model,
            train_dataset=table, loss=loss,
        ).train()  # fmt: skip
