"""Embeddings that start from how often tokens stand near each other, instead of from noise.

What a model learns first is which tokens go with which, and counting tells it that in a second or two. The pointwise
mutual information of neighbours (Church & Hanks, 1990) is factorised into vectors, as Levy & Goldberg (2014) show
word2vec does implicitly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from sslnlp.arrays import Bools, Ints, Vectors
from sslnlp.nn import evaluating

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WINDOW = 4
"""Tokens on each side that are neighbours, where both sides count."""
DEVIATION = 0.32
"""Of the numbers of such embeddings: the usual 0.02 is for noise, which has to be unlearnt."""
CALM = 0.1
"""What the weights of a head's own norm are multiplied by: with such embeddings its first logits would be wild, and
twenty updates go into unlearning them (a masked model starts at 12.5 nats, and with this at ln V)."""
CALM_BACKBONE = 0.3
"""The same of the last norm before a head without one (a T5 starts at 32 nats; with a tenth it learns slower)."""
PRIOR = 80.0
"""Observations that a token's frequency counts for beside those of a neighbourhood: rare tokens say little."""
UNSEEN = 1.0
"""Observations more than a token has: one that the text lacks is rare, not impossible."""
CONSTANT = 3.0
"""The coordinate that all embeddings share, which a head reads the frequencies of tokens from."""
FILLED = 0.9
"""Share of the length of an embedding that the vectors of all but one in a hundred tokens keep within."""
_ITERATIONS, _OVERSAMPLED = 4, 16


class Associations(NamedTuple):
    """left @ right.T is about log p(y | x) / p(y), the two sides at the same scale."""

    left: Vectors  # [V, R], of x
    right: Vectors  # [V, R], of y
    log_frequency: Vectors  # [V], log p(y)
    counted: Bools  # [V], whether x was seen at all


class _Weighted(NamedTuple):
    """log p(y | x) / p(y) [N, N], errors weighted by the root of how frequent both tokens are: a sparse matrix plus one
    of rank one, never written out."""

    left: Vectors  # [N], how often x has a neighbour
    rows: Vectors  # [N], root of p(x)
    columns: Vectors  # [N], root of p(y)
    sparse: csr_matrix
    transposed: csr_matrix
    missing: Vectors  # [N], of x, where y was never seen beside it, for every y

    def times(self, block: Vectors) -> Vectors:
        return np.asarray(self.sparse @ block + np.outer(self.rows * self.missing, self.columns @ block))

    def transposed_times(self, block: Vectors) -> Vectors:
        return np.asarray(self.transposed @ block + np.outer(self.columns, (self.rows * self.missing) @ block))


class _Places(NamedTuple):
    """Each token that was seen has a row of its own, all others share the last: of such a one nothing is known, so its
    row is zero and its column that of the next one. In a vocabulary made for other text these are nearly all."""

    of: Ints  # [V], the place of a token
    tokens: Vectors  # [N], how many tokens have the place

    def gather(self, counts: csr_matrix) -> csr_matrix:
        """Counts [V, V] -> [N, N]."""
        from scipy import sparse

        given, size = counts.tocoo(), len(self.tokens)
        return sparse.csr_matrix((given.data, (self.of[given.row], self.of[given.col])), (size, size))


def _places(counts: csr_matrix) -> _Places:
    before, after = (np.asarray(counts.sum(axis)).ravel() for axis in (0, 1))
    seen = before + after > 0
    of = np.where(seen, np.cumsum(seen) - 1, seen.sum())
    return _Places(of, np.bincount(of).astype(np.float32))


def _weighted(counts: csr_matrix, tokens: Vectors) -> _Weighted:
    """p(y | x) has the prior p(y) with `PRIOR` observations, so a pair never seen costs no infinite amount."""
    from scipy import sparse

    left, right = (np.asarray(counts.sum(axis)).ravel() for axis in (1, 0))
    p_left, p_right = ((total + UNSEEN * tokens) / (total + UNSEEN * tokens).sum() for total in (left, right))
    rows, columns = (np.sqrt(p).astype(np.float32) for p in (p_left, p_right))
    seen = counts.tocoo()
    gains = np.log1p(seen.data / (PRIOR * p_right[seen.col]))
    weighted = sparse.csr_matrix((rows[seen.row] * gains * columns[seen.col], (seen.row, seen.col)), counts.shape)
    weighted, transposed = weighted.astype(np.float32), weighted.T.tocsr().astype(np.float32)
    return _Weighted(left, rows, columns, weighted, transposed, np.log(PRIOR / (left + PRIOR)).astype(np.float32))


def _factors(matrix: _Weighted, rank: int) -> tuple[Vectors, Vectors, Vectors]:
    """u [N, R], singular values [R] and v [N, R]. Randomised SVD with power iterations (Halko et al., 2011,
    arXiv:0909.4061); the same counts give the same factors."""
    size = len(matrix.rows)
    basis = np.random.default_rng(0).standard_normal((size, min(rank + _OVERSAMPLED, size)), dtype=np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix.transposed_times(np.linalg.qr(matrix.times(basis))[0]))[0]
    u, values, v = np.linalg.svd(matrix.times(basis), full_matrices=False)
    return u[:, :rank], values[:rank], basis @ v.T[:, :rank]


