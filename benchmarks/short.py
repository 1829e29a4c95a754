"""Short texts, where padding is most of a batch: against run_mlm.py line by line and against sentence-transformers.

    python -m benchmarks.short masked      pairs.parquet --columns summary description
    python -m benchmarks.short contrastive pairs.parquet --columns summary description

`masked`: BERT, 15 % of the tokens hidden, 80/10/10. A round is one pass over the same texts (what is longer than a row
is cut off, for everyone) in equally many updates, each contender's whole loop. The peer is `transformers.Trainer` with
one text a row: padded to the longest of a batch or to the length of a row, as run_mlm.py does, and tuned: texts of like
length together, no dropout (SDPA and fused AdamW are its defaults). Units are real tokens, padding not counted. Texts
of like length are found among those of a round only, which costs them: 87 % of the places are real in 8 batches of 32,
97 % in 50 (the peer sorts 50 batches at a time, ours 64).

`contrastive`: a BERT encoder, mean pooling, cross-entropy over the cosines of all pairs of a batch. The peer is
`SentenceTransformerTrainer` with `MultipleNegativesRankingLoss`, as it comes and without dropout (SDPA and fused AdamW
are its defaults). All go through the same pairs in the same batches, in which no text is twice, so that
`BatchSamplers.NO_DUPLICATES` would change nothing; the vectors of the first batch are compared. Units are pairs.

With `--bf16` ours and the tuned peer compute in bf16, and the peer has the attention that is faster in it on a CPU; for
a machine that has units for it.

All start from the same weights. No ratio is printed where tokens, vectors or loss curves differ. FILE is parquet, jsonl
or csv.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Comparison, Gate, compare

RATE = 0.15
LEARNING_RATE = {"masked": 3e-4, "contrastive": 5e-5}
"""That of the other benchmarks, and the peer's default."""
OPTIMISER = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
EAGER = {"attn_implementation": "eager"}
TEMPERATURE = 0.05
NOISE = {"masked": 0.06, "contrastive": 0.02}
"""How far the mean losses of two contenders may be apart, in nats. Masks and the texts of an update differ in `masked`
(some 10,000 targets with a deviation of 2 give 0.02 each); batches are the same in `contrastive`."""
NOISE_WITH_DROPOUT = {"masked": 0.2, "contrastive": 0.25}
"""Where one of the two drops out, which raises its loss while it trains."""


