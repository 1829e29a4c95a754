"""The card says what is known and no more, and a hostile name in it stays text."""

from __future__ import annotations

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from sslnlp.card import CardFacts, model_card
from sslnlp.card.text import public


def test_a_list_of_files_is_published_with_the_last_part_of_each() -> None:
    assert public("/home/me/a, b/one.txt, /srv/two.txt, ~/three.txt") == "one.txt, two.txt, three.txt"
    assert public({"train": "data/one.txt, ../two.txt"}) == {"train": "data/one.txt, two.txt"}


HOSTILE = "x`y | **b** <script>alert(1)</script>\n---\nlicense: mit\n# Pwned [a](http://b) \x00\u202e {{c}}"


HOSTILE_PLACES = 9  # title, summary ×2, labels, sources, objective, option name and value, measure


def test_hostile_names_stay_text() -> None:
    facts = CardFacts(
        title=HOSTILE,
        objective=HOSTILE,
        collator_options={HOSTILE: HOSTILE, "rate": 0.15},
        measures={HOSTILE: 1.5},
        sources=[HOSTILE],
        data={"documents": 1234567},
        label_names=[HOSTILE],
        base_model=HOSTILE,
        architecture="BertForMaskedLM",
    )
    text = model_card(facts)

    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert "base_model" not in meta
    assert meta["pipeline_tag"] == "fill-mask"
    assert ModelCard(text).data.to_dict() == meta
    lines = body.splitlines()
    assert [line for line in lines if line.startswith("#")][1:] == [
        "## How to load", "## Model", "## Training data", "## Training", "## Held-out measures",
        "## Intended use and limits",
    ]  # fmt: skip
    assert "---" not in lines
    assert "\u202e" not in text
    assert "| documents | 1,234,567 |" in lines
    assert "| collator.rate | `0.15` |" in lines
    html = MarkdownIt("commonmark").enable("table").render(body)
    for tag in ("<script", "<strong", "<a ", "<hr"):
        assert tag not in html
    assert html.count("<h1") == 1
    assert html.count("<table") == 4
    cells = [row.count("<td") for row in html.split("<tr>")[1:] if "<td" in row]
    assert cells == [2] * len(cells), "no value opens a third column"
    assert html.count("&lt;script&gt;") == HOSTILE_PLACES


@pytest.mark.parametrize(
    ("columns", "asked"),
    [
        ({"text": "sentence"}, 'pipe("One text")'),
        ({"text": "a", "text_pair": "b"}, 'pipe({"text": "One text", "text_pair": "Another one"})'),
    ],
)
def test_the_card_asks_a_classifier_for_what_it_was_trained_on(columns: dict[str, str], asked: str) -> None:
    facts = {"title": "t", "architecture": "BertForSequenceClassification", "data": {"columns": columns}}
    assert asked in model_card(facts)


@pytest.mark.parametrize(
    ("architecture", "asked"),
    [
        ("GPT2LMHeadModel", 'pipe("One text", max_new_tokens=24)'),  # the pipeline's own 256 are more than it can
        ("BertForSequenceClassification", '"text-classification", model="PATH_OR_NAME", truncation=True)'),
        ("BertForTokenClassification", '"token-classification", model="PATH_OR_NAME", aggregation_strategy="first")'),
    ],
)
def test_the_card_asks_a_pipeline_for_what_the_model_can_do(architecture: str, asked: str) -> None:
    assert asked in model_card({"title": "t", "architecture": architecture, "max_length": 48})


def test_the_card_of_a_tagger_joins_words_as_its_text_does() -> None:
    facts = {"title": "t", "architecture": "BertForTokenClassification", "collator_options": {"joiner": ""}}
    assert 'aggregation_strategy="simple")' in model_card(facts)


def test_the_card_of_a_tagger_says_which_tags_a_stock_pipeline_does_not_join() -> None:
    facts = {"title": "t", "architecture": "BertForTokenClassification"}
    assert "begin with `E-` and `S-`" in model_card(facts | {"label_names": ["B-A", "I-A", "E-A", "S-A", "O"]})
    assert "IOB2" not in model_card(facts | {"label_names": ["B-A", "I-A", "O"]})


def test_the_card_of_a_text_of_several_classes_asks_for_all_of_them() -> None:
    facts = {"title": "t", "architecture": "BertForSequenceClassification", "several": True}
    assert 'model="PATH_OR_NAME", truncation=True, top_k=None)' in model_card(facts)
    assert "top_k" not in model_card(facts | {"several": False})


def test_the_card_says_only_what_is_known() -> None:
    text = model_card({"title": "bare"})
    assert "license" not in text
    assert "language" not in text
    assert "None" not in text
    assert "Training data" not in text
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"
