"""What `benchmarks.objectives` measured, as a table and as bars: each figure beside what says how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.objectives import RUNS, file_name

SHOWN: dict[str, list[tuple[str, str]]] = {
    # run -> (figure of its JSON, the baseline beside it: a number, or the name of another figure)
    "masked_lm": [("accuracy", "most_frequent"), ("loss", "unigram_loss")],
    "masked_lm, rate 0.15": [("accuracy", "most_frequent"), ("loss", "unigram_loss")],
    "masked_lm, 80/10/10": [("accuracy", "most_frequent"), ("loss", "unigram_loss")],
    "causal_lm": [("bits_per_byte", "unigram_bits_per_byte"), ("accuracy", "most_frequent")],
    "causal_lm, bytes": [("bits_per_byte", "unigram_bits_per_byte")],
    "denoising": [("rebuilt_accuracy", "most_frequent"), ("accuracy", "")],
    "span_corruption": [("rebuilt_accuracy", "most_frequent"), ("accuracy", "")],
    "span_corruption, lr 1e-2": [("rebuilt_accuracy", "most_frequent"), ("accuracy", "")],
    "span_corruption, bart": [("rebuilt_accuracy", "most_frequent"), ("accuracy", "")],
    "ul2": [("rebuilt_accuracy", "most_frequent"), ("accuracy", "")],
    "ul2_decoder": [("accuracy", "most_frequent"), ("plain_bits_per_byte", "causal_lm/bits_per_byte")],
    "prefix_lm": [("accuracy", "most_frequent"), ("plain_bits_per_byte", "causal_lm/bits_per_byte")],
    "fim": [("infill_accuracy", "causal_lm/infill_accuracy"), ("plain_bits_per_byte", "causal_lm/bits_per_byte")],
    "electra": [("auc", "0.5"), ("generator_accuracy", "masked_lm/accuracy")],
    "electra, weight 10": [("auc", "0.5"), ("generator_accuracy", "masked_lm/accuracy")],
    "electra, corrective": [("auc", "0.5"), ("corrective_accuracy", "most_frequent")],
    "hybrid": [("masked_accuracy", "masked_lm/accuracy"), ("plain_bits_per_byte", "causal_lm/bits_per_byte")],
    "masked_diffusion": [("bits_per_byte", "causal_lm/bits_per_byte")],
    "sentence_order": [("order_accuracy", "0.5"), ("accuracy", "masked_lm/accuracy")],
    "segment_order": [("order_accuracy", "0.1667"), ("accuracy", "masked_lm/accuracy")],
    "tsdae": [("loss", "loss_without_vector"), ("accuracy", "most_frequent")],
    "vae": [("active_units", "0"), ("mutual_information", "0"), ("reconstruction", "loss_without_vector")],
    "retromae": [("decoder_accuracy", "most_frequent"), ("masked_accuracy", "masked_lm/accuracy")],
    "data2vec": [("explained_variance", "0")],
    "joint": [("masked_lm/accuracy", "masked_lm/accuracy"), ("data2vec/explained_variance", "0")],
}

WORDS = {
    "": "",
    "0": "nothing learnt",
    "0.5": "chance",
    "0.1667": "chance (1 of 6)",
    "most_frequent": "always the most frequent token",
    "unigram_loss": "token frequencies alone",
    "unigram_bits_per_byte": "token frequencies alone",
    "loss_without_vector": "the same without its vector",
}

PANELS = {
    "share (more is better)": ("accuracy", "auc", "variance"),
    "bits per byte (less is better)": ("bits_per_byte",),
}

console = Console(width=120)


def load(out: Path) -> dict[str, dict[str, float]]:
    """Figures of the finished runs, by name, in the order of RUNS."""
    found = {}
    for name in RUNS:
        path = out / f"{file_name(name)}.json"
        if path.exists():
            found[name] = json.loads(path.read_text())["figures"]
    return found


def baseline_of(spec: str, own: Mapping[str, float], every: Mapping[str, Mapping[str, float]]) -> float | None:
    if not spec:
        return None
    run_name, _, figure = spec.partition("/")
    if figure and run_name in every:
        return every[run_name].get(figure)
    return own[spec] if spec in own else (float(spec) if spec[0].isdigit() else None)


def words_of(spec: str) -> str:
    """What a baseline is, for people."""
    run_name, _, figure = spec.partition("/")
    return WORDS.get(spec, f"{run_name}: {figure}".replace("_", " "))


def table(out: Path, drawing: Path | None) -> None:
    """Print the table, write it to `out`/table.md, and the figure if asked."""
    every = load(out)
    shown = Table("objective", "parameters", "measure", "held out", "baseline", "what the baseline is")
    lines = [
        "| objective | M parameters | measure | held out | baseline | what the baseline is |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in every.items():
        for i, (figure, spec) in enumerate(SHOWN[name]):
            value, other = figures.get(figure), baseline_of(spec, figures, every)
            cells = [
                name if i == 0 else "",
                f"{figures['parameters'] / 1e6:.2f}" if i == 0 else "",
                figure.replace("_", " "),
                "–" if value is None else f"{value:.3f}",
                "–" if other is None else f"{other:.3f}",
                words_of(spec),
            ]
            shown.add_row(*cells)
            lines.append("| " + " | ".join(cells) + " |")
    console.print(shown)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    if drawing:
        figure_of(every, drawing)


def figure_of(every: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars: each objective's first measure of a panel's unit beside its baseline; what has another unit is left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for endings in PANELS.values():
        rows = []
        for name, figures in every.items():
            for figure, spec in SHOWN[name]:
                value, other = figures.get(figure), baseline_of(spec, figures, every)
                if figure.endswith(endings) and value is not None and other is not None:
                    rows.append((f"{name}: {figure.replace('_', ' ')}", value, other))
                    break
        panels.append(rows)
    heights = [len(rows) + 1 for rows in panels]
    fig, both = pyplot.subplots(
        len(panels), figsize=(8, 0.3 * sum(heights) + 1), gridspec_kw={"height_ratios": heights}, squeeze=False
    )
    for axes, title, rows in zip(both[:, 0], PANELS, panels, strict=True):
        places = range(len(rows))
        axes.barh([p - 0.2 for p in places], [row[1] for row in rows], height=0.38, color="#2b6cb0", label="held out")
        axes.barh([p + 0.2 for p in places], [row[2] for row in rows], height=0.38, color="#cbd5e0", label="baseline")
        axes.set_yticks(list(places), [row[0] for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(title, fontsize=9, loc="left")
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)
