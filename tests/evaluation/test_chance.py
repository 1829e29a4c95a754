"""The alarm at chance: a loss that stays there is told of once, one that falls is not; and chance of a retrieval."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslnlp.data.stream import Stream
from sslnlp.evaluation.chance import GAIN, LEAST, ChanceWatch, at_chance
from sslnlp.evaluation.image_text import image_text_figures, image_text_measures, retrieval_ranks
from sslnlp.train import TrainConfig, Trainer
from tests.contract import make_collator, make_objective, make_stream

LEVEL = math.log(32)
FLAT = [LEVEL * (1 - GAIN / 2)] * 40
FALLING = [LEVEL * (1 - 0.01 * n) for n in range(40)]


def said(losses: list[float], name: str = "chance_loss", steps: int | None = None) -> list[tuple[int, str]]:
    watch, loss = ChanceWatch(), name.removesuffix("chance_loss") + "loss"
    lines = [
        (step, watch(step, steps or len(losses), {loss: value, name: LEVEL, "accuracy": 0.5}))
        for step, value in enumerate(losses, 1)
    ]
    return [(step, line) for step, line in lines if line]


def test_a_flat_loss_is_told_of_once_when_half_of_the_run_is_over() -> None:
    ((step, line),) = said(FLAT)
    assert step == 20
    assert line.startswith("step 20 of 40: the loss is at chance: 3.431, and a model that tells nothing has 3.466;")
    assert "\n" not in line


def test_what_is_not_at_chance() -> None:
    assert not said(FALLING)
    assert not said([LEVEL] * 20 + [LEVEL * 0.9] * 20)[1:]  # learnt late: told of at half, and never again
    assert not said(FLAT, steps=200)  # not half of the run yet
    assert not said(FLAT[: LEAST - 1])  # too few to say
    assert not said([LEVEL] * 15 + [LEVEL * 0.9] * 25)  # the last quarter counts, not how long it took
    assert not said(FLAT, name="other_loss")


def test_parts_are_watched_and_a_loss_above_chance_is_told_of() -> None:
    assert len(said(FLAT, "clip/chance_loss")) == 1
    assert "above chance" in said([LEVEL * 1.5] * 40)[0][1]


def test_the_border_is_two_percent_of_the_last_quarter() -> None:
    just, below = LEVEL * (1 - GAIN * 0.99), LEVEL * (1 - GAIN * 1.01)
    assert at_chance([0.0] * 6 + [just] * 2, [LEVEL] * 8)
    assert at_chance([LEVEL] * 6 + [below] * 2, [LEVEL] * 8) is None


@pytest.mark.parametrize(("lr", "alarms"), [(1e-9, 1), (1e-3, 0)])
def test_a_run_that_learns_nothing_says_so(
    lr: float, alarms: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that hardly move, and the same run at a rate that learns its few rows by heart."""
    rows = Stream([dict(row) for row in make_stream("clip").rows(range(8))], seed=0)
    config = TrainConfig(steps=60, batch_size=8, lr=lr, warmup=0.0, log_every=2, save_every=1000)
    objective: Any = make_objective("clip")
    objective.mini_batch_size = None  # all at once: quicker
    trainer = Trainer(objective, replace(make_collator("clip"), augment="none"), rows, config, out=tmp_path)
    with caplog.at_level(logging.WARNING, "sslnlp"):
        trainer.fit()
    assert [record.name for record in caplog.records].count("sslnlp.evaluation.chance") == alarms


# --- what a random order reaches --------------------------------------------------------------------------------------


def test_recalls_have_the_chance_of_a_random_order() -> None:
    """Against orders drawn at random: pictures with one to three captions, two of which share a caption."""
    generator = np.random.default_rng(0)
    picture = np.array([0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7])
    text = np.array([0, 1, 2, 3, 4, 5, 3, 6, 7, 8, 9])
    drawn = []
    for _ in range(400):
        image_ND, text_ND = generator.normal(size=(8, 64)), generator.normal(size=(10, 64))
        predicted = {"image": image_ND[picture], "text": text_ND[text], "image_hash": picture, "text_hash": text}
        given = {name: torch.from_numpy(np.asarray(value)) for name, value in predicted.items()}
        drawn.append(image_text_measures(given))
    found = image_text_figures(given)
    assert {name for name in drawn[0] if name not in ("mean_recall", "chance_median_rank")} == set(found)
    for name, figure in found.items():
        assert figure.value == drawn[-1][name]
        if "recall" in name:
            assert figure.chance == pytest.approx(np.mean([one[name] for one in drawn]), abs=0.02), name


def test_vectors_that_are_no_numbers_find_nothing() -> None:
    vectors, hashes = torch.full((4, 3), torch.nan), torch.arange(4)
    for image, text in ((vectors, vectors), (torch.eye(4, 3), vectors), (vectors, torch.eye(4, 3))):
        found = image_text_measures({"image": image, "text": text, "image_hash": hashes, "text_hash": hashes})
        assert (found["text_to_image_median_rank"], found["image_to_text_recall@1"]) == (4, 0)


def test_the_median_rank_of_single_answers_is_the_middle() -> None:
    for number in (4, 5, 12):
        vectors, hashes = torch.eye(number), torch.arange(number)
        given = {"image": vectors, "text": vectors, "image_hash": hashes, "text_hash": hashes}
        assert image_text_figures(given)["text_to_image_median_rank"].chance == (number + 1) / 2
        assert image_text_measures(given)["chance_median_rank"] == (number + 1) / 2


def test_the_median_rank_of_chance_counts_every_picture_of_a_caption() -> None:
    """24 pictures of 6 captions: the first of four answers comes far sooner than the middle of all."""
    generator, picture = np.random.default_rng(0), torch.arange(24)
    ranks = []
    for _ in range(100):
        image, text = (torch.from_numpy(generator.normal(size=(24, 64))) for _ in range(2))
        given = {"image": image, "text": text[picture % 6], "image_hash": picture, "text_hash": picture % 6}
        ranks.extend(retrieval_ranks(given)["text_to_image"].rank.tolist())
    chance = image_text_measures(given)["chance_median_rank"]
    assert chance == image_text_figures(given)["text_to_image_median_rank"].chance == np.median(ranks) == 4
