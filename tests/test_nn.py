"""Pooling, and dropout that belongs to the row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from sslnlp import nn as module_under_test
from sslnlp import rng
from sslnlp.adapt import adapt
from sslnlp.errors import UserError
from sslnlp.nn import (
    POOLINGS,
    Pooling,
    Projector,
    Queue,
    RowDropout,
    Teacher,
    document_count,
    document_pool,
    dropout,
    keyed_uniform,
    row_keyed_dropout,
)


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert Pooling("mean")(hidden, mask).tolist() == [[2.0], [4.0]]
    assert Pooling("cls")(hidden, mask).tolist() == [[1.0], [2.0]]
    assert Pooling("last")(hidden, mask).tolist() == [[3.0], [6.0]]
    # (1·1 + 2·3) / 3 and (1·2 + 2·4 + 3·6) / 6
    assert Pooling("weighted")(hidden, mask).flatten().tolist() == pytest.approx([7 / 3, 28 / 6])
    assert Pooling("mean")(hidden, torch.zeros_like(mask)).tolist() == [[0.0], [0.0]]
    assert Pooling("weighted")(hidden, torch.zeros_like(mask)).tolist() == [[0.0], [0.0]]
    with pytest.raises(UserError, match="unknown pooling"):
        Pooling("max")


def test_pooling_in_bf16_knows_places_beyond_256() -> None:
    hidden = torch.arange(320.0).bfloat16().view(1, 320, 1)
    mask = (torch.arange(320) <= 298).long()[None]
    assert torch.equal(Pooling("last")(hidden, mask), hidden[:, 298])
    first = (torch.arange(320) == 0).bfloat16().view(1, 320, 1)
    assert torch.equal(Pooling("mean")(first, mask), torch.tensor([[1 / 299]]).bfloat16())


def test_pooling_of_packed_documents_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [100.0], [9.0]], [[2.0], [4.0], [6.0], [8.0]]])
    documents = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0]])
    assert document_count(documents) == 2
    assert document_pool(hidden, documents, "mean").squeeze(-1).tolist() == [[2.0, 100.0], [5.0, 0.0]]
    assert document_pool(hidden, documents, "cls").squeeze(-1).tolist() == [[1.0, 100.0], [2.0, 0.0]]
    assert document_pool(hidden, documents, "last").squeeze(-1).tolist() == [[3.0, 100.0], [8.0, 0.0]]
    weighted = document_pool(hidden, documents, "weighted").flatten().tolist()
    assert weighted == pytest.approx([7 / 3, 100.0, 6.0, 0.0])  # the last row: (2 + 2·4 + 3·6 + 4·8) / 10
    assert document_pool(hidden, torch.full_like(documents, -1)).tolist() == [[[0.0]], [[0.0]]]
    with pytest.raises(UserError, match="unknown pooling"):
        document_pool(hidden, documents, "max")


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_row_of_one_document_is_pooled_as_ever(mode: str) -> None:
    hidden, mask = torch.randn(3, 7, 4), torch.arange(7) < torch.tensor([[7], [4], [1]])
    found = document_pool(hidden, mask.long() - 1, mode)
    assert torch.allclose(found[:, 0], Pooling(mode)(hidden, mask), atol=1e-6)


def test_the_rate_is_kept_and_the_scale_restored() -> None:
    x = torch.ones(64, 40, 50)
    with row_keyed_dropout(0, torch.arange(64)):
        y = dropout(x, 0.1)
    assert abs((y == 0).double().mean() - 0.1) < 0.004  # 5 standard deviations of 128,000 draws
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1.0 - 0.1))}
    # No axis repeats another's pattern.
    zeros = (y == 0).double()
    for axes in ((0, 1), (0, 2), (1, 2)):
        assert zeros.mean(axes).std() < 0.02


def test_draws_belong_to_the_row_not_to_the_batch() -> None:
    x = torch.ones(4, 6, 8)

    def drop(rows: list[int], x: torch.Tensor, seed: int = 0, calls: int = 1) -> torch.Tensor:
        with row_keyed_dropout(seed, torch.tensor(rows)):
            for _ in range(calls):
                y = dropout(x, 0.5)
        return y

    whole = drop([10, 11, 12, 13], x)
    assert torch.equal(whole[2:], drop([12, 13], x[2:]))
    assert torch.equal(whole[:, :4], drop([10, 11, 12, 13], x[:, :4])), "a shorter padding leaves the rest as it was"
    assert not torch.equal(whole, drop([10, 11, 12, 13], x, seed=1))
    assert not torch.equal(whole, drop([10, 11, 12, 13], x, calls=2))
    assert not torch.equal(whole[0], whole[1])
    views = drop([10, 11], torch.ones(4, 6, 8))  # two views of each row
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views[2:], drop([11], torch.ones(2, 6, 8)))


def test_outside_training_rows_it_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours = dropout(torch.ones(5, 5), 0.3)
    torch.manual_seed(0)
    assert torch.equal(ours, F.dropout(torch.ones(5, 5), 0.3))
    assert torch.equal(RowDropout(0.5).eval()(torch.ones(3)), torch.ones(3))


def test_a_batch_of_odd_rows_is_a_bug() -> None:
    with row_keyed_dropout(0, torch.arange(2)), pytest.raises(AssertionError, match="3 rows in a batch of 2"):
        dropout(torch.ones(3, 2), 0.5)


def test_a_stock_model_drops_by_row_and_keeps_its_parameters() -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config, add_pooling_layer=False)
    names = set(model.state_dict())
    adapt(model)
    assert set(model.state_dict()) == names
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())
    ids = torch.randint(0, 50, (4, 9))

    def run(rows: list[int]) -> torch.Tensor:
        with row_keyed_dropout(7, torch.tensor(rows)):
            return model.train()(input_ids=ids[rows]).last_hidden_state

    assert torch.allclose(run([0, 1, 2, 3])[2:], run([2, 3]), atol=1e-6)
    assert not torch.allclose(run([0, 1]), model.eval()(input_ids=ids[:2]).last_hidden_state, atol=1e-3)


def test_a_teacher_of_bf16_weights_follows_them() -> None:
    student = nn.Linear(3, 2).to(torch.bfloat16)
    teacher = Teacher(student, momentum=0.99)
    first = teacher.module.weight.clone()
    with torch.no_grad():
        student.weight.mul_(1.125)
    for _ in range(500):
        teacher.update(student, progress=1.0)
    assert torch.allclose(teacher.module.weight.float(), student.weight.float(), rtol=1e-3)
    assert teacher.module.weight.dtype == first.dtype == torch.float32
    assert Teacher(student.double(), momentum=0.99).module.weight.dtype == torch.float64


def test_a_teacher_is_the_average_of_its_students() -> None:
    student = nn.Linear(3, 2)
    teacher = Teacher(student, momentum=0.5, momentum_end=1.0)
    first = student.weight.detach().clone()
    nn.init.ones_(student.weight)
    assert torch.equal(teacher.module.weight, first)  # a copy, and it does not move by itself
    teacher.update(student, progress=0.5)  # momentum is half-way between 0.5 and 1
    assert torch.allclose(teacher.module.weight, 0.75 * first + 0.25)
    teacher.update(student, progress=1.0)
    assert torch.allclose(teacher.module.weight, 0.75 * first + 0.25)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.train().module.training
    assert set(teacher.state_dict()) == {"module.weight", "module.bias"}
    with pytest.raises(UserError, match="momentum"):
        Teacher(student, momentum=1.5)


def test_a_queue_keeps_the_last_rows_and_wraps_around() -> None:
    queue = Queue(5, 1, tags=1)

    def push(*values: int) -> None:
        rows = torch.tensor(values, dtype=torch.int64)[:, None]
        queue.push(rows.double(), 10 * rows)

    def held() -> list[int]:
        return sorted(queue.vectors[queue.filled].flatten().int().tolist())

    assert held() == []
    push(1, 2, 3)
    assert held() == [1, 2, 3]
    assert queue.filled.tolist() == [True] * 3 + [False] * 2
    push(4, 5, 6)
    assert held() == [2, 3, 4, 5, 6]  # 6 took the place of 1
    assert queue.vectors.flatten().tolist() == [6, 2, 3, 4, 5]
    push()
    assert held() == [2, 3, 4, 5, 6]
    push(*range(7, 20))  # more than it holds
    assert held() == [15, 16, 17, 18, 19]
    assert torch.equal(queue.tags, 10 * queue.vectors.long())
    push(20, 21)
    assert held() == [17, 18, 19, 20, 21]
    assert set(queue.state_dict()) == {"vectors", "tags", "pushed"}
    again = Queue(5, 1, tags=1)
    again.load_state_dict(queue.state_dict())
    again.push(torch.tensor([[22.0]]), torch.tensor([[220]]))
    push(22)
    assert torch.equal(again.vectors, queue.vectors)
    assert not list(queue.parameters())
    none = Queue(0, 1, tags=1)
    none.push(torch.ones(3, 1), torch.ones(3, 1, dtype=torch.int64))
    assert none.vectors.shape == (0, 1)
    assert none.filled.shape == (0,)


def test_a_projector_looks_at_one_row_at_a_time() -> None:
    made, x = Projector(3, 8, 5), torch.randn(4, 3)
    assert made(x).shape == (4, 5)
    assert torch.allclose(made(x)[1:2], made(x[1:2]), atol=1e-6)


def test_keyed_draws_are_uniform_and_belong_to_the_row() -> None:
    drawn = keyed_uniform(torch.arange(64), 50, 20, purpose="tests")
    assert drawn.dtype == torch.float32
    assert ((drawn > 0) & (drawn < 1)).all()
    largest = torch.tensor([(1 << 23) - 1]).float() + 0.5
    assert 0 < 0.5 * 2.0**-23 < (largest * 2.0**-23).item() < 1
    assert abs(drawn.mean() - 0.5) < 5 * (1 / 12 / drawn.numel()) ** 0.5
    assert abs(drawn.var() - 1 / 12) < 0.002
    assert torch.equal(keyed_uniform(torch.arange(9, 11), 50, 8, purpose="tests"), drawn[9:11, :, :8])
    assert not torch.equal(keyed_uniform(torch.arange(64), 50, 20, purpose="other"), drawn)
    with row_keyed_dropout(5, torch.arange(64)):
        assert not torch.equal(keyed_uniform(torch.arange(64), 50, 20, purpose="tests"), drawn)


def mixed(x: int) -> int:
    """SplitMix64's finaliser on Python's integers."""
    word = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
    return x ^ (x >> 31)


@pytest.mark.parametrize("at_a_time", [1, 60, 2**16])
def test_what_is_dropped_is_a_hash_of_row_and_indices(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many draws are made at a time: the same as one by one, so that runs go on with the masks they had."""
    monkeypatch.setattr(module_under_test, "IN_CACHE", at_a_time)
    golden, axes = 0x9E3779B97F4A7C15, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)
    with row_keyed_dropout(5, torch.tensor([3, 8, 1000])):
        found = dropout(torch.ones(3, 4, 6), 0.4)
    for r, position in enumerate((3, 8, 1000)):
        row = mixed((position * golden + rng.key(5, "dropout", 1)) % 2**64)
        for i in range(4):
            for j in range(6):
                kept = mixed((row + i * axes[0] + j * axes[1]) % 2**64) >> 11 >= int(0.4 * 2**53)
                assert (found[r, i, j] > 0) == kept


