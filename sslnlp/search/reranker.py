"""How well a text answers a query, by any Hugging Face cross-encoder folder: both are read together, one logit is left.

Read when present, as sentence-transformers writes it: `config_sentence_transformers.json` (prompts, and our own key
`max_lengths`: how many tokens of a query). The activation that sentence-transformers would put on the logit
is left out: it changes no order, and where it is flat it makes ties.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslnlp.collators.pairs import PairTokenizer
from sslnlp.errors import UserError
from sslnlp.models import max_positions
from sslnlp.objectives.text_head import model_inputs
from sslnlp.search.encoder import fingerprint, quiet_loading, resolve

_LONGEST = 512


class Reranker:
    """A frozen cross-encoder. `fingerprint` identifies weights, tokenizer and settings together."""

    def __init__(self, model: Any, tokenize: PairTokenizer, name: str, fingerprint: str) -> None:
        self.model = model.eval()
        self.tokenize = tokenize
        self.name = name
        self.fingerprint = fingerprint
        self._accepted = model_inputs(model)

    @classmethod
    def load(cls, name: str) -> Reranker:
        """The reranker in folder `name`, or of that name on the hub. Raises UserError when it cannot be loaded."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = resolve(name)
        _check_kind(folder, name)
        try:
            with quiet_loading():
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    folder, dtype=torch.float32, output_loading_info=True
                )
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # the loaders raise anything from OSError to safetensors' own type
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"Cannot load the reranker {name}: {line}") from error
        # Absent weights would be drawn at random, every time anew.
        if missing := sorted(report["missing_keys"]):
            raise UserError(f"The reranker {name} lacks {len(missing)} of its weights, {missing[0]} among them.")
        if model.config.num_labels > 2:
            raise UserError(
                f"{name} sorts texts into {model.config.num_labels} classes; a reranker has one logit, or two."
            )
        if tokenizer.pad_token is None:
            raise UserError(f"The tokenizer of {name} has no pad token: texts of unequal length cannot be batched.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        where = str(Path(name).resolve()) if Path(name).is_dir() else name
        return cls(model.to(device), _pair_tokenizer(folder, model, tokenizer), where, fingerprint(folder))

    def score(self, query: str, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """How well each text answers the query, float32 [N] in the order of `texts`: the logit, where the model has two
        classes the log-odds of class 1. Pairs of like lengths are read together, `batch_size` at a time."""
        encodings = self.tokenize([query] * len(texts), texts) if texts else []
        order = sorted(range(len(texts)), key=lambda n: len(encodings[n]["input_ids"]), reverse=True)
        scores = np.zeros(len(texts), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                these = order[start : start + batch_size]
                batch = self.tokenize.pad([encodings[n] for n in these])
                inputs = {key: batch[key].to(self.model.device) for key in self._accepted if key in batch}
                logits_NC = self.model(**inputs).logits.float().cpu()
                scores[these] = (
                    logits_NC[:, -1] - logits_NC[:, 0] if logits_NC.shape[1] == 2 else logits_NC[:, 0]
                ).numpy()
        return scores


def _check_kind(folder: Path, name: str) -> None:
    """Refuse by its configuration what has no head for a pair: the loader would draw one at random."""
    kinds = _read_json(folder / "config.json").get("architectures") or ["ForSequenceClassification"]
    if not str(kinds[0]).endswith("ForSequenceClassification"):
        raise UserError(
            f"{name} is no reranker but a {kinds[0]}, without a head that scores a pair: make one of it with "
            f"sslnlp train finetune_reranker model.pretrained={name}"
        )


def _pair_tokenizer(folder: Path, model: Any, tokenizer: Any) -> PairTokenizer:
    """The folder's tokenizer with the prompts and the lengths that it states."""
    facts = _read_json(folder / "config_sentence_transformers.json")
    prompts, lengths = facts.get("prompts") or {}, facts.get("max_lengths") or {}
    limits = [tokenizer.model_max_length, max_positions(model.config)]
    length = min((limit for limit in limits if limit is not None and 0 < limit < 10**6), default=_LONGEST)
    query_length = lengths.get("query")
    if query_length is not None and (not isinstance(query_length, int) or query_length < 1):
        raise UserError(
            f"{folder}: max_lengths in config_sentence_transformers.json holds {query_length!r}, no length."
        )
    return PairTokenizer(
        tokenizer,
        max_length=int(length),
        query_length=query_length,
        query_prefix=prompts.get(facts.get("default_prompt_name"), ""),
        document_prefix=prompts.get("document") or "",
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from error
