"""Peak memory and time of one contrastive update by batch size, encoded at once and in parts (`mini_batch_size`).

    python -m benchmarks.grad_cache [--batches 64 512 4096] [--mini-batch-size 64] [--out FILE.json]

InfoNCE with dropout between two views of texts of one length, a BERT of the size asked for, random weights. Every
update is in a process of its own, so a peak is its own; what was in use just before it is taken off beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import command, machine, peak_rss, positive, width_of_heads


def update(job: dict[str, Any]) -> dict[str, Any]:
    """One update: peak resident bytes before and after it, seconds."""
    import torch
    from transformers import AutoModel, BertConfig

    from sslnlp.keyed import row_keyed_dropout
    from sslnlp.objectives.info_nce import InfoNCE

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8192, hidden_size=job["width"], intermediate_size=4 * job["width"], num_hidden_layers=job["layers"],
        num_attention_heads=job["width"] // 64,
    )  # fmt: skip
    objective = InfoNCE(AutoModel.from_config(config, add_pooling_layer=False), mini_batch_size=job["mini"])
    objective.train()
    batch, length = job["batch"], job["length"]

    def view() -> dict[str, Any]:
        ids = torch.randint(5, 8192, (batch, length))
        return {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "document_ids": torch.zeros_like(ids),
            "position_ids": torch.arange(length).expand(batch, length), "hashes": torch.randint(2**40, (batch, 1, 2)),
        }  # fmt: skip

    position = torch.arange(batch)
    rows = {"view_0": view(), "view_1": view(), "present": torch.ones(batch, 1, dtype=torch.bool), "position": position}
    idle, start = peak_rss(), time.perf_counter()
    with row_keyed_dropout(0, position):
        objective(rows).loss.backward()
    return {"idle": idle, "peak": peak_rss(), "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=positive, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--at-once", type=int, default=512, help="the largest batch that is also encoded at once")
    parser.add_argument("--mini-batch-size", type=positive, default=64)
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--width", type=width_of_heads, default=256)
    parser.add_argument("--length", type=positive, default=32)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(update(json.loads(arguments.job))))
        return
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for batch in arguments.batches:
        for mini in [None, arguments.mini_batch_size]:
            if mini is None and batch > arguments.at_once:
                continue
            job = {"batch": batch, "mini": mini}
            job |= {name: getattr(arguments, name) for name in ("layers", "width", "length")}
            command = [sys.executable, "-m", "benchmarks.grad_cache", "--job", json.dumps(job)]
            line = job | json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found.append(line)
            print(
                f"batch {batch:5d}  {'at once' if mini is None else f'in parts of {mini}':15}  "
                f"peak {line['peak'] / 2**20:7.0f} MiB  above idle {(line['peak'] - line['idle']) / 2**20:7.0f} MiB  "
                f"{line['seconds']:7.1f} s",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps({"setup": machine(1), "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
