"""What a tower that does not train makes of the captions of a run, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sslnlp.types import Encoding

LARGEST = 2**28
"""Numbers that are kept at most: 1 GiB in float32, 700,000 captions of MiniLM."""
LONGEST = 8192
"""Tokens of a caption."""


class Memory:
    """The state that a pooler reads of each caption, found by the caption's tokens. Empty until `fill`."""

    def __init__(self) -> None:
        self._key_N: Tensor | None = None
        self._state_NH: Tensor | None = None
        # Odd numbers, one for each position, that are the same in every process and run.
        generator = torch.Generator().manual_seed(0)
        self._factor_S = torch.randint(-(2**62), 2**62, (LONGEST,), generator=generator) * 2 + 1

    def __bool__(self) -> bool:
        return self._key_N is not None

    @torch.no_grad()
    def fill(
        self, encodings: Iterable[Encoding], encode: Callable[[Encoding], Tensor], pooler: Callable[[Tensor], Tensor]
    ) -> None:
        """Keep the first token's state of every caption.

        Nothing is kept where `pooler` reads more than the first token, or where it would be too much.

        Args:
            encodings: [K, S] each.
            encode: their states [K, S, H].
        """
        keys: list[Tensor] = []
        kept: list[Tensor] = []
        numbers = 0
        for encoding in encodings:
            states_KSH = encode(encoding)
            first_K1H = states_KSH[:, :1].clone()
            numbers += first_K1H.numel()
            if numbers > LARGEST or not (keys or torch.equal(pooler(states_KSH), pooler(first_K1H))):
                return
            self._factor_S = self._factor_S.to(first_K1H.device)
            keys.append(self._keys(encoding))
            kept.append(first_K1H[:, 0])
        if keys:
            self._key_N, order = torch.cat(keys).sort(stable=True)
            self._state_NH = torch.cat(kept)[order]

    def of(self, encoding: Encoding) -> Tensor:
        """The states [K, 1, H] of captions that were filled in."""
        assert self._key_N is not None
        assert self._state_NH is not None
        key_K = self._keys(encoding)
        places_K = torch.searchsorted(self._key_N, key_K).clamp_(max=len(self._key_N) - 1)
        # The CPU would wait for a GPU's answer, and a compiled graph would break at it.
        if not (key_K.is_cuda or torch.compiler.is_compiling()):
            assert torch.equal(self._key_N[places_K], key_K), "a caption that was not read before the first update"
        return self._state_NH[places_K, None]

    def _keys(self, encoding: Encoding) -> Tensor:
        """int64 [K]: the same for the same tokens, whatever the padding; two captions share one by a chance of
        2^-45 at most (ids below 2^18). Sums and products wrap around."""
        ids_KS, real_KS = encoding["input_ids"], encoding["attention_mask"]
        # One more than the id: a token of id 0 is not nothing.
        return ((ids_KS + 1) * real_KS * self._factor_S[: ids_KS.shape[1]]).sum(1)
