"""Noise and dropout that belong to the row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from sslnlp import keyed as module_under_test
from sslnlp import rng
from sslnlp.adapt import adapt
from sslnlp.errors import UserError
from sslnlp.keyed import RowDropout, drop_the_same_again, dropout, keyed_uniform, row_keyed_dropout


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


def test_what_gradient_checkpointing_runs_again_drops_the_same() -> None:
    """Loss and gradient are those without it; where nobody has seen to that, it is refused."""
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False)
    adapt(model)
    ids, found = torch.arange(24).view(2, 12), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            with (
                pytest.raises(UserError, match="runs a part of the model again"),
                row_keyed_dropout(3, torch.arange(2)),
            ):
                model(ids).last_hidden_state.square().sum().backward()
            drop_the_same_again(model)
            drop_the_same_again(model)  # twice is once
        model.zero_grad()
        with row_keyed_dropout(3, torch.arange(2)):
            loss = (model(ids).last_hidden_state[..., :5] ** 3).sum()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


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
