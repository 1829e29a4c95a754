"""How to train: every `train.*` key of a recipe, checked when it is given."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sslnlp.errors import UserError, suggest
from sslnlp.metrics import check_trackers

if TYPE_CHECKING:
    from torch import nn

SCHEDULES = ("wsd", "cosine", "linear", "constant")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `10m`, `1.5h`, `1h30m`, `2d`."""
    compact = text.replace(" ", "").lower()
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", compact):
        raise UserError(f"cannot read the duration {text!r}; write for instance 90s, 10m or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", compact))
    if seconds <= 0:
        raise UserError(f"a budget of {text!r} leaves no time to train")
    return seconds


@dataclass(kw_only=True)
class TrainConfig:
    """How to train. Exactly one of `steps`, `epochs`, `budget` says for how long."""

    steps: int | None = None
    """Optimiser updates; 0 leaves the weights as they are, for objectives that only fit a head in the end."""
    epochs: float | None = None
    """Passes over the rows; turned into steps."""
    budget: str | None = None
    """Wall clock such as 90s, 10m, 2h: the speed is measured first, then the number of steps is fixed and recorded."""
    batch_size: int = 32
    """Rows a forward pass, on each process."""
    accumulate: int = 1
    """Forward passes an update: an update sees batch_size × accumulate × processes rows."""
    lr: float = 1e-3
    """Peak learning rate."""
    relative_lr: float | None = None
    """In the place of `lr`: a rate in proportion to the weights that a run starts from (`optim.relative_rate`)."""
    schedule: str = "wsd"
    """wsd (warm-up, stable, decay), cosine, linear or constant."""
    warmup: float = 0.05
    """Warm-up: a share of the steps when below 1, else a number of steps."""
    decay: float = 0.3
    """The last share of the steps in which `wsd` decays to zero."""
    optimizer: str = "adamw"
    """adamw, or muon: Muon for the matrices inside the network and AdamW for the rest, both at `lr`."""
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    """Each layer learns at this factor of the rate of the one above it; 1: all alike. For fine-tuning; with adamw."""
    embedding_lr_scale: float = 1.0
    """Tables of embeddings, and heads tied to them, learn at this multiple of `lr`."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Of AdamW: the shares of the old mean of gradients, and of their squares, that stay at each update."""
    eps: float = 1e-8
    clip: float = 1.0
    """Largest norm of the gradient of an update."""
    ema: float = 0.0
    """Share of the old average that stays at each update, of an average of the weights that is evaluated and exported
    in the place of the last ones; 0: no average. Pays where the text is read several times."""
    precision: str = "no"
    """no (float32) or bf16 (autocast; weights and optimiser stay float32)."""
    compile: bool = False
    """torch.compile the objective: pays after some minutes of training."""
    seed: int = 0
    """Of the order of rows, the masks, the dropout and the fresh weights."""
    workers: int = 0
    """Processes that prepare batches; changes the speed only."""
    log_every: int = 10
    eval_every: int | None = None
    """Steps between evaluations; default: a tenth of the run."""
    save_every: int | None = None
    """Steps between checkpoints; default: a tenth of the run."""
    keep: int = 2
    """Newest checkpoints kept, beside the best."""
    keep_best: bool = True
    """End with the weights of the best evaluation instead of the last."""
    on_nonfinite: str = "stop"
    """When a gradient is NaN or Inf: stop, or rollback (to the last good checkpoint, skipping the offending rows)."""
    trackers: list[str] = field(default_factory=list)
    """Any of tensorboard, trackio, beside metrics.jsonl."""

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.steps, self.epochs, self.budget)) > 1:
            raise UserError(
                "give one of train.steps, train.epochs and train.budget, not several; unset the others with =none"
            )
        for name in ("steps", "batch_size", "accumulate", "log_every", "eval_every", "save_every", "keep"):
            value = getattr(self, name)
            least = 0 if name == "steps" else 1
            if value is not None and value < least:
                raise UserError(f"train.{name} must be at least {least}, got {value}")
        for name in ("lr", "relative_lr", "clip", "epochs", "eps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"train.{name} must be a positive number, got {value}")
        if self.budget is not None:
            parse_duration(self.budget)
        choices = {
            "schedule": SCHEDULES,
            "precision": ("no", "bf16"),
            "on_nonfinite": ("stop", "rollback"),
            "optimizer": ("adamw", "muon"),  # `optim.OPTIMIZERS`
        }
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise UserError(
                    f"unknown train.{name} {getattr(self, name)!r}.{suggest(getattr(self, name), accepted)}"
                )
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"train.layer_decay is a factor above 0, at most 1, got {self.layer_decay}")
        if self.layer_decay < 1 and self.optimizer != "adamw":
            raise UserError("train.layer_decay works with train.optimizer=adamw")
        if not 0 < self.embedding_lr_scale < math.inf:
            raise UserError(f"train.embedding_lr_scale is a multiple above 0, got {self.embedding_lr_scale}")
        if not 0 <= self.ema < 1:
            raise UserError(f"train.ema is a share from 0 to below 1, got {self.ema}")
        for name in ("warmup", "workers", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"train.{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.decay <= 1:
            raise UserError(f"train.decay is a share of the steps from 0 to 1, got {self.decay}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            shown = ", ".join(map(str, self.betas))
            raise UserError(f"train.betas are two shares from 0 to below 1, such as 0.9,0.98; got {shown}")
        check_trackers(self.trackers)

    def for_weights(self, model: nn.Module) -> TrainConfig:
        """This one with the `lr` that `relative_lr` asks for, where it asks."""
        if self.relative_lr is None:
            return self
        from sslnlp.optim import relative_rate  # brings torch, which a recipe that is only read does without

        return replace(self, lr=relative_rate(model, self.relative_lr), relative_lr=None)
