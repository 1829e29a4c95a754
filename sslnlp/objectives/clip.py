"""Pictures and words in one space: a picture names its caption among those of the batch, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTModel,
)

from sslnlp.architectures import IMAGE_SIZE, PATCH_SIZE
from sslnlp.distributed import gather_ragged
from sslnlp.errors import UserError
from sslnlp.keyed import keyed_uniform
from sslnlp.models import drops_out
from sslnlp.objectives.base import Objective
from sslnlp.objectives.embedding import Embedding
from sslnlp.objectives.functional import row_count, unit
from sslnlp.objectives.grad_cache import check_mini_batch_size, encode_in_parts
from sslnlp.objectives.info_nce import COLDEST, Texts, contrast
from sslnlp.objectives.lock import Lock
from sslnlp.objectives.memory import Memory
from sslnlp.objectives.towers import VIEWS, between_views, projection, stock_pooler
from sslnlp.packed import hidden_states
from sslnlp.registry import bound_class
from sslnlp.types import Batch, Encoding, StepOutput
from sslnlp.vision import build_vision, picture_sizes, states_of_some


class ClipOptions(TypedDict, total=False):
    """The options of `Clip`, which those built on it pass on."""

    vision: str
    image_size: int | None
    patch_size: int | None
    dimension: int
    lock: Literal["none", "text", "image"]
    unlock: float
    patch_dropout: float
    mini_batch_size: int | None
    beside: str | None
    beside_weight: float


class Clip(Objective):
    """CLIP (Radford et al., 2021, arXiv:2103.00020): symmetric InfoNCE between pictures and captions.

    The text tower is the model, the vision tower a stock ViT; both have a pooler and a linear projection. The
    candidates are those of the whole batch, of all processes. Equal captions, and other captions of the same or an
    equal picture, are no negatives. The export is a `VisionTextDualEncoderModel` with its processor.

    Reads `pixel_values`, `text`, `text_row`, `image_hash` and `text_hash`. Its targets are captions. Metrics:
    `accuracy` (of both directions), `temperature`, and `chance_loss`, what a model that tells nothing would have:
    the loss stays there when nothing is learnt.

    Options:
        vision: a size of `architectures.VISION_SIZES` from fresh weights, or the folder or hub name of a vision tower.
        image_size, patch_size: pixels, of a fresh tower (64 and 8); a folder has its own.
        dimension: of the space of both.
        temperature: divides the cosine; learned from there, and never below 0.01.
        lock: a tower that stays as it is ("text" or "image"; LiT, Zhai et al., 2022, arXiv:2111.07991), all but its
            pooler and projection; "none": both train.
        unlock: share of the run after which the locked tower trains too; 1: never.
        patch_dropout: share of a picture's patches that training leaves out, other ones in every step (FLIP; Li et
            al., 2023, arXiv:2212.00794): as much faster.
        mini_batch_size: pictures, and captions, that are encoded at a time (GradCache): a large batch in the memory of
            a small one. None: all at once.
        beside: an objective between two views of each picture that trains the vision tower at the same time:
            "info_nce", "moco", "byol", "barlow_twins" or "vicreg", as they are by default (SLIP; Mu et al., 2022,
            arXiv:2112.12750).
        beside_weight: of its loss. The figures are then named `captions/...` and `views/...`.
    """

    name: ClassVar[str] = "clip"
    needs: ClassVar[frozenset[str]] = frozenset({"pixel_values", "text", "text_row", "image_hash", "text_hash"})
    collator: ClassVar[str] = "image_text"
    wraps: ClassVar[Any] = AutoModel
    couples_rows: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("image_text",)
    best: ClassVar[tuple[str, str]] = ("mean_recall", "max")
    settles: ClassVar[Mapping[str, int]] = MappingProxyType({"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE})
    """Options of the collator that those of the objective decide; of a class that is bound to them."""

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
        unlock: float = 1.0,
        patch_dropout: float = 0.0,
        mini_batch_size: int | None = None,
        beside: str | None = None,
        beside_weight: float = 1.0,
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
            model.pooler = stock_pooler(model.config)
        self.text_projection = projection(model.config.hidden_size, dimension)
        self.image_projection = projection(self.vision.config.hidden_size, dimension)
        # A vector of one number: a lone number could not be cut over processes.
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))
        self.to(model.dtype)
        if not 0 < unlock <= 1:
            raise UserError(f"objective.unlock is a share of the run above 0 and at most 1, got {unlock}")
        if unlock < 1 and lock == "none":
            raise UserError(f"objective.unlock={unlock} is about a locked tower: give objective.lock=text or image")
        self.memory = Memory()
        self.lock = Lock({"none": None, "text": model, "image": self.vision}[lock], until=unlock)
        self.beside_weight = beside_weight
        self.beside: Embedding | None = None
        if beside is not None:
            if lock == "image":
                raise UserError("objective.beside trains the vision tower, which objective.lock=image keeps as it is")
            if not beside_weight > 0:
                raise UserError(f"objective.beside_weight must be above 0, got {beside_weight}; or leave beside out")
            self.beside = between_views(beside, self.vision, mini_batch_size)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if (reason := super().refuses(config)) is not None:
            return reason
        with torch.device("meta"):
            pools = getattr(AutoModel.from_config(config), "pooler", None) is not None
        return None if pools else "it has no pooler, through which stock dual encoders read a text; bert and roberta do"

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Objective]:
        vision = str(options.get("vision", "tiny"))
        size, patch = picture_sizes(vision, options.get("image_size"), options.get("patch_size"))
        settles = {"image_size": size, "patch_size": patch}
        needs = cls.needs
        if options.get("beside") is not None:
            settles, needs = settles | {"views": 2}, needs | VIEWS
        if settles == dict(cls.settles):
            return cls
        return bound_class(cls, options, settles=MappingProxyType(settles), needs=needs)

    @classmethod
    def collator_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the sizes of what the vision tower reads, and the views that another objective needs."""
        for name, value in cls.settles.items():
            if options.get(name, value) != value:
                hint = "objective.beside" if name == "views" else f"objective.{name}"
                raise UserError(
                    f"collator.{name}={options[name]}, and the objective works with {value}: {hint} says so"
                )
        return {**options, **cls.settles}

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Where the text tower stays as it is for good, each caption gives the same states in every pass."""
        return self.lock.closed_for_good(self.model) and not drops_out(self.model.config)

    def remember(self, encodings: Iterable[Encoding]) -> None:
        self.memory.fill(encodings, lambda encoding: hidden_states(self.model, encoding), self.model.pooler)

    def embed_text(self, encoding: Encoding) -> Tensor:
        """Vectors of length 1 [N, D] of an encoding [N, S]."""

        def encode(part: Encoding) -> Tensor:
            with self.lock.around(self.model):
                known = self.training and self.memory
                states_NSH = self.memory.of(part) if known else hidden_states(self.model, part)
            return unit(self.text_projection(self.model.pooler(states_NSH)))

        return encode_in_parts(encode, encoding, self.mini_batch_size)

    def embed_images(self, pixel_BCHW: Tensor, position_B: Tensor | None = None) -> Tensor:
        """Vectors of length 1 [B, D] of pictures as the stock processor makes them.

        position_B: places in the run, which patches are left out by; None: none are.
        """

        def encode(part: Encoding) -> Tensor:
            return unit(self.image_projection(self._pooled(part["pixel_values"], part.get("position"))))

        inputs = {"pixel_values": pixel_BCHW}
        if self.training and self.patch_dropout and position_B is not None:
            inputs["position"] = position_B
        return encode_in_parts(encode, inputs, self.mini_batch_size)

    def _pooled(self, pixel_BCHW: Tensor, position_B: Tensor | None) -> Tensor:
        """What the vision tower makes of pictures, of some of their patches where positions are given: [B, H]."""
        pooled_BH: Tensor
        if not isinstance(self.vision, ViTModel):
            with self.lock.around(self.vision):
                pooled_BH = self.vision(pixel_values=pixel_BCHW).pooler_output
            return pooled_BH
        with self.lock.around(self.vision):
            if position_B is None:
                states_BSH = self.vision(pixel_values=pixel_BCHW).last_hidden_state
            else:
                states_BSH = states_of_some(self.vision, pixel_BCHW, self._kept_patches(position_B))
        pooled_BH = self.vision.pooler(states_BSH)
        return pooled_BH

    def _kept_patches(self, position_B: Tensor) -> Tensor:
        """int64 [B, K]: the patches that are read, drawn by position."""
        patches = (self.vision.config.image_size // self.vision.config.patch_size) ** 2
        kept = max(1, round((1 - self.patch_dropout) * patches))
        draw_BP = keyed_uniform(position_B, patches, purpose="patch_dropout")
        return draw_BP.argsort(dim=1)[:, :kept].sort(dim=1).values

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
        losses, hits, chances = zip(*(self.compare(*side) for side in sides), strict=True)
        shown = {
            "accuracy": torch.stack(hits).mean().detach(),
            "temperature": (-self.log_scale.detach()).exp().sum(),
            "chance_loss": torch.stack(chances).mean(),
        }
        loss = torch.stack(losses).mean() + self.lock.touch()
        if self.beside is None:
            return StepOutput(loss, shown)
        other: StepOutput = self.beside(batch)
        pictures = self.beside.num_targets(batch)
        shown = {f"captions/{name}": value for name, value in {"loss": loss.detach(), **shown}.items()}
        for name, value in {"loss": other.loss.detach(), **other.metrics}.items():
            shown[f"views/{name}"] = torch.stack([value * pictures, pictures]) if value.ndim == 0 else value
        terms = torch.stack([loss, self.beside_weight * other.loss])
        return StepOutput(terms.sum(), shown, terms)

    def compare(
        self, query_QD: Tensor, candidate_ND: Tensor, target_Q: Tensor, texts: Texts
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of one direction, the share of the queries whose own is the nearest, and the loss of a model that
        tells nothing."""
        temperature = (-self.log_scale).exp()
        return contrast(query_QD, candidate_ND, target_Q, texts, temperature=temperature, size=self.mini_batch_size)

    def num_targets(self, batch: Batch) -> Tensor:
        """The captions of the batch, and with an objective beside also its pictures."""
        captions = row_count(batch["text_row"])
        return captions if self.beside is None else torch.stack([captions, self.beside.num_targets(batch)])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.log_scale.clamp_(max=-math.log(COLDEST))
        self.lock.after_step(progress)
        if self.beside is not None:
            self.beside.after_step(progress)

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
