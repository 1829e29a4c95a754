"""Runs of the objectives that have a slow copy against the loops of their papers, on one document at a time.

Optimiser, momentum, queue and false negatives are written out once more; batches are those of the package.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.train import TrainConfig, Trainer
from tests.contract import LENGTH, difference, make_collator, make_stream, small_tokenizer

ROWS, PARTS, UPDATES, KEPT = 3, 2, 4, 10
"""Rows of a micro-batch, micro-batches of an update, updates, and vectors that MoCo's queue keeps (less than it is
given, so that the oldest go)."""


Key = tuple[Tensor, tuple[int, ...]]
"""A vector of the slow copy, and the text that it was made of."""


def documents(batch: Any, name: str = "") -> list[tuple[Tensor, Tensor | None]]:
    """The ids of each document of a batch (of a view), as a row of its own, and its labels."""
    part, found = batch[name] if name else batch, []
    for ids, numbers, labels in zip(
        part["input_ids"], part["document_ids"], part.get("labels", part["input_ids"]), strict=True
    ):
        for number in range(int(numbers.max()) + 1):
            own = numbers == number
            found.append((ids[own][None], labels[own]))
    return found


def pooled(model: Any, batch: Any, name: str) -> Tensor:
    rows = [model(input_ids=ids).last_hidden_state[0].mean(0) for ids, _ in documents(batch, name)]
    return torch.stack(rows)


def at_length_one(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def moco_losses(fast: Any, slow: Any, batch: Any, queue: list[Key], fresh: list[Key]) -> Tensor:
    """Algorithm 1 of He et al., the keys of the batch beside the queue's, but for those of an equal text."""
    query = at_length_one(pooled(fast["model"], batch, "view_0"))
    texts = [tuple(ids[0].tolist()) for ids, _ in documents(batch, "view_0")]
    with torch.no_grad():
        own = list(zip(pooled(slow["model"], batch, "view_1"), texts, strict=True))
    fresh += own
    losses = []
    for i, text in enumerate(texts):
        others = [key for j, (key, other) in enumerate([*own, *queue]) if j != i and other != text]
        scores = at_length_one(torch.stack([own[i][0], *others])) @ query[i] / 0.1
        losses.append(scores.logsumexp(0) - scores[0])
    return torch.stack(losses)


def byol_losses(fast: Any, slow: Any, batch: Any, queue: list[Key], fresh: list[Key]) -> Tensor:
    losses = []
    for here, there in (("view_0", "view_1"), ("view_1", "view_0")):
        guess = at_length_one(fast["predictor"](fast["projector"](pooled(fast["model"], batch, here))))
        with torch.no_grad():
            target = at_length_one(slow["projector"](pooled(slow["model"], batch, there)))
        losses.append((guess - target).square().sum(-1))
    return (losses[0] + losses[1]) / 2


def data2vec_losses(fast: Any, slow: Any, batch: Any, queue: list[Key], fresh: list[Key]) -> Tensor:
    losses = []
    for ids, labels in documents(batch):
        hidden = labels != -100
        with torch.no_grad():
            text = torch.where(hidden, labels, ids)
            states = slow["model"](input_ids=text, output_hidden_states=True).hidden_states[-2:]
            top = sum((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) for x in states) / 2
            target = (top - top.mean(-1, keepdim=True)) / top.std(-1, keepdim=True, correction=0)
        far = (fast["head"](fast["model"](input_ids=ids).last_hidden_state) - target).abs()
        losses.append(torch.where(far < 0.5, far**2, far - 0.25).mean(-1)[0][hidden])
    return torch.cat(losses)


RUNS: dict[str, tuple[Callable[..., Tensor], dict[str, Any], dict[str, str], tuple[str, ...]]] = {
    # the losses of a micro-batch, options, modules that have a slow copy (and its name), modules that have none
    "moco": (moco_losses, {"queue": KEPT, "temperature": 0.1}, {"model": "teacher"}, ()),
    "byol": (byol_losses, {}, {"model": "teacher", "projector": "slow_projector"}, ("predictor",)),
    "data2vec": (data2vec_losses, {"layers": 2, "beta": 0.5}, {"model": "teacher"}, ("head",)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_loop_of_the_paper(name: str, tmp_path: Path) -> None:
    losses_of, options, followed, alone = RUNS[name]
    model = build_model(
        ModelConfig(architecture="bert", size="nano", dropout=0.0), small_tokenizer(), AutoModel, max_length=LENGTH
    )
    torch.manual_seed(0)
    objective: Any = get_objective(name)(model, momentum=0.8, momentum_end=0.4, **options)
    collator: Any = make_collator(name, 3)
    if name != "data2vec":
        collator = replace(collator, views=["text", "delete"])
    fast = torch.nn.ModuleDict({part: copy.deepcopy(getattr(objective, part)) for part in (*followed, *alone)})
    slow = torch.nn.ModuleDict({part: copy.deepcopy(fast[part]) for part in followed})
    stream = make_stream(name, 3)
    config = TrainConfig(
        steps=UPDATES, batch_size=ROWS, accumulate=PARTS, lr=1e-2, eps=1e-4, seed=3, weight_decay=0.0, clip=1e9,
        schedule="constant", warmup=0,
    )  # fmt: skip
    trained: Any = Trainer(objective, collator, stream, config, out=tmp_path).fit()

    optimizer = torch.optim.AdamW(fast.parameters(), lr=1e-2, betas=config.betas, eps=1e-4, weight_decay=0.0)
    queue: list[Key] = []
    for update in range(UPDATES):
        fresh: list[Key] = []
        starts = range(update * PARTS * ROWS, (update + 1) * PARTS * ROWS, ROWS)
        batches = [collator(stream.rows(range(start, start + ROWS))) for start in starts]
        optimizer.zero_grad()
        torch.cat([losses_of(fast, slow, batch, queue, fresh) for batch in batches]).mean().backward()
        optimizer.step()
        queue = [*queue, *fresh][-KEPT:]
        kept = 0.8 + (0.4 - 0.8) * (update + 1) / UPDATES
        with torch.no_grad():
            for part in followed:
                for mine, theirs in zip(slow[part].parameters(), fast[part].parameters(), strict=True):
                    mine.copy_(kept * mine + (1 - kept) * theirs)
    for part, copied in followed.items():
        assert difference(getattr(trained, part).state_dict(), fast[part].state_dict()) < 1e-4
        assert difference(getattr(trained, copied).module.state_dict(), slow[part].state_dict()) < 1e-4
        assert difference(getattr(trained, part).state_dict(), slow[part].state_dict()) > 1e-3
    if name == "moco":
        pushed = int(trained.queue.pushed)
        assert pushed > KEPT
        oldest_first = trained.queue.vectors.roll(-(pushed % KEPT), 0)
        torch.testing.assert_close(oldest_first, torch.stack([key for key, _ in queue]), atol=1e-3, rtol=1e-3)
