"""Momentum contrast: negatives come from a queue of past batches, encoded by a slow copy of the model."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Unpack

from sslnlp.distributed import gather_ragged
from sslnlp.errors import UserError
from sslnlp.nn import Queue, Teacher
from sslnlp.objectives.embedding import Cut, Documents, Embedding, SharedOptions, live, ordered_pairs, views
from sslnlp.objectives.info_nce import Texts, check_temperature, contrast
from sslnlp.types import Batch, StepOutput


class MoCo(Embedding):
    """MoCo (He et al., 2020, arXiv:1911.05722) between the views of a document; on crops, Contriever (Izacard et al.,
    2022, arXiv:2112.09118).

    A view, encoded by the model, names another one of its document, encoded by an exponential moving average of the
    model, among those of the batch and the last `queue` ones of the batches before. So a small batch has many
    negatives. Cross-entropy of the cosines over `temperature`, as `info_nce`; no gradient goes through the slow copy,
    which reads without dropout. What is known to be no negative is left out, in the queue too. Average and queue are in
    the checkpoint and move once an update; what is pushed is in the order of positions, however the update was split.
    Held out, the queue is left out of the candidates.

    Metrics: those of `Embedding`, and `accuracy` (the own second view is nearer than any other candidate).

    Options besides those of `Embedding`:
        queue: vectors that are kept; 0 leaves the batch's own. It may be smaller than a batch.
        momentum, momentum_end: share of the average kept at each step, moving linearly over the run.
        temperature: divides the cosine; above 0.
        symmetric: every view looks for every other; else the first looks for the others.
    """

    name: ClassVar[str] = "moco"
    needs: ClassVar[frozenset[str]] = Embedding.needs | {"position"}

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        queue: int = 4096,
        momentum: float = 0.99,
        momentum_end: float | None = None,
        temperature: float = 0.05,
        symmetric: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(model, **shared)
        check_temperature(temperature)
        if queue < 0:
            raise UserError(f"objective.queue={queue} must be 0 or more")
        self.temperature, self.symmetric = temperature, symmetric
        self.teacher = Teacher(model, momentum=momentum, momentum_end=momentum_end)
        self.queue = Queue(queue, model.config.hidden_size, tags=2)
        self._fresh: list[tuple[Tensor, Tensor, Tensor]] = []
        # What an update that was given up has staged is not of the run that goes on from a checkpoint.
        self.register_load_state_dict_post_hook(_forget_staged)  # type: ignore[no-untyped-call]

    def forward(self, batch: Batch) -> StepOutput:
        documents, sides = Documents.of(batch), list(views(batch))
        pairs = ordered_pairs(len(sides), self.symmetric)
        own = {i: self.vectors(sides[i], documents) for i in sorted({i for i, _ in pairs})}
        hashes = [documents.pick(side["hashes"]) for side in sides]
        texts = [gather_ragged(side)[0] for side in hashes]
        keys: dict[int, Tensor] = {}
        start = 0
        with torch.no_grad():
            for j in sorted({j for _, j in pairs}):
                keys[j], start = gather_ragged(self.vectors(sides[j], documents, self.teacher.module))
        if self.training:
            position, _ = gather_ragged(batch["position"][documents.places // documents.most])
            self._fresh += [(position, key, texts[j]) for j, key in keys.items()]
        target_M = start + torch.arange(len(own[0]), device=documents.places.device)
        # Held out, the batch's own keys alone: a queue that fills up would make the loss of later weights the higher.
        queued = len(self.queue.vectors) if self.training else 0
        past, past_texts, empty = self.queue.vectors[:queued], self.queue.tags[:queued], ~self.queue.filled[:queued]
        none = {j: torch.cat([empty.new_zeros(len(key)), empty]) for j, key in keys.items()}
        figures: dict[str, Tensor] = {}

        def loss(cut: Cut) -> Tensor:
            losses = []
            for i, j in pairs:
                one, figures[f"{i}{j}"], _ = contrast(
                    F.normalize(cut(own[i]), dim=-1),
                    F.normalize(cut(torch.cat([keys[j], past])), dim=-1),
                    target_M,
                    Texts(hashes[i], torch.cat([texts[j], past_texts]), texts[i], texts[j], none[j]),
                    temperature=self.temperature,
                    size=self.mini_batch_size,
                )
                losses.append(one)
            return torch.stack(losses).mean()

        total = self.nested(loss)  # the full width comes last, so the accuracies are of that
        second = keys[1][start : start + len(own[0])]
        return StepOutput(total, {"accuracy": figures["01"]} | live(own[0], second))

    def after_step(self, progress: float) -> None:
        if self._fresh:
            position, key, text = (torch.cat(parts) for parts in zip(*self._fresh, strict=True))
            order = position.argsort(stable=True)
            self.queue.push(key[order], text[order])
            self._fresh.clear()
        self.teacher.update(self.model, progress)


def _forget_staged(module: MoCo, _: object) -> None:
    # By name, so that the objective can be pickled.
    module._fresh.clear()
