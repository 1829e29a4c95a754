"""What each technique of the training step is worth: alone, added to a plain loop, and in the stack, taken out of it.

    python -m benchmarks.ablation masked [--batch 8 --rounds 5 --out benchmarks/results/DATE-cpu/ablation] [--compile]
    python -m benchmarks.ablation causal [...]

The plain loop is what a tutorial writes: the stock model with its dropout, logits at every position, a mask of pairs,
AdamW tensor by tensor, float32. The stack is all techniques at once. Both, and every variant between them, take turns
in one process on the same weights, ids and targets; a ratio is taken within a round. Packing is compared on documents
of 16 to 128 tokens, padded or packed, by real tokens; the last layer where it is asked added to a loop without dropout
whose head is; the stacked products of Muon on loops with Muon. `compile` is added to the stack, not taken out of it. A
variant whose losses are not those of the stack ends the run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.common import command, machine, median_interval, positive, width_of_heads
from benchmarks.contenders import OPTIMISER, RATE, build, make_batches
from benchmarks.step import same_work
from sslnlp.attention import NAME
from sslnlp.heads import prediction_head
from sslnlp.last_layer import ask_last_layer, states_at
from sslnlp.muon import Muon
from sslnlp.objectives.linear_cross_entropy import linear_cross_entropy
from sslnlp.optim import adamw, parameter_groups
from sslnlp.packed import hidden_states
from sslnlp.precision import GAIN, warn_if_slower

TECHNIQUES = {
    "targets": "the head at the target positions only",
    "last": "the last layer at the target positions only",
    "chunks": "cross-entropy by chunks of the logits",
    "attention": "attention by the rule of the package",
    "dropout": "no dropout",
    "adamw": "AdamW in one kernel",
    "mask": "no mask of pairs where every row is one document",
    "bf16": "bf16 autocast",
}
PAIRED = {
    "packing": "rows packed instead of padded",
    "muon": "Muon's products stacked",
    "compile": "torch.compile",
}
Step = Callable[[int], Tensor]


@dataclass(frozen=True)
class Variant:
    """One loop: which techniques are on, the rows it is given, and how Muon works where it is the optimiser."""

    on: frozenset[str]
    rows: str = "whole"
    muon: str = ""

    @property
    def work(self) -> tuple[str, bool]:
        """Variants with the same have the same losses."""
        return "documents" if self.rows != "whole" else "whole", bool(self.muon)


class ByTensor(Muon):
    """Muon as `torch.optim.Muon` goes about it: one matrix after the other."""

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            super()._muon([p], group)


def pairs(kind: str, *, half: bool, compiled: bool) -> dict[str, tuple[Variant, Variant, Variant, Variant]]:
    """Technique -> (plain, plain with it, stack without it, stack)."""
    left_out = {"targets", "last"} if kind == "causal" else set()
    every = frozenset(TECHNIQUES) - left_out - (set() if half else {"bf16"})
    none, all_ = Variant(frozenset()), Variant(every)
    found = {
        name: (none, replace(none, on=frozenset({name})), replace(all_, on=every - {name}), all_)
        for name in TECHNIQUES
        if name in every
    }
    if "last" in found:  # neither whole rows of logits nor dropout go with it
        base = Variant(frozenset({"targets", "dropout"}))
        found["last"] = (base, replace(base, on=base.on | {"last"}), *found["last"][2:])
    by_rows = [replace(loop, rows=rows) for loop in (none, all_) for rows in ("padded", "packed")]
    by_muon = [replace(loop, muon=muon) for loop in (none, all_) for muon in ("by tensor", "stacked")]
    found["packing"] = (by_rows[0], by_rows[1], by_rows[2], by_rows[3])
    found["muon"] = (by_muon[0], by_muon[1], by_muon[2], by_muon[3])
    if compiled:
        found["compile"] = (none, Variant(frozenset({"compile"})), all_, Variant(every | {"compile"}))
    return found


# --- batches ----------------------------------------------------------------------------------------------------------


def documents(kind: str, sizes: dict[str, int]) -> dict[str, list[dict[str, Tensor]]]:
    """The same documents and targets twice: a row each, padded, and packed into as few rows as first-fit finds."""
    generator = torch.Generator().manual_seed(1)
    length, vocabulary = sizes["length"], sizes["vocabulary"]
    made: dict[str, list[dict[str, Tensor]]] = {"padded": [], "packed": []}
    for _ in range(sizes["batches"]):
        lengths = torch.randint(length // 8, length + 1, (sizes["batch"],), generator=generator).tolist()
        texts = [torch.randint(5, vocabulary, (n,), generator=generator) for n in lengths]
        hidden = [torch.rand(n, generator=generator) < RATE for n in lengths]
        rows: list[list[int]] = []
        for i in sorted(range(len(texts)), key=lambda i: -lengths[i]):
            fits = (row for row in rows if sum(lengths[j] for j in row) + lengths[i] <= length)
            row = next(fits, None)
            if row is None:
                rows.append([i])
            else:
                row.append(i)
        for name, layout in (("padded", [[i] for i in range(len(texts))]), ("packed", rows)):
            shape = len(layout), length
            batch = {"input_ids": torch.zeros(shape, dtype=torch.int64), "labels": torch.full(shape, -100)}
            batch |= {"document_ids": torch.full(shape, -1), "position_ids": torch.zeros(shape, dtype=torch.int64)}
            for r, row in enumerate(layout):
                start = 0
                for d, i in enumerate(row):
                    place = r, slice(start, start + lengths[i])
                    masked = kind == "masked"
                    batch["input_ids"][place] = texts[i].masked_fill(hidden[i], 4) if masked else texts[i]
                    first = torch.arange(lengths[i]) == 0
                    batch["labels"][place] = texts[i].masked_fill(~hidden[i] if masked else first, -100)
                    batch["document_ids"][place], batch["position_ids"][place] = d, torch.arange(lengths[i])
                    start += lengths[i]
            batch["attention_mask"] = (batch["document_ids"] >= 0).long()
            made[name].append(batch)
    return made


def whole_rows(kind: str, sizes: dict[str, int]) -> list[dict[str, Tensor]]:
    batches = make_batches(kind, sizes, None)
    for batch in batches:
        ids = batch["input_ids"]
        batch["attention_mask"], batch["document_ids"] = torch.ones_like(ids), torch.zeros_like(ids)
        batch["position_ids"] = torch.arange(ids.shape[1]).expand(ids.shape)
    return batches


# --- one loop ---------------------------------------------------------------------------------------------------------


def make_step(kind: str, sizes: dict[str, int], variant: Variant, batches: list[dict[str, Tensor]]) -> Step:
    on = variant.on
    model = build(kind, sizes, dropout=0.0 if "dropout" in on else 0.1)
    if "attention" in on:
        model.set_attn_implementation(NAME)
    head = prediction_head(model)
    assert head is not None
    projection = head.projection
    if "last" in on:
        ask_last_layer(model)
    # A mask of pairs is made from `document_ids`; a padded or whole row can do without.
    dense = variant.rows == "packed" or (variant.rows == "whole" and "mask" not in on)
    left_out = set() if dense else {"document_ids", "position_ids"}

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        target_N = batch["labels"].flatten()
        if kind == "causal":
            target_N = F.pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()
        read = {k: v for k, v in batch.items() if k not in left_out}
        if "targets" in on:
            index_M = batch["target_index"]
            hidden_NH, target_N = states_at(model, read, index_M), target_N[index_M]
        else:
            hidden_NH = hidden_states(model, read).flatten(0, 1)
        features_NH = head.features(hidden_NH)
        if "chunks" in on:
            return linear_cross_entropy(features_NH, projection.weight, projection.bias, target_N).loss
        return F.cross_entropy(projection(features_NH).float(), target_N)

    run = torch.compile(loss_of) if "compile" in on else loss_of
    optimizer = make_optimizer(model, variant)
    model.train()
    for batch in batches:
        batch["target_index"] = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    autocast = torch.autocast("cpu", torch.bfloat16) if "bf16" in on else contextlib.nullcontext()

    def step(n: int) -> Tensor:
        with autocast:
            loss = run(batches[n % len(batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def make_optimizer(model: nn.Module, variant: Variant) -> torch.optim.Optimizer:
    options: dict[str, Any] = dict(OPTIMISER)
    if variant.muon:
        return (Muon if variant.muon == "stacked" else ByTensor)(model, dtype=torch.float32, **options)
    if "adamw" in variant.on:
        return adamw(model, dtype=torch.float32, **options)
    decay = options.pop("weight_decay")
    return torch.optim.AdamW(parameter_groups(model, decay), foreach=False, fused=False, **options)


# --- the comparison ---------------------------------------------------------------------------------------------------


def measure(
    steps: dict[Variant, Step], tokens: dict[str, int], *, rounds: int, warmup: int, length: int
) -> tuple[dict[Variant, list[dict[str, float]]], dict[Variant, list[float]]]:
    """Rounds of `length` steps in turn, and all losses."""
    losses: dict[Variant, list[float]] = {variant: [] for variant in steps}
    found: dict[Variant, list[dict[str, float]]] = {variant: [] for variant in steps}
    for number in range(-1, rounds):
        for variant, step in steps.items():
            count = warmup if number < 0 else length
            first = len(losses[variant])
            usage = resource.getrusage(resource.RUSAGE_SELF)
            wall, cpu = time.perf_counter(), usage.ru_utime + usage.ru_stime
            made = [step(first + i) for i in range(count)]
            wall, usage = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
            losses[variant] += [float(loss) for loss in made]
            if number >= 0:
                facts = {"units": count * tokens[variant.rows], "wall": wall}
                found[variant].append(facts | {"cpu": usage.ru_utime + usage.ru_stime - cpu})
    return found, losses


def gain(slow: list[dict[str, float]], fast: list[dict[str, float]], clock: str) -> tuple[float, float, float]:
    ratios = [b["units"] / b[clock] / (a["units"] / a[clock]) for a, b in zip(slow, fast, strict=True)]
    return median_interval(ratios)


def ablation(arguments: argparse.Namespace) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    torch.set_num_threads(arguments.threads)
    kind = arguments.kind
    sizes = {name: getattr(arguments, name) for name in ("layers", "width", "vocabulary", "length", "batch", "batches")}
    half = (warn_if_slower("bf16", torch.device("cpu")) or 0.0) <= GAIN
    asked = pairs(kind, half=half, compiled=arguments.compile)
    asked = {name: four for name, four in asked.items() if not arguments.only or name in arguments.only}
    rows = documents(kind, sizes) | {"whole": whole_rows(kind, sizes)}
    tokens = {name: int(sum(b["attention_mask"].sum() for b in made) / len(made)) for name, made in rows.items()}
    steps = {v: make_step(kind, sizes, v, rows[v.rows]) for four in asked.values() for v in four}
    counts = {"rounds": arguments.rounds, "warmup": arguments.warmup, "length": arguments.steps}
    found, losses = measure(steps, tokens, **counts)
    said = same_losses(losses)
    title = f"{kind} LM, {{layers}}×{{width}}, V {{vocabulary}}, S {{length}}, {{batch}} rows a step".format(**sizes)
    setup = machine(arguments.threads) | {"sizes": sizes, "losses": said, **counts}
    table = Table("technique", title=f"{title}\n{setup['machine']}, {arguments.threads} threads, {setup['date']}")
    for column in ("alone", "95 %", "in the stack", "95 %", "by CPU s", "pays here"):
        table.add_column(column, justify="right")
    story: dict[str, Any] = {}
    for name, (plain, alone, without, stack) in asked.items():
        line = {
            clock: {
                "alone": gain(found[plain], found[alone], clock),
                "stack": gain(found[without], found[stack], clock),
            }
            for clock in ("wall", "cpu")
        }
        what = (TECHNIQUES | PAIRED)[name]
        story[name] = {"what": what, **line, "pays": line["cpu"]["stack"][1] > 1}
        shown = [
            text
            for ratio, low, high in (line["wall"]["alone"], line["wall"]["stack"])
            for text in (f"{ratio:.2f}×", f"{low:.2f}–{high:.2f}")
        ]
        by_cpu = "{:.2f}× / {:.2f}×".format(line["cpu"]["alone"][0], line["cpu"]["stack"][0])
        table.add_row(what, *shown, by_cpu, "yes" if story[name]["pays"] else "no")
    Console(width=150).print(table)
    print("losses:", *said, sep="\n  ")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        raw = {named(variant): facts for variant, facts in found.items()}
        story = {"title": title, "setup": setup, "gains": story, "rounds": raw}
        arguments.out.with_suffix(".json").write_text(json.dumps(story, indent=1) + "\n")


def same_losses(losses: dict[Variant, list[float]]) -> list[str]:
    """Each variant against one without dropout that has the same work to do."""
    said = []
    for work in sorted({variant.work for variant in losses}):
        own = {variant: curve for variant, curve in losses.items() if variant.work == work}
        reference = max(own, key=lambda variant: ("dropout" in variant.on, len(variant.on)))
        curves = {named(variant): curve for variant, curve in own.items()}
        loose = {named(variant) for variant in own if "dropout" not in variant.on}
        said += same_work(curves, named(reference), loose)
    return said


def named(variant: Variant) -> str:
    on = " + ".join(name for name in (*TECHNIQUES, "compile") if name in variant.on) or "plain"
    return ", ".join(part for part in (on, variant.rows, variant.muon and f"Muon {variant.muon}") if part)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("masked", "causal"))
    sizes = {"layers": 4, "width": 256, "vocabulary": 8192, "length": 128, "batch": 8, "batches": 4}
    for name, value in {**sizes, "rounds": 5, "steps": 2, "warmup": 2, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=width_of_heads if name == "width" else positive, default=value)
    parser.add_argument("--only", nargs="*", choices=(*TECHNIQUES, *PAIRED), help="names of techniques")
    parser.add_argument("--compile", action="store_true", help="also torch.compile: a minute of compiling each")
    parser.add_argument("--out", type=Path, help="stem of the .json written")
    ablation(parser.parse_args(arguments))


if __name__ == "__main__":
    command(main)
