"""Time from raw text to equal held-out bits per byte: ours against `transformers.Trainer`, at its defaults and tuned.

    python -m benchmarks.quality tune TRAIN VALID OUT [--rates 1e-3 2e-3 4e-3 8e-3 16e-3] [--rows 4 8]
    python -m benchmarks.quality race TRAIN VALID OUT [--seeds 0 1 2] [--lengths 1 1.5 2 3 4] [--cap 10]
    python -m benchmarks.quality show OUT

A decoder of one stock class and size, one tokenizer (made beforehand, in nobody's time), one text. Ours is `sslnlp
train pretrain_gpt train.budget=...`, all of it: the time of the whole process. The peer is in the manner of run_clm.py:
`datasets.map`, `group_texts`, `Trainer`; its clock runs from the start of the process to the end of training and
stands still while it is evaluated. Everybody is scored by the same function on the same held-out rows.

`tune` trains the peer at five learning rates and so many `--rows` an update, twice the tokens of ours. `race`, for each
seed in turn: ours, the tuned peer at several lengths (multiples of our tokens, each with its own schedule), the peer at
its defaults (learning rate 5e-5, linear, 8 rows of 1,024 tokens) for up to `cap` times our time. The time to equal
quality of the peer is that of its shortest run that reaches ours, its intermediate evaluations counted. Each process
has one and the same core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import command, machine, median_interval, positive


def run_side(side: str, job: dict[str, Any]) -> dict[str, Any]:
    """One process of one side, on one core, from an empty cache; what it found, with its wall and CPU seconds."""
    folder = Path(job["out"]) / f"work-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result = folder / "result.json"
    job = job | {"folder": str(folder), "result": str(result)}
    core = max(os.sched_getaffinity(0))  # `taskset` before the command chooses another
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    environment = os.environ | {
        "STARTED": str(began), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    work = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.quality_sides", side, json.dumps(job)]
    try:
        if subprocess.run(work, env=environment).returncode:
            raise SystemExit(f"the run of {side} failed, as it says above; what was finished before is kept")
        wall, after = time.time() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = json.loads(result.read_text())
    finally:
        shutil.rmtree(folder)
    return {"side": side, "job": {k: v for k, v in job.items() if k not in ("folder", "result")}, **found} | {
        "wall": wall, "cpu": cpu,
    }  # fmt: skip


def note(out: Path, line: dict[str, Any]) -> dict[str, Any]:
    with (out / "quality.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    said = f"{line['bits_per_byte']:.4f} bits per byte, {line['wall']:.0f} s, {line['cpu']:.0f} CPU s"
    print(f"{line['name']}, seed {line['seed']}: {said}", flush=True)
    return line


def lines(out: Path) -> Iterator[dict[str, Any]]:
    path = out / "quality.jsonl"
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def base(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all jobs share; makes the tokenizer the first time."""
    from sslnlp.data.config import DataConfig
    from sslnlp.data.prepare import sample_texts
    from sslnlp.tokenizer import train_tokenizer

    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer").is_dir():
        texts = sample_texts(DataConfig(train=str(arguments.train)), 20 << 20)
        train_tokenizer(texts, vocab_size=arguments.vocabulary).save_pretrained(out / "tokenizer")
    paths = {"train": str(arguments.train), "valid": str(arguments.valid), "tokenizer": str(out / "tokenizer")}
    return paths | {"out": str(out), "size": arguments.size, "budget": arguments.budget, "seed": 0}


