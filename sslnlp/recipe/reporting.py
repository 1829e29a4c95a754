"""The report card of a run that asks for it (`report.*`): while it trains, and of what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase, VisionTextDualEncoderModel

from sslnlp.card import ReportRow
from sslnlp.collators.base import Collator
from sslnlp.distributed import world_size
from sslnlp.errors import UserError
from sslnlp.metrics import REPORT, read_metrics
from sslnlp.objectives.base import Objective
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.recipe.build import Parts, cache_folder
from sslnlp.recipe.schema import Recipe
from sslnlp.report import make_report
from sslnlp.report.card import Card, measure
from sslnlp.report.material import Material, held_out_texts
from sslnlp.report.picture_card import PictureSubject, measure_pictures
from sslnlp.report.picture_material import PictureMaterial
from sslnlp.report.sections import short_form
from sslnlp.report.subject import in_memory
from sslnlp.search.encoder import EncoderSettings
from sslnlp.sharding import sharding_asked

Evaluate = Callable[[Objective], dict[str, float]]
Measure = Callable[[Objective, bool], Card]
"""The card of a model as it stands; whether it is also asked for what is looked at."""


class RunReport:
    """Reads the files of `report.*` once, so that what is wrong with them is said before anything is trained."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.every = parts, parts.recipe.report.every
        if self.every and sharding_asked() is not None and world_size() > 1:
            raise UserError("report.every measures whole models, which FSDP2 cuts up: use DDP, or leave it out")
        pictures = parts.recipe.collator_class.reads == "pictures"
        self._measure = self._pictures() if pictures else self._texts()
        self._evaluations: int | None = None

    def card(self, objective: Objective) -> Card:
        """Of the model as it stands."""
        return self._measure(objective, True)

    def rows(self, card: Card) -> list[ReportRow]:
        """What the model card says of it."""
        return short_form(card)

    def page(self, card: Card, out: Path) -> Path:
        """Write report.html and report.json of the run in `out`; returns the page's path."""
        return make_report(out, cards={out.name: card})

    def beside(self, evaluate: Evaluate | None) -> Evaluate | None:
        """The held-out pass with the card's figures joined to every `report.every`-th one."""
        if evaluate is None or self.every == 0:
            return evaluate

        def both(objective: Objective) -> dict[str, float]:
            found = evaluate(objective)
            log, number = Path(self.parts.recipe.out).expanduser() / "metrics.jsonl", 1
            # Before there is a log a pass is only timed, for a budget: it counts as the first, and the next does too.
            if log.is_file():
                if self._evaluations is None:  # a resumed run goes on counting where its log ends
                    self._evaluations = evaluations_in(log)
                number = self._evaluations = self._evaluations + 1
            if number % self.every == 0:
                card = self._measure(objective, False)
                found |= {REPORT + name: figure.value for name, figure in card.figures.items()}
            return found

        return both

    def _texts(self) -> Measure:
        recipe, tokenizer, kept = self.parts.recipe, self.parts.tokenizer, self.parts.contract
        exact = kept is None or kept.facts["exact_round_trip"]
        held_out = held_out_texts(recipe.data, self.parts.facts, cache_folder(recipe), tokenizer, exact=exact)
        material = Material.read(recipe.report, held_out, corrupting(recipe, tokenizer))

        def made(objective: Objective, written: bool) -> Card:
            settings = EncoderSettings(
                pooling=objective.pooling or "mean",
                max_length=self.parts.max_length,
                prompts=dict(self.parts.collator.prompts),
                lengths=dict(self.parts.collator.text_lengths),
                vector_map=objective.vector_map,
            )
            return measure(in_memory(objective.exported, tokenizer, settings=settings), material, written=written)

        return made

    def _pictures(self) -> Measure:
        recipe = self.parts.recipe
        material = PictureMaterial.read(recipe.report, recipe.data, cache_folder(recipe))

        def made(objective: Objective, written: bool) -> Card:
            model = objective.exported
            tokenizer = self.parts.tokenizer if isinstance(model, VisionTextDualEncoderModel) else None
            encoder = PictureEncoder(model, tokenizer, max_length=self.parts.max_length)
            return measure_pictures(PictureSubject(encoder), material, written=written)

        return made


def evaluations_in(metrics: Path) -> int:
    """How many held-out passes a run has logged."""
    return sum(any(key.startswith("valid/") for key in line) for line in read_metrics(metrics))


def corrupting(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Collator | None:
    """The recipe's collator, where it corrupts text that an encoder-decoder rebuilds."""
    if recipe.objective_class.framing != "seq2seq":
        return None
    return recipe.collator_class(tokenizer=tokenizer, **recipe.collator.options)
