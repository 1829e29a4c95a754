"""The report cards of runs: their exports loaded, and measured with what a person gives or the first run held out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sslnlp.card import with_report
from sslnlp.errors import UserError
from sslnlp.hub import export_folder
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.quiet import quiet_loading
from sslnlp.recipe.build import cache_folder
from sslnlp.recipe.reporting import corrupting
from sslnlp.recipe.schema import from_dict
from sslnlp.report.card import Card, measure
from sslnlp.report.config import ReportConfig
from sslnlp.report.material import HeldOut, Material, held_out_texts
from sslnlp.report.picture_card import PictureSubject, measure_pictures, reads_pictures
from sslnlp.report.picture_material import PictureMaterial
from sslnlp.report.run_facts import RunFacts
from sslnlp.report.sections import sheet_file, short_form
from sslnlp.report.subject import Subject, subject_of
from sslnlp.tokenizer import load_tokenizer
from sslnlp.writing import naming, replacing

log = logging.getLogger(__name__)

Tell = Callable[[str], None]


def measured(facts: Sequence[RunFacts], given: Mapping[str, Any], tell: Tell) -> dict[str, Card]:
    """The card of each run that has an export, by its name. `given` are keys of `ReportConfig`, before those of the
    first run's recipe; `tell` is called as by `report_runs`."""
    exported = [run for run in facts if (run.path / "export").is_dir()]
    for run in facts:
        if run in exported:
            export_folder(run.path / "export")  # whole, or an error that says what is missing
        else:
            log.warning("%s has no export/ yet, so it is not measured", run.path)
    if not exported:
        return {}
    kept = {f.name: facts[0].recipe.get("report", {}).get(f.name, f.default) for f in fields(ReportConfig)}
    config = replace(ReportConfig(**kept), **given)
    material: Material | None = None
    pictures: PictureMaterial | None = None
    cards: dict[str, Card] = {}
    for run in exported:
        export, telling = run.path / "export", _telling(tell, run.name)
        if reads_pictures(export):
            with quiet_loading():
                seeing = PictureSubject(PictureEncoder.load(str(export)))
            if pictures is None:
                recipe = from_dict(_first(facts, pictures=True).recipe)
                pictures = PictureMaterial.read(config, recipe.data, cache_folder(recipe))
            cards[run.name] = measure_pictures(seeing, pictures, tell=telling)
            continue
        subject = subject_of(export)
        if material is None:
            material = Material.read(config, _held_out(_first(facts, pictures=False), subject))
        if subject.kind == "encoder-decoder":  # each rebuilds what it was trained to
            material = replace(material, collator=corrupting(from_dict(run.recipe), subject.tokenizer))
        cards[run.name] = measure(subject, material, tell=telling)
    for name, card in cards.items():
        if not card.figures:
            log.warning("%s: nothing was measured: %s", name, "; ".join(dict.fromkeys(card.left_out.values())))
    return cards


def _first(facts: Sequence[RunFacts], *, pictures: bool) -> RunFacts:
    """The run on whose held-out pictures, or texts, all are measured: the first that was trained on such."""
    kinds = [from_dict(run.recipe).collator_class.reads == "pictures" for run in facts]
    return facts[kinds.index(pictures) if pictures in kinds else 0]


def _held_out(first: RunFacts, subject: Subject) -> HeldOut:
    """The texts that a run held out, read with its own tokenizer: it may not be the run that is measured."""
    recipe, words = from_dict(first.recipe), first.path / "tokenizer"
    tokenizer = load_tokenizer(str(words)) if words.is_dir() else subject.tokenizer
    exact = (first.biography.get("tokenizer") or {}).get("facts", {}).get("exact_round_trip", True)
    return held_out_texts(recipe.data, first.biography.get("data", {}), cache_folder(recipe), tokenizer, exact=exact)


def _telling(tell: Tell, name: str) -> Tell:
    return lambda line: tell(f"{name}: {line}")


def measured_before(run: RunFacts) -> Card | None:
    """The card in the report that lies in the run's folder; None without one."""
    path = run.path / "report.json"
    if not path.is_file():
        return None
    try:
        cards = json.loads(path.read_text(encoding="utf-8")).get("cards", {})
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}; delete it") from None
    parts = run.path.resolve().parts
    # Beside another run of its name it was called by more of its path.
    name = next((name for name in cards if Path(name).parts == parts[-len(Path(name).parts) :]), None)
    if name is None:
        return None
    card, sheet = Card.from_dict(cards[name]), run.path / "figures" / sheet_file(name)
    if card.found and sheet.is_file():
        card.sheet = sheet.read_bytes()
    return card


def into_model_card(path: Path, card: Card) -> None:
    """Put the short form of a card into the model card at `path`, in the place of the one before."""
    with naming(path):
        text = path.read_text(encoding="utf-8")
    with replacing(path) as file:
        file.write(with_report(text, short_form(card)))
