"""An update of models that write text whose targets the head scores in pieces, or by the logits of all of them at once.

    python -m benchmarks.heads [--bf16] [--rounds 5] [--out FILE.json]

The same model, batch and loss either way; the two take turns in one process on one thread, forward and backward, in CPU
seconds. Fresh weights, random tokens: 32 sources of 128 tokens, and as many targets of 128; of the one decoder 32 rows,
in every other of which a third of the tokens is asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import command, machine, median_interval, positive

KINDS = {"denoising": "bart", "span_corruption": "t5", "hybrid": "llama"}


def contenders(name: str, size: str, vocabulary: int, rows: int, length: int) -> tuple[Any, dict[str, Any]]:
    """The objective and a batch."""
    import torch
    from transformers import AutoConfig

    from sslnlp.architectures import ARCHITECTURES, SIZES
    from sslnlp.objectives import get_objective

    torch.manual_seed(0)
    cls = get_objective(name)
    fields = ARCHITECTURES[KINDS[name]](SIZES[size], length) | {"vocab_size": vocabulary}
    fields |= {"decoder_start_token_id": 2} if name != "hybrid" else {}
    model = cls.wraps.from_config(AutoConfig.for_model(KINDS[name], **fields))
    ids = torch.randint(10, vocabulary, (rows, length))
    document, place = torch.zeros_like(ids), torch.arange(length).expand(rows, length)
    batch = {"input_ids": ids, "document_ids": document, "position_ids": place, "labels": ids.flip(1)}
    batch |= {"decoder_document_ids": document, "decoder_position_ids": place, "corrupted": ids % 5 == 0}
    masked, later = (torch.arange(rows) % 2 == 0)[:, None], place > 0
    batch |= {"attention_mask": ids > 0, "bidirectional": masked.expand(rows, length)}
    for kind, asked in (("masked", masked & later & (ids % 3 == 0)), ("causal", ~masked & later)):
        batch[f"{kind}_index"] = asked.flatten().nonzero().flatten()
    return cls(model).eval(), batch  # without dropout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--size", default="mini")
    parser.add_argument("--vocabulary", type=positive, default=8192)
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--length", type=positive, default=128)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    table = Table("objective", "all logits, CPU s", "in pieces", "ratio", title="bf16" if options.bf16 else "float32")
    found: dict[str, Any] = {}
    for name in KINDS:
        seconds: dict[str, list[float]] = {"all": [], "pieces": []}
        losses: dict[str, float] = {}
        objective, batch = contenders(name, options.size, options.vocabulary, options.batch, options.length)
        head = objective.head
        if head is None:
            raise SystemExit(f"{name}: the head does not stand apart here")
        for _ in range(options.rounds + 1):
            for way in seconds:
                objective.head = head if way == "pieces" else None
                start = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                    loss = objective(batch).loss
                loss.backward()
                objective.zero_grad()
                seconds[way].append(time.process_time() - start)
                losses[way] = float(loss.detach())
        if abs(losses["all"] - losses["pieces"]) > (2e-2 if options.bf16 else 1e-4):
            raise SystemExit(f"{name}: other losses, {losses}")
        taken = {way: values[1:] for way, values in seconds.items()}  # the first makes kernels and room
        ratios = [a / b for a, b in zip(taken["all"], taken["pieces"], strict=True)]
        middle, low, high = median_interval(ratios)
        found[name] = {"seconds": taken, "ratio": [middle, low, high]}
        medians = [f"{statistics.median(taken[way]):.3f}" for way in taken]
        table.add_row(f"{name} ({KINDS[name]})", *medians, f"{middle:.2f}× ({low:.2f}–{high:.2f})")
    Console(width=100).print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        given = {key: value for key, value in vars(options).items() if key != "out"}
        options.out.write_text(json.dumps({"setup": machine(1), "options": given, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
