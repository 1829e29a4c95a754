"""The same computations without their fast paths, to put the contract tests on both:

    SSLNLP_SLOW_PATHS=1 pytest tests/objectives/test_contract.py

Logits of all positions at once instead of heads apart and in pieces, texts padded instead of sharing rows, whole texts
through the tokenizer instead of chunks, last layers whole, and the kernel of attention that the rule would not take.
"""

from __future__ import annotations

import os
from typing import Any

ASKED = bool(os.environ.get("SSLNLP_SLOW_PATHS"))


def take() -> None:
    """Closes the fast paths of this process, for good."""
    from sslnlp import attention, last_layer
    from sslnlp.data.encoding import Encoder
    from sslnlp.objectives import causal_lm, masked_diffusion, masked_lm, ranking, sentence_order, seq2seq_lm

    rule = attention.by_matmuls
    headless: Any
    for headless in (causal_lm, masked_diffusion, masked_lm, sentence_order):  # others have no other path
        headless.prediction_head = lambda model: None
    headless = seq2seq_lm
    headless.seq2seq_head = lambda model: None
    without: Any = (lambda model: False, lambda *shapes: not rule(*shapes))
    ranking.isolates, attention.by_matmuls = without
    last_layer._KINDS.clear()
    Encoder._cutter_of = lambda self, facts: (None, "asked not to")  # type: ignore[method-assign]
