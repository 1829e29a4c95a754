from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from sslnlp.data import PaddedRows, Stream
from sslnlp.errors import UserError


class Numbers:
    def __init__(self, n: int) -> None:
        self.lengths = np.random.default_rng(n).integers(1, 100, n)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"value": index}


@pytest.mark.parametrize("bucket", [None, 4, 7])
@pytest.mark.parametrize("n", [1, 3, 50, 1000])
def test_each_lap_visits_each_row_once_in_another_order(n, bucket):
    stream = Stream(Numbers(n), 5, bucket=bucket)
    laps = stream.index(np.arange(3 * n)).reshape(3, n)
    assert all(sorted(lap) == list(range(n)) for lap in laps.tolist())
    if n >= 50:
        assert (laps[0] != laps[1]).any()
        assert (laps[1] != laps[2]).any()


@pytest.mark.parametrize("bucket", [None, 8])
def test_a_row_depends_on_its_position_and_the_seed_only(bucket):
    stream = Stream(Numbers(333), 1, bucket=bucket)
    straight = stream.index(np.arange(1000))
    positions = np.random.default_rng(0).permutation(1000)
    again = Stream(Numbers(333), 1, bucket=bucket)
    assert np.array_equal(again.index(positions), straight[positions])
    assert [again[p]["value"] for p in (999, 0, 500)] == straight[[999, 0, 500]].tolist()
    assert (Stream(Numbers(333), 2, bucket=bucket).index(np.arange(1000)) != straight).any()


def test_rows_of_a_bucket_are_of_like_length():
    source = Numbers(5000)
    order = Stream(source, 0, bucket=16).index(np.arange(15_000 // 16 * 16))
    lengths = source.lengths[order].reshape(-1, 16)
    padded = 1 - lengths.sum() / (lengths.max(1) * 16).sum()
    shuffled = source.lengths[np.random.default_rng(0).permutation(5000)][:4992].reshape(-1, 16)
    assert padded < 0.05 < 1 - shuffled.sum() / (shuffled.max(1) * 16).sum()
    means = lengths.mean(1)[:64]
    assert (np.diff(means) < 0).sum() > 15  # the batches themselves come in no order of length


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_same_rows_with_any_workers(make_store, workers):
    stream = Stream(PaddedRows(make_store([9] * 30), 8, (1,), (2,)), 3)
    batches = [list(range(a, a + 6)) for a in range(0, 90, 6)]
    loader = DataLoader(stream, batch_sampler=batches, collate_fn=list, num_workers=workers)
    for batch, positions in zip(loader, batches, strict=True):
        assert [row["position"] for row in batch] == positions
        for row, p in zip(batch, positions, strict=True):
            assert np.array_equal(row["input_ids"], stream[p]["input_ids"])


def test_held_out_rows_stay_in_their_own_order():
    assert [row["value"] for row in Stream.fixed(Numbers(4)).rows(range(6))] == [0, 1, 2, 3, 0, 1]


def test_no_rows_and_negative_positions_are_refused():
    with pytest.raises(UserError, match="no rows"):
        Stream(Numbers(0), 0)
    with pytest.raises(IndexError):
        Stream(Numbers(3), 0)[-1]
