"""Which model: every `model.*` key of a recipe, checked when it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sslnlp.architectures import ARCHITECTURES, SIZES
from sslnlp.errors import UserError, suggest


@dataclass(kw_only=True)
class ModelConfig:
    """Which model: a named architecture and size from scratch, or a checkpoint to go on from."""

    architecture: str = "modernbert"
    """One of `ARCHITECTURES`. Ignored when `pretrained` is set."""
    size: str = "mini"
    """One of `SIZES`: nano, tiny, mini, small, base."""
    pretrained: str | None = None
    """A Hugging Face folder or hub name (for instance a run's `export/`) whose weights to start from."""
    fresh: bool = False
    """Take the configuration and the tokenizer of `pretrained`, and new weights: what the same model reaches
    untrained."""
    embedding_init: Literal["random", "cooccurrence"] = "random"
    """Where new embeddings start: `cooccurrence` counts in the text of the run which tokens stand near each other
    (`sslnlp.embedding_init`). For objectives on raw text; weights that were trained stay as they are."""
    dropout: float = 0.0
    """Every dropout rate of the model. 0 suits a single pass over the text; fine-tuning small sets likes 0.1."""
    lora_rank: int | None = None
    """Train low-rank adapters of this rank and new weights (a head) alone; the export has them merged. None: all."""
    reinit_layers: int = 0
    """So many of the top layers of `pretrained` start from new weights: what they hold is of the old objective (Zhang
    et al., 2021, arXiv:2006.05987)."""
    config: dict[str, Any] = field(default_factory=dict)
    """Any further field of the stock configuration, e.g. `model.config.hidden_size=384`."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"unknown model.architecture {self.architecture!r}.{suggest(self.architecture, ARCHITECTURES)}"
            )
        if self.size not in SIZES:
            raise UserError(f"unknown model.size {self.size!r}.{suggest(self.size, SIZES)}")
        if self.fresh and self.pretrained is None:
            raise UserError("model.fresh=true takes the configuration of model.pretrained, which is not given")
        for name in ("lora_rank", "reinit_layers"):
            if (value := getattr(self, name)) and self.pretrained is None:
                raise UserError(f"model.{name}={value} is about the weights of model.pretrained, which is not given")
            if value is not None and value < (name == "lora_rank"):
                raise UserError(f"model.{name} cannot be {value}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be in [0, 1), got {self.dropout}")
