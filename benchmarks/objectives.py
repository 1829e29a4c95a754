"""Every objective on the same text, size and token budget: its own held-out measure beside a trivial baseline.

    python -m benchmarks.objectives train TRAIN VALID OUT [--tokens 2_000_000] [--size tiny] [--only NAME ...]
    python -m benchmarks.objectives table OUT [--figure FILE.svg]

One BPE tokenizer is trained on 10 MiB of TRAIN and shared (but for the bytes). Encoders are `modernbert`, but for
`electra`'s own; decoders `llama`, encoder-decoders `bart` and `t5`: parameters differ with the form, the table says how
many. A budget counts the tokens of text that rows hold, once a row is read. Each run writes OUT/<name>/ (a run's
folder) and OUT/<name>.json; a run whose JSON is there is not run again. Several commands with different `--only` may
share OUT and a GPU, which one small model leaves idle. `python -m benchmarks.probes` measures the same checkpoints on
what they are for.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from rich.console import Console
from transformers import AutoModelForCausalLM

from benchmarks.common import command, positive
from sslnlp.data.prepare import sample_texts
from sslnlp.evaluation.held_out import evaluate_held_out
from sslnlp.locks import in_turn
from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.recipe import load_recipe, override, run
from sslnlp.recipe.build import Parts, build_parts, resolve
from sslnlp.tokenizer import train_tokenizer
from sslnlp.train import Interrupted

BERT = {"recipe": "pretrain_bert", "collator.replace": "mask"}
PLAIN = {"recipe": "pretrain_bert"}
GPT = {"recipe": "pretrain_gpt"}

RUNS: dict[str, dict[str, Any]] = {
    "masked_lm": BERT,
    "masked_lm, rate 0.15": BERT | {"collator.rate": 0.15},
    "masked_lm, 80/10/10": BERT | {"collator.replace": "bert"},
    "causal_lm": GPT,
    "causal_lm, bytes": GPT | {"tokenizer.algorithm": "bytes"},
    "denoising": {"recipe": "pretrain_bart"},
    "span_corruption": {"recipe": "pretrain_t5"},
    "span_corruption, lr 1e-2": {"recipe": "pretrain_t5", "train.lr": 1e-2},
    "span_corruption, bart": {"recipe": "pretrain_bart", "objective.name": "span_corruption"},
    "ul2": {"recipe": "pretrain_t5", "objective.name": "ul2"},
    "ul2_decoder": GPT | {"objective.name": "ul2_decoder"},
    "prefix_lm": GPT | {"objective.name": "prefix_lm"},
    "fim": GPT | {"objective.name": "fim"},
    "electra": {"recipe": "pretrain_electra"},
    "electra, weight 10": {"recipe": "pretrain_electra", "objective.discriminator_weight": 10},
    "electra, corrective": {"recipe": "pretrain_electra", "objective.corrective": "true"},
    "hybrid": {"recipe": "pretrain_hybrid"},
    "masked_diffusion": PLAIN | {"objective.name": "masked_diffusion"},
    "sentence_order": PLAIN | {"objective.name": "sentence_order", "collator.replace": "mask"},
    "segment_order": PLAIN | {"objective.name": "segment_order", "collator.replace": "mask"},
    "tsdae": {"recipe": "embed_tsdae"},
    "vae": PLAIN | {"objective.name": "vae"},
    "retromae": {"recipe": "embed_retromae"},
    "data2vec": PLAIN | {"objective.name": "data2vec", "collator.replace": "mask"},
    "joint": PLAIN | {"objective.name": "joint", "objective.weights": '{"masked_lm": 1.0, "data2vec": 1.0}'},
}

DECODERS = ("causal_lm", "causal_lm, bytes", "ul2_decoder", "prefix_lm", "fim", "hybrid")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
console = Console(width=120)


def file_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-").replace("/", "")


def keys_of(name: str, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The shipped recipe of a run, and what every run is given alike."""
    chosen = dict(RUNS[name])
    tokens = arguments.seq_length * arguments.batch_size
    keys = {
        "data.train": str(arguments.train),
        "data.valid": str(arguments.valid),
        "data.seq_length": arguments.seq_length,
        "data.cache": str(arguments.out / "cache"),
        "model.size": arguments.size,
        "train.steps": max(1, arguments.tokens // tokens),
        "train.batch_size": arguments.batch_size,
        "train.lr": arguments.lr,
        "train.optimizer": arguments.optimizer,
        "train.precision": arguments.precision,
        "train.workers": arguments.workers,
        "train.save_every": 10**9,
        "train.eval_every": 10**9,
        "train.keep_best": "false",
        "out": str(arguments.out / file_name(name)),
    }
    if "tokenizer.algorithm" not in chosen:
        keys["tokenizer.path"] = str(arguments.out / "tokenizer")
    recipe = chosen.pop("recipe")
    # The objective comes first, its options are checked against it; and what a run chooses is kept.
    return recipe, {**chosen, **keys, **chosen}


def train(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    first = override(load_recipe("pretrain_gpt"), {"data.train": str(arguments.train)})
    with in_turn(arguments.out, "tokenizer"):
        if not (arguments.out / "tokenizer").is_dir():
            console.print("tokenizer")
            texts = sample_texts(first.data, 10 << 20)
            train_tokenizer(texts, vocab_size=arguments.vocab_size).save_pretrained(arguments.out / "tokenizer")
    for name in arguments.only or RUNS:
        done = arguments.out / f"{file_name(name)}.json"
        if done.exists():
            continue
        recipe_name, keys = keys_of(name, arguments)
        shutil.rmtree(keys["out"], ignore_errors=True)
        began, busy = time.perf_counter(), time.process_time()
        try:
            out = run(override(load_recipe(recipe_name), keys), console=Console(quiet=True))
        except Interrupted:
            raise
        except Exception as error:  # one objective's failure is a row of the table, not the end of it
            console.print(f"[red]{name}: {type(error).__name__}: {error}")
            continue
        seconds = time.perf_counter() - began
        story = json.loads((out / "recipe.json").read_text())
        figures = dict(story["result"]["measures"])
        figures |= extras(name, out, keys)
        figures |= {
            "parameters": story["model"]["parameters"],
            "steps": story["result"]["steps"],
            "tokens": story["result"]["steps"] * arguments.seq_length * arguments.batch_size,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(time.process_time() - busy, 1),
        }
        shutil.rmtree(out / "state", ignore_errors=True)
        done.write_text(json.dumps({"name": name, "keys": keys, "figures": figures}, indent=1) + "\n")
        console.print(name, {key: round(value, 4) for key, value in figures.items()})


def extras(name: str, out: Path, keys: Mapping[str, Any]) -> dict[str, float]:
    """Baselines from the held-out tokens; for decoders also the plain causal figure and the accuracy of infilling."""
    causal = {key: value for key, value in keys.items() if key.startswith(("data.", "tokenizer."))}
    recipe = override(load_recipe("pretrain_gpt"), {**causal, "tokenizer.path": str(out / "export")})
    parts = build_parts(resolve(recipe)[0])
    found = baselines(parts)
    if name in DECODERS:
        objective = CausalLM(AutoModelForCausalLM.from_pretrained(out / "export", dtype=torch.float32).to(DEVICE))
        assert parts.valid is not None
        plain = evaluate_held_out(
            objective, parts.collator, parts.valid, batch_size=32, num_bytes=parts.valid_bytes, device=DEVICE
        )
        found["plain_bits_per_byte"] = plain["bits_per_byte"]
    if name == "causal_lm":
        found["infill_accuracy"] = accuracy_without_suffix(objective, parts)
    return found


def baselines(parts: Parts) -> dict[str, float]:
    """What the frequencies of training tokens alone reach on the held-out tokens."""
    assert parts.valid is not None
    vocabulary = len(parts.tokenizer)
    train: Any = parts.stream.source
    valid: Any = parts.valid.source
    seen = torch.from_numpy(train.store.counts(vocabulary)).double() + 1
    held = torch.from_numpy(valid.store.counts(vocabulary)).double()
    loss = float(-(held * (seen / seen.sum()).log()).sum() / held.sum())
    most = float(held[seen.argmax()] / held.sum())
    bits = loss * float(held.sum()) / (math.log(2) * (parts.valid_bytes or 1))
    return {"unigram_loss": loss, "most_frequent": most, "unigram_bits_per_byte": bits}


@torch.no_grad()
def accuracy_without_suffix(objective: CausalLM, parts: Parts) -> float:
    """A plain causal model at the very middles that an infilling model is asked for: it sees what stands before."""
    from sslnlp.collators import get_collator

    fim: Any = get_collator("fim")(tokenizer=parts.tokenizer).for_evaluation(0)
    prefix, middle, suffix = (
        parts.tokenizer.convert_tokens_to_ids(f"<|fim_{part}|>") for part in ("prefix", "middle", "suffix")
    )
    hits = count = 0
    objective.eval()
    assert parts.valid is not None
    for start in range(0, len(parts.valid), 8):
        batch = send_to_device(fim(parts.valid.rows(range(start, min(start + 8, len(parts.valid))))), DEVICE)
        for ids, documents, marked in zip(batch["input_ids"], batch["document_ids"], batch["middle"], strict=True):
            for d in documents[documents >= 0].unique():
                inside = documents == d
                if not bool((marked & inside).any()):
                    continue
                piece, asked = ids[inside], marked[inside]
                markers = torch.isin(piece, torch.tensor([prefix, middle, suffix], device=DEVICE))
                # What stands between the suffix marker and the next one is unknown to a plain model.
                part = torch.cumsum(markers, 0)
                at = piece[markers].tolist()
                hidden = part == at.index(suffix) + 1
                text = torch.cat([piece[~hidden & ~asked & ~markers], piece[asked]])
                logits = objective.model(input_ids=text[None]).logits[0]
                n = int(asked.sum())
                hits += int((logits[-n - 1 : -1].argmax(-1) == text[-n:]).sum())
                count += n
    return hits / max(count, 1)


def show(arguments: argparse.Namespace) -> None:
    from benchmarks.objective_table import table

    table(arguments.out, arguments.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    task = tasks.add_parser("train")
    task.set_defaults(function=train)
    for path in ("train", "valid", "out"):
        task.add_argument(path, type=Path)
    task.add_argument("--tokens", type=positive, default=2_000_000)
    task.add_argument("--size", default="tiny")
    task.add_argument("--vocab-size", type=positive, default=4096)
    task.add_argument("--seq-length", type=positive, default=128)
    task.add_argument("--batch-size", type=positive, default=16)
    task.add_argument("--lr", type=float, default=1e-2)
    task.add_argument("--optimizer", default="muon")
    task.add_argument("--precision", default="no")
    task.add_argument("--workers", type=int, default=0)
    task.add_argument("--only", nargs="+", choices=list(RUNS))
    task = tasks.add_parser("table")
    task.set_defaults(function=show)
    task.add_argument("out", type=Path)
    task.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments.function(arguments)


if __name__ == "__main__":
    command(main)
