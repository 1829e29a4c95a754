"""Two gloo processes under FSDP2 are one process: weights, optimiser state, checkpoints both ways, export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sslnlp import distributed
from sslnlp.checkpoint import load_checkpoint, newest_valid
from sslnlp.cli import run_command
from sslnlp.errors import UserError
from sslnlp.metrics import read_metrics
from sslnlp.precision import new_accelerator
from sslnlp.recipe import reporting
from sslnlp.report.config import ReportConfig
from sslnlp.sharding import Sharding, layers, shard, sharding_asked
from tests import ranks
from tests.contract import architectures, corpus, difference, make_collator, make_objective, make_trainer, train_jobs

FSDP2 = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"]
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    # folder -> objective, options: one with a teacher, one with two models that share a matrix, gathered vectors,
    # one whose held-out pass does not go through `forward`, one whose two stacks are run apart from the whole
    "masked": ("masked_lm", {}),
    "causal": ("causal_lm", {}),
    "muon": ("causal_lm", {"optimizer": "muon", "embedding_lr_scale": 4}),
    "teacher": ("data2vec", {}),
    "generator": ("electra", {}),
    "coupled": ("ranking", {}),
    "locked": ("siglip", {}),
    "heads": ("tagging", {"eval_every": 4}),
    "written": ("span_corruption", {}),
}
FRESH = ("muon", "generator", "locked")
"""Those that are begun on two processes too: an optimiser and a shared matrix that are cut up before they are used, and
a tower that is held until the second update, which Adam counts all the same."""
COUPLED = ("coupled", "locked")
"""Those whose rows are compared, and so stay together."""


MEETS = """
import json, os
import torch
from sslnlp import distributed
from sslnlp.precision import new_accelerator

new_accelerator("no")
ranks = distributed.gather(torch.tensor([distributed.rank()])).tolist()
distributed.leave()
print(json.dumps([ranks, dict(os.environ)]) + "\\n", end="", flush=True)  # at once: they share a pipe
"""


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python, or `-m` and a module, on two processes as accelerate does."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "accelerate.commands.launch", *FSDP2, *command]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the first of two processes of a real `accelerate launch`, which met and ended well."""
    program = tmp_path_factory.mktemp("launched") / "meets.py"
    program.write_text(MEETS)
    told = [json.loads(line) for line in launch(str(program)).stdout.splitlines()]
    assert [ranks for ranks, _ in told] == [[0, 1], [0, 1]]
    return next(environment for _, environment in told if environment["RANK"] == "0")


def job(place: str, **more: Any) -> str:
    objective, options = JOBS[place]
    options = {"steps": 4, "save_every": 2, "keep": 9, "out": place} | options | more
    return ":".join([objective, *(f"{key}={value}" for key, value in options.items())])


def one_process(place: str, folder: Path, **options: Any) -> Any:
    objective, given = JOBS[place]
    return make_trainer(objective, folder, save_every=2, keep=9, dropout=0.1, **(given | options))


def largest(a: Any, b: Any) -> float:
    """The largest difference of two optimiser states."""
    assert a["param_groups"] == b["param_groups"]
    pairs = [(a["state"][i][name], b["state"][i][name]) for i in a["state"] for name in a["state"][i]]
    assert all(x.shape == y.shape for x, y in pairs)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)


@pytest.mark.parametrize(
    "places",
    [
        pytest.param(("muon", "generator", "locked", "heads"), id="some"),
        pytest.param(tuple(JOBS), id="all", marks=pytest.mark.slow),
    ],
)
def test_two_sharded_processes_are_one(places: tuple[str, ...], launched: dict[str, str], tmp_path: Path) -> None:
    """Two ranks × 4 rows × 2 = 16 rows; runs stopped on one process go on with two, and back on one."""
    one, two = tmp_path / "one", tmp_path / "two"
    straight = {place: one_process(place, one / place, batch_size=16).fit().state_dict() for place in places}
    shutil.copytree(one, two)
    for place in places:
        shutil.rmtree(two / place / "state" / "step-00000004")
    halves = {place: {"batch_size": 4, "accumulate": 2} for place in FRESH}
    halves |= {place: {"batch_size": 8} for place in COUPLED if place in FRESH}
    jobs = [job(place, out=f"two/{place}", batch_size=8, save_every=3, resume=1) for place in places]
    jobs += [job(place, out=f"fresh/{place}", save_every=9, **halves[place]) for place in FRESH]

    def train() -> None:
        assert sharding_asked() == Sharding()
        train_jobs(tmp_path, *jobs)

    ranks.run(train, tmp_path, **launched)
    for place in places:
        assert difference(straight[place], torch.load(two / f"{place}.pt")) < 2e-5, place
        ours, theirs = (load_checkpoint(run / place / "state" / "step-00000004")[0] for run in (one, two))
        assert difference(ours["objective"], theirs["objective"]) < 2e-5, place
        assert largest(ours["optimizer"], theirs["optimizer"]) < 2e-5, place
        shutil.rmtree(two / place / "state" / "step-00000004")
        assert newest_valid(two / place / "state").name == "step-00000003"
        resumed = one_process(place, two / place, batch_size=16 if place in COUPLED else 8)
        assert difference(resumed.fit(resume=True).state_dict(), straight[place]) < 2e-5, place
    for place in FRESH:
        assert difference(straight[place], torch.load(tmp_path / "fresh" / f"{place}.pt")) < 2e-5, place


class Scored(nn.Linear):
    predict = scored = nn.Linear.forward


