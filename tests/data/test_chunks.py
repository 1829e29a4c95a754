"""The table of chunks: what was put in comes out, whatever the sizes, collisions and resets."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.data import chunks
from sslnlp.data.chunks import ChunkTable
from sslnlp.tokenizer.cuts import SEPARATOR


class Counting:
    """Encodes a chunk to its bytes, twice those of even length; counts what it was asked."""

    def __init__(self):
        self.asked = []

    def ids_of(self, chunk):
        return list(chunk) * (1 + (len(chunk) % 2 == 0))

    def __call__(self, joined, lengths):
        assert joined[0] == joined[-1] == SEPARATOR
        ends = np.cumsum(lengths + 1)
        asked = [joined[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]
        self.asked += asked
        ids = [self.ids_of(chunk) for chunk in asked]
        return np.array(list(chain(*ids)), np.int32), np.array([len(one) for one in ids], np.int64)


def look_up(table, wanted, before=b"", blocks=1):
    """The ids of each chunk of `wanted`, asked for in one call, as so many blocks."""
    lengths = np.array([len(chunk) for chunk in wanted], np.int64)
    buffer = np.frombuffer(before + b"".join(wanted) + bytes(16), np.uint8)
    at = len(before) + np.cumsum(lengths) - lengths
    cuts = zip(np.array_split(at, blocks), np.array_split(lengths, blocks), strict=True)
    found = table(buffer, [block for block in cuts if len(block[0])])
    return [part.tolist() for ids, ends in found for part in np.split(ids, ends[:-1])]


CHUNKS = st.lists(st.binary(min_size=1, max_size=20) | st.text("ab", min_size=1, max_size=18).map(str.encode))


@settings(max_examples=150, deadline=None)
@given(
    calls=st.lists(CHUNKS.filter(bool), min_size=1, max_size=6),
    most=st.sampled_from([0, 3, 1000]),
    blocks=st.integers(1, 4),
)
def test_every_chunk_gets_its_own_ids(calls, most, blocks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "FRONT_BITS", (2, 1))
        patch.setattr(chunks, "MAX_CHUNKS", most)
        patch.setattr(chunks, "LONGEST", 10)
        encode = Counting()
        table = ChunkTable(encode)
        for wanted in calls:
            assert look_up(table, wanted, b"before", blocks) == [encode.ids_of(chunk) for chunk in wanted]


def test_a_chunk_is_encoded_once_until_the_table_begins_anew(monkeypatch):
    encode = Counting()
    table = ChunkTable(encode)
    wanted = [b"a", b"longer than sixteen", b"exactly8", b"nine and.", b"a"]
    for _ in range(3):
        look_up(table, wanted)
    assert sorted(encode.asked) == sorted(set(wanted))
    monkeypatch.setattr(chunks, "MAX_IDS", 5)
    look_up(table, wanted)
    assert len(encode.asked) == 8


def test_long_chunks_are_not_kept(monkeypatch):
    monkeypatch.setattr(chunks, "LONGEST", 20)
    encode = Counting()
    table = ChunkTable(encode)
    for _ in range(2):
        look_up(table, [b"x" * 20, b"y" * 21, b"y" * 21])
    assert sorted(encode.asked) == [b"x" * 20, b"y" * 21, b"y" * 21]


def test_memory_is_bounded_by_the_number_of_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "MAX_CHUNKS", 100)
    table = ChunkTable(Counting())
    for start in range(0, 10_000, 50):
        look_up(table, [b"%d" % n for n in range(start, start + 50)])
        assert table._slots.used <= 150
        assert len(table._where) <= 1 << 10


def test_one_chunk_of_very_many_ids():
    many = (1 << 24) + 5
    table = ChunkTable(lambda joined, lengths: (np.arange(2 * many, dtype=np.int32), np.array([many, many])))
    buffer = np.frombuffer(b"ab" + bytes(16), np.uint8)
    ((ids, ends),) = table(buffer, [(np.array([0, 1]), np.array([1, 1]))])
    assert ends.tolist() == [many, 2 * many]
    assert np.array_equal(ids, np.arange(2 * many))


def test_chunks_without_ids():
    table = ChunkTable(
        lambda joined, lengths: (np.full((lengths > 1).sum(), 7, np.int32), (lengths > 1).astype(np.int64))
    )
    assert look_up(table, [b" ", b"ab", b" ", b" ", b"ab", b" "]) == [[], [7], [], [], [7], []]
    assert look_up(table, [b" "]) == [[]]


def test_a_block_that_lies_far_behind_two_gibibytes():
    far = 1 << 31
    buffer = np.zeros(far + 64, np.uint8)  # untouched pages take no memory
    buffer[far : far + 40] = np.frombuffer(b"seventeen letters and then some more too", np.uint8)
    encode = Counting()
    list(ChunkTable(encode)(buffer, [(np.array([far, far + 18]), np.array([18, 22]))]))
    assert encode.asked == [b"seventeen letters ", b"and then some more too"]
