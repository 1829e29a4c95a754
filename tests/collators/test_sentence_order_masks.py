"""Laws of the masks beside the order of sentences: those of masked LM, drawn for each row by itself."""

import numpy as np
import pytest
import torch

from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.sentence_order import SentenceOrderCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import special_mask
from tests.collators.sentences import CHINESE, ENGLISH, english, make, order_of, pack, tokenizer_of
from tests.tiny_tokenizers import KINDS

IGNORED = -100


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_obey_the_laws_of_masking(kind, unit):
    tokenizer = tokenizer_of(kind)
    rows = pack([english(n) for n in range(1, 8)] + ["".join(CHINESE)] * 3, kind, length=120)
    before = [row["input_ids"].copy() for row in rows]
    masked, whole = make(kind, unit=unit)(rows), make(kind, rate=0)(rows)
    assert set(masked) == set(whole) == SentenceOrderCollator.makes
    for key in ("order_index", "order_labels", "document_ids", "position_ids", "attention_mask", "position"):
        assert torch.equal(masked[key], whole[key])
    assert len(whole["target_index"]) == 0
    assert (whole["labels"] == IGNORED).all()
    targets = masked["labels"] != IGNORED
    assert torch.equal(masked["target_index"], torch.nonzero(targets.flatten())[:, 0])
    assert torch.equal(masked["labels"][targets], whole["input_ids"][targets])
    assert torch.equal(masked["input_ids"][~targets], whole["input_ids"][~targets])
    assert (masked["input_ids"][targets] == tokenizer.mask_token_id).all()
    special = torch.from_numpy(special_mask(tokenizer))[whole["input_ids"]]
    assert not (targets & special).any()
    if unit == "token":
        able = (~special & whole["attention_mask"]).sum(1)
        assert targets.sum(1).tolist() == [round(0.3 * n) for n in able.tolist()]
    for row, kept in zip(rows, before, strict=True):
        np.testing.assert_array_equal(row["input_ids"], kept)


@pytest.mark.parametrize("n", [2, 3])
def test_neighbours_and_padding_do_not_move_the_draws(n):
    texts = [english(n) for n in (1, 7, 3, 5)] + ["".join(CHINESE)]
    rows = [pack([text], length=90, start=70 + i)[0] for i, text in enumerate(texts)]
    rows = [{k: v[: 40 + 10 * i] if k != "position" else v for k, v in row.items()} for i, row in enumerate(rows)]
    collator = make(n=n, seed=11, replace="bert", unit="span")
    together, backwards = collator(rows), collator(rows[::-1])
    assert torch.equal(backwards["labels"].flip(0), together["labels"])
    alone = [collator([row]) for row in rows]
    assert torch.equal(torch.cat([order_of(one)[1] for one in alone]), order_of(together)[1])
    for i, one in enumerate(alone):
        width = one["labels"].shape[1]
        for key in ("input_ids", "labels", "document_ids"):
            assert torch.equal(one[key][0], together[key][i, :width])
    draws = {tuple(make(n=n, seed=seed)(rows)["labels"].flatten().tolist()) for seed in (1, 2)}
    later = make(n=n, seed=1)([{**row, "position": row["position"] + 9} for row in rows])["labels"]
    assert len(draws | {tuple(later.flatten().tolist())}) == 3


def test_rows_without_text_and_very_long_ones():
    tokenizer = tokenizer_of("bpe")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    word = tokenizer("The fog", add_special_tokens=False)["input_ids"][:1]
    for text in ([], word):
        row = {"input_ids": np.array([cls, *text, sep]), "document_ids": np.zeros(2 + len(text), np.int32)}
        batch = make()([{**row, "position": 3}])
        assert (len(batch["order_index"]), len(batch["target_index"])) == (0, len(text))
    sentence = tokenizer(" " + " ".join(ENGLISH[:4]), add_special_tokens=False)["input_ids"]
    ids = np.array([cls, *(sentence * (100_000 // len(sentence))), sep])
    batch = make(n=5, rate=0)([{"input_ids": ids, "document_ids": np.zeros(len(ids), np.int32), "position": 0}])
    assert batch["input_ids"].shape == (1, len(ids) + 4)
    assert sorted(batch["input_ids"][0].tolist()) == sorted([*ids.tolist(), *[sep] * 4])
    assert order_of(batch)[0].tolist() == [0]


def test_evaluation_has_fixed_draws_and_no_masks_where_there_were_none():
    rows = pack([english(6)] * 4)
    trained = make(rate=0.4, rate_end=0.1, horizon=9, replace="bert", unit="word")
    held_out = trained.for_evaluation(99)
    assert (held_out.rate, held_out.rate_end, held_out.horizon, held_out.seed) == (0.15, None, None, 99)
    assert (held_out.unit, held_out.replace) == ("word", "mask")
    other = make(rate=0.2, unit="word", seed=5).for_evaluation(99)
    assert torch.equal(held_out(rows)["input_ids"], other(rows)["input_ids"])
    assert len(make(rate=0).for_evaluation(99)(rows)["target_index"]) == 0


def test_the_rate_decays_as_that_of_masked_lm():
    row = pack(["words words words"], "wordpiece", length=200)[0]
    rows = [{**row, "position": p} for p in (0, 500, 1000)]
    collator = make("wordpiece", rate=0.6, rate_end=0.1)
    collator.horizon = 1000
    plain = MaskedLMCollator(tokenizer=tokenizer_of("wordpiece"), rate=0.6, rate_end=0.1, horizon=1000)
    assert torch.equal(collator(rows)["labels"], plain(rows)["labels"])


def test_drop_in_makes_what_models_take():
    features = [{"input_ids": tokenizer_of("bpe")(english(n))["input_ids"]} for n in (1, 5, 7)]
    collator = make()
    batch = collator(features)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    lengths = [len(row["input_ids"]) for row in features]
    assert batch["attention_mask"].sum(1).tolist() == [lengths[0], lengths[1] + 1, lengths[2] + 1]
    assert not torch.equal(batch["labels"], collator(features)["labels"])


@pytest.mark.parametrize(
    ("n", "options", "words"),
    [
        (2, {"rate": -0.1}, "collator.rate"),
        (2, {"rate": 0, "rate_end": 0.1}, "collator.rate_end"),
        (2, {"unit": "sentence"}, "collator.unit"),
        (6, {}, "collator.segments"),
        (1, {}, "collator.segments"),
    ],
)
def test_bad_options(n, options, words):
    with pytest.raises(UserError, match=words):
        make(n=n, **options)
