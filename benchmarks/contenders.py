"""What takes turns in `benchmarks.step`, `.ablation` and `.gpu`: ours, transformers' Trainer, a loop like nanoGPT's.

`save_work` writes the weights and batches that all of them start from; a contender loads them, makes updates in rounds
(see `benchmarks.common`), and keeps the losses of all its steps, so that nobody gets a ratio for other work.
"""

from __future__ import annotations

import importlib.util
import operator
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.common import Gate, flops_per_token
from benchmarks.small_gpt import SmallGPT

RATE = 0.3
OPTIMISER = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def build(kind: str, sizes: Mapping[str, int], *, dropout: float = 0.0, **options: Any) -> PreTrainedModel:
    """The stock model, from seed 0: the same weights whatever the dropout."""
    torch.manual_seed(0)
    layers, width, vocabulary, length = (sizes[name] for name in ("layers", "width", "vocabulary", "length"))
    if kind == "masked":
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
            intermediate_size=4 * width, max_position_embeddings=length, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        return BertForMaskedLM._from_config(config, **options)
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=length, bos_token_id=0,
        eos_token_id=0, **rates,
    )  # fmt: skip
    return GPT2LMHeadModel._from_config(config, **options)


def make_batches(kind: str, sizes: Mapping[str, int], text: Path | None) -> list[dict[str, Tensor]]:
    """A few batches that all contenders go round in: rows full of text, targets at the same places for all."""
    vocabulary, length, rows = sizes["vocabulary"], sizes["length"], sizes["batch"] * sizes["batches"]
    generator = torch.Generator().manual_seed(0)
    if text is None:
        # Zipf's law, so that there is something to learn.
        weights = 1 / torch.arange(5, vocabulary + 5).double()
        ids = torch.multinomial(weights, rows * length, replacement=True, generator=generator).view(rows, length)
    else:
        ids = text_ids(text, vocabulary, rows * length).view(rows, length)
    labels = ids.clone()
    if kind == "masked":
        chosen = torch.rand(rows, length, generator=generator).argsort(1) < round(RATE * length)
        labels = ids.masked_fill(~chosen, -100)
        ids = ids.masked_fill(chosen, 4)
    else:
        # Nothing predicts the first token of a row; HF's Trainer would still divide by it.
        labels[:, 0] = -100
    return [
        {"input_ids": ids[i : i + sizes["batch"]], "labels": labels[i : i + sizes["batch"]]}
        for i in range(0, rows, sizes["batch"])
    ]