class Dropping(nn.Module):
    """Dropout of states, of two views of a row, of weights of attention, by function; and another kind of draw."""

    def __init__(self) -> None:
        super().__init__()
        self.part = RowDropout(0.4)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> list[torch.Tensor]:
        views = torch.cat([x, x])
        pairs = x[:, None] * x[:, :, None]
        drawn = keyed_uniform(position, x.shape[1], 2, purpose="tests")
        return [self.part(x), self.part(views), self.part(pairs), F.dropout(x, 0.2), drawn]


@pytest.mark.parametrize("functional", [False, True])
def test_to_the_compiler_a_draw_is_one_operation(functional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, at any width: each break was a new start of the compiler, and what its C++ made of the traced hash
    dropped other activations at each call. (Its front end alone runs here.)"""
    monkeypatch.setattr(module_under_test._Key, "functional", functional)
    torch._dynamo.reset()
    module, compiled = Dropping(), torch.compile(Dropping(), backend="aot_eager", fullgraph=True)
    for width in (6, 6, 9):
        given = torch.ones(3, width, 4), torch.tensor([3, 8, 1000])
        runs = []
        for run in (module, compiled):
            torch.manual_seed(0)  # of the function, where nothing keys it
            with row_keyed_dropout(5, given[1]):
                runs.append(run(*given))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
