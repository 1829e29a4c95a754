"""What a report card of a model of pictures measures with: held-out pictures, and labelled ones that somebody gives."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sslnlp.data.config import DataConfig
from sslnlp.data.pictured import PictureRows, every_picture, pictured
from sslnlp.errors import UserError
from sslnlp.evaluation.probes import tell_shared
from sslnlp.evaluation.zero_shot import TEMPLATES
from sslnlp.report.config import ReportConfig

log = logging.getLogger(__name__)


@dataclass(eq=False)
class LabelledPictures:
    """Pictures, and the name of the class of each."""

    rows: PictureRows
    labels: list[str]

    @classmethod
    def of(cls, rows: PictureRows, names: list[str]) -> LabelledPictures:
        """Those of `rows` that have a label; none where the data has no labels."""
        label_N = rows.extra.get("label", np.full(len(rows), -1))
        known = np.flatnonzero(label_N >= 0)
        return cls(rows.take(known), [names[label] for label in label_N[known].tolist()])


@dataclass(eq=False)
class PictureMaterial:
    """Everything that is read once, for however many models are measured with it."""

    held_out: PictureRows | None = None
    named: LabelledPictures | None = None
    """What classification by names is measured on: the test pictures of the probe, else held-out ones with labels."""
    probe: tuple[LabelledPictures, LabelledPictures] | None = None
    templates: tuple[str, ...] = TEMPLATES

    @classmethod
    def read(cls, config: ReportConfig, data: DataConfig, cache: Path) -> PictureMaterial:
        """Read all that `config` names; `data` is what the run was trained on, whose names of columns count for files
        that have such columns.

        Raises `UserError` for a file that is not what its key asks for.
        """
        found = cls(templates=tuple(config.templates or TEMPLATES))
        held_out = _held_out(data, cache) if config.pictures is None else _read(config.pictures, "valid", data, cache)
        if held_out is not None:
            rows, names = held_out
            number = min(config.documents, len(rows))
            found.held_out = rows.take(np.arange(number) * len(rows) // number)  # from everywhere: tables are sorted
            labelled = LabelledPictures.of(found.held_out, names)
            found.named = labelled if labelled.labels else None
        if config.probe_train is not None and config.probe_test is not None:
            train, test = (
                _labelled(spec, name, config.label, data, cache)
                for spec, name in ((config.probe_train, "train"), (config.probe_test, "valid"))
            )
            found.named, found.probe = test, (train, test)
            tell_shared(train.rows.extra["picture"].tolist(), test.rows.extra["picture"].tolist())
        return found


Read = tuple[PictureRows, list[str]]


def _held_out(data: DataConfig, cache: Path) -> Read | None:
    """`data.valid` of the run, else what was split off; None where the run held out nothing, or it is gone."""
    try:
        if data.valid is not None:
            return every_picture(data, "valid", cache_dir=cache)
        parts = pictured(data, cache_dir=cache, captions_needed=False)
    except UserError as error:  # not on this machine
        log.warning("the held-out pictures of the run cannot be read, so pictures=FILE is needed: %s", error)
        return None
    return None if parts.valid is None else (parts.valid, parts.label_names)


def _read(spec: str, part: str, data: DataConfig, cache: Path, label: str | None = None) -> Read:
    """All pictures of `spec`, by the run's names of columns where it has those, else by usual names."""
    plain = DataConfig(cache=data.cache, label=label, **{part: spec})  # type: ignore[arg-type]
    named = replace(plain, columns=data.columns, label=label or data.label)
    if named != plain:
        try:
            return every_picture(named, part, cache_dir=cache)
        except UserError:  # said again below, if it was not about the columns
            pass
    return every_picture(plain, part, cache_dir=cache)


def _labelled(spec: str, part: str, label: str | None, data: DataConfig, cache: Path) -> LabelledPictures:
    found = LabelledPictures.of(*_read(spec, part, data, cache, label))
    if not found.labels:
        raise UserError(f"{spec} holds no labelled pictures: say label=NAME, the column of the classes")
    return found