def text_ids(path: Path, vocabulary: int, count: int) -> Tensor:
    from sslnlp.tokenizer import train_tokenizer

    if path.suffix == ".parquet":
        import datasets

        texts = datasets.Dataset.from_parquet(str(path))["text"][: count // 100]
    else:
        texts = path.read_text(encoding="utf-8")[: count * 8].split("\n\n")
    tokenizer = train_tokenizer(texts, vocab_size=vocabulary)
    found = [i for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for i in ids]
    if len(found) < count:
        raise SystemExit(f"{path} has {len(found)} tokens, {count} are needed; give a longer text or fewer batches")
    return torch.tensor(found[:count])


# --- each contender loads the same file of weights and batches --------------------------------------------------------


class Device:
    """Where a contender computes: what a clock has to wait for, and the memory it takes."""

    def __init__(self, name: str) -> None:
        self.name, self.gpu = name, name == "cuda"
        if not self.gpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"

    def facts(self) -> dict[str, Any]:
        """Waits for the device."""
        if not self.gpu:
            return {}
        torch.cuda.synchronize()
        return {"gpu_memory": torch.cuda.max_memory_allocated()}

    def rest(self) -> dict[str, Any]:
        """Before the first turn: leaves the memory of the warm-up to the others, who get ready."""
        facts = self.facts()
        if self.gpu:
            torch.cuda.empty_cache()
        return facts

    def host(self, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """As a loader with `pin_memory` gives them, where there is a GPU."""
        if not self.gpu:
            return batches
        return [{name: value.pin_memory() for name, value in batch.items()} for batch in batches]


def rounds(
    gate: Gate,
    step: Callable[[int], Tensor],
    device: Device,
    *,
    warmup: int,
    steps: int,
    tokens: int,
    flops: float,
    profile: str | None = None,
) -> None:
    """`warmup` steps, then rounds of `steps`; `step(n)` makes update n and returns its loss.

    After the last round, so that no clock sees it, three steps are profiled into the text file `profile`.
    """
    losses = [step(n) for n in range(warmup)]
    gate(losses=[float(loss) for loss in losses], **device.rest())
    n = warmup
    while True:
        losses = [step(n + i) for i in range(steps)]
        n += steps
        facts = device.facts()
        try:
            gate(units=steps * tokens, flops=steps * tokens * flops, losses=[float(loss) for loss in losses], **facts)
        except SystemExit:
            if profile is not None:
                Path(profile).write_text(profiled(lambda n=n: [step(n + i) for i in range(3)], device))
            raise


def profiled(function: Callable[[], Any], device: Device) -> str:
    """What took longest on the device, as a table."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CUDA if device.gpu else ProfilerActivity.CPU]
    with profiler(activities=kinds) as record:
        function()
        device.facts()
    order = f"self_{'cuda' if device.gpu else 'cpu'}_time_total"
    return str(record.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=70))


def load(work: str) -> tuple[dict[str, Any], PreTrainedModel, Device]:
    """The file of `save_work`, with the model for contenders without dropout."""
    made = torch.load(work)
    model = build(made["kind"], made["sizes"])
    model.load_state_dict(made["weights"])
    return made, model, Device(made["device"])


def save_work(path: Path, kind: str, sizes: Mapping[str, int], text: Path | None = None, device: str = "cpu") -> str:
    """Writes what all contenders start from: batches, weights, and how far a token attends, for counting FLOPs."""
    # Fused causal kernels on a GPU skip what lies ahead, half of the pairs; it is counted so for everyone.
    attended = sizes["length"] / 2 if kind == "causal" and device == "cuda" else float(sizes["length"])
    made = {"kind": kind, "sizes": dict(sizes), "device": device, "attended": attended}
    made |= {"batches": make_batches(kind, sizes, text), "weights": build(kind, sizes).state_dict()}
    torch.save(made, path)
    return str(path)


def _without_readers() -> None:
    """Where `datasets` and `evaluate` are not installed something stands in for them: steps are made of batches, and
    nothing is read or measured."""
    for name in ("datasets", "evaluate"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None), Metric=object)


def sslnlp_(
    gate: Gate,
    *,
    work: str,
    precision: str = "bf16",
    compiled: bool = False,
    documents: bool = False,
    kept: bool = True,
    **turns: Any,
) -> None:
    """`kept`: whether freed memory stays with the process, as `Trainer` has it."""
    _without_readers()
    from sslnlp import train
    from sslnlp.adapt import adapt
    from sslnlp.objectives import get_objective
    from sslnlp.train import TrainConfig
    from sslnlp.train import Trainer as OurTrainer

    if not kept:
        train.keep_freed_memory = lambda: False
    made, model, device = load(work)
    kind, batches = made["kind"], made["batches"]
    adapt(model)
    objective: Any = get_objective(f"{kind}_lm")(model)
    config = TrainConfig(
        steps=10**6, schedule="constant", warmup=0, precision=precision, compile=compiled, **OPTIMISER
    )  # fmt: skip
    for batch in batches:
        ids = batch["input_ids"]
        batch["attention_mask"] = torch.ones_like(ids)
        batch["position"] = torch.arange(len(ids))
        if kind == "masked":
            batch["target_index"] = (batch["labels"].flatten() != -100).nonzero()[:, 0]
        if documents:  # the second half of every row is another document
            half = ids.shape[1] // 2
            batch["document_ids"] = (torch.arange(ids.shape[1]) >= half).int().expand(ids.shape).contiguous()
            batch["position_ids"] = (torch.arange(ids.shape[1]) % half).expand(ids.shape).contiguous()
    with tempfile.TemporaryDirectory() as folder:
        made_before: Any = operator.itemgetter(0)
        trainer = OurTrainer(objective, made_before, made_before, config, out=Path(folder))
        trainer.module.train()
        batches = device.host([trainer.collate([batch]) for batch in batches])

        def step(n: int) -> Tensor:
            sums = trainer.train_step([batches[n % len(batches)]], n, 10**6)
            return sums["loss"] / sums["targets"]

        ids = batches[0]["input_ids"]
        scored = len(batches[0].get("target_index", ids.flatten())) / ids.numel()
        asks = not compiled and not device.gpu
        flops = flops_per_token(model, attended=made["attended"], scored=scored, asked=scored, asks=asks)
        rounds(gate, step, device, tokens=ids.numel(), flops=flops, **turns)


class _Turns(TrainerCallback):
    def __init__(
        self, gate: Gate, losses: list[Tensor], device: Device, *, warmup: int, steps: int, tokens: int, flops: float
    ) -> None:
        self.gate, self.losses, self.device, self.warmup, self.steps = gate, losses, device, warmup, steps
        self.tokens, self.flops = tokens, flops

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step - self.warmup
        if done < 0 or done % self.steps:
            return
        facts = self.device.facts() if done else self.device.rest()
        losses = [float(loss) for loss in self.losses]
        self.losses.clear()
        if done == 0:
            self.gate(losses=losses, **facts)
        else:
            tokens = self.steps * self.tokens
            self.gate(units=tokens, flops=tokens * self.flops, losses=losses, **facts)


class _Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, batches: list[dict[str, Tensor]], repeats: int) -> None:
        self.rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        self.count = len(self.rows["input_ids"])
        self.length = self.count * repeats

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index % self.count] for name, value in self.rows.items()}


class _InOrder(Trainer):
    """Rows in their order, and the losses kept: nothing else is changed."""

    kept: list[Tensor]

    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.kept.append(loss.detach())
        return loss


def hf_trainer(
    gate: Gate,
    *,
    work: str,
    bf16: bool = False,
    dropout: float = 0.0,
    attention: str = "sdpa",
    compiled: bool = False,
    workers: int = 0,
    kept: bool = False,
    warmup: int,
    steps: int,
) -> None:
    """`workers` above 0 makes it the tuned loader as well: fetching ahead, and no look at each loss for NaN. `kept`
    gives it our way with freed memory."""
    if kept:
        from sslnlp.heap import keep_freed_memory

        keep_freed_memory()
    made = torch.load(work)
    kind, sizes, batches, device = made["kind"], made["sizes"], made["batches"], Device(made["device"])
    model = build(kind, sizes, dropout=dropout, attn_implementation=attention)
    model.load_state_dict(made["weights"])
    options: dict[str, Any] = {"use_cpu": True, "dataloader_pin_memory": False}
    if device.gpu:
        options = {"dataloader_num_workers": workers, "logging_nan_inf_filter": workers == 0}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=sizes["batch"], max_steps=10**6, learning_rate=OPTIMISER["lr"],
            lr_scheduler_type="constant", adam_beta2=OPTIMISER["betas"][1], weight_decay=OPTIMISER["weight_decay"],
            bf16=bf16, torch_compile=compiled, report_to="none", save_strategy="no", disable_tqdm=True,
            logging_strategy="no", optim="adamw_torch_fused", **options,
        )  # fmt: skip
        trainer = _InOrder(model=model, args=arguments, train_dataset=_Rows(batches, 10**5))
        trainer.kept = []
        tokens = batches[0]["input_ids"].numel()
        flops = flops_per_token(model, attended=made["attended"], scored=1.0)
        trainer.add_callback(_Turns(gate, trainer.kept, device, warmup=warmup, steps=steps, tokens=tokens, flops=flops))
        trainer.train()


def short_loop(
    gate: Gate, *, work: str, compiled: bool, bf16: bool = True, plain: bool = False, kept: bool = False, **turns: int
) -> None:
    """In the style of nanoGPT: bf16 autocast unless told otherwise, fused AdamW, clipping, torch.compile if asked;
    `kept` gives it our way with freed memory."""
    if kept:
        from sslnlp.heap import keep_freed_memory

        keep_freed_memory()
    made, stock, device = load(work)
    model = SmallGPT(stock, plain=plain).to(device.name)
    torch.set_float32_matmul_precision("high" if device.gpu else "highest")
    run: Any = torch.compile(model) if compiled else model
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=True, **OPTIMISER)
    batches = device.host(made["batches"])
    last = torch.full((made["sizes"]["batch"], 1), -1, device=device.name)

    def step(n: int) -> Tensor:
        ids = batches[n % len(batches)]["input_ids"].to(device.name, non_blocking=True)
        with torch.autocast(device.name, torch.bfloat16, enabled=bf16):
            loss = run(ids, torch.cat([ids[:, 1:], last], dim=1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    flops = flops_per_token(stock, attended=made["attended"], scored=1.0)
    rounds(gate, step, device, tokens=batches[0]["input_ids"].numel(), flops=flops, **turns)
