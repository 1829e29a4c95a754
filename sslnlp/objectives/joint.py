"""Several objectives at once, with weights, on one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.errors import UserError, suggest
from sslnlp.nn import evaluating
from sslnlp.objectives import get_objective
from sslnlp.objectives.base import Objective
from sslnlp.registry import bound_class, keywords_of
from sslnlp.types import Batch, LinearMap, StepOutput


class Joint(Objective):
    """The weighted sum of several registered objectives that share one model, each on its own collator's batch.

    `objective.weights={"masked_lm": 1.0, "data2vec": 0.5}`; `options` are those of the parts, by name. Objectives that
    use the same collator see the same batch. Parts that wrap a bare `AutoModel` work on the backbone of the model whose
    head the other parts share. Each part is a mean over its own targets, whatever the others have, and the update is
    exact for all of them. Metrics are named `part/metric`; `part/loss`, before its weight, is there for every part that
    has one kind of targets.

    Raises `UserError` when the parts need models of different kinds or rows that are framed differently, for weights
    that are not above 0, and for options that a part does not have.
    """

    name: ClassVar[str] = "joint"
    needs: ClassVar[frozenset[str]] = frozenset()
    collator: ClassVar[str] = "joint"
    pooling: str | None = None  # type: ignore[misc]  # of the class that of its parts' classes; an instance has its own

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Objective]:
        """The class of these weights: wraps, framing and needs are those of the parts."""
        weights, own = options.get("weights"), options.get("options") or {}
        if not isinstance(weights, Mapping) or not weights:
            return cls
        for name, weight in weights.items():
            if isinstance(weight, int | float) and not weight > 0:
                raise UserError(f"objective.weights must be above 0, got {weight} for {name}; leave it out instead")
        parts = {name: get_objective(name).bound(own.get(name, {})) for name in weights}
        _check_options(parts, own)
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
            "modes": MappingProxyType({name: mode for part in parts.values() for name, mode in part.modes.items()}),
        }
        return bound_class(cls, options, **made)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if not cls.parts:
            example = """objective.weights='{"masked_lm": 1.0, "data2vec": 0.5}'"""
            raise UserError(f"objective joint needs its parts: {example}")
        reasons = {name: part.refuses(config) for name, part in cls.parts.items()}
        return next((f"for {name}, {reason}" for name, reason in reasons.items() if reason), None)

    @classmethod
    def collator_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Every collator that a part needs, with the options given for it."""
        given = options.get("parts", {})
        if not cls.parts or not isinstance(given, Mapping):
            return dict(options)
        if unused := sorted(given.keys() - cls.needs):
            raise UserError(f"collator.parts names {unused[0]!r}, which no part uses.{suggest(unused[0], cls.needs)}")
        filled: dict[str, Any] = dict(given)
        for part in cls.parts.values():
            filled[part.collator] = part.collator_options(filled.get(part.collator, {}))
        return {**options, "parts": filled}

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        weights: dict[str, float],
        options: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(model)
        self.weights = dict(weights)
        self.joined = nn.ModuleDict()
        for name, cls in type(self).bound({"weights": weights, "options": options}).parts.items():
            part = cls(model.base_model if cls.wraps is AutoModel else model, **(options or {}).get(name, {}))
            # The model is in the state once, as `model`; the part keeps a plain reference.
            object.__setattr__(part, "model", part._modules.pop("model"))
            self.joined[name] = part
        self.pooling = next((part.pooling for _, part in self._each() if part.pooling), None)
        self.begins = any(part.begins for _, part in self._each())
        self.refits = any(part.refits for _, part in self._each())

    def forward(self, batch: Batch) -> StepOutput:
        terms: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for name, part in self._each():
            inner = batch[part.collator]
            output = part(inner)
            terms.append(self.weights[name] * (output.loss[None] if output.terms is None else output.terms))
            figures = dict(output.metrics)
            if output.terms is None:
                figures |= {"loss": output.loss.detach()}
            count = part.num_targets(inner).reshape(-1)[0]
            for figure, value in figures.items():
                # A mean over the part's targets becomes a sum and their number: the first part's are others.
                metrics[f"{name}/{figure}"] = torch.stack([value * count, count]) if value.ndim == 0 else value
        joined = torch.cat(terms)
        return StepOutput(joined.sum(), metrics, joined)

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.cat([part.num_targets(batch[part.collator]).reshape(-1) for _, part in self._each()])

    def samples(self, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> dict[str, list[str]]:
        return {
            f"{name}, {title}": lines
            for name, part in self._each()
            for title, lines in part.samples(tokenizer, seed=seed).items()
        }

    def after_step(self, progress: float) -> None:
        for _, part in self._each():
            part.after_step(progress)

    def begin(self, batches: Iterable[Batch]) -> None:
        rows = list(batches)
        with evaluating(self):  # a part does not hold the model as its own, and would leave it training
            for _, part in self._each():
                if part.begins:
                    part.begin(batch[part.collator] for batch in rows)

    def refit(self, batches: Iterable[Batch], held_out: Iterable[Batch]) -> None:
        rows, others = list(batches), list(held_out)
        with evaluating(self):
            for _, part in self._each():
                if part.refits:
                    part.refit((batch[part.collator] for batch in rows), (batch[part.collator] for batch in others))

    @property
    def vector_map(self) -> LinearMap | None:
        return next((part.vector_map for _, part in self._each() if part.pooling), None)

    def _each(self) -> list[tuple[str, Objective]]:
        return [(name, part) for name, part in self.joined.items() if isinstance(part, Objective)]


def _check_options(parts: Mapping[str, type[Objective]], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse options of objectives that are no part, and options that a part does not have."""
    for name, given in options.items():
        if name not in parts:
            raise UserError(f"objective.options names {name!r}, which is not in objective.weights")
        accepted = keywords_of(parts[name].__init__)
        if unknown := sorted(given.keys() - accepted):
            raise UserError(
                f"unknown option {unknown[0]!r} of {name} in objective.options.{suggest(unknown[0], accepted)}"
            )
