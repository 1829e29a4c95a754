"""The flag of a bad gradient read one update late, as on a GPU: forced on a CPU, where the same code runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslnlp import finite
from sslnlp.checkpoint import load_checkpoint
from sslnlp.finite import Finite, NonFiniteError
from sslnlp.metrics import read_metrics
from sslnlp.muon import Muon
from sslnlp.optim import adamw
from sslnlp.train import Trainer
from tests.contract import difference, digest, make_trainer
from tests.test_train import poisoned

NAN, ONE = torch.tensor(float("nan")), torch.tensor(1.0)


def late(out: Path, bad_step: int, **options: Any) -> Trainer:
    trainer = poisoned(out, bad_step, **{"log_every": 100} | options)
    assert not trainer._finite.late, "on a CPU the flag is read at once"
    trainer._finite.late = True
    return trainer


def test_late_the_update_before_is_named() -> None:
    flags = Finite(late=True)
    assert [float(flags.look(ONE, 0)), float(flags.look(NAN, 1))] == [0.0, 1.0]  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="the gradient of step 1 is not finite") as caught:
        flags.look(ONE, 2)
    assert caught.value.step == 1
    flags.settle()  # it is said once
    assert flags.look(torch.tensor(float("inf")), 3) is not None
    with pytest.raises(NonFiniteError, match="step 3"):
        flags.settle()


def test_at_once_this_update_is_named_and_the_optimiser_has_no_flag() -> None:
    flags = Finite(late=False)
    assert flags.look(ONE, 0) is None
    with pytest.raises(NonFiniteError, match="step 1"):
        flags.look(NAN, 1)


def test_no_flag_is_read_in_the_update_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("masked_lm", tmp_path, steps=4, log_every=100, save_every=100)
    trainer._finite.late = True
    said: list[str] = []

    def reader(flag: torch.Tensor) -> Any:
        number = sum(line.startswith("flag") for line in said)
        said.append(f"flag {number}")
        return lambda: said.append(f"read {number}") or bool(flag)

    monkeypatch.setattr(finite, "on_its_way", reader)
    trainer.objective.after_step = lambda progress: said.append("update done")  # type: ignore[method-assign]
    trainer.fit()
    done = [i for i, line in enumerate(said) if line == "update done"]
    assert len(done) == 4
    assert [said.index(f"read {n}") > done[n] for n in range(4)] == [True] * 4
    # One update late and no later: before the next flag is set.
    assert [said.index(f"read {n}") < said.index(f"flag {n + 1}") for n in range(3)] == [True] * 3


def state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for values in optimizer.state.values() for value in values.values()]


@pytest.mark.parametrize("make", [adamw, Muon])
def test_a_bad_gradient_leaves_weights_and_state_as_they_are(make: Any) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16))
    optimizer = make(module, lr=0.1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, dtype=torch.float32)

    def update(bad: bool) -> None:
        for p in module.parameters():
            p.grad = torch.randn_like(p)
        if bad:
            next(module.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
            module[1].weight.grad[0, 0] = float("-inf")
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()

    update(bad=True)
    before = digest(module.state_dict())
    update(bad=True)
    assert digest(module.state_dict()) == before
    update(bad=False)
    assert digest(module.state_dict()) != before
    before, kept = digest(module.state_dict()), [value.clone() for value in state(optimizer)]
    update(bad=True)
    assert digest(module.state_dict()) == before
    assert all(torch.equal(a, b) for a, b in zip(kept, state(optimizer), strict=True))
    assert {float(values["step"]) for values in optimizer.state.values()} == {1.0}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_with_the_flag_of_a_good_gradient_the_run_is_the_same(optimizer: str, tmp_path: Path) -> None:
    straight = make_trainer("masked_lm", tmp_path / "a", optimizer=optimizer).fit().state_dict()
    trainer = make_trainer("masked_lm", tmp_path / "b", optimizer=optimizer)
    trainer._finite.late = True
    # Muon's factors are tensors then, and rounded once more.
    assert difference(trainer.fit().state_dict(), straight) <= (1e-6 if optimizer == "muon" else 0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("bad_step", [2, 3, 5])  # found out by the next update, before a checkpoint, at the end
def test_a_run_stops_on_the_weights_before_the_bad_update(bad_step: int, optimizer: str, tmp_path: Path) -> None:
    trainer = late(tmp_path, bad_step, optimizer=optimizer)
    seen: list[str] = []
    after = trainer.objective.after_step

    def note(progress: float) -> None:
        seen.append(digest(trainer.objective.state_dict()))
        after(progress)

    trainer.objective.after_step = note  # type: ignore[method-assign]
    rows = rf"rows {4 * bad_step} to {4 * bad_step + 3}"
    with pytest.raises(NonFiniteError, match=rf"gradient of step {bad_step} \({rows}\) is not finite"):
        trainer.fit()
    assert seen[bad_step] == seen[bad_step - 1] == digest(trainer.objective.state_dict())
    assert all(p.grad is None for p in trainer.objective.parameters())
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == bad_step
    newest = max(int(path.name[5:]) for path in (tmp_path / "state").glob("step-*"))
    assert newest <= bad_step


@pytest.mark.parametrize("bad_step", [2, 3])
def test_rollback_skips_the_rows_of_the_bad_update(bad_step: int, tmp_path: Path) -> None:
    final = (trainer := late(tmp_path / "late", bad_step, on_nonfinite="rollback")).fit().state_dict()
    at_once = (other := poisoned(tmp_path / "at_once", bad_step, on_nonfinite="rollback")).fit().state_dict()
    assert trainer.progress.skipped == other.progress.skipped == [bad_step]
    assert digest(final) == digest(at_once)


def test_a_teacher_moved_by_a_bad_update_reaches_no_checkpoint(tmp_path: Path) -> None:
    """data2vec's teacher moves after every update: also after the bad one, but only in memory."""
    finals = {}
    for name in ("late", "at_once"):
        trainer = make_trainer(
            "data2vec", tmp_path / name, steps=6, save_every=2, keep=9, log_every=100, on_nonfinite="rollback"
        )
        trainer._finite.late = name == "late"
        spoil(trainer, update=3)
        finals[name] = digest(trainer.fit().state_dict())
        assert trainer.progress.skipped == [3]
        for path in (tmp_path / name / "state").glob("step-*"):
            saved = load_checkpoint(path)[0]["objective"]
            assert all(torch.isfinite(value).all() for value in saved.values())
    assert finals["late"] == finals["at_once"]
    parts = [load_checkpoint(tmp_path / name / "state" / "step-00000006")[0]["objective"] for name in finals]
    assert difference(*parts) == 0


def spoil(trainer: Trainer, update: int) -> None:
    """The gradient of this update is NaN, the first time it is made."""
    forward, train_step, spoiled = trainer.objective.forward, trainer.train_step, [False]

    def step(window: Any, step: int, steps: int) -> Any:
        spoiled[0] = step == update
        return train_step(window, step, steps)

    def bad(batch: Any) -> Any:
        output = forward(batch)
        return output._replace(loss=output.loss * float("nan")) if spoiled[0] else output

    trainer.train_step = step  # type: ignore[method-assign]
    trainer.objective.forward = bad  # type: ignore[method-assign]


def test_counts_of_updates_are_loaded_to_where_the_weights_are() -> None:
    """A checkpoint is read to the CPU; the fused kernel wants its counts beside the weights."""
    here = nn.Sequential(nn.Linear(32, 32))
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    optimizer = Muon(here, **options)
    for p in here.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    elsewhere = Muon(copy.deepcopy(here).to("meta"), **options)
    elsewhere.load_state_dict(optimizer.state_dict())
    assert {value.device.type for value in state(elsewhere)} == {"meta"}