def test_gradients_are_the_mean_where_gloo_has_none(tmp_path: Path) -> None:
    """As of PyTorch 2.8 its reduce-scatter gave the sum, whatever it was asked for."""

    def summed(scatter: Any, output: torch.Tensor, input: torch.Tensor, op: Any = None, **options: Any) -> Any:
        return scatter(output, input, **options)

    def work() -> None:
        new_accelerator("no")
        with pytest.MonkeyPatch.context() as patch:
            for name in ("reduce_scatter_tensor", "reduce_scatter_single"):  # what FSDP2 calls as of 2.8, and of 2.13
                if scatter := getattr(torch.distributed, name, None):
                    patch.setattr(torch.distributed, name, partial(summed, scatter))
            layer = shard(Scored(4, 2), Sharding(), torch.device("cpu"))
            layer(torch.full((1, 4), 2.0 + 4 * distributed.rank())).sum().backward()
        print([distributed.whole(p.grad).unique().tolist() for p in layer.parameters()])

    assert ranks.run(work, tmp_path) == ["[[4.0], [1.0]]\n"] * 2


@pytest.mark.slow
def test_a_sharded_run_leaves_the_export_of_one_process(tmp_path: Path) -> None:
    """From pretrained weights, through evaluations, the best checkpoint and the final figures, to the export."""
    (tmp_path / "corpus.txt").write_text("\n".join(corpus()))
    start, one, two = (tmp_path / name for name in ("start", "one", "two"))
    keys = [
        *("train", "pretrain_gpt", f"data.train={tmp_path / 'corpus.txt'}", f"data.cache={tmp_path / 'cache'}"),
        *("data.valid_fraction=0.1", "data.seq_length=32", "train.steps=4", "train.eval_every=1", "train.log_every=1"),
        # Worse after the first update; rates that are higher yet are worst there, and only round further afterwards.
        *("train.lr=0.1", "train.embedding_lr_scale=2", "train.eps=1e-3", "train.schedule=constant", "train.warmup=1"),
        # Not the recipe's Muon: many singular values of these gradients are below 3e-4, and there the last digit of a
        # gradient, which hangs on the CPU's kernels, becomes 4e-4 of an update. AdamW with this eps leaves it one. Both
        # agree to 1e-14 in float64.
        "train.optimizer=adamw",
    ]
    make_objective("causal_lm").model.save_pretrained(start)
    make_collator("causal_lm").tokenizer.save_pretrained(start)
    keys.append(f"model.pretrained={start}")
    said = launch("-m", "sslnlp", *keys, "train.batch_size=4", f"out={two}").stderr
    assert "FSDP2: 2 layers and the rest, each cut over 2 processes" in said
    assert run_command([*keys, "train.batch_size=8", f"out={one}"]) == 0
    losses = [line["valid/loss"] for line in read_metrics(one / "metrics.jsonl") if "valid/loss" in line]
    assert min(losses) < losses[-1]  # so the weights that are left are those of an earlier checkpoint
    # A gradient of another size is clipped to the same, so only its norm would show it.
    lines = [read_metrics(out / "metrics.jsonl") for out in (one, two)]
    figures = [[x for line in of for name, x in line.items() if "per_second" not in name] for of in lines]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    weights = [load_file(out / "export" / "model.safetensors") for out in (one, two)]
    assert difference(*weights) < 2e-6
    results = [json.loads((out / "recipe.json").read_text())["result"] for out in (one, two)]
    assert results[0]["measures"] == pytest.approx(results[1]["measures"], abs=1e-4)
    assert results[0]["samples"] == results[1]["samples"]


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "gpt2", "llama", "qwen3", "bart", "t5", "electra"])
def test_the_layers_that_are_gathered_one_by_one_hold_most_of_the_model(architecture: str) -> None:
    name = next(n for n in ("masked_lm", "causal_lm", "denoising", "electra") if architecture in architectures(n))
    objective = make_objective(name, architecture)
    found = layers(objective)
    assert len({type(layer) for layer in found}) == (2 if architecture == "bart" else 1)
    inside = [p for layer in found for p in layer.parameters()]
    assert len(set(inside)) == len(inside)  # nothing is shared between units
    outside = [name for name, p in objective.named_parameters() if p.ndim >= 2 and p not in set(inside)]
    assert all(
        any(part in name for part in ("embed", "head", "wte", "wpe", "shared", "cls", "dense")) for name in outside
    )


def test_what_cannot_be_sharded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding_asked() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--fsdp_version 2"):
        sharding_asked()
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "BertLayer,Other")
    assert sharding_asked() == Sharding(reshard_after_forward=False, layers=("BertLayer", "Other"))
    for name in ("offload_params", "activation_checkpointing"):
        monkeypatch.setenv(f"FSDP_{name.upper()}", "true")
        with pytest.raises(UserError, match=f"--fsdp_{name} true is not supported"):
            sharding_asked()
        monkeypatch.delenv(f"FSDP_{name.upper()}")
    with pytest.raises(UserError, match="no layer of the model is a Nope"):
        layers(make_objective("masked_lm"), ("Nope",))
    module = nn.Linear(2, 2)
    module.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(UserError, match=r"a single number \(temperature\)"):
        shard(module, Sharding(), torch.device("cpu"))


def test_a_report_while_sharded_weights_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: Any = SimpleNamespace(recipe=SimpleNamespace(report=ReportConfig(every=1)))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(reporting, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"report\.every measures whole models, which FSDP2 cuts up"):
        reporting.RunReport(parts)
