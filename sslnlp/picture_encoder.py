"""Pictures, and texts, to vectors by an export: a vision tower alone, or one with a text tower in the same space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from sslnlp.arrays import Vectors
from sslnlp.distributed import own_device
from sslnlp.errors import UserError, reason_of
from sslnlp.nn import Pooling
from sslnlp.pictures import decode, normalised, whole

POOLING = "pooling"
"""The field of a vision tower's configuration that says how its states become one vector: one of `nn.POOLINGS`."""


class PictureEncoder:
    """A frozen `VisionTextDualEncoderModel`, or a vision tower alone (`tokenizer` is None then).

    Vectors have length 1. Pictures are read whole, as the processor of the export reads them.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase | None, *, max_length: int | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.dual = isinstance(model, VisionTextDualEncoderModel)
        self.max_length = max_length or 0
        if max_length is None and tokenizer is not None:
            self.max_length = _text_length(tokenizer, model.config.text_config)
        vision = model.config.vision_config if self.dual else model.config
        if not isinstance(getattr(vision, "image_size", None), int):
            raise UserError(f"a {model.config.model_type!r} model reads no pictures")
        self.size = int(vision.image_size)
        self.dimension = int(model.config.projection_dim if self.dual else vision.hidden_size)

    @classmethod
    def load(cls, name: str) -> PictureEncoder:
        """The export in folder `name`, or of that name on the hub: a dual encoder, or a vision tower alone.

        Raises `UserError` for what cannot be loaded, lacks weights, or reads no pictures.
        """
        tokenizer = None
        try:
            dual = isinstance(AutoConfig.from_pretrained(name), VisionTextDualEncoderConfig)
            kind: Any = VisionTextDualEncoderModel if dual else AutoModel
            model, report = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
            if dual:
                tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # the loaders raise anything from OSError to safetensors' own type
            raise UserError(f"cannot load the picture encoder {name}: {reason_of(error)}") from error
        # Absent weights would be drawn at random. A vision tower alone is not asked for what its pooler makes.
        missing = sorted(key for key in report["missing_keys"] if dual or "pooler" not in key.split("."))
        if missing:
            raise UserError(f"the picture encoder {name} lacks {len(missing)} of its weights, {missing[0]} among them")
        return cls(model.to(own_device()), tokenizer)

    @property
    def scale(self) -> float:
        """What a cosine is multiplied by before the softmax over texts: 1 / temperature. 1 for a vision tower alone."""
        return float(self.model.logit_scale.detach().exp()) if self.dual else 1.0

    def pictures(self, contents: Sequence[bytes], *, batch_size: int = 64) -> Vectors:
        """float32 [N, D] of files of pictures. Raises `BrokenPicture` where one is none."""

        def embed(part: Sequence[bytes]) -> Tensor:
            pixels_BHWC = np.stack([whole(decode(content, size=self.size), self.size) for content in part])
            return self._picture_vectors(normalised(pixels_BHWC).to(self.model.device))

        return _in_batches(embed, contents, batch_size, self.dimension)

    def texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Vectors:
        """float32 [N, D] of texts, cut to what the text tower was trained to read."""
        tokenizer = self.tokenizer
        if tokenizer is None or not self.dual:
            raise UserError("this model has no text tower: it cannot find pictures by words")

        def embed(part: Sequence[str]) -> Tensor:
            encoding = tokenizer(
                list(part), truncation=True, max_length=self.max_length, padding=True, padding_side="right",
                return_token_type_ids=False, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            pooled = self.model.text_model(**encoding).pooler_output
            return torch.nn.functional.normalize(self.model.text_projection(pooled).float(), dim=-1)

        return _in_batches(embed, texts, batch_size, self.dimension)

    def _picture_vectors(self, pixel_BCHW: Tensor) -> Tensor:
        if self.dual:
            pooled = self.model.vision_model(pixel_values=pixel_BCHW).pooler_output
            vectors_BD = self.model.visual_projection(pooled)
        else:
            states_BPH = self.model.base_model(pixel_values=pixel_BCHW).last_hidden_state
            # As in training: of all states, that of the whole among them.
            pooling = Pooling(getattr(self.model.config, POOLING, "cls"))
            vectors_BD = pooling(states_BPH, torch.ones_like(states_BPH[..., 0]))
        return torch.nn.functional.normalize(vectors_BD.float(), dim=-1)


def _text_length(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """Tokens of a text that are read: what the tokenizer states, as far as the tower has positions."""
    stated, positions = int(tokenizer.model_max_length), getattr(config, "max_position_embeddings", None)
    # RoBERTa's table starts counting after the padding id, so two of its rows are no positions.
    return stated if positions is None or stated <= positions else int(positions) - 2


def _in_batches(embed: Callable[[Any], Tensor], things: Sequence[Any], size: int, width: int) -> Vectors:
    def parts() -> Iterator[Vectors]:
        for start in range(0, len(things), size):
            yield embed(things[start : start + size]).cpu().numpy()

    with torch.no_grad():
        return np.concatenate([np.empty((0, width), np.float32), *parts()])
