"""Labelled rows into batches: padding, pairs, labels as names or numbers, and what is refused."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from sslnlp.collators.classification import ClassificationCollator, MultiLabelCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import set_framing, train_tokenizer

TEXTS = ["the cat sat on the mat", "a dog ran", "cats and dogs ran on a long long mat"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return set_framing(train_tokenizer(TEXTS * 3, vocab_size=600), "encoder")


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": TEXTS[i % 3], "label": label, "position": 10 + i} for i, label in enumerate(labels)]


def test_pads_to_the_longest_row_and_reads_back(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = ClassificationCollator(tokenizer=tokenizer)(rows([0, 1, 2]))
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "position"}
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["position"].tolist() == [10, 11, 12]
    lengths = [len(tokenizer(text)["input_ids"]) for text in TEXTS]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"].shape == (3, max(lengths))
    for ids, text in zip(batch["input_ids"], TEXTS, strict=True):
        assert ids[0] == tokenizer.cls_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_is_pure(tokenizer: PreTrainedTokenizerFast) -> None:
    collator, given = ClassificationCollator(tokenizer=tokenizer), rows([0, 1, 2])
    first, second = collator(given), collator(given)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert given == rows([0, 1, 2])


def test_long_texts_are_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = ClassificationCollator(tokenizer=tokenizer, max_length=5)(rows([0, 1, 2]))
    assert batch["input_ids"].shape == (3, 5)
    assert batch["input_ids"][2, -1] == tokenizer.sep_token_id


def test_pairs_have_both_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    given = [{**row, "text_pair": "a dog ran"} for row in rows([0, 1])]
    batch = ClassificationCollator(tokenizer=tokenizer)(given)
    decoded = tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert "cat sat" in decoded
    assert "dog ran" in decoded
    with pytest.raises(UserError, match="text_pair"):
        ClassificationCollator(tokenizer=tokenizer)([*given, *rows([1])])


def test_label_names(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = ClassificationCollator(tokenizer=tokenizer, label_names=["no", "yes"])
    assert collator(rows(["yes", "no", 1]))["labels"].tolist() == [1, 0, 1]


def test_features_without_position_suit_a_data_loader(tokenizer: PreTrainedTokenizerFast) -> None:
    features = [{"text": text, "label": 0} for text in TEXTS]
    (batch,) = DataLoader(features, batch_size=3, collate_fn=ClassificationCollator(tokenizer=tokenizer))
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}


def test_of_several_classes_those_that_apply_are_listed(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = MultiLabelCollator(tokenizer=tokenizer, label_names=["a", "b", "c"])
    assert collator(rows([["c", 0], []]))["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    for label in ([0, 0, 1], [False, True, True], [-100], "a"):
        with pytest.raises(UserError, match="is a list"):
            collator(rows([label]))


@pytest.mark.parametrize(
    ("names", "row", "says"),
    [
        (["no", "yes"], {"text": "a", "label": "maybe"}, "not among the 2 classes"),
        (None, {"text": "a", "label": "yes"}, "label_names"),
        (["no", "yes"], {"text": "a", "label": 2}, "out of range"),
        (None, {"text": "a", "label": -1}, "no usable label"),
        (None, {"text": "a", "label": None}, "no usable label"),
        (None, {"text": "a", "label": 0.5}, "no usable label"),
        (None, {"text": "a"}, "no usable label"),
        (None, {"text": None, "label": 0}, "column 'text'"),
        (None, {"body": "a", "label": 0}, "column 'text'"),
    ],
)
def test_bad_rows(tokenizer: PreTrainedTokenizerFast, names: list[str] | None, row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        ClassificationCollator(tokenizer=tokenizer, label_names=names)([row])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"max_length": 2}, {"label_names": ["a", "a"]}])
def test_bad_options(tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"collator\."):
        ClassificationCollator(tokenizer=tokenizer, **options)
