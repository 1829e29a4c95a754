"""One training step on a CPU, against the peers people would use, on the same weights, ids, targets and optimiser.

    python -m benchmarks.step masked [--layers 4 --width 256 --vocabulary 8192 --length 128 --batch 64] [--compile]
    python -m benchmarks.step causal [...] [--compile] [--float32]

`masked` is BERT against `transformers.Trainer`: as run_mlm.py uses it (float32, dropout as published), and tuned (bf16
where the CPU has units for it, no dropout, the faster attention; "memory kept" gives a peer what ours does with freed
memory, and "given back" takes it from ours). `causal` is GPT-2 against a loop in the style of
nanoGPT and against the Trainer, in bf16 with fused and with plain attention. `--float32` leaves out all that is in
bf16, for a CPU that emulates it.
With `--text FILE` ids are its text in a tokenizer trained on it, without one they are random.
Every contender keeps the losses of all its steps; no ratio is printed where they differ by more than the noise of
bf16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import chosen, command, compare, positive, width_of_heads
from benchmarks.contenders import hf_trainer, save_work, short_loop, sslnlp_

NOISE = {"mean": 0.01, "step": 0.05}
"""Losses of two bf16 contenders (or bf16 and float32), in nats: largest difference of their means, of any step."""
NOISE_WITH_DROPOUT = {"mean": 0.15, "step": 0.4}
DEFAULT = "HF Trainer, default"


def same_work(losses: Mapping[str, list[float]], reference: str, loose: set[str]) -> list[str]:
    """Raises when two loss curves differ by more than noise; else says by how much they did."""
    said = []
    for name, curve in losses.items():
        own = losses[reference]
        step = max(abs(a - b) for a, b in zip(own, curve, strict=True))
        mean = abs(statistics.mean(own) - statistics.mean(curve))
        noise = NOISE_WITH_DROPOUT if {name, reference} & loose else NOISE
        if not (mean <= noise["mean"] and step <= noise["step"]):
            raise SystemExit(f"{name} and {reference} did not do the same work: {curve} against {own}")
        said.append(f"{name}: {curve[0]:.3f} → {curve[-1]:.3f}, mean apart {mean:.4f}, a step {step:.4f}")
    return said


def ours(turns: dict[str, Any]) -> dict[str, Any]:
    return {
        "sslnlp bf16": (sslnlp_, turns),
        "sslnlp bf16, compiled": (sslnlp_, turns | {"compiled": True}),
        "sslnlp bf16, memory given back": (sslnlp_, turns | {"kept": False}),
        "sslnlp bf16, compiled, memory given back": (sslnlp_, turns | {"compiled": True, "kept": False}),
        "sslnlp float32": (sslnlp_, turns | {"precision": "no"}),
        "sslnlp float32, compiled": (sslnlp_, turns | {"precision": "no", "compiled": True}),
    }


def masked(turns: dict[str, Any]) -> dict[str, Any]:
    """Name -> (contender, its options)."""
    bf16 = turns | {"bf16": True}
    return ours(turns) | {
        DEFAULT: (hf_trainer, turns | {"dropout": 0.1}),
        "HF Trainer, float32, no dropout": (hf_trainer, turns),
        "HF Trainer, float32, no dropout, compiled": (hf_trainer, turns | {"compiled": True}),
        "HF Trainer, bf16": (hf_trainer, bf16),
        "HF Trainer, bf16, eager attention": (hf_trainer, bf16 | {"attention": "eager"}),
        "HF Trainer, bf16, eager, compiled": (hf_trainer, bf16 | {"attention": "eager", "compiled": True}),
        "HF Trainer, bf16, eager, compiled, memory kept": (
            hf_trainer,
            bf16 | {"attention": "eager", "compiled": True, "kept": True},
        ),
    }


def causal(turns: dict[str, Any]) -> dict[str, Any]:
    """Name -> (contender, its options)."""
    float32 = turns | {"bf16": False}
    return ours(turns) | {
        "short loop, bf16": (short_loop, turns | {"compiled": False}),
        "short loop, bf16, compiled": (short_loop, turns | {"compiled": True}),
        "short loop, bf16, plain attention": (short_loop, turns | {"compiled": False, "plain": True}),
        "short loop, bf16, plain attention, compiled": (short_loop, turns | {"compiled": True, "plain": True}),
        "short loop, bf16, plain attention, compiled, memory kept": (
            short_loop,
            turns | {"compiled": True, "plain": True, "kept": True},
        ),
        "short loop, float32": (short_loop, float32 | {"compiled": False}),
        "short loop, float32, compiled": (short_loop, float32 | {"compiled": True}),
        "HF Trainer, bf16": (hf_trainer, turns | {"bf16": True}),
        "HF Trainer, bf16, eager attention": (hf_trainer, turns | {"bf16": True, "attention": "eager"}),
        "HF Trainer, float32": (hf_trainer, float32),
    }


def step(arguments: argparse.Namespace) -> None:
    kind = arguments.kind
    names = ("layers", "width", "vocabulary", "length", "batch", "batches")
    sizes = {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        work = save_work(Path(folder) / "work.pt", kind, sizes, arguments.text)
        turns = {"work": work, "warmup": arguments.warmup, "steps": arguments.steps}
        contenders = masked(turns) if kind == "masked" else causal(turns)
        contenders = {
            name: value
            for name, value in contenders.items()
            if (arguments.compile or "compiled" not in name) and not (arguments.float32 and "bf16" in name)
        }
        contenders = chosen(contenders, arguments.only)
        first: dict[str, list[float]] = {}
        result = compare(
            contenders, rounds=arguments.rounds, threads=arguments.threads, facts={"sizes": sizes},
            check=lambda ready: first.update({name: facts["losses"] for name, facts in ready.items()}),
        )  # fmt: skip
    curves = {name: first[name] + [x for f in facts["rounds"] for x in f] for name, facts in _losses(result).items()}
    said = same_work(curves, next(iter(contenders)), {DEFAULT})
    result.setup["losses"] = said
    title = f"{kind} LM, {sizes['layers']}×{sizes['width']}, V {sizes['vocabulary']}, S {sizes['length']}"
    result.show(f"{title}, {sizes['batch']} rows a step")
    print("losses:", *said, sep="\n  ")
    if arguments.out:
        result.write(arguments.out, title)


def _losses(result: Any) -> dict[str, dict[str, list[list[float]]]]:
    return {name: {"rounds": [facts["losses"] for facts in rows]} for name, rows in result.rounds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    for kind in ("masked", "causal"):
        task = tasks.add_parser(kind)
        task.set_defaults(function=step, kind=kind)
        sizes = {"layers": 4, "width": 256, "vocabulary": 8192, "length": 128, "batch": 64, "batches": 4}
        for name, value in {**sizes, "rounds": 5, "steps": 3, "warmup": 3}.items():
            kind_of = width_of_heads if name == "width" else positive
            task.add_argument(f"--{name}", type=kind_of, default=value)
        task.add_argument("--threads", type=positive, default=1)
        task.add_argument("--text", type=Path, help="a text or parquet file (column text); default: random ids")
        task.add_argument("--compile", action="store_true", help="also everybody with torch.compile")
        task.add_argument("--float32", action="store_true", help="nothing in bf16")
        task.add_argument("--only", nargs="*", help="names of contenders")
        task.add_argument("--out", type=Path, help="stem of the .json and .svg written")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    command(main)
