"""Pooling, projector, teacher, queue."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sslnlp.errors import UserError
from sslnlp.nn import POOLINGS, Pooling, Projector, Queue, Teacher, document_count, document_pool


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


@pytest.mark.parametrize("mode", POOLINGS)
def test_vectors_of_documents_are_not_rounded_by_autocast(mode: str) -> None:
    """What texts share is large, and what they differ by is small."""
    hidden, documents = 100 + torch.randn(2, 9, 4) / 100, torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    exact = document_pool(hidden, documents, mode)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(document_pool(hidden, documents, mode), exact)
    assert document_pool(hidden.bfloat16(), documents, mode).dtype == torch.bfloat16


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


def test_weights_with_two_names_follow_once() -> None:
    """As embeddings and the head of a masked LM, which share one matrix."""
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[1].weight = student[0].weight
    teacher = Teacher(student, momentum=0.9)
    first = student[0].weight.detach().clone()
    nn.init.ones_(student[0].weight)
    teacher.update(student, progress=0.0)
    assert torch.allclose(teacher.module[0].weight, 0.9 * first + 0.1)
    assert teacher.module[0].weight is teacher.module[1].weight


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
