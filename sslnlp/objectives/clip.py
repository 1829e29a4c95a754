"""Pictures and words in one space: a picture names its caption among those of the batch, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTModel,
)
from typing_extensions import Unpack

from sslnlp.distributed import gather_ragged
from sslnlp.errors import UserError
from sslnlp.nn import keyed_uniform
from sslnlp.objectives.base import Objective
from sslnlp.objectives.grad_cache import check_mini_batch_size, encode_in_parts
from sslnlp.objectives.info_nce import Texts, contrast
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, Encoding, StepOutput
from sslnlp.vision import IMAGE_SIZE, build_vision, picture_size

COLDEST = 0.01
"""The lowest temperature that is learned, as in CLIP."""


class ClipOptions(TypedDict, total=False):
    """The options of `Clip`, which those built on it pass on."""

    vision: str
    image_size: int | None
    patch_size: int | None
    dimension: int
    lock: Literal["none", "text", "image"]
    patch_dropout: float
    mini_batch_size: int | None


class Clip(Objective):
    """CLIP (Radford et al., 2021, arXiv:2103.00020): symmetric InfoNCE between pictures and captions.

    The text tower is the model, the vision tower a stock ViT; both have a pooler and a linear projection. The
    candidates are those of the whole batch, of all processes. Equal captions, and other captions of the same or an
    equal picture, are no negatives. The export is a `VisionTextDualEncoderModel` with its processor.

    Reads `pixel_values`, `text`, `text_row`, `image_hash` and `text_hash`. Its targets are captions. Metrics:
    `accuracy` (of both directions), `temperature`, and `chance_loss`, what a model that tells nothing would have:
    the loss stays there when nothing is learnt.

    Options:
        vision: a size of `vision.VISION_SIZES` from fresh weights, or the folder or hub name of a vision tower.
        image_size, patch_size: pixels, of a fresh tower (64 and 8); a folder has its own.
        dimension: of the space of both.
        temperature: divides the cosine; learned from there, and never below 0.01.
        lock: a tower that stays as it is ("text" or "image"; LiT, Zhai et al., 2022, arXiv:2111.07991), all but its
            pooler and projection; "none": both train.
        patch_dropout: share of a picture's patches that training leaves out, other ones in every step (FLIP; Li et
            al., 2023, arXiv:2212.00794): as much faster.
        mini_batch_size: pictures, and captions, that are encoded at a time (GradCache): a large batch in the memory of
            a small one. None: all at once.
    """

    name: ClassVar[str] = "clip"
    needs: ClassVar[frozenset[str]] = frozenset({"pixel_values", "text", "text_row", "image_hash", "text_hash"})
    collator: ClassVar[str] = "image_text"
    wraps: ClassVar[Any] = AutoModel
    couples_rows: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("image_text",)
    best: ClassVar[tuple[str, str]] = ("mean_recall", "max")
    reads_pixels: ClassVar[int] = IMAGE_SIZE
    """Pixels of a side of the pictures; of a class that is bound to options."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        vision: str = "tiny",
        image_size: int | None = None,
        patch_size: int | None = None,
        dimension: int = 128,
        temperature: float = 0.07,
        lock: Literal["none", "text", "image"] = "none",
        patch_dropout: float = 0.0,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__(model)
        if not temperature >= COLDEST:
            raise UserError(f"objective.temperature is learned from {COLDEST} or above, got {temperature}")
        if not 0 <= patch_dropout < 1:
            raise UserError(f"objective.patch_dropout is a share from 0 to below 1, got {patch_dropout}")
        if dimension < 1:
            raise UserError(f"objective.dimension must be at least 1, got {dimension}")
        check_mini_batch_size(mini_batch_size)
        self.patch_dropout, self.mini_batch_size = patch_dropout, mini_batch_size
        self.vision: Any = build_vision(vision, image_size=image_size, patch_size=patch_size)
        if patch_dropout and not isinstance(self.vision, ViTModel):
            raise UserError(f"objective.patch_dropout needs a ViT; {vision} is a {type(self.vision).__name__}")
        if getattr(model, "pooler", None) is None:
            model.pooler = _pooler(model.config)
        self.text_projection = _projection(model.config.hidden_size, dimension)
        self.image_projection = _projection(self.vision.config.hidden_size, dimension)
        # A vector of one number: a lone number could not be cut over processes.
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        for tower in {"none": (), "text": (model,), "image": (self.vision,)}[lock]:
            for name, parameter in tower.named_parameters():
                parameter.requires_grad_(name.startswith("pooler."))

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if (reason := super().refuses(config)) is not None:
            return reason
        with torch.device("meta"):
            pools = getattr(AutoModel.from_config(config), "pooler", None) is not None
        return None if pools else "it has no pooler, through which stock dual encoders read a text; bert and roberta do"

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Objective]:
        size = picture_size(str(options.get("vision", "tiny")), options.get("image_size"))
        return (
            cls
            if size == cls.reads_pixels
            else type(cls.__name__, (cls,), {"reads_pixels": size, "__module__": cls.__module__})
        )

    @classmethod
    def collator_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the size of the pictures that the vision tower reads."""
        if options.get("image_size", cls.reads_pixels) != cls.reads_pixels:
            raise UserError(
                f"collator.image_size={options['image_size']}, and the vision tower reads {cls.reads_pixels}; "
                "give objective.image_size alone"
            )
        return {**options, "image_size": cls.reads_pixels}

    def embed_text(self, encoding: Encoding) -> Tensor:
        """Vectors of length 1 [N, D] of an encoding [N, S]."""

        def encode(part: Encoding) -> Tensor:
            pooled_NH = self.model.pooler(hidden_states(self.model, part))
            return _unit(self.text_projection(pooled_NH))

        return encode_in_parts(encode, encoding, self.mini_batch_size)

    def embed_images(self, pixel_BCHW: Tensor, position_B: Tensor | None = None) -> Tensor:
        """Vectors of length 1 [B, D] of pictures as the stock processor makes them.

        position_B: places in the run, which patches are left out by; None: none are.
        """

        def encode(part: Encoding) -> Tensor:
            if "position" in part:
                pooled_BH = self._pooled(part["pixel_values"], part["position"])
            else:
                pooled_BH = self.vision(pixel_values=part["pixel_values"]).pooler_output
            return _unit(self.image_projection(pooled_BH))

        inputs = {"pixel_values": pixel_BCHW}
        if self.training and self.patch_dropout and position_B is not None:
            inputs["position"] = position_B
        return encode_in_parts(encode, inputs, self.mini_batch_size)

    def _pooled(self, pixel_BCHW: Tensor, position_B: Tensor) -> Tensor:
        """What the vision tower makes of some of the patches, [B, H]: the stock forward pass between its parts."""
        states_BPH = _some_patches(self.vision.embeddings(pixel_BCHW), position_B, self.patch_dropout)
        for layer in self.vision.layers:
            states_BPH = layer(states_BPH, None)
        pooled_BH: Tensor = self.vision.pooler(self.vision.layernorm(states_BPH))
        return pooled_BH

    def forward(self, batch: Batch) -> StepOutput:
        text_row_K = batch["text_row"]
        own_image_BD = self.embed_images(batch["pixel_values"], batch.get("position"))
        own_text_KD = self.embed_text(batch["text"])
        image_BD, first_image = gather_ragged(own_image_BD)
        text_KD, first_text = gather_ragged(own_text_KD)
        image_hash, _ = gather_ragged(batch["image_hash"][:, None])
        text_hash, _ = gather_ragged(batch["text_hash"][:, None])
        pair_image_hash, _ = gather_ragged(batch["image_hash"][text_row_K, None])
        of_texts = torch.arange(len(text_row_K), device=text_row_K.device) + first_text
        asked_image, asked_text = batch["image_hash"][text_row_K, None], batch["text_hash"][:, None]
        by_image = Texts(asked_image, text_hash, pair_image_hash, text_hash)
        by_text = Texts(asked_text, image_hash, text_hash, pair_image_hash)
        sides = (
            (own_image_BD[text_row_K], text_KD, of_texts, by_image),
            (own_text_KD, image_BD, text_row_K + first_image, by_text),
        )
        losses, hits = zip(*(self.compare(*side) for side in sides), strict=True)
        chance = torch.tensor(math.log(max(1, len(text_KD) * len(image_BD))) / 2, device=text_KD.device)
        shown = {
            "accuracy": torch.stack(hits).mean().detach(),
            "temperature": (-self.log_scale.detach()).exp().sum(),
            **self.chance(chance),
        }
        return StepOutput(torch.stack(losses).mean(), shown)

    def chance(self, naming: Tensor) -> dict[str, Tensor]:
        """`chance_loss`; `naming`: the mean logarithm of the number of candidates."""
        return {"chance_loss": naming}

    def compare(self, query_QD: Tensor, candidate_ND: Tensor, target_Q: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        """The loss of one direction, and the share of the queries whose own is the nearest."""
        temperature = (-self.log_scale).exp()
        return contrast(query_QD, candidate_ND, target_Q, texts, temperature=temperature, size=self.mini_batch_size)

    def num_targets(self, batch: Batch) -> Tensor:
        """The captions of the batch."""
        rows: Tensor = batch["text_row"]
        return torch.tensor(len(rows), device=rows.device)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.log_scale.clamp_(max=-math.log(COLDEST))

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """`image` and `text` [K, D], a row for each caption, and their hashes [K]."""
        rows = batch["text_row"]
        return {
            "image": self.embed_images(batch["pixel_values"])[rows],
            "text": self.embed_text(batch["text"]),
            "image_hash": batch["image_hash"][rows],
            "text_hash": batch["text_hash"],
        }

    @property
    def exported(self) -> PreTrainedModel:
        """Both towers as stock transformers has them: a copy."""
        width = self.text_projection.out_features
        config = VisionTextDualEncoderConfig.from_vision_text_configs(
            self.vision.config, self.model.config, projection_dim=width
        )
        dual = VisionTextDualEncoderModel(config)
        dual.vision_model.load_state_dict(self.vision.state_dict())
        dual.text_model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            dual.text_projection.weight.copy_(self.text_projection.weight)
            dual.visual_projection.weight.copy_(self.image_projection.weight)
            dual.logit_scale.copy_(self.log_scale[0])
        return dual.to(self.log_scale.device)


class Siglip(Clip):
    """SigLIP (Zhai et al., 2023, arXiv:2303.15343): each caption fits a picture or it does not, by itself.

    The loss is the sum over all candidates of a query of the logistic loss of (cosine / temperature + bias), averaged
    over the queries. The bias is `ln(1 / negatives)`, from how many candidates there are, plus what is learned: the
    paper's -10 fits batches of 20,000, and with 32 the model would spend its first steps on unlearning it.

    Options are those of `clip`; the temperature begins at 0.1, as published.
    """

    name: ClassVar[str] = "siglip"

    def __init__(self, model: PreTrainedModel, *, temperature: float = 0.1, **options: Unpack[ClipOptions]) -> None:
        super().__init__(model, temperature=temperature, **options)
        self.bias = nn.Parameter(torch.zeros(1))

    def chance(self, naming: Tensor) -> dict[str, Tensor]:
        """Of candidates that are all given the share of the positives among them."""
        number = naming.exp()
        others = (number - 1).clamp(min=1e-6)
        return {"chance_loss": number.log() + others * (number / others).log()}

    def compare(self, query_QD: Tensor, candidate_ND: Tensor, target_Q: Tensor, texts: Texts) -> tuple[Tensor, Tensor]:
        similarity_QN = query_QD @ candidate_ND.T
        own_QN = F.one_hot(target_Q, len(candidate_ND)).bool()
        counted_QN = own_QN | ~texts.left_out(slice(0, len(query_QD)))
        negatives_Q = (counted_QN.sum(1, keepdim=True) - 1).clamp(min=1)
        logits_QN = similarity_QN * self.log_scale.exp() - negatives_Q.log() + self.bias
        losses_QN = F.softplus(torch.where(own_QN, -logits_QN, logits_QN)).masked_fill(~counted_QN, 0)
        seen_QN = similarity_QN.detach().masked_fill(~counted_QN, float("-inf"))
        nearest_QN = seen_QN >= seen_QN.gather(1, target_Q[:, None])
        hits = (nearest_QN.sum(1) == 1).float().mean()
        return losses_QN.sum() / max(1, len(query_QD)), hits


def _unit(vectors: Tensor) -> Tensor:
    """At length 1, in float32 or wider."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def _projection(width: int, dimension: int) -> nn.Linear:
    linear = nn.Linear(width, dimension, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def _pooler(config: PreTrainedConfig) -> nn.Module:
    """The pooler that a stock model of this configuration has, beginning as (the tanh of) its first token."""
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config).pooler)
    pooler: nn.Module = kind(config)
    assert isinstance(pooler.dense, nn.Linear)
    nn.init.eye_(pooler.dense.weight)
    nn.init.zeros_(pooler.dense.bias)
    return pooler


def _some_patches(states_BPH: Tensor, position_B: Tensor, share: float) -> Tensor:
    """The first state (of the whole picture) and all but `share` of the others, drawn by position."""
    patches = states_BPH.shape[1] - 1
    kept = max(1, round((1 - share) * patches))
    draw_BP = keyed_uniform(position_B, patches, purpose="patch_dropout")
    chosen_BK = draw_BP.argsort(dim=1)[:, :kept].sort(dim=1).values + 1
    first_B1 = torch.zeros_like(chosen_BK[:, :1])
    index = torch.cat([first_B1, chosen_BK], 1)[..., None].expand(-1, -1, states_BPH.shape[2])
    return states_BPH.gather(1, index)