def our_run(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The run of this seed, done once."""
    done = (line for line in lines(arguments.out) if line["side"] == "ours" and line["seed"] == seed)
    if (found := next(done, None)) is None:
        return note(
            arguments.out, {"name": "sslnlp", "seed": seed} | run_side("ours", base(arguments) | {"seed": seed})
        )
    # The peer would be given another size or text than the run that it is held against.
    job = base(arguments)
    other = [name for name in ("train", "valid", "size", "budget") if job[name] != found["job"][name]]
    if other:
        said = ", ".join(f"{name} {found['job'][name]}" for name in other)
        raise SystemExit(f"{arguments.out} holds a run with {said}: give the same, or another folder")
    return found


def tuned(
    arguments: argparse.Namespace, mine: dict[str, Any], seed: int, lr: float, batch: int, length: float
) -> dict[str, Any]:
    block = 256
    steps = max(10, round(length * mine["tokens"] / (batch * block)))
    job = {"seed": seed, "lr": lr, "tuned": True, "batch": batch, "block": block, "steps": steps, "length": length}
    found = run_side("peer", base(arguments) | job)
    name = f"Trainer, tuned, {length:g}x tokens, {batch} rows, lr {lr:g}"
    return note(arguments.out, {"name": name, "seed": seed, **found})


def tune(arguments: argparse.Namespace) -> None:
    mine = our_run(arguments, 0)
    done = {_setting(line) for line in lines(arguments.out) if line["side"] == "peer" and line["job"]["tuned"]}
    for batch in arguments.rows or [mine["chosen"]["batch_size"] * mine["chosen"]["accumulate"]]:
        for lr in arguments.rates:
            if (lr, batch) not in done:
                tuned(arguments, mine, 0, lr, batch, 2.0)


def best_setting(out: Path) -> tuple[float, int]:
    """The learning rate and the rows an update that `tune` found best."""
    runs = [line for line in lines(out) if line["side"] == "peer" and line["job"].get("length") == 2.0]
    if not runs:
        raise SystemExit("first: python -m benchmarks.quality tune TRAIN VALID OUT")
    return _setting(min(runs, key=lambda line: line["bits_per_byte"]))


def _setting(line: dict[str, Any]) -> tuple[float, int]:
    return line["job"]["lr"], line["job"]["batch"]


def race(arguments: argparse.Namespace) -> None:
    best_setting(arguments.out)  # what is missing is said before hours of runs
    for seed in arguments.seeds:
        mine = our_run(arguments, seed)
        if "tuned" in arguments.peers:
            lr, batch = best_setting(arguments.out)
            for length in arguments.lengths:
                if tuned(arguments, mine, seed, lr, batch, length)["bits_per_byte"] <= mine["bits_per_byte"]:
                    break
        if "defaults" in arguments.peers:
            plain(arguments, mine, seed)
    show(arguments)


def plain(arguments: argparse.Namespace, mine: dict[str, Any], seed: int) -> None:
    """The peer at its defaults, for as many updates as fit: the run before, or a short one, tells the speed."""
    job = base(arguments) | {"seed": seed, "tuned": False, "batch": 8, "block": 1024}
    done = (line for line in lines(arguments.out) if line["side"] == "peer" and not line["job"]["tuned"])
    trial = next(done, None) or run_side("peer", job | {"steps": 10})
    left = arguments.cap * mine["cpu"] - trial["prepared"]["cpu"]
    first, last = trial["curve"][0], trial["curve"][-1]
    one = (last["cpu"] - first["cpu"]) / (last["step"] - first["step"])
    found = run_side("peer", job | {"steps": max(10, int(left / one))})
    note(arguments.out, {"name": "Trainer, defaults", "seed": seed, **found})


def show(arguments: argparse.Namespace) -> None:
    """The table, quality.json and quality.svg."""
    from rich.console import Console
    from rich.table import Table

    found, best = list(lines(arguments.out)), best_setting(arguments.out)
    columns = ("seed", "ours", "s", "CPU s", "Trainer", "s", "CPU s", "ratio", "by CPU s")
    table = Table(*columns, title="to equal held-out bits per byte")
    ratios: dict[str, list[tuple[float, float]]] = {}
    short: dict[str, int] = {}
    for mine in (line for line in found if line["side"] == "ours"):
        theirs = [line for line in found if line["side"] == "peer" and line["seed"] == mine["seed"]]
        for kind in ("tuned", "defaults"):
            runs = [line for line in theirs if _kind(line, best) == kind]
            if not runs:
                continue
            point, more = arrival(runs, mine["bits_per_byte"])
            ratio = point["wall"] / mine["wall"], point["cpu"] / mine["cpu"]
            ratios.setdefault(kind, []).append(ratio)
            short[kind] = short.get(kind, 0) + bool(more)
            table.add_row(
                str(mine["seed"]), f"{mine['bits_per_byte']:.4f}", f"{mine['wall']:.0f}", f"{mine['cpu']:.0f}",
                f"{kind}: {point['bits_per_byte']:.4f}", f"{point['wall']:.0f}", f"{point['cpu']:.0f}",
                f"{more}{ratio[0]:.2f}×", f"{more}{ratio[1]:.2f}×",
            )  # fmt: skip
    Console(width=130).print(table)
    # Where the peer never was as good, its ratio is a bound from below.
    summary = {
        kind: {
            "ratio": median_interval([a for a, _ in pairs]), "by_cpu": statistics.median(b for _, b in pairs),
            "seeds": len(pairs), "seeds_not_reached": short[kind],
        }
        for kind, pairs in ratios.items()
    }  # fmt: skip
    print(summary)
    story = {"setup": machine(1), "lr": best[0], "rows": best[1], "summary": summary, "runs": found}
    (arguments.out / "quality.json").write_text(json.dumps(story, indent=1) + "\n")
    draw(found, best, arguments.out / "quality.svg")


def _kind(line: dict[str, Any], best: tuple[float, int]) -> str:
    """`tuned` for the peer at its best rate and rows, `defaults`, or `other`."""
    if not line["job"]["tuned"]:
        return "defaults"
    return "tuned" if _setting(line) == best else "other"


def arrival(runs: list[dict[str, Any]], goal: float) -> tuple[dict[str, float], str]:
    """The earliest evaluation of any of the runs that is as good as `goal`; the last one there is, and ">", if none."""
    points = [point for run in runs for point in run["curve"]]
    there = [point for point in points if point["bits_per_byte"] <= goal]
    if there:
        return min(there, key=lambda point: point["cpu"]), ""
    return max(points, key=lambda point: point["cpu"]), "> "


def draw(found: list[dict[str, Any]], best: tuple[float, int], path: Path) -> None:
    """Held-out bits per byte over CPU seconds from the start of the process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    colors = {"tuned": "#718096", "defaults": "#c05621"}
    for run in found:
        if run["side"] == "ours":
            axes.plot(run["cpu"], run["bits_per_byte"], "o", color="#2b6cb0", label="sslnlp, whole process")
        elif (kind := _kind(run, best)) in colors:
            x, y = ([point[key] for point in run["curve"]] for key in ("cpu", "bits_per_byte"))
            axes.plot(x, y, "-", color=colors[kind], linewidth=1, label=f"Trainer, {kind}")
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds from raw text")
    axes.set_ylabel("held-out bits per byte")
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axes.legend(once.values(), once.keys(), frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    for function in (tune, race, show):
        task = tasks.add_parser(function.__name__)
        task.set_defaults(function=function)
        if function is not show:
            task.add_argument("train", type=Path)
            task.add_argument("valid", type=Path)
        task.add_argument("out", type=Path)
        task.add_argument("--size", default="tiny")
        task.add_argument("--vocabulary", type=positive, default=4096)
        task.add_argument("--budget", default="90s")
        task.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
        task.add_argument("--rows", type=positive, nargs="+", help="of an update of the peer; default: ours")
        task.add_argument("--lengths", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
        task.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        task.add_argument("--cap", type=float, default=10.0)
        task.add_argument("--peers", nargs="+", default=["tuned", "defaults"], choices=["tuned", "defaults"])
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    command(main)
