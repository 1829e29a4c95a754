"""Attention by matrix products against PyTorch's kernel, and the masks that stock models are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslnlp import attention as module_under_test
from sslnlp.attention import LONGEST, attention, attention_by_matmuls, attention_mask, by_matmuls
from sslnlp.keyed import keys_dropout_by_row, row_keyed_dropout

B, A, S, D = 3, 4, 9, 8
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}
"""Of values of about 1: some roundings of the type."""


def heads(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def documents() -> Tensor:
    """bool [B, 1, S, S]: rows of one, two and three documents, of which the last row ends in padding that sees all."""
    ids = torch.tensor([[0] * 9, [0] * 4 + [1] * 5, [0] * 2 + [1] * 2 + [2] * 3 + [-1] * 2])
    return ((ids[:, :, None] == ids[:, None, :]) | (ids[:, :, None] < 0))[:, None]


def distance() -> Tensor:
    return torch.arange(S)[:, None] - torch.arange(S)[None, :]


MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "causal": lambda: None,
    "documents": documents,
    "sliding": lambda: documents() & (distance().abs() <= 2),
    "causal documents": lambda: documents() & (distance() >= 0),
    "shared": lambda: (distance() >= 0)[None, None],
    "added": lambda: heads(B, 1, S, S, seed=9),
    "added, per head": lambda: heads(B, A, S, S, seed=9),
    "added, lowest": lambda: torch.zeros(B, 1, S, S).masked_fill(~documents(), torch.finfo(torch.float32).min),
}


def module(**attributes: Any) -> nn.Module:
    made = nn.Module()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def compared(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor], tolerance: float
) -> None:
    """Outputs and the gradients by every input agree, with a gradient that is not all ones."""
    results = []
    for function in (ours, theirs):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        output = function(*leaves)
        weights = heads(*output.shape, seed=99).to(output.dtype)
        results.append((output, *torch.autograd.grad((output * weights).sum(), leaves)))
    for mine, expected in zip(*results, strict=True):
        assert mine.dtype == expected.dtype
        assert mine.shape == expected.shape
        assert torch.isfinite(mine).all()
        scale = max(1.0, float(expected.detach().abs().max()))
        assert float((mine - expected).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", MASKS)
def test_products_are_sdpa(kind: str, dtype: torch.dtype) -> None:
    mask, causal = MASKS[kind](), kind == "causal"
    theirs_mask = mask if mask is None or mask.dtype == torch.bool else mask.clamp(min=-1e30).to(dtype)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_by_matmuls(q, k, v, mask, causal=causal, scaling=0.3)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, theirs_mask, is_causal=causal, scale=0.3).transpose(1, 2)

    compared(ours, theirs, [heads(B, A, S, D, dtype=dtype, seed=i) for i in range(3)], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bias_of_positions_is_added_and_gets_its_gradient(masked: bool, dtype: torch.dtype) -> None:
    mask = documents() if masked else None

    def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attention_by_matmuls(q, k, v, mask, causal=False, scaling=1.0, bias=bias)

    def theirs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        added = bias if mask is None else torch.where(mask, bias, torch.finfo(dtype).min)
        return F.scaled_dot_product_attention(q, k, v, added.to(dtype), scale=1.0).transpose(1, 2)

    inputs = [heads(B, A, S, D, dtype=dtype, seed=i) for i in range(3)]
    compared(ours, theirs, [*inputs, heads(1, A, S, S, dtype=dtype, seed=3)], 2 * TOLERANCE[dtype])


def test_queries_before_the_end_of_the_keys_see_as_in_sdpa() -> None:
    q, k, v = heads(B, A, 4, D), heads(B, A, S, D, seed=1), heads(B, A, S, D, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    assert torch.allclose(attention_by_matmuls(q, k, v, None, causal=True, scaling=D**-0.5), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_mask_that_sees_nothing_is_not_nan(dtype: torch.dtype) -> None:
    q, k, v = (heads(B, A, S, D, dtype=dtype, seed=i) for i in range(3))
    nothing = torch.zeros(B, 1, S, S, dtype=torch.bool)
    for mask in (nothing, torch.full((B, 1, S, S), torch.finfo(torch.float32).min)):
        assert torch.isfinite(attention_by_matmuls(q, k, v, mask, causal=False, scaling=1.0)).all()


# --- as registered ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["none", "causal", "documents"])
def test_the_registered_function_is_sdpa_on_either_path(
    kind: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key-value heads shared by `groups` query heads; the path by products is taken by bf16, and forced on float32."""
    mask, owner = MASKS[kind](), module(is_causal=kind == "causal", num_key_value_groups=groups)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output, weights = attention(owner, q, k, v, mask)
        assert weights is None
        return output

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=owner.is_causal).transpose(1, 2)

    shapes = [(B, A, S, D), (B, A // groups, S, D), (B, A // groups, S, D)]
    for dtype in TOLERANCE:
        inputs = [heads(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
        compared(ours, theirs, inputs, TOLERANCE[dtype])
    monkeypatch.setattr(module_under_test, "by_matmuls", lambda *_: True)
    inputs = [heads(*shape, seed=i) for i, shape in enumerate(shapes)]
    compared(ours, theirs, inputs, TOLERANCE[torch.float32])


def test_what_the_module_says_of_causality_can_be_overruled() -> None:
    q, k, v = (heads(B, A, S, D, dtype=torch.bfloat16, seed=i) for i in range(3))
    ahead = attention(module(is_causal=False), q, k, v, None)[0]
    plain = attention(module(), q, k, v, None)[0]  # stock modules without the attribute are causal to SDPA too
    assert torch.equal(attention(module(is_causal=False), q, k, v, None, is_causal=True)[0], plain)
    assert torch.equal(attention(module(is_causal=True), q, k, v, None, is_causal=False)[0], ahead)
    assert not torch.allclose(ahead, plain, atol=0.1)


def test_a_single_query_behind_a_cache_sees_all_keys() -> None:
    q, k, v = heads(B, A, 1, D).bfloat16(), heads(B, A, S, D, seed=1).bfloat16(), heads(B, A, S, D, seed=2).bfloat16()
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert torch.allclose(attention(module(is_causal=True), q, k, v, None)[0], expected, atol=3e-2)


def test_under_autocast_all_is_done_in_its_type() -> None:
    q, k, v = (heads(B, A, S, D, seed=i) for i in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(module(is_causal=False), q, k, v, None)[0]
    assert output.dtype == torch.bfloat16
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    assert torch.allclose(output.float(), expected, atol=3e-2)


def test_the_rule_of_the_kernels() -> None:
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    assert by_matmuls(cpu, bf16, LONGEST, LONGEST)
    assert by_matmuls(cpu, bf16, 1, LONGEST)
    assert not by_matmuls(cpu, bf16, 1, LONGEST + 1)
    assert not by_matmuls(cpu, bf16, LONGEST + 1, 8)
    assert not by_matmuls(cpu, torch.float32, 8, 8)
    assert not by_matmuls(torch.device("cuda"), bf16, 8, 8)


# --- dropped weights --------------------------------------------------------------------------------------------------


def dropped(rows: slice, positions: Tensor, rate: float, seed: int = 5) -> Tensor:
    q, k, v = (heads(4, A, S, D, seed=i)[rows] for i in range(3))
    with row_keyed_dropout(seed, positions):
        return attention(module(is_causal=False), q, k, v, None, dropout=rate)[0]


def test_dropped_weights_belong_to_the_row() -> None:
    positions = torch.tensor([7, 8, 9, 10])
    whole = dropped(slice(None), positions, 0.5)
    parts = [dropped(slice(i, i + 2), positions[i : i + 2], 0.5) for i in (0, 2)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.allclose(whole, dropped(slice(None), positions, 0.5, seed=6))
    assert not torch.allclose(whole[0], dropped(slice(None), positions.flip(0), 0.5)[0])


def test_dropped_weights_are_kept_at_their_rate_and_scaled() -> None:
    # The values are ones, so an output is the sum of the kept weights over the share kept.
    q, k = heads(B, A, 64, D), heads(B, A, 64, D, seed=1)
    with row_keyed_dropout(0, torch.arange(B)):
        sums = attention(module(is_causal=False), q, k, torch.ones(B, A, 64, D), None, dropout=0.25)[0][..., 0]
    assert float(sums.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(sums.std()) > 0.05


def test_a_rate_that_drops_nothing_is_sdpa() -> None:
    for kind in ("none", "causal", "documents"):
        mask = MASKS[kind]()
        q, k, v = (heads(B, A, S, D, seed=i) for i in range(3))
        expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal").transpose(1, 2)
        with row_keyed_dropout(0, torch.arange(B)):
            ours, _ = attention(module(), q, k, v, mask, dropout=1e-15, is_causal=kind == "causal")
        assert torch.allclose(ours, expected, atol=2e-6)


def test_outside_the_loop_dropped_weights_are_sdpas() -> None:
    q, k, v = (heads(B, A, S, D, seed=i) for i in range(3))
    assert not keys_dropout_by_row()
    torch.manual_seed(0)
    ours = attention(module(is_causal=False), q, k, v, None, dropout=0.5)[0]
    torch.manual_seed(0)
    assert torch.equal(ours, F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).transpose(1, 2))


# --- masks of stock models --------------------------------------------------------------------------------------------


def test_in_the_loop_the_mask_is_left_out_only_where_the_result_is_the_same() -> None:
    shape = {"batch_size": 2, "q_length": S, "kv_length": S}
    padding = torch.tensor([[1] * S, [1] * 5 + [0] * 4]).bool()
    asked: list[tuple[dict[str, Any], bool]] = [
        ({"allow_is_causal_skip": True, "attention_mask": padding}, True),
        ({"allow_is_causal_skip": False, "attention_mask": padding}, False),
        ({"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True, "attention_mask": None}, True),
        ({"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True, "attention_mask": padding}, False),
        ({"allow_is_causal_skip": True, "local_size": 4}, False),
    ]
    for what, without in asked:
        with row_keyed_dropout(0, torch.arange(2)):
            assert (attention_mask(**shape, **what) is None) == without, what
    assert attention_mask(**shape, allow_is_causal_skip=True, attention_mask=padding) is not None
    with row_keyed_dropout(0, torch.arange(2)):
        assert attention_mask(**shape | {"q_length": 1}, q_offset=S - 1, attention_mask=padding) is not None
