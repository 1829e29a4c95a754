"""Laws of the order of sentences: nothing lost, even classes, nothing but the text to tell them by."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.cli import run_command
from sslnlp.collators.sentence_order import SentenceOrderCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import train_tokenizer
from sslnlp.tokenizer.words import token_spelling
from tests.collators.sentences import (
    CHINESE,
    ENGLISH,
    english,
    make,
    order_of,
    pack,
    seeded,
    starts_of,
    tokenizer_of,
)
from tests.tiny_tokenizers import KINDS


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
    rows = pack(texts, kind, start=start)
    collator = seeded(kind, n, seed)
    assert collator(rows)["input_ids"].shape == (len(rows), 64)
    for original, shown, label in of_documents(rows, collator):
        assert (shown[0], shown[-1]) == (original[0], original[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        if label is None:
            assert shown == original
            continue
        opens = np.arange(len(original)) == 0
        starts = np.flatnonzero(starts_of(kind)(np.array(original)[None], opens[None])[0]) - 1
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
        for i, (original, shown, label) in enumerate(of_documents(pack(texts, kind), seeded(kind, 2, seed + s))):
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


def test_special_tokens_inside_a_text_are_not_moved():
    tokenizer = tokenizer_of("wordpiece")
    joined = tokenizer(english(3), english(3))["input_ids"]
    row = {"input_ids": np.array(joined), "document_ids": np.zeros(len(joined), np.int32)}
    batch = make("wordpiece", rate=0)([{**row, "position": p} for p in range(10)])
    assert len(batch["order_index"]) == 0
    assert (batch["input_ids"] == torch.tensor(joined)).all()


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
