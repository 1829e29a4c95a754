"""Ours against peers, interleaved: A B C A B C ..., each in a process of its own that lives through all rounds.

A contender is a module-level function `contender(gate, **options)`. It sets itself up, warms up, and then works in
rounds: each `gate(**facts)` ends a round and sleeps until the contender's next turn; the first one only says that it
is ready. Facts are what a round did: `units` (tokens, rows, bytes; what speed is counted in), `flops` executed, and
anything else, gathered in lists. `gate` never returns from the last round.

    def ours(gate, *, batch_size):
        step = make_step(batch_size)
        gate()
        while True:
            losses = [step() for _ in range(10)]
            gate(units=10 * batch_size, losses=losses)

    result = compare({"ours": (ours, {...}), "peer": (peer, {...})}, rounds=5, unit="rows")
    result.show("title"); result.write(Path("figures/row"))

Absolute speeds of a shared machine swing; a ratio is taken within each round and its median is reported, with a
bootstrap interval. CPU seconds beside wall seconds tell a stolen core from slow code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError, suggest

Contender = Callable[..., None]


def command(main: Callable[[], None]) -> None:
    """Runs a benchmark's `main`. Bad input ends it as it ends the `sslnlp` command: in one line, with exit code 2."""
    try:
        main()
    except (UserError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def positive(text: str) -> int:
    """What counts something on a command line: a whole number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def width_of_heads(text: str) -> int:
    """A width of which heads of 64 can be made."""
    if (number := positive(text)) % 64:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 64, the width of a head")
    return number


def chosen(contenders: dict[str, Any], only: Sequence[str] | None) -> dict[str, Any]:
    """Those that `only` names, in their own order; all of them where it names none."""
    for name in only or ():
        if name not in contenders:
            raise UserError(f"--only: there is no {name!r} in this comparison.{suggest(name, contenders)}")
    return {name: value for name, value in contenders.items() if not only or name in only}


class Gate:
    """The turns of one contender; see the module."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._ready = False

    def __call__(self, **facts: Any) -> None:
        if self._ready:
            wall, cpu = time.perf_counter() - self._wall, _cpu_seconds() - self._cpu
            self._pipe.send({"wall": wall, "cpu": cpu, "peak_rss": peak_rss(), **facts})
        else:
            self._pipe.send({"ready": True, "rss": peak_rss(), **facts})
            self._ready = True
        if self._pipe.recv() == "stop":
            raise SystemExit(0)
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()


def _cpu_seconds() -> float:
    """Of this process, all threads, and of its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_rss() -> int:
    """Bytes. `ru_maxrss` would start from the parent's; this is the peak of the process itself."""
    with open("/proc/self/status", encoding="utf-8") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _work(pipe: Any, function: Contender, options: Mapping[str, Any], cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)
    if torch := sys.modules.get("torch"):  # who imports it later reads OMP_NUM_THREADS
        torch.set_num_threads(len(cores))
    try:
        function(Gate(pipe), **options)
    except SystemExit:
        pass
    except UserError as error:
        pipe.send({"error": str(error)})
    except BaseException:
        pipe.send({"error": traceback.format_exc()})


@dataclass
class Comparison:
    """Rounds of each contender: `rounds[name]` is a list of facts, `wall`, `cpu` and `peak_rss` among them."""

    rounds: dict[str, list[dict[str, Any]]]
    unit: str
    reference: str
    setup: dict[str, Any]

    def speeds(self, name: str, clock: str = "wall") -> list[float]:
        """Units a second, round by round."""
        return [facts["units"] / facts[clock] for facts in self.rounds[name]]

    def ratio(self, name: str, clock: str = "wall") -> tuple[float, float, float]:
        """How many times faster the reference is than `name`: median of the rounds' ratios, 95 % interval."""
        ours, theirs = self.speeds(self.reference, clock), self.speeds(name, clock)
        return median_interval([a / b for a, b in zip(ours, theirs, strict=True)])

    def summary(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, rounds in self.rounds.items():
            speed, low, high = median_interval(self.speeds(name))
            found[name] = {
                f"{self.unit}_per_second": speed,
                "interval": [low, high],
                f"{self.unit}_per_cpu_second": statistics.median(self.speeds(name, "cpu")),
                "wall_seconds": statistics.median(facts["wall"] for facts in rounds),
                "cpu_seconds": statistics.median(facts["cpu"] for facts in rounds),
                "peak_rss": max(facts["peak_rss"] for facts in rounds),
                "reference_is_faster": self.ratio(name),
                "reference_is_faster_by_cpu": self.ratio(name, "cpu"),
            }
            if "flops" in rounds[0]:
                found[name]["flops_per_second"] = statistics.median(f["flops"] / f["wall"] for f in rounds)
        return found

    def show(self, title: str) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{title}\n{self.setup['machine']}, {self.setup['threads']} threads, {self.setup['date']}")
        columns = (f"{self.unit}/s", "95 %", "wall s", "CPU s", "peak RSS", "GFLOP/s", "ratio", "95 %", "by CPU s")
        table.add_column("contender")
        for column in columns:
            table.add_column(column, justify="right")
        for name, row in self.summary().items():
            ratio, low, high = row["reference_is_faster"]
            table.add_row(
                name,
                f"{row[f'{self.unit}_per_second']:,.0f}",
                "{:,.0f}–{:,.0f}".format(*row["interval"]),
                f"{row['wall_seconds']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['peak_rss'] / 2**30:.2f} GiB",
                f"{row['flops_per_second'] / 1e9:,.0f}" if "flops_per_second" in row else "",
                f"{ratio:.2f}×",
                f"{low:.2f}–{high:.2f}",
                f"{row['reference_is_faster_by_cpu'][0]:.2f}×",
            )
        Console(width=150).print(table)

    def write(self, stem: Path, title: str = "") -> None:
        """`stem`.json with every round, and `stem`.svg: speeds as bars, rounds as dots (where matplotlib is there)."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        story = {"title": title, "setup": self.setup, "summary": self.summary(), "rounds": self.rounds}
        stem.with_suffix(".json").write_text(json.dumps(story, indent=1, default=float) + "\n")
        try:
            import matplotlib
        except ModuleNotFoundError:
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(self.rounds) + 1))
        for place, name in enumerate(self.rounds):
            color = "#2b6cb0" if name == self.reference else "#a0aec0"
            speeds, ratio = self.speeds(name), self.ratio(name)[0]
            axes.barh(place, statistics.median(speeds), color=color, height=0.7)
            axes.plot(speeds, [place] * len(speeds), ".", color="#1a202c", markersize=3)
            if name != self.reference:
                axes.text(max(speeds), place, f"  {ratio:.2f}×", va="center", fontsize=8)
        axes.set_yticks(range(len(self.rounds)), list(self.rounds), fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(f"{self.unit} a second", fontsize=8)
        axes.set_title(title, fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.tight_layout()
        figure.savefig(stem.with_suffix(".svg"))
        pyplot.close(figure)


class ContenderFailed(SystemExit):
    """A contender raised or ended; the message is its traceback, or one line where its input was bad."""


class Contest:
    """Processes of contenders, pinned to the same `threads` cores, of which one at a time is let go.

    `start` does not wait, so several can set themselves up at once; `ready` waits until one has.
    """

    def __init__(self, threads: int) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if threads > len(cores):
            raise UserError(f"{threads} threads were asked for, and there are {len(cores)} cores to pin them to")
        self.threads = threads
        self._cores = cores[-threads:]
        self._context = multiprocessing.get_context("spawn")
        self._open: dict[str, tuple[Any, Any]] = {}

    def __enter__(self) -> Contest:
        self._before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop(list(self._open))
        if self._before is None:
            os.environ.pop("OMP_NUM_THREADS")
        else:
            os.environ["OMP_NUM_THREADS"] = self._before

    def start(self, name: str, function: Contender, options: Mapping[str, Any]) -> None:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, function, dict(options), self._cores)
        process = self._context.Process(target=_work, args=arguments, daemon=False)
        process.start()
        theirs.close()
        self._open[name] = process, ours

    def ready(self, name: str, within: float | None = None) -> dict[str, Any]:
        """What the contender said when it had set itself up. Raises `ContenderFailed`, also after `within` seconds."""
        pipe = self._open[name][1]
        if not pipe.poll(within):
            raise ContenderFailed(f"{name} was not ready after {within:.0f} more seconds")
        return _receive(name, pipe)

    def turn(self, name: str) -> dict[str, Any]:
        """One round of the contender: its facts. Raises `ContenderFailed`."""
        pipe = self._open[name][1]
        try:
            pipe.send("go")
        except OSError:
            raise ContenderFailed(f"{name} ended before its rounds were over") from None
        return _receive(name, pipe)

    def stop(self, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                self._open[name][1].send("stop")
        for name in names:
            process, pipe = self._open.pop(name)
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
            pipe.close()


def compare(
    contenders: Mapping[str, tuple[Contender, Mapping[str, Any]]],
    *,
    rounds: int = 5,
    unit: str = "tokens",
    threads: int = 1,
    reference: str | None = None,
    check: Callable[[Mapping[str, Mapping[str, Any]]], None] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Comparison:
    """Run the contenders in turn, `rounds` times each, pinned to the same `threads` cores.

    Args:
        contenders: name -> (module-level function, its options); see the module.
        reference: the contender that ratios are of; default: the first one.
        check: given what each contender said when it was ready; raises when they did not do the same work.
        facts: about the set-up, written down.
    """
    with Contest(threads) as contest:
        ready = {}
        for name, (function, options) in contenders.items():  # one after another, so that set-up is not disturbed
            contest.start(name, function, options)
            ready[name] = contest.ready(name)
        if check is not None:
            check(ready)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name in contenders:
                found[name].append(contest.turn(name))
    return Comparison(found, unit, reference or next(iter(contenders)), machine(threads) | dict(facts or {}))


def _receive(name: str, pipe: Any) -> dict[str, Any]:
    try:
        message: dict[str, Any] = pipe.recv()
    except (EOFError, OSError):
        raise ContenderFailed(f"{name} ended before its rounds were over") from None
    if "error" in message:
        raise ContenderFailed(f"{name}:\n{message['error']}")
    return message


def machine(threads: int) -> dict[str, Any]:
    """What a figure depends on."""
    import torch
    import transformers

    with open("/proc/cpuinfo", encoding="utf-8") as info:
        lines = info.read().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return {
        "machine": f"{model} ({os.cpu_count()} cores, {units[0] if units else platform.machine()})",
        "threads": threads,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def median_interval(values: list[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """The median and its 95 % bootstrap interval (from a fixed seed)."""
    import numpy as np

    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(draws, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def flops_per_token(model: Any, *, attended: float, scored: float, asked: float = 1.0, asks: bool = False) -> float:
    """Executed floating-point operations a token of one training step: 3 × the forward pass.

    Forward: 2 a weight of every matrix inside the network, 4 × layers × width × attended length for scores and their
    sum, and, for the share `scored` of positions, the prediction head (its transform and the vocabulary).

    Args:
        model: a stock `transformers` encoder or decoder with a language-model head.
        attended: mean number of positions a token attends to (S, or S/2 for a causal model that skips the rest).
        scored: share of positions at which the head is computed.
        asked: share at which the last layer is computed after its attention (of a BERT; `sslnlp.last_layer`).
        asks: whether its queries, scores and their sum are also those of that share alone.
    """
    config = model.config
    width, layers = config.hidden_size, config.num_hidden_layers
    tables = {id(p) for m in model.modules() if type(m).__name__ == "Embedding" for p in m.parameters()}
    inside = sum(p.numel() for p in model.base_model.parameters() if p.ndim == 2 and id(p) not in tables)
    backbone = {id(p) for p in model.base_model.parameters()}
    head = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in backbone | tables)
    vocabulary = model.get_input_embeddings().weight.numel()
    tied = id(model.get_output_embeddings().weight) in backbone
    spared = 0.0
    if asked < 1:
        last = model.base_model.encoder.layer[-1]
        mixing, all_of_it = (
            sum(p.numel() for p in part.parameters() if p.ndim == 2) for part in (last.attention.self, last)
        )
        spared = 2 * (all_of_it - mixing) + asks * (2 * mixing / 3 + 4 * width * attended)
    every = 2 * inside + 4 * layers * width * attended - (1 - asked) * spared
    return 3 * (every + 2 * scored * (head + (vocabulary if tied else 0)))
