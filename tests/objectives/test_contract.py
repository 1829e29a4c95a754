"""What every registered objective must satisfy; a new one is tested by being registered."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sslnlp.checkpoint import newest_valid, place_of
from sslnlp.metrics import read_metrics
from sslnlp.objectives import OBJECTIVES
from tests import ranks
from tests.contract import (
    LEARNS,
    RATES,
    VARIANTS,
    architectures,
    build_objective,
    difference,
    digest,
    make_collator,
    make_objective,
    make_stream,
    make_trainer,
    objective_class,
    one_batch,
    train_jobs,
)

NAMES = sorted({*OBJECTIVES, *VARIANTS})
PAIRS = [(name, architecture) for name in NAMES for architecture in architectures(name)]
# Each objective with the first architecture it is tried with; the others are longer checks.
FIRST_FAST = [
    pytest.param(name, architecture, marks=[pytest.mark.slow] if architecture != architectures(name)[0] else [])
    for name, architecture in PAIRS
]
INDEPENDENT = [name for name in NAMES if not objective_class(name).couples_rows]
# Begun on two processes, not only gone on with: rows apart, a queue and an average, rows together, several losses.
FRESH = ("masked_lm", "moco", "ranking", "joint")
STEPS = {name: 4 if name in FRESH else 3 for name in NAMES}
"""Updates of the runs that are held against each other: all go on from the second, and these once more after that."""
LIKE_OTHERS = "segment_order span_corruption ul2 fim prefix_lm ul2_decoder masked_diffusion"
LIKE_OTHERS += " regression multi_label tagging rotation"
"""Those whose loss is made by the lines of another one that goes on with two processes: they do in the longer check.
That each of them weighs rows as if there were no parts is for accumulation to say."""


def flatten(batch: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}
    for key, value in batch.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@pytest.mark.parametrize("name", NAMES)
def test_names_agree_and_needs_are_made(name: str) -> None:
    cls = objective_class(name)
    collator = type(make_collator(name)).bound(cls.collator_options({}))
    assert (cls.name, collator.name) == VARIANTS.get(name, (name, cls.collator))
    assert cls.needs <= collator.makes
    assert collator.makes <= set(one_batch(name))


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_loss_is_a_finite_scalar_that_moves_every_trainable_parameter(name: str, architecture: str) -> None:
    """And the batch is untouched."""
    objective = make_objective(name, architecture)
    batch = one_batch(name)
    before = {key: value.clone() for key, value in flatten(batch).items()}
    output = objective(batch)
    assert output.loss.shape == ()
    assert torch.isfinite(output.loss)
    assert all(value.shape in ((), (2,)) and not value.requires_grad for value in output.metrics.values())
    if output.terms is not None:
        assert torch.allclose(output.terms.sum(), output.loss)
        assert output.terms.shape == objective.num_targets(batch).shape
    output.loss.backward()
    missing = [key for key, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(torch.equal(before[key], value) for key, value in flatten(batch).items())
    assert int(objective.num_targets(batch).sum()) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_rows_at_the_same_positions_give_the_same_batch(name: str) -> None:
    first, again, later = one_batch(name), one_batch(name), one_batch(name, start=6)
    assert all(torch.equal(a, b) for a, b in zip(flatten(first).values(), flatten(again).values(), strict=True))
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(flatten(first).values(), flatten(later).values(), strict=True)
    )


@pytest.mark.parametrize(("name", "architecture"), FIRST_FAST)
def test_one_batch_can_be_learned_by_heart(name: str, architecture: str) -> None:
    objective = make_objective(name, architecture).train()
    batch = one_batch(name, rows=5)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=RATES.get(name, 3e-3), fused=True)
    losses: list[float] = []
    share = LEARNS.get(name, 0.3)
    while not losses or (losses[-1] > share * losses[0] and len(losses) < 300):
        loss = objective(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(1.0)
        losses.append(loss.item())
    assert losses[-1] <= share * losses[0]


@dataclasses.dataclass
class Run:
    """A run of one objective from its beginning to its end, which other ways to the same end are held against."""

    name: str
    out: Path
    start: dict[str, torch.Tensor]
    end: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def straight_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Updates of 16 rows with dropout, saved after the second and the last; one run for all tests that come to it."""

    @functools.cache
    def run(name: str) -> Run:
        out = tmp_path_factory.mktemp("straight")
        trainer = make_trainer(name, out, steps=STEPS[name], dropout=0.1, batch_size=16, save_every=2, keep=9)
        start = copy.deepcopy(trainer.objective.state_dict())
        return Run(name, out, start, trainer.fit().state_dict())

    return run


@pytest.fixture(params=NAMES)
def straight(request: pytest.FixtureRequest, straight_of: Callable[[str], Run]) -> Run:
    return straight_of(request.param)


