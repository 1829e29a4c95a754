"""How well a text answers a query, by any Hugging Face folder of a cross-encoder, or by late interaction.

A cross-encoder reads both together and leaves one logit. The activation that sentence-transformers would put on it is
left out: it changes no order, and where it is flat it makes ties. Late interaction gives each token a vector and sums
the best cosine of each token of the query (MaxSim); its folders say `MultiVectorEncoder`.

Read when present, as sentence-transformers writes it: `config_sentence_transformers.json` (which of the two, prompts,
and our own key `max_lengths`: how many tokens of a query and of a document).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sslnlp.collators.pairs import PairTokenizer, single_texts
from sslnlp.distributed import own_device
from sslnlp.errors import UserError
from sslnlp.models import max_positions
from sslnlp.objectives.late_interaction import max_sim
from sslnlp.objectives.text_head import model_inputs
from sslnlp.search.encoder import checked_lengths, lengths_of_kinds, load_stock
from sslnlp.search.model_folder import called, fingerprint, read_json, resolve

_LONGEST = 512
KEPT = 2**29
"""Bytes of token vectors that late interaction keeps of the documents it read last."""


class Reranker(ABC):
    """A frozen model that scores texts for a query. `fingerprint` identifies weights, tokenizer and settings."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, name: str) -> None:
        if tokenizer.pad_token is None:
            raise UserError(f"the tokenizer of {name} has no pad token: texts of unequal length cannot be batched")
        self.model = model.eval().to(own_device())
        self.tokenizer = tokenizer
        self.name = called(name)
        self.fingerprint = fingerprint(folder)

    @classmethod
    def load(cls, name: str) -> Reranker:
        """The reranker in folder `name`, or of that name on the hub. Raises UserError when it cannot be loaded."""
        folder = resolve(name)
        facts = read_json(folder / "config_sentence_transformers.json")
        kind = LateInteraction if facts.get("model_type") == "MultiVectorEncoder" else CrossEncoder
        return kind.open(folder, facts, name)

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, facts: dict[str, Any], name: str) -> Reranker:
        """The reranker of this kind in a folder, whose sentence-transformers settings are `facts`."""

    @abstractmethod
    def score(self, query: str, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """How well each text answers the query, float32 [N] in the order of `texts`; more is better, and only scores of
        one query compare. Texts of like lengths are read together, `batch_size` at a time."""


class CrossEncoder(Reranker):
    """The score is the logit; where the model has two classes, the log-odds of class 1."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, name: str, facts: dict[str, Any]) -> None:
        super().__init__(model, tokenizer, folder, name)
        self._tokenize = pair_tokenizer(model, tokenizer, folder, facts)
        self._accepted = model_inputs(model)

    @classmethod
    def open(cls, folder: Path, facts: dict[str, Any], name: str) -> CrossEncoder:
        from transformers import AutoModelForSequenceClassification

        kinds = read_json(folder / "config.json").get("architectures") or ["ForSequenceClassification"]
        if not str(kinds[0]).endswith("ForSequenceClassification"):  # the loader would draw a head at random
            raise UserError(
                f"{name} is no reranker but a {kinds[0]}, without a head that scores a pair: make one of it with "
                f"sslnlp train finetune_reranker model.pretrained={name}"
            )
        model, tokenizer = load_stock(AutoModelForSequenceClassification, folder, f"the reranker {name}")
        if model.config.num_labels > 2:
            raise UserError(
                f"{name} sorts texts into {model.config.num_labels} classes; a reranker has one logit, or two"
            )
        return cls(model, tokenizer, folder, name, facts)

    def score(self, query: str, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        encodings = self._tokenize([query] * len(texts), texts) if texts else []
        scores = np.zeros(len(texts), np.float32)
        with torch.inference_mode():
            for these in _by_length([len(encoding["input_ids"]) for encoding in encodings], batch_size):
                batch = self._tokenize.pad([encodings[n] for n in these])
                inputs = {key: batch[key].to(self.model.device) for key in self._accepted if key in batch}
                logits_NC = self.model(**inputs).logits.float().cpu().numpy()
                scores[these] = logits_NC[:, -1] - (logits_NC[:, 0] if logits_NC.shape[1] == 2 else 0)
        return scores


class LateInteraction(Reranker):
    """The score is MaxSim of the vectors of all tokens, at length one."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, name: str, facts: dict[str, Any]) -> None:
        super().__init__(model, tokenizer, folder, name)
        self._prompts = facts.get("prompts") or {}
        limits = read_json(folder / "sentence_bert_config.json")
        self._lengths = lengths_of_kinds(limits) | checked_lengths(facts.get("max_lengths") or {}, folder)
        self._longest = _longest(model, tokenizer)
        self._known: dict[str, Tensor] = {}
        self._kept = 0

    @classmethod
    def open(cls, folder: Path, facts: dict[str, Any], name: str) -> LateInteraction:
        from transformers import AutoModel

        steps = {str(step["type"]).rsplit(".", 1)[-1] for step in read_json(folder / "modules.json", [])}
        expansion = read_json(folder / "sentence_bert_config.json").get("query_expansion")
        skipped = read_json(folder / "1_MultiVectorMask" / "config.json").get("skiplist_words")
        unknown = sorted(steps - {"Transformer", "MultiVectorMask", "Normalize"})
        unknown += ["query_expansion"] if expansion else []
        unknown += ["skiplist_words"] if skipped else []
        if unknown or "Normalize" not in steps:
            what = ", ".join(unknown) or "vectors of any length"
            raise UserError(f"{name} has a step of late interaction that sslnlp does not run: {what}")
        return cls(*load_stock(AutoModel, folder, f"the reranker {name}"), folder, name, facts)

    def score(self, query: str, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        scores = np.zeros(len(texts), np.float32)
        with torch.inference_mode():
            query_1TH, query_1T = self._vectors([query], "query")
            read = self._read(texts, batch_size)
            for these in _by_length([len(text_SH) for text_SH in read], batch_size):
                text_NSH = pad_sequence([read[n] for n in these], batch_first=True)
                length_N = torch.tensor([len(read[n]) for n in these], device=text_NSH.device)
                text_NS = torch.arange(text_NSH.shape[1], device=text_NSH.device) < length_N[:, None]
                scores[these] = max_sim(query_1TH, query_1T, text_NSH, text_NS)[0].cpu().numpy()
        return scores

    def _read(self, texts: Sequence[str], batch_size: int) -> list[Tensor]:
        """The vectors [S, H] of the tokens of each text. Those of the last texts are kept: searches find many of the
        same documents, and reading them is all that costs."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        found = {text: self._known[text] for text in texts if text in self._known}
        for these in _by_length([len(text) for text in new], batch_size):
            text_NSH, text_NS = self._vectors([new[n] for n in these], "document")
            # All lengths at once: for each that is read the CPU waits for a GPU.
            for n, text_SH, length in zip(these, text_NSH, text_NS.sum(1).tolist(), strict=True):
                found[new[n]] = text_SH[:length].clone()  # not a view that keeps the whole batch
        for text in dict.fromkeys(texts):
            if text in self._known:
                del self._known[text]
            else:
                self._kept += found[text].nbytes
            self._known[text] = found[text]  # the last to go
        while self._kept > KEPT:
            self._kept -= self._known.pop(next(iter(self._known))).nbytes
        return [found[text] for text in texts]

    def _vectors(self, texts: Sequence[str], kind: str) -> tuple[Tensor, Tensor]:
        """Vectors [N, S, H] of the tokens, and the mask [N, S] of those that are there."""
        length = min(self._lengths.get(kind, self._longest), self._longest)
        prompted = [(self._prompts.get(kind) or "") + text for text in texts]
        encoded = {
            name: values.to(self.model.device)
            for name, values in single_texts(self.tokenizer, prompted, length).items()
        }
        return F.normalize(self.model(**encoded).last_hidden_state.float(), dim=-1), encoded["attention_mask"]


def pair_tokenizer(model: Any, tokenizer: Any, folder: Path, facts: dict[str, Any]) -> PairTokenizer:
    """What reads pairs as the cross-encoder in a folder learnt to; `facts` are its sentence-transformers settings."""
    prompts = facts.get("prompts") or {}
    return PairTokenizer(
        tokenizer,
        max_length=_longest(model, tokenizer),
        query_length=checked_lengths(facts.get("max_lengths") or {}, folder).get("query"),
        query_prefix=prompts.get(facts.get("default_prompt_name")) or "",
        document_prefix=prompts.get("document") or "",
    )


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model reads at once, special tokens included."""
    limits = [tokenizer.model_max_length, max_positions(model.config)]
    return int(min((limit for limit in limits if limit is not None and 0 < limit < 10**6), default=_LONGEST))


def _by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """The places of the longest, then of the next longest, ...: little padding, and no late surprise of memory."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    yield from (order[start : start + size] for start in range(0, len(order), size))
