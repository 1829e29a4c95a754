"""Tags of words: where they stand among the tokens, how entities are counted, and a tagger from table to pipeline."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    pipeline,
)

from sslnlp.collators.tagging import TaggingCollator
from sslnlp.data.table_rows import TableRows
from sslnlp.errors import UserError
from sslnlp.evaluation.tagging import entities, tagging_measures
from sslnlp.objectives.tagging import Tagging, schemes
from sslnlp.recipe import load_recipe, run
from sslnlp.recipe.build import _table_texts
from sslnlp.tokenizer import set_framing, train_tokenizer

WORDS = ["Ada", "Lovelace", "wrote", "to", "Babbage", "in", "London", "."]
TAGS = ["B-PER", "I-PER", "O", "O", "B-PER", "O", "B-LOC", "O"]
NAMES = ["B-LOC", "B-PER", "I-PER", "O"]


@pytest.fixture(scope="module", params=["bpe", "wordpiece", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    texts = ["Ada Lovelace wrote to Babbage in London.", "the cat sat on a mat, and unbelievably it slept"] * 3
    return set_framing(train_tokenizer(texts, vocab_size=400, algorithm=request.param), "encoder")


def test_a_tag_stands_at_the_first_token_of_its_word(tokenizer: PreTrainedTokenizerBase) -> None:
    collator = TaggingCollator(tokenizer=tokenizer, label_names=NAMES)
    batch = collator([{"words": WORDS, "label": TAGS}, {"words": ["unbelievably", "so"], "label": ["O", "B-LOC"]}])
    assert batch["labels"].shape == batch["input_ids"].shape
    for ids, labels, words, tags in zip(
        batch["input_ids"], batch["labels"], (WORDS, ["unbelievably", "so"]), (TAGS, ["O", "B-LOC"]), strict=True
    ):
        places = (labels != -100).nonzero().flatten().tolist()
        assert [NAMES[int(labels[p])] for p in places] == tags
        # From one tagged token to the next the tokens spell that word.
        end = int((ids != tokenizer.pad_token_id).sum()) - 1
        for start, stop, word in zip(places, [*places[1:], end], words, strict=True):
            assert tokenizer.decode(ids[start:stop]).replace(" ", "") == word
    assert [[NAMES[int(t)] for t in row if t >= 0] for row in batch["tags"]] == [TAGS, ["O", "B-LOC"]]
    assert (
        batch["labels"].gather(1, batch["places"].clamp(min=0))[batch["tags"] >= 0] == batch["tags"][batch["tags"] >= 0]
    ).all()


def test_a_token_of_a_space_alone_is_of_no_word() -> None:
    """A tokenizer that never saw a space before a word splits it off."""
    tokenizer = set_framing(train_tokenizer(["Ada", "London", "in"] * 9, vocab_size=400), "encoder")
    batch = TaggingCollator(tokenizer=tokenizer, label_names=NAMES)([{"words": ["Ada", "in"], "label": ["B-PER", "O"]}])
    tagged = [(tokenizer.decode([i]), int(t)) for i, t in zip(batch["input_ids"][0], batch["labels"][0], strict=True)]
    assert [pair for pair in tagged if pair[1] != -100] == [("Ada", NAMES.index("B-PER")), ("in", NAMES.index("O"))]


@pytest.mark.parametrize("empty", [[], ["", ""]])
def test_a_row_without_a_letter_has_no_target(tokenizer: PreTrainedTokenizerBase, empty: list[str]) -> None:
    row = {"words": empty, "label": ["O"] * len(empty)}
    batch = TaggingCollator(tokenizer=tokenizer, label_names=NAMES)([row, {"words": WORDS, "label": TAGS}])
    assert (batch["labels"][0] == -100).all()
    assert (batch["labels"][1] != -100).any()
    assert batch["places"][0].tolist() == [-1] * len(WORDS)


def test_words_that_do_not_fit_are_kept_as_missed(tokenizer: PreTrainedTokenizerBase) -> None:
    collator = TaggingCollator(tokenizer=tokenizer, label_names=NAMES, max_length=6)
    batch = collator([{"words": WORDS, "label": TAGS}])
    seen = [NAMES[int(t)] for t in batch["labels"][0] if t != -100]
    assert [NAMES[int(t)] for t in batch["tags"][0]] == TAGS
    assert 0 < len(seen) < len(TAGS)
    assert (batch["places"][0] >= 0).tolist() == [w < len(seen) for w in range(len(TAGS))]


CHARACTERS, OF_CHARACTERS = list("在中国住"), ["O", "B-LOC", "I-LOC", "O"]
PLACES = ["B-LOC", "I-LOC", "O"]


def characters(tokens: list[str], prefix: str = "", joiner: str = "") -> TaggingCollator:
    """A collator of words, without spaces, whose tokenizer knows these."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *tokens])}
    model = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=prefix))
    if prefix:
        model.pre_tokenizer = BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    return TaggingCollator(tokenizer=tokenizer, label_names=PLACES, joiner=joiner)