# --- what all contenders start from -----------------------------------------------------------------------------------


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers: dict[str, Any] = {".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
    table = readers.get(path.suffix, pyarrow.parquet.read_table)(path)
    return [table[name].to_pylist() for name in names]


def make_work(kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a tokenizer, fresh weights and the texts; returns what contenders are told."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    from sslnlp.tokenizer import set_framing, train_tokenizer

    columns = [[text.strip() for text in column] for column in read_columns(arguments.file, arguments.columns)]
    mixed = [text for row in zip(*columns, strict=True) for text in row if text]
    tokenizer = set_framing(train_tokenizer(mixed[:40_000], vocab_size=arguments.vocabulary), "encoder")
    tokenizer.save_pretrained(folder / "model")
    config = BertConfig(
        vocab_size=arguments.vocabulary, hidden_size=arguments.width, num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.width // 64), intermediate_size=4 * arguments.width,
        max_position_embeddings=arguments.length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    (BertForMaskedLM if kind == "masked" else BertModel)(config).save_pretrained(folder / "model")
    facts = {name: getattr(arguments, name) for name in ("length", "batch", "steps", "bf16")}
    facts |= {"folder": str(folder), "lr": LEARNING_RATE[kind]}
    if kind == "masked":
        texts, rows = choose_texts(mixed, tokenizer, arguments)
        facts |= {"texts": len(texts), "rows": rows}
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    else:
        texts = choose_pairs(columns, arguments.batch * arguments.steps * (arguments.rounds + 1))
        lengths = [len(ids) for side in (0, 1) for ids in tokenizer([pair[side] for pair in texts])["input_ids"]]
        lengths = np.minimum(lengths, arguments.length).tolist()
    facts |= {"median": statistics.median(lengths), "mean": round(statistics.mean(lengths), 1), "longest": max(lengths)}
    (folder / "texts.json").write_text(json.dumps(texts))
    return facts


def choose_texts(texts: list[str], tokenizer: Any, arguments: argparse.Namespace) -> tuple[list[str], int]:
    """Texts for one pass, and how many of them packed make a row, on average to a whole number of rows an update.

    Both sides then go through all of them in equally many updates: `batch` texts or `rows` rows a step.
    """
    from sslnlp.data.packing import best_fit

    count, room = arguments.batch * arguments.steps, arguments.length - 2
    order = np.random.default_rng(0).permutation(len(texts))[: 200 * count]
    encoded = tokenizer([texts[i] for i in order], add_special_tokens=False, return_offsets_mapping=True)
    # Cut before, because run_mlm.py drops what is beyond the row and ours goes on with it in another.
    cut = [
        texts[i] if len(offsets) <= room else texts[i][: offsets[room - 1][1]]
        for i, offsets in zip(order, encoded["offset_mapping"], strict=True)
    ]
    lengths = np.array([len(ids) for ids in tokenizer(cut)["input_ids"]])
    cut, lengths = [text for text, n in zip(cut, lengths, strict=True) if n <= room + 2], lengths[lengths <= room + 2]
    for start in range(len(cut) - count):
        _, rows = best_fit(lengths[start : start + count], arguments.length)
        if rows % arguments.steps == 0:
            return cut[start : start + count], rows // arguments.steps
    raise SystemExit("no stretch of the texts fills a whole number of rows an update; change --batch or --steps")


def choose_pairs(columns: list[list[str]], count: int) -> list[tuple[str, str]]:
    """`count` pairs without a text that is there twice."""
    seen: set[str] = set()
    pairs = []
    for i in np.random.default_rng(0).permutation(len(columns[0])).tolist():
        query, document = columns[0][i], columns[1][i]
        if query and document and not seen & {query.lower(), document.lower()} and query.lower() != document.lower():
            seen |= {query.lower(), document.lower()}
            pairs.append((query, document))
            if len(pairs) == count:
                return pairs
    raise SystemExit(f"the file has only {len(pairs)} different pairs, {count} are needed; lower --batch or --steps")


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
    return Counted(objective, collator, stream, config, out=Path(tempfile.mkdtemp(prefix="short-")))


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

    half = tuned and work["bf16"]
    model, tokenizer, texts = load(work, BertForMaskedLM, dropout, **(EAGER if half else {}))
    padding: Any = "max_length" if full else False
    options = {"padding": padding, "truncation": True, "max_length": work["length"], "return_special_tokens_mask": True}
    rows = datasets.Dataset.from_dict({"text": texts}).map(
        lambda batch: tokenizer(batch["text"], **options), batched=True, remove_columns=["text"]
    )
    order = {"train_sampling_strategy": "group_by_length"} if tuned else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = their_arguments(TrainingArguments, folder, work, bf16=half, **order)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE)
        rounds = Rounds(gate, work["steps"])
        their_trainer(
            Trainer, rounds, see_masked, None, arguments, model=model, train_dataset=rows, data_collator=collator
        ).train()


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


# --- the comparison ---------------------------------------------------------------------------------------------------


def same_vectors(ready: Mapping[str, Mapping[str, Any]]) -> None:
    """The first batch has the same vectors, before anything is learnt."""
    vectors = {name: facts["vectors"] for name, facts in ready.items() if "vectors" in facts}
    for name, found in vectors.items():
        apart = float(np.abs(found - next(iter(vectors.values()))).max())
        if not apart <= 1e-4:
            raise SystemExit(f"{name} gives the first batch other vectors, {apart:.1e} apart")


def other_work(kind: str, result: Comparison, loose: set[str]) -> dict[str, str]:
    """Who saw other tokens than the reference, or did not learn the same, and how so."""
    found = {}
    own = result.rounds[result.reference]
    for name, rounds in result.rounds.items():
        allowed = (NOISE_WITH_DROPOUT if name in loose else NOISE)[kind]
        if [facts["digest"] for facts in rounds] != [facts["digest"] for facts in own]:
            found[name] = "other tokens"
        elif not abs(mean_loss(rounds) - mean_loss(own)) <= allowed:
            found[name] = f"a mean loss of {mean_loss(rounds):.3f} against {mean_loss(own):.3f}"
    return found


def mean_loss(rounds: list[dict[str, Any]]) -> float:
    """A mean over tokens."""
    losses, weights = ([x for facts in rounds for x in facts[name]] for name in ("losses", "weights"))
    return float(np.average(losses, weights=weights))


def story(name: str, result: Comparison) -> str:
    """How a contender's losses went, and how much of what it computed was text."""
    rounds, own = result.rounds[name], result.rounds[result.reference]
    first, last = mean_loss(rounds[:1]), mean_loss(rounds[-1:])
    used = sum(facts["real"] for facts in rounds) / sum(facts["places"] for facts in rounds)
    apart = abs(mean_loss(rounds) - mean_loss(own))
    return f"{name}: {first:.3f} → {last:.3f}, mean apart {apart:.4f}, {used:.1%} of the places real"


def contenders(kind: str, work: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Name -> (function, options), ours first; and those that drop out."""
    base = {"work": work}
    if kind == "masked":
        made: dict[str, Any] = {
            "sslnlp, packed": (masked_ours, base | {"packing": "pack"}),
            "sslnlp, buckets": (masked_ours, base | {"packing": "bucket"}),
            "HF Trainer, default": (masked_trainer, base | {"dropout": 0.1}),
            "HF Trainer, pad_to_max_length": (masked_trainer, base | {"dropout": 0.1, "full": True}),
            "HF Trainer, tuned": (masked_trainer, base | {"dropout": 0.0, "tuned": True}),
        }
        return made, {"HF Trainer, default", "HF Trainer, pad_to_max_length"}
    made = {
        "sslnlp, packed": (contrastive_ours, base | {"packed": True}),
        "sslnlp, padded": (contrastive_ours, base | {"packed": False}),
        "sentence-transformers, default": (sentence_transformers_, base | {"dropout": 0.1}),
        "sentence-transformers, tuned": (sentence_transformers_, base | {"dropout": 0.0, "tuned": True}),
    }
    return made, {"sentence-transformers, default"}


def run(arguments: argparse.Namespace) -> None:
    kind = arguments.kind
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(kind, Path(folder), arguments)
        made, loose = contenders(kind, work)
        if arguments.only:
            made = {name: value for name, value in made.items() if name in arguments.only}
        facts = {name: value for name, value in work.items() if name != "folder"} | {"file": arguments.file.name}
        result = compare(
            made, rounds=arguments.rounds, unit="tokens" if kind == "masked" else "pairs", check=same_vectors,
            facts=facts | {"columns": arguments.columns},
        )  # fmt: skip
    result.setup["other_work"] = other = other_work(kind, result, loose)
    for name in other:
        del result.rounds[name]
    result.setup["work"] = said = [story(name, result) for name in result.rounds]
    title = f"{kind}, short texts (median {work['median']:.0f} tokens, mean {work['mean']}), {work['batch']} an update"
    result.show(title)
    print(*said, sep="\n")
    if arguments.out:
        result.write(arguments.out, title)
    if other:
        raise SystemExit("no ratio for who did other work: " + "; ".join(f"{n}: {why}" for n, why in other.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    sizes = {"layers": 4, "width": 256, "vocabulary": 8192, "length": 128, "rounds": 5}
    for kind, batch, steps in (("masked", 32, 8), ("contrastive", 64, 3)):
        task = tasks.add_parser(kind)
        task.set_defaults(function=run, kind=kind)
        task.add_argument("file", type=Path)
        task.add_argument("--columns", nargs="+", required=True)
        for name, value in {**sizes, "batch": batch, "steps": steps}.items():
            task.add_argument(f"--{name}", type=int, default=value)
        task.add_argument("--bf16", action="store_true", help="ours and the tuned peer in bf16")
        task.add_argument("--only", nargs="*", help="names of contenders")
        task.add_argument("--out", type=Path, help="stem of the .json and .svg written")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
