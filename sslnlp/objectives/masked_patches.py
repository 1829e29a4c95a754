"""Most of a picture is hidden, and made up for from what is left of it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTLayer

from sslnlp.errors import UserError
from sslnlp.objectives.base import Objective
from sslnlp.types import Batch, StepOutput
from sslnlp.vision import refuses_pictures, states_of_some


class MaskedPatches(Objective):
    """A masked autoencoder (He et al., 2022, arXiv:2111.06377): the pixels of the hidden patches, from the others.

    The model reads only the patches that are left (of which there are few, so it is fast). A small decoder, thrown away
    at the end, sees what it made of them, with one learned vector in each hidden place, and gives the pixels there. The
    loss is the squared error, averaged over the pixels of a patch and over the hidden patches; each patch is measured
    against its own mean and deviation, so that 1 is what its mean alone would score, and 0 of a patch of one shade.

    Reads `pixel_values` and `masked` (`collators.images.MaskedPatchesCollator`). Its targets are hidden patches.
    Metrics: `explained_variance`, the share of the pixels' variance about the mean of their patch that is predicted:
    0 is that mean alone, however many patches are of one shade.

    Options:
        decoder_layers, decoder_width: of the decoder (None: half the model's width); it has as many heads as the model.
        normalise: measure each patch against its own mean and deviation, as the paper found best; else pixels from -1
            to 1.
    """

    name: ClassVar[str] = "masked_patches"
    needs: ClassVar[frozenset[str]] = frozenset({"pixel_values", "masked"})
    collator: ClassVar[str] = "masked_patches"
    wraps: ClassVar[Any] = AutoModel

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        decoder_layers: int = 1,
        decoder_width: int | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__(model)
        config = model.config
        heads = int(config.num_attention_heads)
        width = config.hidden_size // 2 if decoder_width is None else decoder_width
        if decoder_layers < 1:
            raise UserError(f"objective.decoder_layers must be at least 1, got {decoder_layers}")
        if width < 1 or width % heads:
            raise UserError(f"objective.decoder_width={width} is not a multiple of the {heads} heads of the model")
        self.normalise, self.patch = normalise, int(config.patch_size)
        patches = (int(config.image_size) // self.patch) ** 2
        of_decoder = ViTConfig(
            hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_hidden_layers=decoder_layers
        )
        of_decoder._attn_implementation = "sdpa"
        self.narrow = nn.Linear(config.hidden_size, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, 1 + patches, width))
        self.decoder = nn.ModuleList(ViTLayer(of_decoder) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * self.patch**2)
        self.to(model.dtype)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if (reason := super().refuses(config) or refuses_pictures(config)) is not None:
            return reason
        return None if isinstance(config, ViTConfig) else "only a ViT can leave patches out"

    def forward(self, batch: Batch) -> StepOutput:
        masked_BN = batch["masked"]
        seen_BK, hidden_BM = _places(masked_BN)
        assert isinstance(self.model, ViTModel)
        states_BLH = states_of_some(self.model, batch["pixel_values"], seen_BK)
        full_BSW = self._filled(self.narrow(states_BLH), seen_BK, masked_BN.shape[1])
        for layer in self.decoder:
            full_BSW = layer(full_BSW, None)
        hidden_BMW = _at(full_BSW[:, 1:], hidden_BM)
        guess_BMX = self.pixels(self.norm(hidden_BMW)).float()
        target_BMX = _at(self._target(batch["pixel_values"]), hidden_BM)
        error_BMX = (guess_BMX - target_BMX) ** 2
        total = (target_BMX - target_BMX.mean(-1, keepdim=True)).square().sum()
        explained = torch.stack([total - error_BMX.detach().sum(), total])
        return StepOutput(error_BMX.mean(), {"explained_variance": explained})

    def _filled(self, seen_BLW: Tensor, seen_BK: Tensor, patches: int) -> Tensor:
        """[B, 1 + N, W]: what was seen where it stood, the learned vector elsewhere, and every place marked."""
        index = torch.cat([torch.zeros_like(seen_BK[:, :1]), seen_BK + 1], 1)[..., None].expand_as(seen_BLW)
        hidden = self.hidden.to(seen_BLW.dtype).expand(len(seen_BLW), 1 + patches, -1)
        return hidden.scatter(1, index, seen_BLW) + self.place

    def _target(self, pixel_BCHW: Tensor) -> Tensor:
        """float32 [B, N, 3 p p]: the pixels of each patch, in the order of the model's patches."""
        b, c, h, w = pixel_BCHW.shape
        p = self.patch
        patches = (
            pixel_BCHW.float().reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)
        )
        if not self.normalise:
            return patches
        spread = patches.var(-1, keepdim=True, unbiased=False)
        return (patches - patches.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt()

    def num_targets(self, batch: Batch) -> Tensor:
        """The hidden patches of the batch."""
        masked: Tensor = batch["masked"]
        return masked.sum()


def _places(masked_BN: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [B, K] and [B, M], ascending: where a bool [B, N] with M True in every row is False, and where True."""
    masked = int(masked_BN[:1].sum())  # the one number that the CPU waits for a GPU to tell
    order_BN = masked_BN.byte().argsort(dim=1, stable=True)
    return order_BN[:, : order_BN.shape[1] - masked], order_BN[:, order_BN.shape[1] - masked :]


def _at(states_BNX: Tensor, places_BK: Tensor) -> Tensor:
    """[B, K, X]."""
    return states_BNX.gather(1, places_BK[..., None].expand(-1, -1, states_BNX.shape[-1]))
