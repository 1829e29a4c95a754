"""Laws of views: crops are spans, counts exact, neighbours adjoin, frames stay, and what has no views is left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.collators.tokens import token_block
from sslnlp.collators.view_steps import delete, reorder
from sslnlp.collators.views import PairViewsCollator, ViewsCollator
from sslnlp.errors import UserError
from sslnlp.tokenizer import drawable_ids, sentence_boundaries, special_mask, word_boundaries
from sslnlp.tokenizer.words import ALWAYS
from tests.collators.test_tsdae import TEXTS, documents_of, is_subsequence, row_of
from tests.tiny_tokenizers import CHINESE, ENGLISH, KINDS, tiny

STEPS = ["crop", "head", "tail", "delete", "reorder", "crop+delete+reorder", "head+reorder", "text"]


def seen(batch: Any, view: int, b: int) -> dict[int, list[int]]:
    encoding = batch[f"view_{view}"]
    return documents_of(encoding["input_ids"][b], encoding["document_ids"][b])


def text_of(ids: list[int], special: Any) -> list[int]:
    """What stands between the framing tokens."""
    plain = [i for i, token in enumerate(ids) if not special[token]]
    return ids[plain[0] : plain[-1] + 1] if plain else []


def starts_of(short: list[int], long: list[int]) -> list[int]:
    """Where `short` stands in `long`."""
    return [i for i in range(len(long) - len(short) + 1) if long[i : i + len(short)] == short]


def long_row(position: int = 0, n: int = 50) -> dict[str, Any]:
    """A document of n different tokens, so that every span of it tells its place."""
    tokenizer = tiny()
    ids = [tokenizer.cls_token_id, *drawable_ids(tokenizer)[:n].tolist(), tokenizer.sep_token_id]
    return {"input_ids": np.array(ids), "document_ids": np.zeros(n + 2, np.int32), "position": position}


texts = st.lists(st.sampled_from(TEXTS) | st.text(max_size=40), min_size=1, max_size=4)


@given(
    rows=st.lists(texts, min_size=1, max_size=3),
    kind=st.sampled_from(KINDS),
    views=st.lists(st.sampled_from(STEPS), min_size=2, max_size=3),
    seed=st.integers(0, 2**40),
    start=st.integers(0, 2**45),
    min_tokens=st.integers(1, 6),
)
@settings(max_examples=80, deadline=None)
def test_laws_of_every_document(rows, kind, views, seed, start, min_tokens):
    tokenizer = tiny(kind)
    special = special_mask(tokenizer)
    made = [row_of(texts, tokenizer, start + i, padding=i) for i, texts in enumerate(rows)]
    batch = ViewsCollator(tokenizer=tokenizer, seed=seed, views=views, min_tokens=min_tokens)(made)
    assert batch["position"].tolist() == [row["position"] for row in made]
    for b, row in enumerate(made):
        originals = documents_of(row["input_ids"], row["document_ids"]).values()
        kept = [ids for ids in originals if len(text_of(ids, special)) >= min_tokens]
        assert int(batch["present"][b].sum()) == len(kept)
        for v, view in enumerate(views):
            found = seen(batch, v, b)
            assert list(found) == list(range(len(kept)))  # the same documents in every view, under the same numbers
            for number, original in enumerate(kept):
                ids, whole = found[number], text_of(original, special)
                text = text_of(ids, special)
                # The frame is as it was, and what it holds is of this document.
                frame = original.index(whole[0])
                assert ids[:frame] == original[:frame]
                assert ids[len(ids) - (len(original) - frame - len(whole)) :] == original[frame + len(whole) :]
                assert 0 < len(ids) <= len(original)
                assert not set(ids) - set(original)
                if view == "text":
                    assert ids == original
                elif view in ("crop", "head", "tail") and text:
                    assert starts_of(text, whole)
                elif view == "delete":
                    assert is_subsequence(ids, original)
                elif view == "reorder":
                    assert sorted(ids) == sorted(original)
    encoding = batch["view_0"]
    assert torch.equal(encoding["attention_mask"], encoding["document_ids"] >= 0)
    assert encoding["hashes"].shape == (*batch["present"].shape, 2)


@pytest.mark.parametrize(("view", "least", "most"), [("crop", 10, 25), ("head", 10, 20), ("tail", 10, 20)])
def test_lengths_and_places_of_crops(view: str, least: int, most: int) -> None:
    """Of 50 tokens a crop has 20 to 50 %, at most the 40 % beside the gap; every length and every place occurs."""
    whole = long_row()["input_ids"][1:-1].tolist()
    collator = ViewsCollator(tokenizer=tiny(), views=[view, "crop"], crop_min=0.2, crop_max=0.5, gap=0.2)
    batch = collator([long_row(position) for position in range(800)])
    crops = [seen(batch, 0, b)[0][1:-1] for b in range(800)]
    lengths, places = [len(crop) for crop in crops], [starts_of(crop, whole)[0] for crop in crops]
    assert (min(lengths), max(lengths)) == (least, most)
    first, last = {"crop": (0, 50), "head": (0, 20), "tail": (30, 50)}[view]
    assert min(places) == first
    assert max(place + length for place, length in zip(places, lengths, strict=True)) == last
    # A short one may lie anywhere in its room.
    short = [place for place, length in zip(places, lengths, strict=True) if length <= least + 3]
    assert min(short) <= first + 1
    assert max(short) >= last - least - 4


def test_head_and_tail_are_apart_and_crops_of_two_views_differ() -> None:
    whole = long_row()["input_ids"][1:-1].tolist()
    batch = ViewsCollator(tokenizer=tiny(), views=["head", "tail", "crop", "crop"])([long_row(p) for p in range(50)])
    for b in range(50):
        head, tail = (seen(batch, v, b)[0][1:-1] for v in (0, 1))
        assert starts_of(tail, whole)[0] - (starts_of(head, whole)[0] + len(head)) >= 10
    pairs = [(seen(batch, 2, b)[0], seen(batch, 3, b)[0]) for b in range(50)]
    assert sum(a != b for a, b in pairs) > 45


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_go_in_exact_number_and_move_within_their_distance(kind: str) -> None:
    tokenizer = tiny(kind)
    row = row_of([" ".join(ENGLISH) + " unlamped fogships harbourer " + "".join(CHINESE)], tokenizer)
    block = token_block([{**row, "position": p} for p in range(30)], tokenizer)
    source = ViewsCollator(tokenizer=tokenizer)._source(block, np.arange(30))
    starts = word_boundaries(tokenizer).starts(block.input_ids).ravel()
    word = np.cumsum(starts)[source.text.place]
    number = len(np.unique(word)) // 30
    assert np.bincount(word).max() > 1

    left = delete(source.text, source, "tests", rate=0.3)
    kept = np.isin(source.text.place, left.place)
    for w in np.unique(word):
        assert len(set(kept[word == w].tolist())) == 1  # all of a word or nothing
    assert [len(set(word[kept & (source.text.document == d)])) for d in range(30)] == [
        number - round(0.3 * number)
    ] * 30

    moved = reorder(source.text, source, "tests", distance=2)
    assert sorted(moved.place.tolist()) == source.text.place.tolist()
    for d in range(30):
        order = np.cumsum(starts)[moved.place[moved.document == d]]
        change = np.flatnonzero(np.diff(order, prepend=-1))
        assert len(change) == number  # no word is parted
        away = order[change] - order.min() - np.arange(number)
        assert 0 < np.abs(away).max() <= 2
        assert (np.diff(moved.place[moved.document == d])[np.diff(order) == 0] == 1).all()  # nor turned round


def test_exact_number_of_deleted_words_and_no_place_is_favoured() -> None:
    """30 % of 40 words of one token go; over 600 draws the share of each has a standard error of 0.019."""
    tokenizer = tiny()
    drawable = drawable_ids(tokenizer)
    own = drawable[(word_boundaries(tokenizer).flags[drawable] & ALWAYS) > 0][:40]  # a word each, wherever it stands
    ids = np.array([tokenizer.cls_token_id, *own, tokenizer.sep_token_id])
    row = {"input_ids": ids, "document_ids": np.zeros(42, np.int32)}
    collator = ViewsCollator(tokenizer=tokenizer, views=["delete", "text"], rate=0.3)
    ids = collator([{**row, "position": p} for p in range(600)])["view_0"]["input_ids"]
    gone = 1 - torch.stack([(ids == i).any(1).double().mean() for i in own.tolist()])
    assert gone.mean().item() == pytest.approx(0.3)
    assert (gone - 0.3).abs().max() < 5 * 0.019


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_and_its_neighbour_adjoin(kind: str) -> None:
    tokenizer = tiny(kind)
    special = special_mask(tokenizer)
    row = row_of([" ".join(ENGLISH), "Only one sentence is here.", "One is here. Another follows."], tokenizer)
    starts = sentence_boundaries(tokenizer)
    options: dict[str, Any] = {"views": ["sentence", "neighbour+crop", "neighbour"], "min_tokens": 1}
    batch = ViewsCollator(tokenizer=tokenizer, **options)([{**row, "position": p} for p in range(60)])
    assert batch["present"].tolist() == [[True, True]] * 60  # the lone sentence has no neighbour
    originals = documents_of(row["input_ids"], row["document_ids"])
    places = set()
    for b in range(60):
        for number, original in enumerate((originals[0], originals[2])):
            one, part, other = (text_of(seen(batch, v, b)[number], special) for v in range(3))
            whole = text_of(original, special)
            place = starts_of(one + other, whole)
            assert len(place) == 1
            assert starts_of(part, other)
            here = np.array(whole)[None]
            begins = np.flatnonzero(starts.starts(here, np.arange(len(whole))[None] == 0))
            assert {place[0], place[0] + len(one)} <= {*begins.tolist()}
            places.add((number, place[0]))
    sentences = len(begins)
    assert sentences == 2
    assert len({place for number, place in places if number == 0}) > 3
    assert len({place for number, place in places if number == 1}) == 1


def test_draws_belong_to_seed_and_position() -> None:
    rows = [row_of([text, ENGLISH[i % 5]], tiny(), 90 + i, padding=3 * i) for i, text in enumerate(TEXTS)]
    options: dict[str, Any] = {"tokenizer": tiny(), "views": ["crop+delete", "sentence+reorder"]}
    collator = ViewsCollator(seed=5, **options)
    together = collator(rows)
    for i, row in enumerate(rows):
        alone = collator([row])
        assert [seen(alone, v, 0) for v in (0, 1)] == [seen(together, v, i) for v in (0, 1)]
    other = ViewsCollator(seed=6, **options)(rows)
    assert any(seen(other, 0, i) != seen(together, 0, i) for i in range(len(rows)))
    again = collator.for_evaluation(5)(rows)
    assert torch.equal(again["view_0"]["input_ids"], together["view_0"]["input_ids"])
    plain = [{"input_ids": row["input_ids"]} for row in rows]
    first, second = collator(plain), collator(plain)  # no positions: never the same draws
    assert not torch.equal(first["position"], second["position"])


def test_hashes_tell_what_a_view_is_made_of_and_what_is_left() -> None:
    tokenizer = tiny()
    rows = [row_of([ENGLISH[0], ENGLISH[1]], tokenizer, 0), row_of([ENGLISH[1], ENGLISH[0]], tokenizer, 1)]
    batch = ViewsCollator(tokenizer=tokenizer, views=["text", "crop", "reorder"])(rows)
    text, crop, moved = (batch[f"view_{v}"]["hashes"] for v in range(3))
    assert torch.equal(text[..., 0], text[..., 1])
    assert torch.equal(text[..., 0], crop[..., 0])
    assert torch.equal(text[0, [0, 1]], text[1, [1, 0]])
    assert text[0, 0, 0] != text[0, 1, 0]
    assert (crop[..., 1] != text[..., 1]).all()
    assert (moved[..., 1] != text[..., 1]).all()  # the same tokens in another order are another text


def test_text_that_is_empty_or_too_short_makes_no_views() -> None:
    tokenizer = tiny()
    collator = ViewsCollator(tokenizer=tokenizer, views=["crop", "text"])
    nothing = [row_of(["", "a"], tokenizer, 0), row_of([""], tokenizer, 1)]
    batch = collator(nothing)
    assert batch["present"].tolist() == [[False], [False]]
    assert not batch["view_0"]["attention_mask"].any()
    with pytest.raises(UserError, match=r"2 rows hold none"):
        collator.check_rows(nothing)
    collator.check_rows([*nothing, row_of([ENGLISH[0]], tokenizer, 2)])
    adjoining = ViewsCollator(tokenizer=tokenizer, views=["sentence", "neighbour"])
    with pytest.raises(UserError, match="two sentences"):
        adjoining.check_rows([row_of(["One is here."], tokenizer)])
    padding = {"input_ids": np.zeros(4, int), "document_ids": np.full(4, -1, np.int32), "position": 0}
    assert not collator([padding])["present"].any()


def pairs(n: int = 6, **more: Any) -> list[dict[str, Any]]:
    return [{"query": f"lamp {i % 4}", "positive": ENGLISH[i % 5], "position": i, **more} for i in range(n)]


def test_pairs_are_views_of_two_columns() -> None:
    tokenizer = tiny()
    collator = PairViewsCollator(tokenizer=tokenizer, views=["query", "positive+crop", "positive"], document_length=20)
    batch = collator(pairs(negatives=["seventeen ships", "a song about hands"]))
    assert collator.makes <= batch.keys()
    assert batch["present"].tolist() == [[True]] * 6
    for b, row in enumerate(pairs()):
        assert seen(batch, 0, b)[0] == tokenizer(row["query"])["input_ids"]
        assert seen(batch, 2, b)[0] == tokenizer(row["positive"], truncation=True, max_length=20)["input_ids"]
        assert starts_of(seen(batch, 1, b)[0][1:-1], seen(batch, 2, b)[0])
    hashes = batch["view_0"]["hashes"]
    assert torch.equal(hashes[0], hashes[4])  # the same query
    assert not torch.equal(hashes[0], hashes[1])
    assert torch.equal(batch["view_1"]["hashes"][..., 0], batch["view_2"]["hashes"][..., 0])
    assert batch["negative"]["input_ids"].shape[0] == 12
    assert batch["negative"]["hashes"].shape == (12, 1, 2)
    second = documents_of(batch["negative"]["input_ids"][1], batch["negative"]["document_ids"][1])
    assert second == {0: tokenizer("a song about hands")["input_ids"]}
    assert "negative" not in PairViewsCollator(tokenizer=tokenizer)(pairs())
    with pytest.raises(UserError, match="'positive' must hold text"):
        collator([{"query": "a", "positive": "  "}])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": ["crop"]}, "two views"),
        ({"views": ["crop", "corp"]}, "'crop'"),
        ({"views": ["crop+sentence", "text"]}, "stands first"),
        ({"crop_min": 0.6}, "crop_min"),
        ({"crop_max": 1.5}, "crop_max"),
        ({"rate": 1.0}, "collator.rate"),
        ({"gap": -0.1}, "collator.gap"),
        ({"distance": 0}, "collator.distance"),
        ({"min_tokens": 0}, "collator.min_tokens"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ViewsCollator(tokenizer=tiny(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": ["query", "crop"]}, "begin with its column"),
        ({"views": ["query", "positive+delete"], "document_prefix": "passage: "}, "change the prefix"),
        ({"query_length": 2}, "query_length"),
        ({"num_negatives": -1}, "num_negatives"),
    ],
)
def test_bad_options_of_pairs(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PairViewsCollator(tokenizer=tiny(), **options)
