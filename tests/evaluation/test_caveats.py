"""What is said beside held-out figures that come out well whatever the model, and where nothing is."""

import pytest
import torch
from torch import Tensor

from sslnlp.card.facts import CardFacts
from sslnlp.card.page import model_card
from sslnlp.evaluation import MEASURES, evaluate_held_out
from sslnlp.evaluation.caveats import CAVEATS, caveat
from sslnlp.evaluation.latent import latent_measures
from tests.evaluation.test_held_out import Mean, Rows, collator


def pairs(number: int) -> dict[str, Tensor]:
    vectors = torch.nn.functional.normalize(torch.randn(number, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    return {
        "query": vectors, "document": vectors.flip(1), "image": vectors, "text": vectors,
        "query_hash": torch.arange(number), "document_hash": torch.arange(number) + 100,
        "image_hash": torch.arange(number), "text_hash": torch.arange(number),
        "candidates": torch.full((5,), number), "rank": torch.ones(5, dtype=torch.int64),
    }  # fmt: skip


@pytest.mark.parametrize("measure", ["ranking", "image_text", "reranking"])
def test_too_few_candidates_to_go_wrong_among(measure: str) -> None:
    figures = MEASURES[measure](pairs(1))
    assert {value for name, value in figures.items() if "chance" not in name} == {1.0}  # though nothing was learnt
    said = caveat([measure], pairs(1))
    assert said is not None
    assert "one candidate and no other" in said
    assert "\n" not in said
    few = caveat([measure], pairs(4))
    assert few is not None
    assert "in 1 of 4 cases" in few
    assert caveat([measure], pairs(10)) is None


def test_a_loss_that_compares_a_text_with_no_other() -> None:
    said = caveat((), {}, 1)
    assert said is not None
    assert "with no other" in said
    assert caveat((), {}, 3) is None
    assert caveat((), {}, None) is None


def test_twins_find_themselves() -> None:
    """Without dropout two readings of a text are one vector, so their accuracy is 1 before anything was learnt."""
    said = caveat(["ranking"], {"query_hash": torch.arange(30), "document_hash": torch.arange(30)}, 30)
    assert said is not None
    assert "each finds itself" in said
    assert "hold out more" not in said


@pytest.mark.parametrize(
    ("measure", "same", "different"),
    [
        ("classification", {"labels": torch.tensor([2, -100, 2])}, {"labels": torch.tensor([2, 1, 2])}),
        ("multi_label", {"labels": torch.zeros(4, 3)}, {"labels": torch.eye(3)}),
        ("regression", {"labels": torch.full((4,), 0.5)}, {"labels": torch.tensor([0.5, 1.0])}),
        (
            "tagging",
            {"label_prefix": torch.zeros(3), "label_type": torch.zeros(3)},
            {"label_prefix": torch.tensor([0, 1]), "label_type": torch.tensor([0, 1])},
        ),
    ],
)  # fmt: skip
def test_one_right_answer(measure: str, same: dict[str, Tensor], different: dict[str, Tensor]) -> None:
    said = caveat([measure], same)
    assert said is not None
    assert "always answering it is right" in said
    assert caveat([measure], different) is None


def test_one_text_has_no_collapsed_posterior(caplog: pytest.LogCaptureFixture) -> None:
    one = {"mean": torch.ones(1, 4), "log_variance": torch.zeros(1, 4)}
    assert latent_measures(one) == {}
    assert not caplog.records
    assert caveat(["latent"], one) is not None
    assert caveat(["latent"], {"mean": torch.ones(2, 4)}) is None


def test_they_are_of_measures_that_there_are() -> None:
    assert CAVEATS.keys() <= MEASURES.keys()


def test_the_held_out_pass_notes_it_and_the_card_says_it() -> None:
    objective = Mean()
    objective.couples_rows = True  # type: ignore[misc]
    notes: list[str] = []
    evaluate_held_out(objective, collator(), Rows([1]), batch_size=2, notes=notes)
    assert len(notes) == 1
    assert notes[0] in model_card(CardFacts(title="x", measures={"accuracy": 1.0}, notes=notes)).replace("\\", "")
    more: list[str] = []
    evaluate_held_out(objective, collator(), Rows([1, 1]), batch_size=2, notes=more)
    objective.couples_rows = False  # type: ignore[misc]
    evaluate_held_out(objective, collator(), Rows([1]), batch_size=2, notes=more)
    assert more == []