def associations(counts: csr_matrix, rank: int) -> Associations:
    """Counts of pairs float32 [V, V] -> the best factors of `rank` columns (fewer, R, where fewer tokens were seen),
    errors weighted by the root of how frequent both tokens are."""
    places = _places(counts)
    matrix = _weighted(places.gather(counts), places.tokens)
    u, values, v = _factors(matrix, rank)
    root = np.sqrt(values)
    return Associations(
        (u * root / matrix.rows[:, None]).astype(np.float32)[places.of],
        (v * root / matrix.columns[:, None]).astype(np.float32)[places.of],
        (2 * np.log(matrix.columns) - np.log(places.tokens))[places.of],
        (matrix.left > 0)[places.of],
    )


def repeated_associations(first: csr_matrix, second: csr_matrix, rank: int) -> Associations:
    """The factors of a text of two halves, each shrunk by how reliable it is: r, the share of a factor of one half that
    the other repeats, is 2 r / (1 + r) for both together (Spearman, 1910; Brown, 1910).

    Of little text most factors are its accidents. Training, which reads the same text, finds them confirmed and builds
    on them; other text does not have them.
    """
    found = associations(first + second, rank)
    places = _places(first + second)
    one, other = (_weighted(places.gather(half), places.tokens) for half in (first, second))
    u, values, v = _factors(one, rank)
    repeated = (u * other.times(v)).sum(0) / np.maximum(values, np.finfo(np.float32).tiny)
    share = np.clip(repeated, 0, 1)
    root = np.sqrt(2 * share / (1 + share)).astype(np.float32)
    return found._replace(left=found.left * root, right=found.right * root)


def own_head(model: PreTrainedModel) -> bool:
    """Whether a head of the model's own, as wide as its embeddings, tells which token comes next. In embeddings of ten
    numbers the two coordinates that are set aside would leave no room for others."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    own = head is not None and head.weight is not table.weight and head.weight.shape == table.weight.shape
    return own and table.weight.shape[1] > CONSTANT**2 + 2


@torch.no_grad()
def init_next_token(model: PreTrainedModel, found: Associations, seed: int) -> None:
    """Table and head of a decoder with both, in place, so that it starts as a bigram model: what its last norm makes of
    an embedding, times the head, is about log p(next | token).

    `found`: of pairs in order, two columns fewer than the embeddings have. Of those two, one is the same for all tokens
    and carries their frequencies, the other brings every embedding to one length, so that the norm divides all alike.
    """
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    room = np.float32(table.shape[1] - CONSTANT**2)
    scale = FILLED * np.sqrt(room) / max(1e-6, np.percentile(np.linalg.norm(found.left, axis=1), 99))
    left, right = found.left * scale, found.right / scale
    left = left * np.minimum(1, np.sqrt(room) / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-6))
    filling = np.sqrt(np.maximum(0, room - (left**2).sum(1)))
    constant = np.full(len(left), CONSTANT, np.float32)
    turn = _rotation(table.shape[1], seed)
    table.copy_(_columns(table.shape[1], left, constant, filling) @ turn)
    head.copy_(_columns(table.shape[1], right, found.log_frequency / CONSTANT, np.zeros_like(filling)) @ turn)


@torch.no_grad()
def init_neighbours(model: PreTrainedModel, found: Associations, seed: int) -> None:
    """Set the table of embeddings, in place: every token that was counted gets a vector of one length in the direction
    of its neighbourhood. The last norm before the vocabulary starts small: the head's where it has one (BERT, RoBERTa,
    ModernBERT), else the backbone's (T5, BART, GPT-2).

    `found`: of pairs in both orders, at most as many columns as the embeddings have.
    """
    table = model.get_input_embeddings().weight
    vectors = _columns(table.shape[1], found.left) @ _rotation(table.shape[1], seed)
    counted = torch.from_numpy(found.counted)
    length = DEVIATION * table.shape[1] ** 0.5
    table[counted] = length * torch.nn.functional.normalize(vectors, dim=1)[counted]
    if model.get_output_embeddings() is not None:
        for norm in _norms_as_run(model)[-1:]:
            inside = norm in set(model.base_model.modules())
            norm.get_parameter("weight").mul_(CALM_BACKBONE if inside else CALM)


def _norms_as_run(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The norms of a model in the order in which it comes to them, which is not that of its parts (BART)."""
    met: list[torch.nn.Module] = []
    norms = [part for part in model.modules() if "Norm" in type(part).__name__]
    hooks = [norm.register_forward_hook(lambda norm, given, output: met.append(norm)) for norm in norms]
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    try:
        with evaluating(model):
            model(input_ids=ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
    finally:
        for hook in hooks:
            hook.remove()
    return met


def _columns(width: int, *parts: Any) -> torch.Tensor:
    """Arrays [V, R] and [V] side by side, and zeros up to `width`."""
    joined = torch.from_numpy(np.concatenate([part.reshape(len(part), -1) for part in parts], 1))
    return torch.nn.functional.pad(joined.float(), (0, width - joined.shape[1]))


def _rotation(width: int, seed: int) -> torch.Tensor:
    """A random rotation: no coordinate is set apart, neither the first factors nor the last."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation: torch.Tensor = torch.linalg.qr(drawn)[0]
    return rotation
