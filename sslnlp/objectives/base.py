"""What an objective is: a module that owns its model and turns a batch into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.arrays import Ints
from sslnlp.errors import UserError
from sslnlp.masks import is_causal
from sslnlp.tokenizer import Style
from sslnlp.types import Batch, Encoding, LinearMap, StepOutput


class Objective(nn.Module, ABC):
    """Owns the model, the head, and any teacher or queue; all its state is in parameters and buffers. Parameters
    that it adds are of the type of the model's (`model.dtype`); slow copies of them are in float32 at least.

    A subclass is one file: its options are keyword-only arguments after `model`, its maths is in `functional.py`,
    and nothing else in the package knows its name but the registry.
    """

    name: ClassVar[str]
    """The registry name."""
    needs: ClassVar[frozenset[str]]
    """Keys it reads from the batch."""
    collator: ClassVar[str]
    """The collator used when the recipe names none."""
    wraps: ClassVar[Any] = AutoModel
    """The `transformers` Auto class that gives backbone and head."""
    couples_rows: ClassVar[bool] = False
    """The loss compares rows of a batch with each other, so splitting a batch changes it (in-batch negatives)."""
    pooling: ClassVar[str | None] = None
    """Set when the model is an embedder; the export writes it down for sentence-transformers."""
    per_token: ClassVar[bool] = False
    """The model's vectors are compared token by token (late interaction); the export writes it down as well."""
    framing: ClassVar[Style] = "encoder"
    """What stands around a document: `encoder` cls ... sep, `decoder` bos ... eos (eos only at the true end of the
    text), `seq2seq` bos ... eos around every piece, or eos alone where the tokenizer has no bos (T5)."""
    shifted: ClassVar[bool] = False
    """Label s is predicted from position s - 1, as in causal models; the collator must say the same."""
    parts: ClassVar[Mapping[str, type[Objective]]] = MappingProxyType({})
    """The objectives this one is made of, each of which is checked against its own collator."""
    modes: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Ways the export is meant to be used that differ in fields of its config: mode -> fields. The export stores the
    logits of each mode on a probe, so that an installation that computes something else is found out."""
    likelihood: ClassVar[bool] = False
    """The loss is the negative log-likelihood of the text in nats, or an upper bound on it, each token counted once:
    held-out loss converts to bits per byte."""
    measures: ClassVar[tuple[str, ...]] = ()
    """Names of further held-out measures (see `sslnlp.evaluation`) computed from `predict`."""
    best: ClassVar[tuple[str, str]] = ("loss", "min")
    """The held-out figure that decides which checkpoint is the best, and its direction."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def __call__(self, batch: Batch) -> StepOutput:
        """`forward`; `UserError` for a batch without a key that it reads."""
        output: StepOutput
        try:
            output = super().__call__(batch)
        except KeyError as error:
            key = error.args[0]
            if key not in self.needs or key in batch:
                raise
            raise UserError(
                f"objective {self.name} reads {key!r}, which the batch has not: make it by the collator "
                f"{self.collator!r}, of rows with a 'position' each"
            ) from error
        return output

    @abstractmethod
    def forward(self, batch: Batch) -> StepOutput:
        """Loss (mean over this batch's targets) and metrics of one micro-batch."""

    def num_targets(self, batch: Batch) -> Tensor:
        """How many targets this batch has: its weight inside an accumulation window. int64, a scalar, or [K] where
        `forward` gives K terms."""
        labels: Tensor = batch["labels"]
        return (labels != -100).sum()

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Objective]:
        """The class that these options make; another one only where what it needs or wraps depends on them."""
        return cls

    @classmethod
    def collator_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the collator, with those that the objective settles filled in."""
        return dict(options)

    @classmethod
    def config_fields(cls, label_names: Sequence[str]) -> dict[str, Any]:
        """Fields of the model's configuration that the labels of the data settle; `label_names` is empty without."""
        if not label_names:
            return {}
        names = dict(enumerate(label_names))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: c for c, name in names.items()}}

    @classmethod
    def settled_by(cls, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Options that the data settles where nobody else does, from what its preparation counted."""
        return {}

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        """Why a model of this configuration does not suit the objective; None when it does."""
        if type(config) not in cls.wraps._model_mapping:
            return f"transformers has no {cls.wraps.__name__} of it"
        if config.is_encoder_decoder and cls.framing != "seq2seq":
            return "it has an encoder and a decoder, and this trains one stack"
        # The other way round, a left-to-right model can classify and embed.
        if cls.framing == "decoder" and not is_causal(config):
            return "it reads in both directions and would see what it is to predict"
        return None

    def samples(self, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> dict[str, list[str]]:
        """Texts that show what a model has learnt: title -> lines, printed at the end of a run. Empty: none."""
        return {}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """What `measures` are computed from: named tensors with one row per example. Only where `measures` is set."""
        raise TypeError(f"objective {self.name!r} declares measures {self.measures} but does not define predict()")

    def scored(self, batch: Batch) -> tuple[StepOutput, dict[str, Tensor]]:
        """`forward` and `predict` of a held-out batch; an objective for which both are one pass says so here."""
        return self(batch), self.predict(batch) if self.measures else {}

    def after_step(self, progress: float) -> None:
        """Called once after each optimiser step, with progress in (0, 1]: teachers and schedules move here."""

    pseudo_labels: float = 0.0
    """Share of the unlabelled texts of each class that are to train as if labelled, the surest of what `guess` says."""

    def guess(self, batches: Iterable[Batch]) -> tuple[Ints, NDArray[np.float32]]:
        """A class for each row of the batches (-100: none), and how sure it is; those that are known stay. Called
        before the first update, with all training rows and the unlabelled ones (label -100)."""
        raise TypeError(f"objective {self.name!r} asks for pseudo-labels but does not define guess()")

    begins: bool = False
    """`begin` is to be called."""
    begin_rows: ClassVar[int] = 5000
    """Rows that it is given at most."""

    def begin(self, batches: Iterable[Batch]) -> None:
        """Called before the first update, with the training rows that come first in the order of training: weights
        that may start from what the model makes of these are set here."""

    refits: bool = False
    """`refit` is to be called."""

    def refit(self, batches: Iterable[Batch], held_out: Iterable[Batch]) -> None:
        """Called after the last update with the rows that `begin` gets, and as many held-out ones, where there are any:
        what it fitted to the model as it was may be fitted anew. Held-out figures are taken after it."""

    remembers: bool = False
    """`remember` is to be called."""

    def remember(self, encodings: Iterable[Encoding]) -> None:
        """Called once before the first update, in evaluation mode, with the encoding of every caption of the training
        rows once: what a part that does not train makes of them may be kept here."""

    concludes: ClassVar[bool] = False
    """`conclude` is to be called; held-out figures are taken after it alone."""

    def conclude(self, batches: Iterable[Batch]) -> None:
        """Called once after the last update, in evaluation mode, with all training rows (and unlabelled ones, of
        label -100): what is fitted in closed form on the trained model is fitted here."""

    def calibrate(self, temperature: float) -> None:
        """The logits of the export are to be divided by this; where nothing is classified, it means nothing."""

    @property
    def linear_head(self) -> LinearMap | None:
        """What turns the vectors of the export into logits; None where it has nothing of the kind."""
        return None

    @property
    def vector_map(self) -> LinearMap | None:
        """What the pooled vectors of the export go through before they get length one; None: nothing."""
        return None

    @property
    def exported(self) -> PreTrainedModel:
        """What pretraining leaves behind: the model that `export/` holds."""
        return self.model
