"""What all texts share taken out of their vectors: a linear map behind the pooling, fitted in closed form."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sslnlp.errors import UserError
from sslnlp.nn import evaluating
from sslnlp.objectives import functional
from sslnlp.objectives.base import Objective
from sslnlp.types import Batch, LinearMap
from sslnlp.vector_map import apply, is_encoder, joined, map_of_model, whitener

log = logging.getLogger(__name__)

EXPONENTS = (0.25, 0.5)
"""Those that are tried where none is given."""
TEXTS = 2000
"""Those that a map is fitted to: of H = 384, some five for each direction."""
_FEWEST = 16
"""Pairs below which nothing is judged."""


class Whitening(nn.Module):
    """Vectors [..., H] -> [..., H]: less their mean, every direction divided by a power of its variance.

    A model that learnt to fill gaps puts all texts beside each other: most of a vector is what all texts share, and the
    directions in which they differ most say what kind of text it is, not what it says. So rescaled, vectors of such a
    model compare far better (Mu and Viswanath, 2018, arXiv:1702.01417; Su et al., 2021, arXiv:2103.15316). The map is
    the symmetric one (ZCA), of all whiteners the one that changes the vectors least (Kessy et al., 2018,
    arXiv:1512.00809), has a mean length of 1 for what it was fitted to, and does not train. The identity until fitted.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a difference of near equals: 8 bits would not tell it
            return apply(LinearMap(self.weight, self.bias), x)

    @classmethod
    def of(cls, found: LinearMap) -> Whitening:
        """One that is fitted already."""
        made = cls(1)
        made.weight, made.bias = (x.detach().clone() for x in found)
        return made

    @torch.no_grad()
    def set(self, found: LinearMap | None) -> None:
        """Become another map of the same width; None: stay what it is."""
        if found is None:
            return
        self.weight.copy_(found.weight)
        self.bias.copy_(found.bias)

    @property
    def map(self) -> LinearMap | None:
        """None where it is the identity."""
        untouched = self.weight.new_ones(len(self.bias)).diag()
        same = not self.bias.any() and torch.equal(self.weight, untouched)
        return None if same else LinearMap(self.weight, self.bias)


class Whitened(Objective):
    """An objective whose pooled vectors go through a `Whitening`, fitted to first texts before and after training.

    To be called in its `__init__`: `whiten`.
    """

    begin_rows: ClassVar[int] = TEXTS
    whitening: Whitening | None
    exponent: float = 0.0

    def whiten(self, asked: float | None, unasked: float, *, before: bool = True) -> None:
        """Take a map of the exponent that is asked for, to be fitted; not `before` training, but only after it, where
        what trains reads the pooled vectors as they are.

        Unasked: what else the start does to its vectors (`vector_map`) is kept as it is, but a map to another number of
        dimensions, of which it is said that it is left out. One of the exponent `unasked` where the start has a
        whitening, or nothing says that its vectors, so pooled, were trained to be compared. Pictures have none: no
        export holds it.
        """
        check_exponent(asked)
        self.whitening = None
        model, width = self.model, self.model.config.hidden_size
        if model.main_input_name != "input_ids":
            if asked:
                raise UserError(f"objective.whitening={asked} is for vectors of texts, and this model reads pictures")
            return
        if asked is None:
            kept = map_of_model(model.name_or_path, self.pooling)
            square = kept is not None and kept.weight.shape == (width, width)
            if kept is not None and square and not torch.equal(kept.weight, kept.weight.T):
                self.whitening = Whitening.of(kept)
                return
            if kept is not None and not square:
                log.warning(
                    "%s maps its vectors to %d dimensions: objective %s leaves that out, its vectors have %d",
                    *(model.name_or_path, len(kept.weight), self.name, width),
                )
            asked = unasked if square or not is_encoder(model.name_or_path, self.pooling) else 0.0
        if asked:
            self.whitening, self.exponent = Whitening(width), asked
            self.begins, self.refits = before, True

    def mapped(self, pooled: Tensor) -> Tensor:
        """Pooled vectors [..., H] as they are compared, before they get length one."""
        return pooled if self.whitening is None else self.whitening(pooled)

    def pooled_texts(self, batch: Batch) -> Tensor:
        """[N, H]: the vectors of a batch's texts, one each, as the model makes them."""
        raise NotImplementedError

    def begin(self, batches: Iterable[Batch]) -> None:
        assert self.whitening is not None
        found, texts = [], 0
        with evaluating(self), torch.no_grad():
            for batch in batches:
                found.append(self.pooled_texts(batch))
                texts += len(found[-1])
                if texts >= TEXTS:  # a row may hold several
                    break
        self.whitening.set(whitener(torch.cat(found), self.exponent))

    def refit(self, batches: Iterable[Batch], held_out: Iterable[Batch]) -> None:
        self.begin(batches)

    @property
    def vector_map(self) -> LinearMap | None:
        return None if self.whitening is None else self.whitening.map


def check_exponent(exponent: float | None) -> None:
    if exponent is not None and not 0 <= exponent <= 0.5:
        raise UserError(f"objective.whitening={exponent} is an exponent from 0 (none) to 0.5 (all directions alike)")


class Pairs(NamedTuple):
    """Pooled vectors [N, H] of queries and of their documents, and hashes [N] of the texts of both."""

    queries: Tensor
    documents: Tensor
    asked: Tensor
    told: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        if not parts:
            return cls(*(torch.empty(0, 0) for _ in range(4)))
        return cls(*(torch.cat(sides).cpu() for sides in zip(*parts, strict=True)))

    def through(self, found: LinearMap | None) -> Pairs:
        """With vectors as a map makes them."""
        if found is None:
            return self
        return self._replace(queries=apply(found, self.queries), documents=apply(found, self.documents))

    def part(self, start: int) -> Pairs:
        """Every other one."""
        return Pairs(*(x[start::2].contiguous() for x in self))

    @property
    def vectors(self) -> Tensor:
        return torch.cat([self.queries, self.documents])


def better(learnt: Pairs, judged: Pairs, pairs: Pairs, now: LinearMap | None) -> LinearMap | None:
    """The map with which queries find their documents best: the one of now, or one more behind it.

    Each of `EXPONENTS` is fitted to what is `learnt` and judged by the mean reciprocal rank of other pairs. The best is
    taken where its gain over what there is now is twice its standard error, and fitted to `pairs`.
    """
    if min(len(learnt.queries), len(judged.queries)) < _FEWEST:
        return now
    here = None if now is None else LinearMap(*(x.cpu() for x in now))
    learnt, judged = learnt.through(here), judged.through(here)
    found = {exponent: _reciprocal_ranks(judged.through(whitener(learnt.vectors, exponent))) for exponent in EXPONENTS}
    best = max(found, key=lambda exponent: float(found[exponent].mean()))
    gain_N = found[best] - _reciprocal_ranks(judged)
    if not gain_N.mean() > 2 * gain_N.std() / len(gain_N) ** 0.5:
        return now
    return joined(here, whitener(pairs.through(here).vectors, best))


def _reciprocal_ranks(pairs: Pairs) -> Tensor:
    """[N]: of each query's own document among all, those left out that a pair says are relevant to it too."""
    query_NH, document_NH, asked_N, told_N = pairs
    cosine_NN = functional.unit(query_NH) @ functional.unit(document_NH).T
    others_NN = ~functional.relevant_pairs(asked_N, told_N, asked_N, told_N)
    return 1 / (1 + (others_NN & (cosine_NN >= cosine_NN.diagonal()[:, None])).sum(1))
