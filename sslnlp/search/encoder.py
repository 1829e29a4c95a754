"""Text to vectors by any Hugging Face encoder folder, the way its own files say.

Read when present, as sentence-transformers writes them: `modules.json` (which steps), `1_Pooling/config.json` (how
token vectors become one), `sentence_bert_config.json` (how long), `config_sentence_transformers.json` (prompts,
similarity, and our own key `max_lengths`: how long a query and a document).
A plain encoder folder without them is mean-pooled and normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslnlp.collators.pairs import single_texts
from sslnlp.distributed import own_device
from sslnlp.errors import UserError, first_line
from sslnlp.evaluation.beir import encode_sorted
from sslnlp.nn import Pooling
from sslnlp.quiet import quiet_loading
from sslnlp.search.model_folder import called, fingerprint, read_json, resolve
from sslnlp.types import Encoding, LinearMap
from sslnlp.vector_map import apply, joined, places_of_maps, pooling_of, read_map

Kind = Literal["query", "document"]
Reads = Literal["texts", "pictures"]
"""What the documents are that an encoder makes vectors of; queries are words, whatever these are."""
# sentence-transformers' names, the newer value and the older flag, for what `sslnlp.nn.Pooling` does.
_LONGEST = 512


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How token vectors become one text vector."""

    pooling: str = "mean"
    normalize: bool = True
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    """Tokens of a `query` and a `document` that are read, where the model was trained with different ones."""
    lower: bool = False
    """Whether texts are put in lower case, whatever the tokenizer does."""
    vector_map: LinearMap | None = field(default=None, compare=False)
    """What pooled vectors go through before they are scaled."""
    described: bool = True
    """Whether the model itself says how a text becomes a vector; else it is the mean of its tokens."""