@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        (["在", "中", "国", "住"], ["O", "B-LOC", "I-LOC", "O"]),
        (["在", "中国", "住"], ["O", "B-LOC", "O"]),
        (["在中", "国住"], ["O", "I-LOC"]),
    ],
)
def test_no_word_is_lost_that_shares_its_token(tokens: list[str], labels: list[str]) -> None:
    batch = characters(tokens)([{"words": CHARACTERS, "label": OF_CHARACTERS}])
    assert [PLACES[int(c)] for c in batch["labels"][0] if c >= 0] == labels
    assert [PLACES[int(c)] for c in batch["tags"][0]] == OF_CHARACTERS
    where = [i for i, token in enumerate(tokens) for _ in token]
    assert batch["places"][0].tolist() == where
    assert batch["shared"][0].tolist() == [int(w > 0 and where[w] == where[w - 1]) for w in range(4)]


def test_a_word_goes_on_with_the_entity_that_its_token_begins() -> None:
    batch = characters(["在", "中国", "住"])([{"words": CHARACTERS, "label": OF_CHARACTERS}])
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        num_labels=3, id2label=dict(enumerate(PLACES)),
    )  # fmt: skip
    objective = Tagging(BertForTokenClassification(config))
    right = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float()
    objective.logits = lambda batch: right  # type: ignore[method-assign]
    predicted = objective.predict(batch)
    assert tagging_measures(predicted) == {
        "accuracy": 1.0, "entity_precision": 1.0, "entity_recall": 1.0, "entity_f1": 1.0, "entity_macro_f1": 1.0,
    }  # fmt: skip


def test_parts_of_a_word_that_a_pipeline_takes_for_words_go_on_with_it() -> None:
    """It joins what begins with ## alone, and WordPiece of BERT's kind cuts at every hyphen."""
    collator = characters(["in", "Aix", "-", "en", "##s"], "##", " ")
    batch = collator([{"words": ["in", "Aix-ens"], "label": ["O", "B-LOC"]}])
    assert batch["labels"][0].tolist() == [
        PLACES.index("O"),
        *(PLACES.index(t) for t in ("B-LOC", "I-LOC", "I-LOC")),
        -100,
    ]
    assert (batch["places"][0].tolist(), batch["shared"][0].tolist()) == ([0, 1], [0, 0])


def test_a_tokenizer_is_trained_on_words_as_they_are_joined() -> None:
    rows = TableRows(datasets.Dataset.from_list([{"words": CHARACTERS}]), extra={"label": np.array([0])})
    assert list(_table_texts(rows, "")) == ["在中国住"]


def test_without_spaces_all_tokens_of_a_word_say_its_tag() -> None:
    """A pipeline cannot see there which token begins a word."""
    batch = characters(["在", "中", "国", "住"])([{"words": ["在", "中国", "住"], "label": ["O", "B-LOC", "O"]}])
    assert [PLACES[int(c)] for c in batch["labels"][0]] == ["O", "B-LOC", "I-LOC", "O"]
    assert batch["places"][0].tolist() == [0, 1, 3]


def test_unlike_numbers_are_one_clear_line(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="2 words and 1 tags"):
        TaggingCollator(tokenizer=tokenizer, label_names=NAMES)([{"words": ["a", "b"], "label": ["O"]}])


