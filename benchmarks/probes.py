"""Checkpoints on what they are for, without training them further.

    python -m benchmarks.probes DATA OUT [--pairs 20] [--only NAME ...]

DATA holds blimp/, stsb/, cranfield/ and banking77/; OUT is that of `benchmarks.objectives`. For every export in OUT,
for untrained models of the same forms, and for TF-IDF:

* blimp: share of minimal pairs whose good sentence has the higher score. Causal models: log-likelihood. Masked ones:
  pseudo-log-likelihood, one token hidden at a time (Salazar et al., 2020). Discriminators: log-probability that every
  token is original. `--pairs` of each paradigm are scored. Forms that score no sentences have none.
* stsb: Spearman correlation of the cosine with the human score, no labels used.
* cranfield: nDCG@10 of the cosine.
* banking77: accuracy of a logistic regression on the frozen vectors, all labels.

Vectors are those of the export's own pooling, else the mean of the last hidden states (the encoder's, of two stacks).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    ElectraForPreTraining,
)

from benchmarks.common import command
from benchmarks.objectives import DECODERS, DEVICE, RUNS, file_name
from sslnlp.evaluation.beir import load_beir
from sslnlp.evaluation.ranking import nearest, ranking_measures
from sslnlp.search.encoder import Encoder

UNTRAINED = {"untrained modernbert": "masked_lm", "untrained llama": "causal_lm", "untrained t5": "span_corruption"}
MASKED = (
    "masked_lm",
    "masked_lm, rate 0.15",
    "masked_lm, 80/10/10",
    "masked_diffusion",
    "sentence_order",
    "segment_order",
    "retromae",
    "joint",
    "hybrid",
)
console = Console(width=110)
Vectors = np.ndarray[Any, np.dtype[np.float32]]


# --- sentence scores -------------------------------------------------------------------------------------------------


def causal_scores(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    """Log-likelihood of each text, in nats."""
    scores: list[float] = []
    for start in range(0, len(texts), 64):
        encoded = tokenizer(
            list(texts[start : start + 64]), padding=True, return_tensors="pt", return_token_type_ids=False
        ).to(DEVICE)
        logits = model(**encoded).logits[:, :-1].log_softmax(-1)
        target, real = encoded["input_ids"][:, 1:], encoded["attention_mask"][:, 1:]
        scores += (logits.gather(-1, target[..., None])[..., 0] * real).sum(-1).tolist()
    return scores


def masked_scores(model: Any, tokenizer: Any, texts: Sequence[str], *, shifted: bool) -> list[float]:
    """Pseudo-log-likelihood: each token hidden in turn. `shifted`: token s is read off at s - 1 (hybrid models)."""
    rows, targets, places, owner = [], [], [], []
    special = set(tokenizer.all_special_ids)
    for n, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        for s, token in enumerate(ids):
            if token in special:
                continue
            rows.append([*ids[:s], tokenizer.mask_token_id, *ids[s + 1 :]])
            targets.append(token)
            places.append(s - shifted)
            owner.append(n)
    scores = np.zeros(len(texts))
    order = np.argsort([len(row) for row in rows], kind="stable")
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256].tolist()
        encoded = tokenizer.pad({"input_ids": [rows[i] for i in chosen]}, return_tensors="pt").to(DEVICE)
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        here = logits[torch.arange(len(chosen)), torch.tensor([places[i] for i in chosen])].log_softmax(-1).cpu()
        gained = here.gather(-1, torch.tensor([targets[i] for i in chosen])[:, None])[:, 0]
        np.add.at(scores, [owner[i] for i in chosen], gained.numpy())
    return list(map(float, scores))


def original_scores(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    """Log-probability, by a discriminator, that every token of the text is the original."""
    scores: list[float] = []
    for start in range(0, len(texts), 64):
        encoded = tokenizer(
            list(texts[start : start + 64]), padding=True, return_tensors="pt", return_token_type_ids=False
        ).to(DEVICE)
        scores += (F.logsigmoid(-model(**encoded).logits) * encoded["attention_mask"]).sum(-1).tolist()
    return scores


def scorer(name: str, export: Path, tokenizer: Any, untrained: bool) -> Callable[[Sequence[str]], list[float]] | None:
    """The scores of sentences by the model in `export`, if its form has any."""

    def load(auto: Any, **config: Any) -> Any:
        stock = AutoConfig.from_pretrained(export, **config)
        torch.manual_seed(0)
        model = (
            auto.from_config(stock) if untrained else auto.from_pretrained(export, config=stock, dtype=torch.float32)
        )
        return model.to(DEVICE).eval()

    if name == "hybrid":
        both_ways = load(AutoModelForCausalLM, is_causal=False)
        return lambda texts: masked_scores(both_ways, tokenizer, texts, shifted=True)
    if name in MASKED:
        masked = load(AutoModelForMaskedLM)
        return lambda texts: masked_scores(masked, tokenizer, texts, shifted=False)
    if name in DECODERS:
        causal = load(AutoModelForCausalLM)
        return lambda texts: causal_scores(causal, tokenizer, texts)
    if name.startswith("electra"):
        discriminator = load(ElectraForPreTraining)
        return lambda texts: original_scores(discriminator, tokenizer, texts)
    return None


# --- the four probes -------------------------------------------------------------------------------------------------


def blimp(score: Callable[[Sequence[str]], list[float]], data: Path, pairs: int) -> float:
    rows = datasets.load_dataset("parquet", data_files=str(data / "blimp" / "blimp.parquet"), split="train")
    chosen = [i for i, pair in enumerate(rows["pairID"]) if int(pair) < pairs]
    rows = rows.select(chosen)
    good, bad = score(list(rows["sentence_good"])), score(list(rows["sentence_bad"]))
    return float(np.mean(np.array(good) > np.array(bad)))


def stsb(embed: Callable[[list[str]], Vectors], data: Path) -> float:
    rows = [json.loads(line) for line in (data / "stsb" / "test.jsonl").open()]
    a, b = (unit(embed([row[name] for row in rows])) for name in ("sentence1", "sentence2"))
    return float(spearmanr((a * b).sum(1), [row["score"] for row in rows]).statistic)


def cranfield(embed: Callable[[list[str]], Vectors], data: Path) -> float:
    beir = load_beir(data / "cranfield")
    documents, queries = (unit(embed(list(texts.values()))) for texts in (beir.corpus, beir.queries))
    ranked = nearest(queries, documents, list(beir.corpus), 100)
    run = dict(zip(beir.queries, ranked, strict=True))
    return ranking_measures(beir.qrels, run)["ndcg@10"]


def banking77(embed: Callable[[list[str]], Vectors], data: Path) -> float:
    sides = []
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (data / "banking77" / f"{split}.jsonl").open()]
        sides += [embed([row["text"] for row in rows]), [row["label"] for row in rows]]
    scaler = StandardScaler().fit(sides[0])
    probe = LogisticRegression(C=0.1, max_iter=300).fit(scaler.transform(sides[0]), sides[1])
    return float(probe.score(scaler.transform(sides[2]), sides[3]))


def unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def probes(embed: Callable[[list[str]], Vectors], data: Path) -> dict[str, float]:
    return {"stsb": stsb(embed, data), "cranfield": cranfield(embed, data), "banking77": banking77(embed, data)}


@torch.inference_mode()
def measure(name: str, export: Path, arguments: argparse.Namespace, *, untrained: bool = False) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(export)
    found: dict[str, float] = {}
    if (score := scorer(name, export, tokenizer, untrained)) is not None:
        found["blimp"] = blimp(score, arguments.data, arguments.pairs)
    encoder = Encoder.load(str(export))
    if untrained:
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.from_pretrained(export))
        encoder.model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(DEVICE).eval()
    return found | probes(lambda texts: encoder.encode(texts, "document", batch_size=64), arguments.data)


def tfidf(data: Path) -> dict[str, float]:
    """Each probe on TF-IDF vectors (the 4,096 most frequent words) fitted on the probe's own texts."""

    def embed(texts: list[str]) -> Vectors:
        return np.asarray(vectorizer.transform(texts).todense(), dtype=np.float32)

    corpora = {
        "stsb": [
            json.loads(line)[side]
            for line in (data / "stsb" / "test.jsonl").open()
            for side in ("sentence1", "sentence2")
        ],
        "cranfield": list(load_beir(data / "cranfield").corpus.values()),
        "banking77": [json.loads(line)["text"] for line in (data / "banking77" / "train.jsonl").open()],
    }
    found = {}
    for name, probe in (("stsb", stsb), ("cranfield", cranfield), ("banking77", banking77)):
        vectorizer = TfidfVectorizer(max_features=4096).fit(corpora[name])
        found[name] = probe(embed, data)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", nargs="+")
    arguments = parser.parse_args()
    jobs: list[tuple[str, str, bool]] = [(name, run, True) for name, run in UNTRAINED.items()]
    jobs += [(name, name, False) for name in RUNS]
    known: dict[str, dict[str, float]] = {}
    for name, run, untrained in [*jobs, ("TF-IDF", "", False)]:
        path = arguments.out / f"probes-{file_name(name)}.json"
        export = arguments.out / file_name(run) / "export"
        wanted = (not run or export.is_dir()) and (not arguments.only or name in arguments.only)
        if not path.exists() and wanted:
            found = measure(run, export, arguments, untrained=untrained) if run else tfidf(arguments.data)
            path.write_text(json.dumps(found, indent=1) + "\n")
        if path.exists():
            known[name] = json.loads(path.read_text())
    columns = ("blimp", "stsb", "cranfield", "banking77")
    table = Table("model", *columns)
    lines = ["| model | " + " | ".join(columns) + " |", "|---|---|---|---|---|"]
    for name, figures in known.items():
        cells = [name, *(f"{100 * figures[column]:.1f}" if column in figures else "–" for column in columns)]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    console.print(table)
    (arguments.out / "probes.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    command(main)
