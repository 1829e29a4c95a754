"""Several objectives at once, with weights, on one model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives import get_objective
from sslnlp.objectives.base import Objective
from sslnlp.types import Batch, StepOutput


class Joint(Objective):
    """The weighted sum of several registered objectives that share one model, each on its own collator's batch.

    `objective.weights={"masked_lm": 1.0, "data2vec": 0.5}`; `options` are those of the parts, by name. Objectives that
    use the same collator see the same batch. Parts that wrap a bare `AutoModel` work on the backbone of the model whose
    head the other parts share. Each part is a mean over its own targets, whatever the others have, and the update is
    exact for all of them. Metrics are named `part/metric`.

    Raises `UserError` when the parts need models of different kinds, or rows that are framed differently.
    """

    name: ClassVar[str] = "joint"
    needs: ClassVar[frozenset[str]] = frozenset()
    collator: ClassVar[str] = "joint"
    parts: ClassVar[Mapping[str, type[Objective]]] = MappingProxyType({})

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Objective]:
        """The class of these weights: wraps, framing and needs are those of the parts."""
        weights = options.get("weights")
        if not isinstance(weights, Mapping) or not weights:
            return cls
        parts = {name: get_objective(name) for name in weights}
        heads = {part.wraps for part in parts.values() if part.wraps is not AutoModel}
        framings = {part.framing for part in parts.values()}
        if len(heads) > 1 or len(framings) > 1 or cls.name in parts:
            kinds = ", ".join(f"{name} ({part.wraps.__name__}, {part.framing})" for name, part in parts.items())
            raise UserError(f"these objectives do not go together in one model: {kinds}")
        made: dict[str, Any] = {
            "parts": MappingProxyType(parts),
            "wraps": next(iter(heads), AutoModel),
            "framing": framings.pop(),
            "needs": frozenset(part.collator for part in parts.values()),
            "couples_rows": any(part.couples_rows for part in parts.values()),
            "pooling": next((part.pooling for part in parts.values() if part.pooling), None),
        }
        return type(cls.__name__, (cls,), made | {"__module__": cls.__module__})

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if not cls.parts:
            raise UserError('objective joint needs its parts: objective.weights={"masked_lm": 1.0, "data2vec": 0.5}')
        if (reason := super().refuses(config)) is not None:
            return reason
        own = (part.refuses(config) for part in cls.parts.values() if part.wraps is not AutoModel)
        return next((reason for reason in own if reason), None)

    @classmethod
    def collator_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Every collator that a part needs, with the options given for it."""
        return {"parts": {part.collator: {} for part in cls.parts.values()} | dict(options.get("parts", {}))}

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        weights: dict[str, float],
        options: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(model)
        self.weights = dict(weights)
        if unknown := sorted((options or {}).keys() - weights.keys()):
            raise UserError(f"objective.options names {unknown[0]!r}, which is not in objective.weights")
        if bad := [name for name, weight in weights.items() if not weight > 0]:
            raise UserError(f"objective.weights must be above 0, got {weights[bad[0]]} for {bad[0]}")
        self.joined = nn.ModuleDict()
        for name in weights:
            cls = get_objective(name)
            bare = cls.wraps is AutoModel and self.wraps is not AutoModel
            part = cls(model.base_model if bare else model, **(options or {}).get(name, {}))
            # The model is in the state once, as `model`; the part keeps a plain reference.
            shared = part._modules.pop("model")
            object.__setattr__(part, "model", shared)
            self.joined[name] = part

    def forward(self, batch: Batch) -> StepOutput:
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for name, part in self._each():
            inner = batch[part.collator]
            output = part(inner)
            own = output.loss[None] if output.terms is None else output.terms
            terms.append(self.weights[name] * own)
            count = part.num_targets(inner).reshape(-1)[0]
            for metric, value in ({"loss": output.loss.detach()} | output.metrics).items():
                # A mean over the part's targets becomes a sum and their number: the first part's are others.
                metrics[f"{name}/{metric}"] = torch.stack([value * count, count]) if value.ndim == 0 else value
        joined = torch.cat(terms)
        return StepOutput(joined.sum(), metrics, joined)

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.cat([part.num_targets(batch[part.collator]).reshape(-1) for _, part in self._each()])

    def after_step(self, progress: float) -> None:
        for _, part in self._each():
            part.after_step(progress)

    def _each(self) -> list[tuple[str, Objective]]:
        return [(name, part) for name, part in self.joined.items() if isinstance(part, Objective)]
