"""One training step on one GPU: tokens a second and executed MFU, against the Trainer and a compiled loop.

    python -m benchmarks.gpu [--rows gpt2 ...] [--out figures/gpu] [--peak 790e12] [--rounds 4] [--seconds 330]
    python -m benchmarks.gpu --device cpu --miniature    the same code on a CPU, tiny and uncompiled

Rows: BERT 4×256, BERT 12×768 at 128 and at 512 tokens, GPT-2 124M. Ours is `Trainer.train_step` in bf16, with and
without `train.compile`; HF's Trainer as it comes (float32, dropout) and tuned (bf16, fused AdamW, SDPA, no dropout,
loader workers; with and without torch.compile); for GPT-2 a compiled loop in the style of nanoGPT. All start from the
same weights, ids and targets; a contender whose losses are not those of ours gets no ratio.

MFU is executed FLOPs (`common.flops_per_token`: positions that are not scored cost nothing, a causal kernel half of the
pairs) over `--peak`; beside it the same over what a product of two bf16 matrices [8192, 8192] reaches in this run.
All that compiles is set up first, side by side, because compiling takes most of the time (about 120 GiB of GPU memory
for the four rows; choose --rows on a smaller one). The Trainer's steps include its loader, ours get their batches.
After its rounds, ours is profiled: what took longest on the device.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.common import Comparison, ContenderFailed, Contest, chosen, command, machine, median_interval
from benchmarks.contenders import hf_trainer, save_work, short_loop, sslnlp_
from benchmarks.step import same_work

ROWS: dict[str, dict[str, Any]] = {
    "gpt2": {"kind": "causal", "layers": 12, "width": 768, "vocabulary": 50304, "length": 1024, "batch": 16},
    "base128": {"kind": "masked", "layers": 12, "width": 768, "vocabulary": 32768, "length": 128, "batch": 192},
    "base512": {"kind": "masked", "layers": 12, "width": 768, "vocabulary": 32768, "length": 512, "batch": 48},
    "mini": {"kind": "masked", "layers": 4, "width": 256, "vocabulary": 8192, "length": 128, "batch": 512},
}
STEPS = {"mini": 24}
"""Steps a round where the step is short; else 8."""
MINIATURE = {"layers": 2, "width": 64, "vocabulary": 128, "length": 16, "batch": 4}
OURS, EAGER, DEFAULT = "sslnlp, compiled", "sslnlp", "HF Trainer, default"
Waiting = tuple[Any, dict[str, Any]]


def contenders(kind: str, turns: dict[str, Any], *, workers: int = 4) -> dict[str, Waiting]:
    """Name -> (function, options), ours first."""
    tuned = turns | {"bf16": True, "workers": workers}
    found: dict[str, Waiting] = {
        OURS: (sslnlp_, turns | {"compiled": True}),
        EAGER: (sslnlp_, turns),
        DEFAULT: (hf_trainer, turns | {"dropout": 0.1}),
        "HF Trainer, tuned": (hf_trainer, tuned),
        "HF Trainer, tuned, compiled": (hf_trainer, tuned | {"compiled": True}),
    }
    if kind == "causal":
        found["short loop, compiled"] = (short_loop, turns | {"compiled": True})
    return found


def matmul_peak(device: str, size: int = 8192) -> float:
    """FLOPs a second of the best of some products of two square bf16 matrices."""
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / min(_times(lambda: a @ b, device, repeats=20))


def _times(function: Any, device: str, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times[3:]


def kernels(device: str, rows: int, length: int, heads: int = 12) -> dict[str, str]:
    """Milliseconds of one attention, forward and backward, by each kernel that runs here; else why not."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = torch.randn(3, rows, heads, length, 64, device=device, dtype=torch.bfloat16).requires_grad_().unbind()
    document = (torch.arange(length, device=device) >= length // 2).int()
    same = (document[:, None] == document[None, :]).expand(rows, 1, length, length).contiguous()
    causal_same = same & torch.ones(length, length, dtype=torch.bool, device=device).tril()
    found = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        cases: dict[str, tuple[Tensor | None, bool]] = {"whole rows": (None, False), "causal": (None, True)}
        cases |= {"documents": (same, False), "causal documents": (causal_same, False)}
        for case, (mask, causal) in cases.items():

            def run(mask: Tensor | None = mask, causal: bool = causal) -> None:
                torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal).sum(), (q, k, v))

            name = f"{backend.name.lower().removesuffix('_attention')}, {case}"
            try:
                with sdpa_kernel(backend):
                    found[name] = f"{min(_times(run, device, repeats=5)) * 1e3:.2f} ms"
            except RuntimeError as error:
                found[name] = "not here: " + str(error).splitlines()[0][:80]
    try:
        found["varlen, documents"] = f"{min(_times(_varlen(q, k, v), device, repeats=5)) * 1e3:.2f} ms"
    except Exception as error:  # an interface that is new and moves
        found["varlen, documents"] = "not here: " + " ".join(f"{type(error).__name__}: {error}".split())[:80]
    return found


