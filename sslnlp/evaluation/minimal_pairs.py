"""Minimal pairs: does a language model find the acceptable of two sentences more probable? (BLiMP, Warstadt et al.,
2020, arXiv:1912.00582.)"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.arrays import Floats
from sslnlp.data.sources import open_source
from sslnlp.errors import UserError, suggest
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.likelihood import log_likelihoods
from sslnlp.evaluation.local import LocalMetric

GROUPS = ("UID", "linguistics_term", "field")
"""Columns that say what a pair is about, the finest first."""

log = logging.getLogger(__name__)

CHANCE = 0.5


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in little, one of them acceptable; `group` is what they try, "" where nothing says."""

    good: str
    bad: str
    group: str = ""


def read_pairs(
    spec: str | os.PathLike[str] | Sequence[str],
    *,
    good: str = "sentence_good",
    bad: str = "sentence_bad",
    group: str | None = None,
) -> list[Pair]:
    """Pairs from a file (.jsonl, .json, .csv, .tsv, .parquet), folder, glob or hub data set with two columns of text.

    Args:
        spec: what to read; a folder of BLiMP's files is read whole.
        good, bad: the columns of the acceptable and the other sentence. The defaults are BLiMP's.
        group: the column of groups. None: the first of `UID`, `linguistics_term` and `field` that is there.

    Pairs of a sentence with itself are left out, which is logged: BLiMP has some, and no model can be right on them.

    Raises `UserError`, in one line, for a column that is missing, no pairs, and a pair with an empty sentence.
    """
    name = os.fspath(spec) if isinstance(spec, (str, os.PathLike)) else list(spec)
    source = open_source(name)
    wanted = [good, bad] if group is None else [good, bad, group]
    for column in wanted:
        if column not in source.columns:
            raise UserError(
                f"{source.spec} has no column {column!r} of minimal pairs.{suggest(column, source.columns)}"
            )
    pairs: list[Pair] = []
    same = 0
    for number, row in enumerate(source.rows(), 1):
        sides = [row.get(good), row.get(bad)]
        if not all(isinstance(side, str) and side.strip() for side in sides):
            raise UserError(f"{source.spec}, pair {number}: {good!r} and {bad!r} must both hold a sentence")
        if sides[0] == sides[1]:
            same += 1
            continue
        kinds = GROUPS if group is None else (group,)
        kind = next((row[one] for one in kinds if row.get(one) is not None), "")
        pairs.append(Pair(str(sides[0]), str(sides[1]), str(kind)))
    if not pairs:
        raise UserError(f"{source.spec} holds no pair of two different sentences")
    if same:
        log.warning("%s: %d pairs of a sentence with itself are left out", source.spec, same)
    return pairs


def minimal_pair_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    batch_size: int = 32,
    word_aware: bool = True,
    device: torch.device | str | None = None,
) -> Floats:
    """float64 [N, 2]: the (pseudo-)log-likelihood in nats of the good and of the bad sentence of each pair.

    Sums over tokens, as BLiMP is scored; the options are those of `log_likelihoods`. Two sentences that the tokenizer
    does not tell apart have exactly the same. Raises `UserError` also for no pairs, and for a sentence longer than the
    model reads, since the end may be where the two differ.
    """
    if not pairs:
        raise UserError("there are no minimal pairs to score")
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    scored = log_likelihoods(model, tokenizer, texts, batch_size=batch_size, word_aware=word_aware, device=device)
    if (long := next((n for n, one in enumerate(scored) if one.truncated), None)) is not None:
        raise UserError(
            f"minimal pair {long // 2 + 1}: the model reads only {scored[long].tokens} tokens of {texts[long][:60]!r}"
        )
    return np.array([one.nats for one in scored]).reshape(-1, 2)


def pair_credits(good_N: Sequence[float] | Floats, bad_N: Sequence[float] | Floats) -> Floats:
    """float64 [N]: 1 where the good sentence scores higher, 0 where the bad one does, 0.5 for a tie."""
    difference = np.asarray(good_N, dtype=np.float64) - np.asarray(bad_N, dtype=np.float64)
    return (np.sign(difference) + 1) / 2


def minimal_pair_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    limit: int | None = None,
    batch_size: int = 32,
    word_aware: bool = True,
    device: torch.device | str | None = None,
) -> dict[str, Figure]:
    """`minimal_pairs`: the share of pairs whose good sentence scores higher, ties half, and `minimal_pairs/GROUP` for
    each where there are several. Chance is 0.5.

    With a `limit` that many pairs, evenly spread over all of them: files are often in the order of their groups. The
    rest is as for `minimal_pair_scores`.
    """
    if limit is not None and limit < len(pairs):
        pairs = [pairs[number * len(pairs) // limit] for number in range(limit)]
    nats_N2 = minimal_pair_scores(model, tokenizer, pairs, batch_size=batch_size, word_aware=word_aware, device=device)
    groups = [pair.group for pair in pairs]
    return {
        name: ratio_figure(share, chance=CHANCE) for name, share in _grouped(pair_credits(*nats_N2.T), groups).items()
    }


def _grouped(credit_N: Floats, groups: Sequence[str], name: str = "minimal_pairs") -> dict[str, Floats]:
    """The credits of all pairs under `name` and, where there are several groups, of each under `name/GROUP`."""
    found = {name: credit_N}
    if len(kinds := sorted(set(groups))) > 1:
        found |= {f"{name}/{kind}": credit_N[[one == kind for one in groups]] for kind in kinds}
    return found


class MinimalPairAccuracy(LocalMetric):
    """`{"minimal_pair_accuracy": ...}`: `predictions` are the scores of the good sentences, `references` those of the
    bad ones; ties count half, 0.5 is chance. `compute` also takes `groups`, a name for each pair, and then gives
    `minimal_pair_accuracy/GROUP` for each where there are several."""

    describes = "Share of minimal pairs whose acceptable sentence has the higher score."
    features_of = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("float64")})

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float], groups: Sequence[str] = ()
    ) -> dict[str, float]:
        found = _grouped(pair_credits(predictions, references), groups, "minimal_pair_accuracy")
        return {name: float(np.mean(credit)) for name, credit in found.items()}
