"""Laws of the order of sentences: nothing lost, even classes, nothing but the text to tell them by, masks as ever."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.cli import run_command
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.sentence_order import SegmentOrderCollator, SentenceOrderCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import sentence_boundaries, special_mask, train_tokenizer
from sslnlp.tokenizer.words import token_spelling
from tests.tiny_tokenizers import KINDS

IGNORED = -100
ENGLISH = [
    "The fog came.",
    "Who saw it?",
    "A keeper (ha) did!",
    "Ships went by.",
    'He said: "No lamp!"',
    "It was 3.14 miles 🚢.",
]
CHINESE = ["大雾来了。", "谁看见了？", "看守人数船！", "灯亮着。🚢", "渔民唱歌。"]


@cache
def tokenizer_of(kind):
    texts = [" ".join(ENGLISH), "".join(CHINESE), *("\n".join(ENGLISH), "\n".join(CHINESE))]
    return train_tokenizer(texts * 20, vocab_size=460, algorithm=kind)


def make(kind="bpe", n=2, **options):
    tokenizer = tokenizer_of(kind)
    if n == 2:
        return SentenceOrderCollator(tokenizer=tokenizer, **options)
    return SegmentOrderCollator(tokenizer=tokenizer, segments=n, **options)


def pack(texts, kind="bpe", length=64, room=4, start=0):
    """Rows of framed pieces as packing lays them, `room` tokens left beside each; long texts are cut anywhere."""
    tokenizer = tokenizer_of(kind)
    rows, ids, documents = [], [], []

    def close():
        padding = length - len(ids)
        row = np.array(ids + [tokenizer.pad_token_id] * padding), np.array(documents + [-1] * padding, np.int32)
        rows.append({"input_ids": row[0], "document_ids": row[1], "position": start + len(rows)})
        ids.clear(), documents.clear()

    taken = 0
    for text in texts:
        text_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for i in range(0, len(text_ids), length - 2 - room):
            piece = text_ids[i : i + length - 2 - room]
            if taken + len(piece) + 2 + room > length:
                close()
                taken = 0
            documents.extend([documents[-1] + 1 if documents else 0] * (len(piece) + 2))
            ids.extend([tokenizer.cls_token_id, *piece, tokenizer.sep_token_id])
            taken += len(piece) + 2 + room
    close()
    return rows


def english(n):
    return " ".join(ENGLISH[i % len(ENGLISH)] for i in range(n))


def undone(shown, original, order, separator, starts):
    """Whether `shown`, cut at its separators, is `original` with the segments between two borders in this order."""
    cuts = [-1, *(i for i, token in enumerate(shown) if token == separator), len(shown)]
    parts = [shown[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    if len(parts) != len(order):
        return False
    for head, tail in itertools.product(range(len(parts[0])), range(len(parts[-1]))):
        pieces = list(parts)
        pieces[-1] = pieces[-1][: len(pieces[-1]) - tail]
        pieces[0] = pieces[0][head:]
        placed = [pieces[order.index(segment)] for segment in range(len(order))]
        borders = np.cumsum([head, *map(len, placed)])
        whole = [*itertools.chain(parts[0][:head], *placed, parts[-1][len(parts[-1]) - tail :])]
        if whole == original and set(borders.tolist()) <= starts:
            return True
    return False


def order_of(batch):
    """The documents with an order target and their labels, under the names of either collator."""
    kind = "order" if "order_index" in batch else "segments"
    return batch[f"{kind}_index"], batch[f"{kind}_labels"]


def of_documents(rows, collator):
    """For each document of `rows`: its ids, the ids shown, and its label, None where it has none."""
    batch = collator(rows)
    width = batch["input_ids"].shape[1]
    index, labels = order_of(batch)
    label_at = dict(zip(index.tolist(), labels.tolist(), strict=True))
    found = []
    for b, row in enumerate(rows):
        for document in range(row["document_ids"].max() + 1):
            places = np.flatnonzero(batch["document_ids"][b].numpy() == document)
            shown = batch["input_ids"][b].numpy()[places].tolist()
            original = row["input_ids"][row["document_ids"] == document].tolist()
            assert places.tolist() == list(range(places[0], places[0] + len(places)))
            assert batch["position_ids"][b, places].tolist() == list(range(len(places)))
            found.append((original, shown, label_at.pop(b * width + int(places[0]), None)))
    assert label_at == {}
    return found


TEXTS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(ENGLISH), min_size=1, max_size=9).map(" ".join),
        st.lists(st.sampled_from(CHINESE), min_size=1, max_size=9).map("".join),
        st.lists(
            st.sampled_from([s + e for s in ENGLISH + CHINESE for e in (" ", "\n", "")]), min_size=1, max_size=8
        ).map("".join),
        st.text(alphabet="ab .!。\n🚢灯", min_size=1, max_size=30).filter(str.strip),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, seed=st.integers(0, 2**40), start=st.integers(0, 2**45))
@settings(max_examples=15, deadline=None)
def test_putting_the_parts_back_gives_the_text(kind, n, texts, seed, start):
    """Segments of whole sentences, cut at separators, in the order that the label names; the rest untouched."""
    tokenizer = tokenizer_of(kind)
    orders = list(itertools.permutations(range(n)))
    boundaries = sentence_boundaries(tokenizer)
    rows = pack(texts, kind, start=start)
    assert make(kind, n, rate=0)(rows)["input_ids"].shape == (len(rows), 64)
    for original, shown, label in of_documents(rows, make(kind, n, rate=0, seed=seed)):
        assert (shown[0], shown[-1]) == (original[0], original[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        if label is None:
            assert shown == original
            continue
        opens = np.arange(len(original)) == 0
        starts = np.flatnonzero(boundaries.starts(np.array(original)[None], opens[None])[0]) - 1
        assert undone(shown[1:-1], original[1:-1], orders[label], tokenizer.sep_token_id, set(starts.tolist()))


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_white_space_does_not_tell_the_order(kind, texts, seed):
    """Whichever part stands first: it begins as the part behind the separator does, and both end alike."""
    tokenizer = tokenizer_of(kind)
    spelling = token_spelling(tokenizer) or (lambda token: token.encode())
    spelt = {i: spelling(token) for token, i in tokenizer.get_vocab().items()}
    shapes = {}
    for s in range(4):
        for i, (original, shown, label) in enumerate(
            of_documents(pack(texts, kind), make(kind, rate=0, seed=seed + s))
        ):
            if label is not None:
                middle = shown.index(tokenizer.sep_token_id)
                around = spelt[shown[middle - 1]][-1:].isspace(), spelt[shown[middle + 1]][:1].isspace()
                # A text that does not move its first sentence begins as it always did.
                opening = spelt[shown[1]][:1].isspace() if shown[1] != original[1] else None
                shapes.setdefault(i, set()).add(around)
                assert opening in (None, around[1])
    assert all(len(seen) == 1 for seen in shapes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_an_order_does_not_show_one(kind):
    """Sentences drawn one by one, in pieces cut anywhere: no token near a border tells a swapped piece from another.

    A naive Bayes classifier of eight of them, fitted on half of the documents, stays within 4 standard deviations of
    one half on the rest. It does not when first or unended last sentences move.
    """
    random = np.random.default_rng(7)
    breaks = [" ", " ", " ", "\n"]
    texts = ["".join(random.choice(ENGLISH) + random.choice(breaks) for _ in range(40)) for _ in range(300)]
    texts += ["".join(random.choice(CHINESE, 40)) for _ in range(100)]
    tokenizer = tokenizer_of(kind)
    features, labels = [], []
    for _, shown, label in of_documents(pack(texts, kind, length=120), make(kind, rate=0)):
        if label is not None:
            middle = shown.index(tokenizer.sep_token_id)
            features.append([shown[i] for i in (1, 2, middle - 2, middle - 1, middle + 1, middle + 2, -3, -2)])
            labels.append(label)
    features, labels = np.array(features), np.array(labels)
    half = len(labels) // 2
    score = np.zeros(len(labels) - half)
    for column in features.T:
        seen = np.stack(
            [np.bincount(column[:half][labels[:half] == y], minlength=len(tokenizer)) + 1.0 for y in (0, 1)]
        )
        score += np.log(seen[1] / seen[0])[column[half:]]
    accuracy = ((score > 0) == labels[half:]).mean()
    assert len(labels) > 700
    assert abs(accuracy - 0.5) < 4 * math.sqrt(0.25 / len(score))


@pytest.mark.parametrize(("n", "kind"), [(2, "bpe"), (2, "wordpiece"), (3, "unigram")])
def test_classes_are_even(n, kind):
    """Each order within 4.5 standard deviations of its share, over rows of two documents at many positions."""
    row = pack([english(6), english(7)], kind, length=500)[0]
    labels = order_of(make(kind, n)([{**row, "position": p} for p in range(3000)]))[1].numpy()
    share = 1 / math.factorial(n)
    assert len(labels) == 6000
    counts = np.bincount(labels, minlength=math.factorial(n))
    assert abs(counts - 6000 * share).max() < 4.5 * math.sqrt(6000 * share * (1 - share))
    # The documents of a row have draws of their own.
    both = np.bincount(labels.reshape(-1, 2)[:, 0] * math.factorial(n) + labels.reshape(-1, 2)[:, 1])
    assert abs(both - 3000 * share**2).max() < 4.5 * math.sqrt(3000 * share**2)


def test_every_border_is_cut_equally_often_whatever_the_order():
    row = pack([english(6)], length=100)[0]  # five sentences move, between them four borders
    rows = [{**row, "position": p} for p in range(4000)]
    tokenizer = tokenizer_of("bpe")
    first = {0: [], 1: []}
    for original, shown, label in of_documents(rows, make(rate=0)):
        first[label].append(shown.index(tokenizer.sep_token_id))
        assert len(shown) == len(original) + 1
    for places in first.values():
        counts = np.unique(places, return_counts=True)[1]
        assert len(counts) == 4
        assert abs(counts - len(places) / 4).max() < 4.5 * math.sqrt(len(places) * 3 / 16)


def labelled(texts, kind="bpe", n=2):
    """Which texts, a row each, have an order target."""
    rows = [pack([text], kind, length=200, start=i)[0] for i, text in enumerate(texts)]
    batch = make(kind, n)(rows)
    return [bool(hit) for hit in np.isin(np.arange(len(rows)) * 200, order_of(batch)[0])]


def test_which_documents_have_an_order():
    one, two, three = (english(n) for n in (1, 2, 3))
    assert labelled([one, two, three], "wordpiece") == [False, True, True]
    assert labelled([one, two, three], "unigram") == [False, True, True]
    # Two sentences and no space before the first: it would show which is which.
    assert labelled([one, two, three]) == [False, False, True]
    assert labelled(["".join(CHINESE[:n]) for n in (1, 2, 3)]) == [False, True, True]
    assert labelled(["".join(CHINESE[:n]) for n in (2, 3, 4)], n=3) == [False, True, True]
    # What the end of the row cut off does not move, so it does not count.
    assert labelled([two + " The fog", three + " The fog"], "wordpiece") == [True, True]
    assert labelled([one + " The fog", two + " The fog"], "wordpiece") == [False, True]


def test_a_first_and_an_unended_last_sentence_stay():
    tokenizer = tokenizer_of("wordpiece")
    row = pack(["ships. The fog came. Who saw it? A keeper"], "wordpiece")[0]
    seen = set()
    for _, shown, label in of_documents([{**row, "position": p} for p in range(30)], make("wordpiece", rate=0)):
        text = tokenizer.decode(shown).replace(" .", ".").replace(" ?", "?")
        seen.add((label, text))
    assert seen == {
        (0, "[CLS] ships. The fog came. [SEP] Who saw it? A keeper [SEP]"),
        (1, "[CLS] ships. Who saw it? [SEP] The fog came. A keeper [SEP]"),
    }


def test_the_label_names_the_order():
    tokenizer = tokenizer_of("wordpiece")
    row = pack(["Ships went by. The fog came. Who saw it?"], "wordpiece")[0]
    orders = list(itertools.permutations(["Ships went by .", "The fog came .", "Who saw it ?"]))
    rows = [{**row, "position": p} for p in range(60)]
    found = of_documents(rows, make("wordpiece", 3, rate=0))
    assert {label for _, _, label in found} == set(range(6))
    for _, shown, label in found:
        assert tuple(tokenizer.decode(shown)[6:-6].split(" [SEP] ")) == orders[label]


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


def test_special_tokens_inside_a_text_are_not_moved():
    tokenizer = tokenizer_of("wordpiece")
    joined = tokenizer(english(3), english(3))["input_ids"]
    row = {"input_ids": np.array(joined), "document_ids": np.zeros(len(joined), np.int32)}
    batch = make("wordpiece", rate=0)([{**row, "position": p} for p in range(10)])
    assert len(batch["order_index"]) == 0
    assert (batch["input_ids"] == torch.tensor(joined)).all()


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


def test_a_tokenizer_without_a_separator():
    tokenizer = train_tokenizer(ENGLISH, vocab_size=400)
    tokenizer.sep_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match="separator"):
        SentenceOrderCollator(tokenizer=tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_an_order_is_refused(kind):
    for texts in (ENGLISH * 3, ["no end " * 40] * 3, CHINESE):
        rows = pack(texts, kind)
        assert len(make(kind)(rows)["order_index"]) == 0
        with pytest.raises(UserError, match="whole sentences"):
            make(kind).check_rows(rows)
    make(kind).check_rows(pack([*ENGLISH, english(3)], kind))


def test_a_corpus_of_single_sentences_is_refused_before_training(tmp_path, capfd):
    path = tmp_path / "single.txt"
    path.write_text("\n\n".join(f"Ship {i} passed the lamp." for i in range(300)))
    command = [
        "train",
        "pretrain_bert",
        "objective.name=sentence_order",
        "collator.name=sentence_order",
        f"data.train={path}",
        "train.steps=2",
    ]
    small = ["model.size=nano", "tokenizer.vocab_size=400", "data.seq_length=64", f"data.cache={tmp_path / 'cache'}"]
    assert run_command([*command, *small, f"out={tmp_path / 'out'}"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "whole sentences" in errors[0]
    assert not (tmp_path / "out").exists()