def _varlen(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """Two documents a row, end to end, none of which sees the other: no mask and no pairs that are thrown away."""
    from torch.nn.attention.varlen import varlen_attn

    rows, _, length, _ = q.shape
    flat = [x.detach().transpose(1, 2).flatten(0, 1).contiguous().requires_grad_() for x in (q, k, v)]
    starts = torch.arange(0, rows * length + 1, length // 2, device=q.device, dtype=torch.int32)

    def run() -> None:
        torch.autograd.grad(varlen_attn(*flat, starts, starts, length // 2, length // 2).sum(), flat)

    return run


class Run:
    """What all rows share: the contest, the clock that ends it, and the peak that speeds are held against."""

    def __init__(self, arguments: argparse.Namespace, contest: Contest, folder: Path) -> None:
        self.arguments, self.contest, self.folder = arguments, contest, folder
        self.console = Console(width=150)
        self.began = time.perf_counter()
        self.measured = matmul_peak(arguments.device, 256 if arguments.miniature else 8192)
        self.waiting: dict[str, dict[str, Waiting]] = {}
        self.sizes: dict[str, dict[str, Any]] = {}
        known: dict[str, Any] = {}
        for row in arguments.rows:
            sizes = ROWS[row] | (MINIATURE if arguments.miniature else {}) | {"batches": 8}
            kind = sizes.pop("kind")
            work = save_work(folder / f"{row}.pt", kind, sizes, device=arguments.device)
            steps = 2 if arguments.miniature else STEPS.get(row, 8)
            turns = {"work": work, "warmup": 2 if arguments.miniature else 6, "steps": steps}
            found = contenders(kind, turns)
            if OURS in found:
                found[OURS][1]["profile"] = str(folder / f"{row}.txt")
            if arguments.documents:
                options = turns | {"compiled": True, "documents": True}
                found["sslnlp, compiled, two documents a row"] = (sslnlp_, options)
            self.waiting[row] = {n: c for n, c in found.items() if not arguments.only or n in arguments.only}
            self.sizes[row] = sizes | {"kind": kind}
            known |= found
        chosen(known, arguments.only)  # a row need not have all that is named, but one of them does

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def start(self, row: str, *, compiled: bool) -> None:
        for name, (function, options) in self.waiting[row].items():
            if options.get("compiled", False) == compiled:
                self.contest.start(f"{row}: {name}", function, options)

    def row(self, row: str) -> None:
        """Its rounds, its table, its files."""
        self.start(row, compiled=False)
        curves: dict[str, list[float]] = {}
        failed: dict[str, str] = {}

        def attempt(name: str, act: Any, *limit: float) -> dict[str, Any] | None:
            try:
                facts: dict[str, Any] = act(f"{row}: {name}", *limit)
            except ContenderFailed as error:
                failed[name] = str(error)
                print(error, file=sys.stderr, flush=True)
                return None
            curves.setdefault(name, []).extend(facts["losses"])
            return facts

        for name in self.waiting[row]:
            attempt(name, self.contest.ready, max(15.0, self.arguments.seconds - self.seconds()))
        self.say(f"{row} is ready")
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in curves}
        for _ in range(self.arguments.rounds):
            for name in list(found):
                facts = attempt(name, self.contest.turn)
                if facts is None:
                    del found[name]
                else:
                    found[name].append(facts)
        self.contest.stop([f"{row}: {name}" for name in self.waiting[row]])
        if (profile := self.folder / f"{row}.txt").exists():
            print(profile.read_text(), flush=True)
            if self.arguments.out:
                self.arguments.out.mkdir(parents=True, exist_ok=True)
                (self.arguments.out / f"{row}.profile.txt").write_text(profile.read_text())
        reference = next((name for name in (OURS, EAGER) if name in found), None)
        if reference is None:
            self.say(f"{row}: neither of ours ran, so there is nothing to compare")
            return
        said, apart = [], {}
        for name in list(found):
            try:
                said += same_work({reference: curves[reference], name: curves[name]}, reference, {DEFAULT})[1:]
            except SystemExit as error:
                apart[name] = {"why": str(error), "rounds": found.pop(name)}
        setup = machine(self.contest.threads) | {"sizes": self.sizes[row], "losses": said, "failed": failed}
        setup |= {"peak": self.arguments.peak, "measured_matmul": self.measured, "not_the_same_work": apart}
        if self.arguments.device == "cuda":
            setup["machine"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        self._show(row, Comparison(found, "tokens", reference, setup), apart)

    def say(self, what: str) -> None:
        self.console.print(f"[{self.seconds():.0f} s] {what}", markup=False)

    def _show(self, row: str, result: Comparison, apart: dict[str, Any]) -> None:
        sizes = self.sizes[row]
        title = "{kind} LM, {layers}×{width}, V {vocabulary}, S {length}, {batch} rows a step".format(**sizes)
        columns = ("tokens/s", "ms a step", "TFLOP/s", "MFU", "of measured", "GPU GiB", "ours is faster", "95 %")
        table = Table("contender", title=f"{row}: {title}\n{result.setup['machine']}, torch {result.setup['torch']}")
        for column in columns:
            table.add_column(column, justify="right")
        tokens = sizes["batch"] * sizes["length"]
        for name, rounds in [*result.rounds.items(), *((n, a["rounds"]) for n, a in apart.items())]:
            speed = median_interval([facts["units"] / facts["wall"] for facts in rounds])[0]
            flops = median_interval([facts["flops"] / facts["wall"] for facts in rounds])[0]
            memory = max(facts.get("gpu_memory", 0) for facts in rounds) / 2**30
            ratio, low, high = result.ratio(name) if name in result.rounds else (0.0, 0.0, 0.0)
            table.add_row(
                name, f"{speed:,.0f}", f"{1e3 * tokens / speed:.1f}", f"{flops / 1e12:.1f}",
                f"{flops / self.arguments.peak:.1%}", f"{flops / self.measured:.1%}", f"{memory:.1f}",
                *((f"{ratio:.2f}×", f"{low:.2f}–{high:.2f}") if ratio else ("other losses", "")),
            )  # fmt: skip
        self.console.print(table)
        print("losses:", *result.setup["losses"], *(a["why"] for a in apart.values()), sep="\n  ", flush=True)
        if self.arguments.out:
            result.write(self.arguments.out / row, f"{row}: {title}")


def run(arguments: argparse.Namespace) -> None:
    if arguments.miniature:
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # compiling takes longer than everything else
    # Each contender that compiles has helpers of its own.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, arguments.threads // 4)))
    with tempfile.TemporaryDirectory() as folder, Contest(arguments.threads) as contest:
        both = Run(arguments, contest, Path(folder))
        peaks = f"a product of bf16 matrices: {both.measured / 1e12:.1f} TFLOP/s; --peak {arguments.peak / 1e12:.0f}"
        both.say(peaks)
        if arguments.kernels:
            rows, length = (2, 16) if arguments.miniature else (16, 1024)
            for name, value in kernels(arguments.device, rows, length).items():
                both.say(f"attention [{rows}, 12, {length}, 64], {name}: {value}")
        for row in arguments.rows:
            both.start(row, compiled=True)
        for row in arguments.rows:
            if both.seconds() > arguments.seconds:
                both.say(f"{row} is left out: over {arguments.seconds:.0f} seconds")
                contest.stop([f"{row}: {n}" for n, (_, o) in both.waiting[row].items() if o.get("compiled")])
                continue
            both.row(row)
        again = matmul_peak(arguments.device, 256 if arguments.miniature else 8192)
        both.say(f"a product of bf16 matrices, at the end: {again / 1e12:.1f} TFLOP/s")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--miniature", action="store_true", help="tiny models, nothing is compiled")
    parser.add_argument("--peak", type=float, default=790e12, help="FLOPs a second that MFU is a share of")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=330, help="after so many, rows that are left are not begun")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU cores of a contender")
    parser.add_argument("--documents", action="store_true", help="also ours with two documents a row, kept apart")
    parser.add_argument("--no-kernels", dest="kernels", action="store_false", help="without the attention kernels")
    parser.add_argument("--out", type=Path, help="folder of the .json and .svg of each row")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    command(lambda: run(parse()))
