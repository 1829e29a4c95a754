"""What the benchmarks share: bad input ends in a line, and the same work is checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import data, short, step
from benchmarks.common import command, compare, flops_per_token
from benchmarks.contenders import build, make_batches
from benchmarks.small_gpt import SmallGPT
from sslnlp.adapt import adapt
from sslnlp.errors import UserError
from sslnlp.objectives.masked_lm import MaskedLM

TINY = ["--layers", "1", "--width", "64", "--vocabulary", "64", "--length", "8", "--batch", "2", "--batches", "1"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"text": ["the cat sat on the mat"] * 20, "empty": [None] * 20}), path)
    return path


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (step.main, ["masked", *TINY, "--only", "sslnlp bf61"], "there is no 'sslnlp bf61' .* Did you mean"),
        (step.main, ["causal", *TINY, "--only", "sslnlp bf16, compiled"], "there is no 'sslnlp bf16, compiled'"),
        (step.main, ["masked", *TINY, "--threads", "4096"], "4096 threads were asked for"),
        (step.main, ["masked", "--warmup", "0"], "0 is not above 0"),
        (step.main, ["masked", "--width", "100"], "100 is not a multiple of 64"),
        (data.main, ["encode", "nowhere.parquet"], "nowhere.parquet"),
        (data.main, ["encode", "CORPUS", "--algorithm", "bep"], "bpe"),
        (data.main, ["encode", "CORPUS", "--tokenizer", "nowhere"], "nowhere is not there"),
        (data.main, ["scale", "CORPUS", "--sizes", "3", "3"], "two different --sizes"),
        (short.main, ["masked", "CORPUS", "--columns", "txet"], "no column 'txet'. Did you mean 'text'"),
        (short.main, ["contrastive", "CORPUS", "--columns", "text"], "name two --columns"),
        (short.main, ["contrastive", "CORPUS", "--columns", "text", "empty"], "only 0 different pairs"),
    ],
)
def test_bad_arguments_end_in_one_line(
    main: Callable[[], None],
    arguments: list[str],
    said: str,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *(str(corpus) if a == "CORPUS" else a for a in arguments)])
    with pytest.raises(SystemExit) as ended:
        command(main)
    # What argparse refuses, or a line that is the exit itself.
    line = capsys.readouterr().err.strip().splitlines()[-1] if ended.value.code == 2 else str(ended.value.code)
    assert re.search(said, line), line


@pytest.mark.parametrize("path", sorted(Path(data.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    """Also inside its functions: they are run by hand, often months apart."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("benchmarks", "sslnlp"):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                inside = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{name}")
                assert hasattr(module, name) or inside, f"{node.module} has no {name}"


def test_the_short_loop_computes_the_stock_model_with_either_attention() -> None:
    sizes = {"layers": 2, "width": 64, "vocabulary": 64, "length": 8, "batch": 2, "batches": 1}
    stock, ids = build("causal", sizes).eval(), make_batches("causal", sizes, None)[0]["input_ids"]
    last = torch.full((2, 1), -1)
    expected = float(stock(ids, labels=ids).loss.detach())
    for plain in (False, True):
        loss = SmallGPT(stock, plain=plain)(ids, torch.cat([ids[:, 1:], last], dim=1))
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    # In bf16 on a CPU plain attention is the faster: the peers have it as well.
    options = {name: values for name, (_, values) in step.causal({"work": ""}).items()}
    assert options["short loop, bf16, plain attention, compiled"]["plain"]
    assert options["HF Trainer, bf16, eager attention"]["attention"] == "eager"


def refuses(gate: Any) -> None:
    raise UserError("too few rows")


@pytest.mark.slow
def test_bad_input_in_a_process_of_its_own_is_a_line_too() -> None:
    with pytest.raises(SystemExit, match=r"^peer:\ntoo few rows$"):
        compare({"peer": (refuses, {})}, rounds=1)


def test_the_noise_of_dropout_is_allowed_whoever_drops_out() -> None:
    curves = {step.DEFAULT: [5.0, 4.9], "HF Trainer, bf16": [5.0, 4.8]}
    for reference in curves:
        assert len(step.same_work(curves, reference, {step.DEFAULT})) == 2
    with pytest.raises(SystemExit, match="did not do the same work"):
        step.same_work(curves, step.DEFAULT, set())


@pytest.mark.parametrize("asks", [True, False])
def test_operations_of_a_step_are_those_that_are_run(asks: bool) -> None:
    """All matrix products of a forward pass but attention's, which PyTorch does not count on a CPU."""
    sizes = {"layers": 2, "width": 64, "vocabulary": 512, "length": 32, "batch": 8, "batches": 1}
    model = build("masked", sizes, dropout=0.0)
    if asks:  # otherwise the attention is not the package's, which alone leaves out queries
        adapt(model)
    objective = MaskedLM(model)
    (batch,) = make_batches("masked", sizes, None)
    index = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    tokens = batch["labels"].numel()
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        objective({**batch, "attention_mask": torch.ones_like(batch["input_ids"]), "target_index": index})
    share = len(index) / tokens
    whole = 4 * 64 * 32
    expected = counted.get_total_flops() / tokens + whole + (share if asks else 1) * whole
    assert flops_per_token(model, attended=32, scored=share, asked=share, asks=asks) / 3 == pytest.approx(expected)