def spans(tags: list[list[str]]) -> set[tuple[int, int, int]]:
    names = sorted({tag for row in tags for tag in row} | {"O"})
    table = np.array(schemes(names))
    flat = np.array([names.index(tag) for row in tags for tag in row])
    rows = np.repeat(np.arange(len(tags)), [len(row) for row in tags])
    return entities(rows, table[flat, 0], table[flat, 1])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([["B-A", "I-A", "O", "B-A"]], [(0, 2), (3, 4)]),
        ([["B-A", "B-A"]], [(0, 1), (1, 2)]),  # two that touch
        ([["I-A", "I-A", "O"]], [(0, 2)]),  # IOB1
        ([["B-A", "I-B"]], [(0, 1), (1, 2)]),  # another type begins something new
        ([["B-A"], ["I-A"]], [(0, 1), (1, 2)]),  # another row too
        ([["S-A", "B-A", "E-A", "S-A"]], [(0, 1), (1, 3), (3, 4)]),  # IOBES
        ([["U-A", "B-A", "I-A", "L-A"]], [(0, 1), (1, 4)]),  # BILOU
        ([["O", "O"]], []),
    ],
)
def test_entities_are_spans(tags: list[list[str]], expected: list[tuple[int, int]]) -> None:
    assert sorted(span[:2] for span in spans(tags)) == expected


IOB2 = st.lists(st.sampled_from(["O", "A", "a", "B", "b"]), min_size=1, max_size=12)


def iob2(drawn: list[str]) -> list[str]:
    """Letters as well-formed IOB2: a small letter goes on from the letter before it, where that is its own."""
    tags: list[str] = []
    for letter in drawn:
        inside = letter.islower() and tags and tags[-1].endswith(letter.upper())
        tags.append("O" if letter == "O" else f"{'I' if inside else 'B'}-{letter.upper()}")
    return tags


@pytest.mark.skipif(importlib.util.find_spec("nervaluate") is None, reason="nervaluate needs Python 3.11")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(IOB2, st.randoms(use_true_random=False)), min_size=1, max_size=4))
def test_the_figures_are_those_of_an_independent_library(drawn: list[tuple[list[str], object]]) -> None:
    from nervaluate import Evaluator

    true = [iob2(letters) for letters, _ in drawn]
    said = [iob2([random.choice(["O", "A", "a", "B", letter]) for letter in letters]) for letters, random in drawn]  # type: ignore[attr-defined]
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    table = torch.tensor(schemes(names))
    flat = {
        who: table[torch.tensor([names.index(t) for row in rows for t in row])]
        for who, rows in (("predicted", said), ("label", true))
    }
    row = torch.repeat_interleave(torch.arange(len(true)), torch.tensor([len(tags) for tags in true]))
    predicted = {"row": row} | {
        f"{who}_{part}": pairs[:, i] for who, pairs in flat.items() for i, part in enumerate(("prefix", "type"))
    }
    ours = tagging_measures(predicted)
    strict = Evaluator(true, said, tags=["A", "B"], loader="list").evaluate()["overall"]["strict"]
    if not any(tag != "O" for tags in true for tag in tags):
        assert "entity_f1" not in ours
        return
    assert ours["entity_precision"] == pytest.approx(strict.precision)
    assert ours["entity_recall"] == pytest.approx(strict.recall)
    assert ours["entity_f1"] == pytest.approx(strict.f1)


def test_a_tagger_from_a_table_to_a_pipeline(tmp_path: Path) -> None:
    people, places, generator = ["Ada", "Babbage", "Turing"], ["London", "Paris"], np.random.default_rng(0)
    rows = []
    for n in range(160):
        who, where = people[generator.integers(3)], places[generator.integers(2)]
        rows.append({"tokens": [who, "left", "for", where, str(n)], "tags": ["B-PER", "O", "O", "B-LOC", "O"]})
    data = tmp_path / "tagged.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = [
        "model.architecture=bert",
        "model.size=nano",
        "tokenizer.vocab_size=400",
        "train.epochs=none",
        "train.lr=3e-3",
    ]
    recipe = load_recipe("finetune_tagging", [*keys, "train.steps=60", f"data.train={data}", f"out={tmp_path / 'out'}"])
    out = run(recipe, console=Console(file=(screen := io.StringIO())))
    told = json.loads((out / "recipe.json").read_text())
    of_tags, measures = told["data"]["classes"], told["result"]["measures"]
    assert sum(of_tags.values()) == 5 * told["data"]["rows"]  # each row has five words
    assert f"words of each tag: B-LOC {of_tags['B-LOC']}  B-PER" in screen.getvalue()
    assert "rows of each class" not in screen.getvalue()
    assert measures["entity_f1"] > 0.9
    tagger = pipeline("token-classification", model=str(out / "export"), aggregation_strategy="first")
    found = {(one["entity_group"], one["word"].strip()) for one in tagger("Turing left for Paris 7")}
    assert found == {("PER", "Turing"), ("LOC", "Paris")}
