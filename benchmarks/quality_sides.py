"""The two sides of `benchmarks.quality`: each is a process of its own, from raw text to a trained decoder.

python -m benchmarks.quality_sides ours|peer JOB     JOB is the JSON that the race makes
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import command

PEER = {
    "warmup_steps": 0.05, "lr_scheduler_type": "cosine", "weight_decay": 0.01, "adam_beta1": 0.5, "adam_beta2": 0.98
}  # fmt: skip
"""What the tuned peer has beside its learning rate, and bf16 where the machine has units for it; everything else is as
`TrainingArguments` has it."""


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """`sslnlp train` under a budget; the figures are those of its recipe.json and metrics.jsonl."""
    from sslnlp.metrics import read_metrics
    from sslnlp.recipe import load_recipe, override, run

    keys = {
        "data.train": job["train"], "data.valid": job["valid"], "data.cache": str(Path(job["folder"]) / "cache"),
        "tokenizer.path": job["tokenizer"], "model.size": job["size"], "train.budget": job["budget"],
        "train.seed": job["seed"], "out": str(Path(job["folder"]) / "run"),
    }  # fmt: skip
    out = run(override(load_recipe("pretrain_gpt"), keys))
    story = json.loads((out / "recipe.json").read_text())
    curve = [
        {"step": line["step"], "bits_per_byte": line["valid/bits_per_byte"]}
        for line in read_metrics(out / "metrics.jsonl")
        if "valid/bits_per_byte" in line
    ]
    return {
        "bits_per_byte": story["result"]["measures"]["bits_per_byte"],
        "tokens": story["result"]["tokens_seen"],
        "chosen": {name: story["recipe"]["train"][name] for name in ("batch_size", "accumulate", "lr", "warmup")},
        "curve": curve,
    }


def peer(job: dict[str, Any]) -> dict[str, Any]:
    """A script in the manner of run_clm.py, with public parts only, and a clock."""
    import datasets
    import torch
    from transformers import (
        AutoModelForCausalLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from sslnlp.precision import fitting_precision

    datasets.disable_progress_bars()
    paused = clock()
    score = Scorer(job)
    paused = {name: now - paused[name] for name, now in clock().items()}
    block = job["block"]

    def tokenise(examples: dict[str, list[str]]) -> Any:
        lean = {"return_attention_mask": False} if job["tuned"] else {}
        return score.tokenizer(examples["text"], **lean)

    def group(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: [i for ids in column for i in ids] for name, column in examples.items()}
        total = len(joined["input_ids"]) // block * block
        cut = {name: [ids[i : i + block] for i in range(0, total, block)] for name, ids in joined.items()}
        return cut if job["tuned"] else cut | {"labels": [list(ids) for ids in cut["input_ids"]]}

    raw = datasets.load_dataset("parquet", data_files=job["train"], split="train", cache_dir=job["folder"] + "/cache")
    raw = raw.map(tokenise, batched=True, remove_columns=raw.column_names)
    rows = raw.map(group, batched=True)
    prepared = {name: now - paused[name] for name, now in clock().items()}
    set_seed(job["seed"])
    # In bf16 plain matrix products are the faster attention on a CPU (`benchmarks.step`).
    half = job["tuned"] and fitting_precision(torch.device("cpu")) == "bf16"
    model = AutoModelForCausalLM.from_config(score.config, **({"attn_implementation": "eager"} if half else {}))
    options = PEER | {"optim": "adamw_torch_fused", "learning_rate": job["lr"], "bf16": half} if job["tuned"] else {}
    arguments = TrainingArguments(
        job["folder"] + "/trainer", per_device_train_batch_size=job["batch"], max_steps=job["steps"], seed=job["seed"],
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    curve: list[dict[str, float]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % max(1, job["steps"] // 10) and state.global_step < job["steps"]:
                return
            now = clock()
            point = {name: now[name] - paused[name] for name in now}
            curve.append({"step": state.global_step, **point, "bits_per_byte": score(model)})
            after = clock()
            for name in paused:
                paused[name] += after[name] - now[name]

    collator = DataCollatorForLanguageModeling(score.tokenizer, mlm=False)
    Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[Look()],
        processing_class=score.tokenizer,
    ).train()  # fmt: skip
    tokens = job["steps"] * job["batch"] * block
    return {"prepared": prepared, "curve": curve, "tokens": tokens, "bits_per_byte": curve[-1]["bits_per_byte"]}


class Scorer:
    """Held-out bits per byte of a stock decoder: our held-out pass on the recipe's own rows of the held-out text."""

    def __init__(self, job: dict[str, Any]) -> None:
        from sslnlp.data.stream import Stream
        from sslnlp.models import build_config
        from sslnlp.recipe import load_recipe, override
        from sslnlp.recipe.build import build_parts, resolve

        keys = {
            "data.train": job["valid"], "data.valid_fraction": 0, "data.deduplicate": False,
            "data.cache": job["out"] + "/scoring", "tokenizer.path": job["tokenizer"], "model.size": job["size"],
        }  # fmt: skip
        recipe, _ = resolve(override(load_recipe("pretrain_gpt"), keys))
        self.parts = build_parts(recipe)
        self.rows = Stream.fixed(self.parts.stream.source)
        self.tokenizer = self.parts.tokenizer
        self.config = build_config(recipe.model, self.tokenizer, self.parts.max_length)

    def __call__(self, model: Any) -> float:
        from copy import deepcopy

        from sslnlp.adapt import adapt
        from sslnlp.evaluation import evaluate_held_out
        from sslnlp.objectives.causal_lm import CausalLM

        copy = deepcopy(model)
        adapt(copy)
        figures = evaluate_held_out(
            CausalLM(copy), self.parts.collator, self.rows, batch_size=32, num_bytes=self.parts.facts["bytes"]
        )
        return figures["bits_per_byte"]


def clock() -> dict[str, float]:
    """Seconds since this process was started by the race, and its CPU seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": time.time() - float(os.environ["STARTED"]), "cpu": used.ru_utime + used.ru_stime}


SIDES = {"ours": ours, "peer": peer}


def main() -> None:
    side, job = sys.argv[1], json.loads(sys.argv[2])
    Path(job["result"]).write_text(json.dumps(SIDES[side](job)))


if __name__ == "__main__":
    command(main)