@pytest.mark.parametrize("straight", INDEPENDENT, indirect=True)
def test_accumulation_changes_nothing(straight: Run, tmp_path: Path) -> None:
    """1×16 and 2×8 rows are the same updates, in some 4×4: to rounding, with dropout, targets being unequal."""
    assert difference(straight.end, straight.start) > 1e-4
    size = 4 if straight.name in FRESH else 8
    options = {"steps": STEPS[straight.name], "batch_size": size, "accumulate": 16 // size}
    parts = make_trainer(straight.name, tmp_path, dropout=0.1, **options)
    assert difference(straight.end, parts.fit().state_dict()) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_no_way_to_accumulate_changes_anything(name: str, dropout: float, tmp_path: Path) -> None:
    """1×32, 4×8 and 8×4 rows."""
    states = [
        make_trainer(name, tmp_path / str(size), dropout=dropout, batch_size=size, accumulate=accumulate, steps=3)
        .fit()
        .state_dict()
        for size, accumulate in ((32, 1), (8, 4), (4, 8))
    ]
    assert difference(states[0], states[1]) < 2e-5
    assert difference(states[0], states[2]) < 2e-5


def test_resumed_with_other_workers_is_the_straight_run(straight: Run, tmp_path: Path) -> None:
    """From the second update on, of a run that was interrupted after its third; of most objectives, of the straight
    run itself, the rest of which is forgotten."""
    steps = STEPS[straight.name]
    run, options = tmp_path / "run", {"steps": steps, "batch_size": 16, "save_every": 2, "dropout": 0.1}
    if straight.name in FRESH:
        broken = make_trainer(straight.name, run, **options)

        def die(step: int, steps: int, metrics: Any) -> None:
            if step == 3:
                raise KeyboardInterrupt

        broken.on_progress = die
        with pytest.raises(KeyboardInterrupt):
            broken.fit()
    else:
        shutil.copytree(straight.out, run)
        shutil.rmtree(place_of(run / "state", steps))
    assert newest_valid(run / "state").name == "step-00000002"
    resumed = make_trainer(straight.name, run, workers=2 if straight.name in FRESH else 1, **options)
    assert digest(resumed.fit(resume=True).state_dict()) == digest(straight.end)
    curves = [read_metrics(out / "metrics.jsonl") for out in (straight.out, run)]
    for line in (*curves[0], *curves[1]):
        line.pop("train/tokens_per_second")
    assert curves[0] == curves[1]
    assert [line["step"] for line in curves[0]] == list(range(1, steps + 1))


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_exported_reloads_with_equal_outputs(name: str, architecture: str, tmp_path: Path) -> None:
    objective = make_objective(name, architecture).eval()
    objective.exported.save_pretrained(tmp_path)
    stock = getattr(transformers, type(objective.exported).__name__).from_pretrained(tmp_path).eval()
    assert "row_keyed" not in (tmp_path / "config.json").read_text()
    inputs: dict[str, torch.Tensor] = {}
    if (tokenizer := make_collator(name).tokenizer) is not None:
        inputs = dict(tokenizer(["The cat sees a dog.", "One mouse."], padding=True, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    if objective.exported.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    pixels = [x for key, x in flatten(one_batch(name)).items() if key.endswith("pixel_values")]
    if pixels:
        inputs["pixel_values"] = pixels[0]
    with torch.no_grad():
        ours, theirs = objective.exported(**inputs)[0], stock(**inputs)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_moves_in_evaluation(name: str) -> None:
    objective = make_objective(name).eval()
    before = copy.deepcopy(objective.state_dict())
    with torch.no_grad():
        first, second = objective(one_batch(name)).loss, objective(one_batch(name)).loss
    assert torch.equal(first, second)
    assert difference(before, objective.state_dict()) == 0 if before else True


def launch(folder: Path, processes: int, *jobs: str) -> None:
    command = [sys.executable, "-m", "tests.contract", str(folder), *jobs]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launcher, *command[1:]]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([name for name in NAMES if name not in LIKE_OTHERS.split()], id="different"),
        pytest.param(NAMES, id="all", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(names: list[str], straight_of: Callable[[str], Run], tmp_path: Path) -> None:
    """A run stopped on one process goes on with two gloo processes × 8 rows; and some, back on one, or begun on two."""
    one = {name: straight_of(name).end for name in names}
    for name in names:
        shutil.copytree(straight_of(name).out, tmp_path / "run" / name)
    # Forget the second half of the runs of one process, and let two processes redo it; then one the last step of that.
    for name in names:
        shutil.rmtree(place_of(tmp_path / "run" / name / "state", STEPS[name]))
    every = {name: 3 if name in FRESH else 9 for name in names}
    redone = [
        f"{name}:steps={STEPS[name]}:batch_size=16:save_every={every[name]}:keep=9:resume=1:out=run/{name}"
        for name in names
    ]
    fresh = [f"{name}:out=fresh/{name}" for name in FRESH]
    ranks.run(lambda: train_jobs(tmp_path, *redone, *fresh), tmp_path)
    for name in names:
        assert difference(one[name], torch.load(tmp_path / "run" / f"{name}.pt")) < 2e-5, name
    for name in FRESH:
        shutil.rmtree(place_of(tmp_path / "run" / name / "state", STEPS[name]))
        assert newest_valid(tmp_path / "run" / name / "state").name == "step-00000003"
        alone = make_trainer(name, tmp_path / "run" / name, batch_size=8, save_every=9, keep=9, dropout=0.1)
        assert difference(alone.fit(resume=True).state_dict(), one[name]) < 2e-5, name
        assert difference(one[name], torch.load(tmp_path / "fresh" / f"{name}.pt")) < 2e-5, name


@pytest.mark.slow
def test_all_can_begin_on_two_processes(tmp_path: Path) -> None:
    launch(tmp_path, 2, *(f"{name}:out=fresh/{name}" for name in NAMES))
    for name in NAMES:
        one = make_trainer(name, tmp_path / "one" / name, batch_size=16, dropout=0.1).fit().state_dict()
        assert difference(one, torch.load(tmp_path / "fresh" / f"{name}.pt")) < 2e-5, name


def test_different_seeds_give_different_streams() -> None:
    orders = [make_stream("masked_lm", seed).index(range(20)).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
def test_state_holds_the_model_once(name: str, architecture: str) -> None:
    objective = build_objective(name, architecture)  # itself: in a copy, what shares a storage may not
    inside = {f"model.{key}" for key in objective.model.state_dict()}
    own = set(objective.state_dict()) - inside
    shared = {tensor.data_ptr() for tensor in objective.model.state_dict().values()}
    assert not [key for key in own if objective.state_dict()[key].data_ptr() in shared]