class Encoder:
    """A frozen bi-encoder. `fingerprint` identifies weights, tokenizer and settings together."""

    reads: Reads = "texts"

    def __init__(self, model: Any, tokenizer: Any, settings: EncoderSettings, name: str, fingerprint: str) -> None:
        self.model = model.eval()
        self._pool = Pooling(settings.pooling)
        self.tokenizer = tokenizer
        self.settings = settings
        self.name = name
        self.fingerprint = fingerprint
        mapped = settings.vector_map
        self._map = None if mapped is None else LinearMap(*(x.to(self.model.device) for x in mapped))
        self.dimension = int(model.config.hidden_size if mapped is None else len(mapped.bias))

    @classmethod
    def load(cls, name: str, *, head: bool = False) -> Encoder:
        """The encoder in folder `name`, or of that name on the hub. Raises UserError when it cannot be loaded.

        With `head` also one that goes on to logits (a few-shot classifier): its vectors, before those.
        """
        from transformers import AutoModel

        folder = resolve(name)
        if read_json(folder / "config_sentence_transformers.json").get("model_type") == "MultiVectorEncoder":
            raise UserError(f"{name} has a vector for each token and none for a text: use it as --reranker")
        if isinstance(read_json(folder / "config.json").get("image_size"), int):
            raise UserError(
                f"{name} reads pictures and no words: to search pictures, name with --model the export of a "
                "`sslnlp train clip_image_text` run, which reads both"
            )
        settings = read_settings(folder, head=head)
        model, tokenizer = load_stock(AutoModel, folder, f"the encoder {name}")
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise UserError(f"the tokenizer of {name} has no pad token: texts of unequal length cannot be batched")
            tokenizer.pad_token = tokenizer.eos_token  # padding is masked out below, so any token serves
        return cls(model.to(own_device()), tokenizer, settings, called(name), fingerprint(folder))

    @property
    def described(self) -> bool:
        """Whether the model itself says how a text becomes a vector."""
        return self.settings.described

    @property
    def cosines(self) -> bool:
        """Whether products of vectors are cosines, whose size says how alike two texts are."""
        return self.settings.normalize

    def through(self, found: LinearMap) -> Encoder:
        """The same model, its vectors through one more map before they get length one. The fingerprint stays."""
        return self._with(vector_map=joined(self.settings.vector_map, found))

    def unscaled(self) -> Encoder:
        """The same model, its vectors as they are before they get length one."""
        return self._with(normalize=False)

    def _with(self, **settings: Any) -> Encoder:
        return Encoder(self.model, self.tokenizer, replace(self.settings, **settings), self.name, self.fingerprint)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that is read; longer texts are cut."""
        limits = [self.settings.max_length or _LONGEST, self.tokenizer.model_max_length]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions:
            # RoBERTa's table starts counting after the padding id, so two of its rows are no positions.
            limits.append(positions if self.settings.max_length else positions - 2)
        return int(min(limit for limit in limits if limit > 0))

    def encode(self, texts: Sequence[str], kind: Kind, *, batch_size: int = 32) -> NDArray[np.float32]:
        """Vectors float32 [N, H] of `texts`, in their order; `kind` chooses the prompt put before each ("query: ") and
        how many of its tokens are read."""
        prompt, length = self.settings.prompts.get(kind, ""), self.settings.lengths.get(kind, self.max_length)
        tokenize = partial(single_texts, self.tokenizer, length=min(length, self.max_length))
        prompted = [prompt + text for text in texts]
        if self.settings.lower:
            prompted = [text.lower() for text in prompted]
        return encode_sorted(self._embed, tokenize, prompted, batch_size=batch_size, device=self.model.device)

    def _embed(self, encoding: Encoding) -> Tensor:
        hidden_BSH = self.model(**encoding).last_hidden_state
        vectors_BH: Tensor = self._pool(hidden_BSH.float(), encoding["attention_mask"])
        if self._map is not None:
            vectors_BH = apply(self._map, vectors_BH)
        return torch.nn.functional.normalize(vectors_BH, dim=-1) if self.settings.normalize else vectors_BH


def load_stock(auto: Any, folder: Path, what: str) -> tuple[Any, Any]:
    """Model in float32, by an Auto class, and tokenizer. Raises UserError, saying `what`, when they cannot be loaded,
    or weights are absent."""
    from transformers import AutoTokenizer

    try:
        with quiet_loading():
            model, report = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the loaders raise anything from OSError to safetensors' own type
        raise UserError(f"cannot load {what}: {first_line(error)}") from error
    # Absent weights would be drawn at random, every time anew. A bare model's pooler is not used.
    used = [key for key in report["missing_keys"] if auto.__name__ != "AutoModel" or "pooler" not in key.split(".")]
    if missing := sorted(used):
        raise UserError(f"{what} lacks {len(missing)} of its weights, {missing[0]} among them")
    return model, tokenizer


def read_settings(folder: Path, *, head: bool = False) -> EncoderSettings:
    """Pooling, normalisation, length and prompts as the folder's sentence-transformers files state them."""
    if not (folder / "modules.json").is_file():
        return EncoderSettings(described=False)
    steps = [(str(step["type"]).rsplit(".", 1)[-1], step["path"]) for step in read_json(folder / "modules.json", [])]
    kinds = dict(steps)
    if "MultiVectorMask" in kinds:  # late interaction: a report measures the mean of its vectors
        return EncoderSettings()
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize", "Dense"}
    places = places_of_maps(steps)
    if not head and [kind for kind, _ in steps].count("Dense") > len(places):
        unknown.add("Dense behind Normalize")
    if unknown:
        raise UserError(f"{folder} has a step sslnlp does not run: {', '.join(sorted(unknown))}")
    limits = read_json(folder / "sentence_bert_config.json")
    facts = read_json(folder / "config_sentence_transformers.json")
    similarity = facts.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise UserError(f"{folder} compares by {similarity!r}; sslnlp searches by cosine or dot product")
    prompts, lengths = (
        {kind: value for kind, value in (facts.get(key) or {}).items() if kind in ("query", "document")}
        for key in ("prompts", "max_lengths")
    )
    lengths = lengths_of_kinds(limits) | checked_lengths(lengths, folder)
    pooling = read_json(folder / kinds.get("Pooling", "1_Pooling") / "config.json")
    if pooling.get("include_prompt") is False and any(prompts.values()):
        raise UserError(f"{folder} leaves its prompts out of the pooling (include_prompt); sslnlp pools all tokens")
    return EncoderSettings(
        pooling=_pooling(folder, pooling),
        normalize="Normalize" in kinds or similarity == "cosine",
        max_length=limits.get("max_seq_length"),
        prompts=prompts,
        lengths=lengths,
        lower=bool(limits.get("do_lower_case")),
        vector_map=read_map(folder, places),
    )


def lengths_of_kinds(limits: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of a `query` and a `document`, as sentence-transformers (6 or later) writes them among the `limits`."""
    return {kind: limits[name] for kind in ("query", "document") if limits.get(name := f"{kind}_length")}


def checked_lengths(lengths: dict[str, int], folder: Path) -> dict[str, int]:
    """What a folder says in `max_lengths`: tokens of a `query` and of a `document` that are read."""
    if wrong := [length for length in lengths.values() if not isinstance(length, int) or length < 1]:
        raise UserError(f"{folder}: max_lengths in config_sentence_transformers.json holds {wrong[0]!r}, no length")
    return lengths


def _pooling(folder: Path, config: dict[str, Any]) -> str:
    try:
        return pooling_of(config)
    except UserError as error:
        raise UserError(f"{folder} {error}") from error
