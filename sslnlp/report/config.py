"""The keys `report.*` of a recipe, and of `sslnlp report`."""

from __future__ import annotations

from dataclasses import dataclass

from sslnlp.errors import UserError


@dataclass(kw_only=True)
class ReportConfig:
    """What the report card is made of besides the run's own held-out text. All of it is optional."""

    texts: str | None = None
    """Held-out text (file, glob, folder or hub name). None: what the run held out."""
    pictures: str | None = None
    """Held-out pictures with captions, for a model of pictures. None: those that the run held out."""
    pairs: str | None = None
    """Minimal pairs: rows with `sentence_good` and `sentence_bad`, as BLiMP has them."""
    sts: str | None = None
    """Sentence pairs: rows with `sentence1`, `sentence2` and `score`."""
    probe_train: str | None = None
    """Labelled texts (`text`, `label`), or pictures, that nearest neighbours and a linear probe learn from."""
    probe_test: str | None = None
    """Labelled texts, or pictures, that they are measured on; pictures also by the names of their classes."""
    label: str | None = None
    """The label column of both. None: the one of a usual name."""
    templates: list[str] | None = None
    """What the name of a class is put into at `{}` for zero-shot classification. None: plain English ones."""
    beir: str | None = None
    """A folder in the BEIR layout: a search collection with judgements."""
    documents: int = 500
    """Texts, held-out pictures, pairs of one kind, or sentences that a measure reads at most (pairs of `sts`, labelled
    texts and pictures, and search collections are read whole)."""
    every: int = 0
    """While training, also measured at every so many held-out evaluations (`train.eval_every`); 0: only at the end,
    and only when one of the files above is given."""

    def __post_init__(self) -> None:
        if self.documents < 4:
            raise UserError(f"report.documents={self.documents} is too few to measure anything; give 4 or more")
        if self.every < 0:
            raise UserError(f"report.every={self.every} must be 0 or more")
        if (self.probe_train is None) != (self.probe_test is None):
            raise UserError("a probe needs both report.probe_train and report.probe_test")
        if self.templates is not None:
            from sslnlp.evaluation.zero_shot import check_templates  # brings torch

            check_templates(self.templates)

    @property
    def asked(self) -> bool:
        """Whether a run measures itself without being told to by `sslnlp report`."""
        return self.every > 0 or any((self.texts, self.pictures, self.pairs, self.sts, self.probe_train, self.beir))
