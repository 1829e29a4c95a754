"""Where matrix products beat the fused attention kernel on a CPU, which `sslnlp.attention.LONGEST` was read from.

python -m benchmarks.attention [--threads 1] [--float32]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sslnlp.attention import attention_by_matmuls, by_matmuls


def attention(arguments: argparse.Namespace) -> None:
    """CPU seconds of one forward and backward, fused kernel against matrix products, by type, length and width."""
    torch.set_num_threads(arguments.threads)
    table = Table("type", "S", "D", "mask", "fused ms", "products ms", "ratio", "rule", title="attention, 4,096 tokens")
    for dtype in (torch.float32,) if arguments.float32 else (torch.bfloat16, torch.float32):
        for length in (32, 64, 128, 256, 512, 1024, 2048):
            for width in (32, 64):
                for kind in ("none", "documents", "causal"):
                    fused, plain = _attention_seconds(attention_by_matmuls, dtype, length, width, kind)
                    ours = by_matmuls(torch.device("cpu"), dtype, length, length)
                    table.add_row(
                        str(dtype)[6:], str(length), str(width), kind, f"{fused * 1e3:.1f}", f"{plain * 1e3:.1f}",
                        f"{fused / plain:.2f}", "products" if ours else "fused",
                    )  # fmt: skip
    Console(width=100).print(table)


def _attention_seconds(
    plain: Callable[..., Tensor], dtype: torch.dtype, length: int, width: int, kind: str
) -> tuple[float, float]:
    heads, rows = 256 // width, 4096 // length
    q, k, v = (x.requires_grad_() for x in torch.randn(3, rows, heads, length, width).to(dtype))
    mask = None
    if kind == "documents":
        document = torch.arange(length) >= length // 2
        mask = (document[:, None] == document[None, :]).expand(rows, 1, length, length)

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal").transpose(1, 2)

    def products() -> Tensor:
        return plain(q, k, v, mask, causal=kind == "causal", scaling=width**-0.5)

    times: dict[Any, list[float]] = {fused: [], products: []}
    for _ in range(6):
        for function in times:
            began = time.process_time()
            function().sum().backward()
            times[function].append(time.process_time() - began)
            q.grad = k.grad = v.grad = None
    return statistics.median(times[fused][1:]), statistics.median(times[products][1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="not bf16, which this CPU may have no units for")
    attention(parser.parse_args())
