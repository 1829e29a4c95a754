"""Classification of whole texts: fine-tuning is the same loop with labels that people gave."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.arrays import Ints
from sslnlp.errors import UserError, suggest
from sslnlp.label_spreading import check_pseudo_labels, spread_labels, vectors_of
from sslnlp.models import is_new
from sslnlp.nn import Pooling
from sslnlp.objectives import functional
from sslnlp.objectives.fitted_head import fitted_head
from sslnlp.objectives.text_head import TextHead, output_layer, rescaled
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, StepOutput

log = logging.getLogger(__name__)

HEADS = ("fitted", "random")
STRENGTH = 2.0
"""C of the logistic regression a head starts as (`fitted_head`): less than the best head alone would have, as one that
is already sure of its few rows leaves the layers below nothing to learn."""
CLOSEST = 0.5
"""Share of their length that texts are taken to lie apart at least: where they hardly differ the head would have large
weights, under which every update of the layers below moves the answers far."""


class _NotLinear(Exception):
    """What a model says is not the linear map of what its last layer was given."""


class Classification(TextHead):
    """Cross-entropy over `config.num_labels` classes, with the model's own classification head.

    Rows: a text (or two) and one label. In training the loss may weigh classes and smooth labels; held out it is the
    plain cross-entropy, so that figures of runs with different options compare. Weighted or not, the loss is a mean
    over rows (not over weights), which keeps it exact under accumulation.

    With unlabelled texts (`data.unlabelled`) and `pseudo_labels`, those train too whose label is surest by the vectors
    of the model that it starts from (`label_spreading`), which should be one that makes sentence vectors.

    A head that is new starts as logistic regression on what the model gives it of (at most 5,000 of) the training rows,
    and fine-tuning goes on from there: the features of pretraining are not bent to random weights first (Kumar et al.,
    2022, arXiv:2202.10054). Not where the logits are something else than a linear map of one vector a text.

    Options:
        head: how a new head starts, "fitted" or "random".
        class_weights: one factor a class, multiplied into its rows' loss. Mean 1 keeps the learning rate meaningful.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        ordinal: the classes are steps of a scale (stars, grades), in the order of their names: training adds the
            ranked probability score (Epstein, 1969), which costs a prediction more the further off it lies. Held-out
            figures gain the mean distance in steps and the quadratic weighted kappa.
        pseudo_labels: share of the unlabelled texts of each class that train as if labelled, the surest first; 0: none.
    """

    name: ClassVar[str] = "classification"
    collator: ClassVar[str] = "classification"
    measures: tuple[str, ...] = ("classification",)  # type: ignore[misc]  # of the class; an ordinal one has more
    best: ClassVar[tuple[str, str]] = ("macro_f1", "max")
    class_weights: Tensor | None

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        head: str = "fitted",
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ordinal: bool = False,
        pseudo_labels: float = 0.0,
    ) -> None:
        super().__init__(model)
        classes = int(model.config.num_labels)
        if classes < 2:
            raise UserError(f"classification needs at least 2 classes, the data or the model has {classes}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"objective.label_smoothing={label_smoothing} must be at least 0 and below 1")
        if class_weights is not None and (len(class_weights) != classes or min(class_weights) < 0):
            raise UserError(f"objective.class_weights must be {classes} numbers of at least 0, one for each class")
        check_pseudo_labels(pseudo_labels)
        if head not in HEADS:
            raise UserError(f"objective.head={head!r} is not known.{suggest(head, HEADS)}")
        self.begins = head == "fitted" and is_new(model, output_layer(model).weight)
        self.label_smoothing, self.ordinal, self.pseudo_labels = label_smoothing, ordinal, pseudo_labels
        if ordinal:
            self.measures = ("classification", "ordinal")
        self.temperature = 1.0
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def begin(self, batches: Iterable[Batch]) -> None:
        """Fit the last linear map to what comes to it."""
        last = output_layer(self.model)
        found: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))

        def features(batch: Batch) -> Tensor:
            found.clear()
            logits_BC = self.logits(batch)
            vector_BH = found[0]
            if vector_BH.ndim == 3:  # stock decoders map every token, and take what the last one says
                vector_BH = Pooling("last")(vector_BH, batch["attention_mask"])
            if not torch.allclose(last(vector_BH), logits_BC, rtol=1e-3, atol=1e-4):
                raise _NotLinear
            return vector_BH

        try:
            vector_NH, label_N = vectors_of(self, batches, features)
        except _NotLinear:
            log.info("the new head starts at random: its logits are not a linear map of one vector a text")
            return
        finally:
            hook.remove()
        known_N = label_N >= 0
        vector_NH, label_N = vector_NH[known_N], label_N[known_N]
        weight_N = None
        if self.class_weights is not None:  # what counts in the updates counts where they start
            weight_N = self.class_weights.cpu().numpy()[label_N]
            vector_NH, label_N, weight_N = vector_NH[weight_N > 0], label_N[weight_N > 0], weight_N[weight_N > 0]
        if len(np.unique(label_N)) < 2:
            return
        weight, bias = fitted_head(
            vector_NH, label_N, last.out_features,
            strength=STRENGTH, closest=CLOSEST, sure_N=weight_N, intercept=last.bias is not None,
        )  # fmt: skip
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(weight))
            if last.bias is not None:
                last.bias.copy_(torch.from_numpy(bias))

    def guess(self, batches: Iterable[Batch]) -> tuple[Ints, NDArray[np.float32]]:
        pool = Pooling("mean")

        def embed(batch: Batch) -> Tensor:
            return F.normalize(pool(hidden_states(self.model, batch), batch["attention_mask"]), dim=-1)

        return spread_labels(*vectors_of(self, batches, embed))

    def calibrate(self, temperature: float) -> None:
        self.temperature = temperature

    @property
    def exported(self) -> PreTrainedModel:
        """The model, the temperature of its probabilities folded into its last linear map."""
        return self.model if self.temperature == 1 else rescaled(self.model, 1 / self.temperature)

    def outcome(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        """Mean loss over the rows, and `accuracy`: the share of rows whose highest logit is the label's."""
        labels_B = batch["labels"]
        smoothing = self.label_smoothing if self.training else 0.0
        losses_B = F.cross_entropy(logits_BC, labels_B, label_smoothing=smoothing, reduction="none")
        if self.ordinal and self.training:
            losses_B = losses_B + functional.ranked_probability_score(logits_BC, labels_B)
        # Multiplied here: given the weights, PyTorch weighs each class of a smoothed target by its own, not the row.
        if self.class_weights is not None and self.training:
            losses_B = losses_B * self.class_weights[labels_B.clamp(min=0)]
        rows = self.num_targets(batch).clamp(min=1)
        right = (logits_BC.detach().argmax(-1) == labels_B).sum()
        return StepOutput(losses_B.sum() / rows, {"accuracy": right / rows})
