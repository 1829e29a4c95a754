"""The average of the weights: by hand, what sees it, and that a resumed run has the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslnlp.averaging import Average
from sslnlp.errors import UserError
from sslnlp.train import Interrupted, TrainConfig
from tests.contract import difference, digest, make_trainer


def test_an_average_by_hand() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    average = Average(module, 0.3)
    for step, (weight, expected) in enumerate([(2.0, 1.9), (3.0, 2.8)]):  # a tenth stays, then 2 of 11
        module.weight.data.fill_(weight)
        average.update(step)
        expected = expected if step == 0 else 1.9 * 2 / 11 + 3.0 * 9 / 11
        assert float(average.values["weight"]) == pytest.approx(expected)
    before = float(average.values["weight"])
    module.weight.data.fill_(5.0)
    average.update(100)  # from here on three tenths
    assert float(average.values["weight"]) == pytest.approx(0.3 * before + 0.7 * 5.0)


def test_frozen_weights_are_left_alone() -> None:
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert set(Average(module, 0.9).values) == {"weight"}


def test_it_is_shown_and_taken_away() -> None:
    module = torch.nn.Linear(2, 2)
    average = Average(module, 0.9)
    module.weight.data += 1
    trained = module.weight.clone()
    with average.shown():
        assert torch.equal(module.weight, average.values["weight"])
    assert torch.equal(module.weight, trained)


def test_training_goes_on_as_without_and_ends_with_the_average(tmp_path: Path) -> None:
    seen: list[str] = []

    def run(name: str, ema: float) -> torch.nn.Module:
        trainer = make_trainer("causal_lm", tmp_path / name, steps=8, ema=ema, eval_every=4, keep_best=False)
        evaluate = trainer.evaluate
        trainer.evaluate = lambda objective: (  # type: ignore[method-assign]
            seen.append(digest(objective.state_dict())) or (evaluate(objective) if evaluate else {"loss": 1.0})
        )
        inner = trainer.train_step
        trained: list[str] = []

        def step(*arguments: object) -> object:
            found = inner(*arguments)  # type: ignore[arg-type]
            trained.append(digest(trainer.objective.state_dict()))
            return found

        trainer.train_step = step  # type: ignore[method-assign, assignment]
        final = trainer.fit()
        curves.append(trained)
        return final

    curves: list[list[str]] = []
    last, averaged = run("plain", 0.0), run("average", 0.5)
    assert curves[0] == curves[1]
    assert digest(last.state_dict()) == curves[0][-1]
    assert difference(last.state_dict(), averaged.state_dict()) > 1e-4
    assert seen[-1] == digest(averaged.state_dict()) != curves[1][-1]


def test_a_resumed_run_has_the_average_of_the_straight_one(tmp_path: Path) -> None:
    straight = make_trainer("masked_lm", tmp_path / "straight", steps=6, ema=0.8).fit()
    trainer = make_trainer("masked_lm", tmp_path / "run", steps=6, ema=0.8)
    trainer._signals.received = 0
    trainer.on_progress = lambda step, steps, metrics: setattr(trainer._signals, "received", 15) if step == 3 else None
    with pytest.raises(Interrupted):
        trainer.fit()
    resumed = make_trainer("masked_lm", tmp_path / "run", steps=6, ema=0.8).fit(resume=True)
    assert digest(resumed.state_dict()) == digest(straight.state_dict())


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"train.ema is a share from 0 to below 1, got 1.0"):
        TrainConfig(steps=1, ema=1.0)
