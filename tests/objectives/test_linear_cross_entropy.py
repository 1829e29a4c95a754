"""Cross-entropy by chunks against `functional.cross_entropy` of the whole logits, alone and inside the objectives."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sslnlp.heads import scored_features
from sslnlp.objectives import linear_cross_entropy as module_under_test
from sslnlp.objectives.functional import IGNORED, accuracy, cross_entropy
from sslnlp.objectives.linear_cross_entropy import linear_cross_entropy as scored
from sslnlp.objectives.scoring import by_logits
from tests.contract import make_objective, make_trainer, one_batch


def problem(
    n: int, width: int, vocabulary: int, *, bias: bool = True, ignored: float = 0.3, seed: int = 0, dtype: Any = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator).to(dtype)
    weight = (2 * torch.randn(vocabulary, width, generator=generator)).to(dtype)
    target = torch.randint(vocabulary, (n,), generator=generator)
    target[torch.rand(n, generator=generator) < ignored] = IGNORED
    return features, weight, torch.randn(vocabulary, generator=generator).to(dtype) if bias else None, target


def linear_cross_entropy(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and accuracy."""
    found = scored(*inputs, **options)
    return found.loss, found.accuracy


def whole(
    features: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What it has to equal."""
    logits = F.linear(features, weight, bias)
    if logits.dtype == torch.float64:  # `cross_entropy` counts in float32
        count = (target != IGNORED).sum().clamp(min=1)
        total = F.cross_entropy(logits, target, reduction="sum", label_smoothing=label_smoothing, ignore_index=IGNORED)
        return total / count, accuracy(logits, target)
    return cross_entropy(logits, target, label_smoothing), accuracy(logits, target)


def differentiated(function: Any, inputs: tuple[Any, ...], scale: float = 3.0, **options: Any) -> list[Tensor]:
    """Loss, hits and the gradients of `scale` times the loss."""
    leaves = [x if x is None or not x.is_floating_point() else x.detach().clone().requires_grad_() for x in inputs]
    loss, hits = function(*leaves, **options)
    assert not hits.requires_grad
    trained = [x for x in leaves[:3] if x is not None]
    return [loss.detach(), hits, *torch.autograd.grad(scale * loss, trained)]


def same(inputs: tuple[Any, ...], tolerance: float = 2e-6, **options: Any) -> None:
    ours = differentiated(linear_cross_entropy, inputs, **options)
    theirs = differentiated(whole, inputs, **options)
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.shape == expected.shape
        scale = max(1.0, float(expected.abs().max()))
        assert float((mine - expected).abs().max()) <= tolerance * scale


@pytest.fixture(autouse=True, scope="module")
def _chunks_as_small_as_asked() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_under_test, "LEAST", {})
        yield


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 3 positions of a vocabulary of 20 at a time, and 7 in a panel."""
    monkeypatch.setitem(module_under_test.CHUNK, "cpu", 60)
    monkeypatch.setitem(module_under_test.PANEL, "cpu", 140)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    width=st.integers(1, 17),
    vocabulary=st.integers(2, 50),
    bias=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    chunk=st.sampled_from([1, 60, 200, 2**21]),
    panel=st.sampled_from([1, 1, 3]),
    seed=st.integers(0, 99),
)
def test_it_is_cross_entropy_of_the_whole_logits(
    n: int,
    width: int,
    vocabulary: int,
    bias: bool,
    ignored: float,
    smoothing: float,
    chunk: int,
    panel: int,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module_under_test.CHUNK, "cpu", chunk)
        patch.setitem(module_under_test.PANEL, "cpu", panel * chunk)
        inputs = problem(n, width, vocabulary, bias=bias, ignored=ignored, seed=seed)
        same(inputs, 1e-5, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.usefixtures("small_chunks")
def test_in_float64_it_is_exact(bias: bool, smoothing: float) -> None:
    """No step counts in less than the type of the features; panels and chunks that do not divide 23 positions."""
    same(problem(23, 6, 20, bias=bias, dtype=torch.float64), 1e-13, label_smoothing=smoothing)


@pytest.mark.usefixtures("small_chunks")
def test_its_gradient_is_that_of_finite_differences() -> None:
    features, weight, bias, target = problem(9, 4, 20, dtype=torch.float64)
    leaves = [features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]  # type: ignore[union-attr]
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, target, label_smoothing=0.1)[0], leaves)


def test_chunks_and_panels_as_they_are_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a panel is one chunk, and its gradient is not copied."""
    monkeypatch.setitem(module_under_test.CHUNK, "cpu", 60)
    monkeypatch.setitem(module_under_test.PANEL, "cpu", 60)
    same(problem(23, 6, 20))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_target_counts_its_share(dtype: torch.dtype, small_chunks: None) -> None:
    """Losses, hits and gradients by parts, as those of the whole logits; one that is not scored counts nothing."""
    features, weight, bias, target = problem(23, 6, 20, dtype=dtype)
    share = torch.rand(23, dtype=dtype) * 4
    given = [x.clone().requires_grad_() for x in (features, weight, bias) if x is not None]
    again = [x.clone().requires_grad_() for x in given]
    ours = scored(*given, target, share_N=share)
    logits = F.linear(*again)
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert torch.allclose(ours.losses, losses, atol=tolerance)
    assert torch.equal(ours.hits, logits.argmax(-1) == target)
    assert int(ours.number) == int((target != IGNORED).sum())
    assert torch.allclose(ours.loss, (losses * share).sum(), atol=tolerance * 100)
    found = torch.autograd.grad(2 * ours.loss, given)
    for mine, expected in zip(found, torch.autograd.grad(2 * (losses * share).sum(), again), strict=True):
        assert torch.allclose(mine, expected, atol=tolerance * 100)
    from_logits = by_logits(F.linear(features, weight, bias), target, share_N=share)
    assert torch.allclose(from_logits.loss.to(dtype), ours.loss, rtol=1e-5)
    assert torch.equal(from_logits.hits, ours.hits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [7, 2**19])
def test_of_a_frozen_head_no_gradient_is_made(
    dtype: torch.dtype, block: int, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As LoRA has it: that by the features is the same, and nothing of the matrix's size is kept for it."""
    monkeypatch.setattr(module_under_test, "BLOCK", block)
    features, weight, bias, target = problem(23, 6, 20, dtype=dtype)
    assert bias is not None
    given = [features.clone().requires_grad_() for _ in range(2)]
    frozen = scored(given[0], weight, bias, target)
    kept = frozen.loss.grad_fn.next_functions[0][0].saved_tensors  # type: ignore[union-attr]
    assert [x.numel() for x in kept] == [features.numel(), 0, 0]
    trained = scored(given[1], weight.clone().requires_grad_(), bias, target)
    frozen.loss.backward()
    trained.loss.backward()
    assert given[0].grad is not None
    assert torch.equal(frozen.loss, trained.loss)
    assert torch.equal(given[0].grad, given[1].grad)


def test_nothing_scored_gives_zeros() -> None:
    inputs = problem(11, 6, 20, ignored=2.0)
    loss, hits, *gradients = differentiated(linear_cross_entropy, inputs)
    assert float(loss) == float(hits) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients)


def test_no_positions_at_all() -> None:
    loss, hits, *gradients = differentiated(linear_cross_entropy, problem(0, 6, 20))
    assert float(loss) == float(hits) == 0.0
    assert [tuple(gradient.shape) for gradient in gradients] == [(0, 6), (20, 6), (20,)]


@pytest.mark.usefixtures("small_chunks")
def test_what_is_not_scored_changes_nothing() -> None:
    features, weight, bias, target = problem(23, 6, 20)
    scored = target != IGNORED
    without = differentiated(linear_cross_entropy, (features[scored], weight, bias, target[scored]))
    together = differentiated(linear_cross_entropy, (features, weight, bias, target))
    together[2] = together[2][scored]
    for mine, expected in zip(together, without, strict=True):
        assert torch.allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_uniform_logits_give_the_logarithm_of_the_vocabulary(smoothing: float) -> None:
    features, _, _, target = problem(23, 6, 20)
    loss, _ = linear_cross_entropy(features, torch.zeros(20, 6), None, target, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(math.log(20), abs=1e-6)


def test_a_target_that_is_certain_or_impossible() -> None:
    """Logits 200 apart: the loss is their difference, where the target's probability is 0 in float32."""
    weight = torch.tensor([[100.0], [-100.0]])
    loss, hits = linear_cross_entropy(torch.ones(2, 1), weight, None, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(100.0)
    assert float(hits) == 0.5


@pytest.mark.usefixtures("small_chunks")
def test_a_tied_matrix_gets_both_gradients() -> None:
    _, table, _, target = problem(23, 6, 20)
    ids = torch.arange(23) % 20

    def run(function: Any, weight: Tensor) -> Tensor:
        tied = weight.clone().requires_grad_()
        function(tied[ids].tanh(), tied, None, target)[0].backward()
        assert tied.grad is not None
        return tied.grad

    assert torch.allclose(run(linear_cross_entropy, table), run(whole, table), atol=1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_under_autocast_products_are_in_bf16_and_the_rest_is_not() -> None:
    inputs = problem(61, 16, 20, seed=4)
    exact = differentiated(whole, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = differentiated(linear_cross_entropy, inputs), differentiated(whole, inputs)
    assert ours[0].dtype == torch.float32
    for mine, stock, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == stock.dtype
        scale = float(truth.abs().max())
        assert float((mine - truth).abs().max()) <= 0.015 * scale
        # The sum over positions is kept in float32 from panel to panel, so it is about as good as stock autocast's.
        assert float((mine - truth).norm()) <= 1.5 * float((stock - truth).norm()) + 1e-3 * float(truth.norm())


@pytest.mark.usefixtures("small_chunks")
def test_without_gradients_none_are_made_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    features, weight, bias, target = problem(23, 6, 20)
    leaves = features.requires_grad_(), weight.requires_grad_()
    made: list[bool] = []
    buffers = module_under_test._buffers
    monkeypatch.setattr(
        module_under_test, "_buffers", lambda *said, **matrix: made.append(said[-1]) or buffers(*said, **matrix)
    )
    with torch.no_grad():
        loss, hits = linear_cross_entropy(*leaves, bias, target)
    assert made == [False]
    assert not loss.requires_grad
    expected = whole(*leaves, bias, target)
    assert torch.allclose(loss, expected[0].detach())
    assert torch.equal(hits, expected[1])


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    features, weight, bias, target = problem(5, 6, 20)
    loss, _ = linear_cross_entropy(features.requires_grad_(), weight, bias, target)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(loss, features, create_graph=True)


def test_on_a_cpu_a_chunk_has_no_fewer_positions_than_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "LEAST", {2: 4, 4: 8})
    monkeypatch.setitem(module_under_test.CHUNK, "cpu", 60)
    shapes: list[int] = []
    score = module_under_test._score_in_cache
    monkeypatch.setattr(
        module_under_test, "_score_in_cache", lambda logits, *rest: shapes.append(len(logits)) or score(logits, *rest)
    )
    same(problem(23, 6, 20))
    assert shapes == [8, 8, 7]
    with torch.autocast("cpu", torch.bfloat16):
        differentiated(linear_cross_entropy, problem(7, 6, 20))
    assert shapes[3:] == [4] * 8  # 7 positions are rounded up to 32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("half", [False, True])
def test_blocks_of_a_chunk_change_no_bit(half: bool, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def once() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return differentiated(linear_cross_entropy, problem(23, 6, 20), label_smoothing=smoothing)

    in_one = once()
    monkeypatch.setattr(module_under_test, "BLOCK", 60)  # three positions
    assert all(torch.equal(mine, other) for mine, other in zip(once(), in_one, strict=True))


def test_of_equal_logits_the_first_is_the_guess() -> None:
    features, weight, _, _ = problem(4, 6, 20, bias=False)
    weight[7] = weight[3] = 9 * features[0]  # the highest logit of the first position, twice
    _, first = linear_cross_entropy(features[:1], weight, None, torch.tensor([3]))
    _, second = linear_cross_entropy(features[:1], weight, None, torch.tensor([7]))
    assert (float(first), float(second)) == (1.0, 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["_score_by_element", "_score_in_cache"])
def test_the_other_forms_score_the_same(form: str, dtype: torch.dtype, smoothing: float) -> None:
    logits = 5 * torch.randn(7, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.arange(7)[:, None]
    expected = module_under_test._score(logits.clone(), target, smoothing)
    tolerance = 2e-6 if form == "_score_in_cache" or dtype == torch.float32 else 4e-3  # its gradient is in bf16
    for mine, other in zip(getattr(module_under_test, form)(logits, target, smoothing), expected, strict=True):
        assert torch.allclose(mine.float(), other.float(), atol=tolerance)


def test_to_the_compiler_it_is_one_operation_for_any_number_of_positions() -> None:
    """Traced by the compiler's front end alone: one graph, then one for every other number of positions."""
    graphs: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        graphs.append([str(node.target) for part in parts for node in part.graph.nodes])
        return make_boxed_func(graph.forward)

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    step = torch.compile(linear_cross_entropy, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    try:
        for n in (20, 21, 25, 33):
            inputs = problem(n, 6, 20)
            ours, theirs = differentiated(step, inputs), differentiated(whole, inputs)
            assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(ours, theirs, strict=True))
    finally:
        torch._dynamo.reset()
    forward = [names for names in graphs if any("linear_cross_entropy" in name for name in names)]
    assert len(forward) == 2
    assert not any("mm" in name.split(".") for names in forward for name in names)


# --- inside the objectives --------------------------------------------------------------------------------------------

OBJECTIVES = [("masked_lm", "bert"), ("masked_lm", "modernbert"), ("causal_lm", "gpt2"), ("causal_lm", "llama")]
OBJECTIVES += [("masked_diffusion", "bert"), ("fim", "gpt2"), ("prefix_lm", "llama")]
OBJECTIVES += [("denoising", "bart"), ("span_corruption", "t5"), ("ul2", "t5")]


@pytest.mark.parametrize(("name", "architecture"), OBJECTIVES)
def test_an_objective_is_the_one_without_a_head(name: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, accuracy and the gradient of every parameter; the slow path makes the logits of all positions at once."""
    monkeypatch.setitem(module_under_test.CHUNK, "cpu", 5000)
    monkeypatch.setitem(module_under_test.PANEL, "cpu", 15000)
    fast: Any = make_objective(name, architecture)
    slow = copy.deepcopy(fast)
    slow.head = None
    assert fast.head is not None
    batch, results = one_batch(name), []
    for objective in (fast, slow):
        output = objective(batch)
        output.loss.backward()
        results.append((output, {n: p.grad for n, p in objective.named_parameters()}))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=2e-6)
    assert torch.equal(ours.metrics["accuracy"], theirs.metrics["accuracy"])
    for parameter, expected in their_gradients.items():
        mine = our_gradients[parameter]
        assert torch.allclose(mine, expected, atol=1e-5 * max(float(expected.abs().max()), 1e-2)), parameter


@pytest.mark.parametrize("smoothing", [0.1])
def test_label_smoothing_of_masked_lm_is_that_of_the_slow_path_in_training_only(smoothing: float) -> None:
    fast: Any = make_objective("masked_lm", "bert")
    fast.label_smoothing = smoothing
    slow = copy.deepcopy(fast)
    slow.head = None
    batch = one_batch("masked_lm")
    losses = {}
    for mode in (True, False):
        losses[mode] = [objective.train(mode)(batch).loss.item() for objective in (fast, slow)]
        assert losses[mode][0] == pytest.approx(losses[mode][1], abs=2e-6)
    assert losses[True][0] != pytest.approx(losses[False][0], abs=1e-4)


@pytest.mark.parametrize(("name", "architecture"), [("masked_lm", "bert"), ("causal_lm", "gpt2")])
def test_thirty_steps_are_those_of_the_slow_path(tmp_path: Any, name: str, architecture: str) -> None:
    """A nano model through the real loop in float32: rounding is all that differs, and it grows with the steps.

    Tolerance: 1e-4 nats at any step, of losses that fall by more than 1 nat.
    """
    curves = []
    for path in ("fast", "slow"):
        trainer = make_trainer(name, tmp_path / path, architecture=architecture, steps=30, lr=3e-3)
        if path == "slow":
            trainer.objective.head = None  # type: ignore[assignment]
        trainer.module.train()
        losses = []
        for step in range(30):
            rows = trainer.stream.rows(range(8 * step, 8 * step + 8))
            sums = trainer.train_step([trainer.collator(rows)], step, 30)
            losses.append(float(sums["loss"] / sums["targets"]))
        curves.append(losses)
    fast, slow = curves
    assert slow[0] - slow[-1] > 1.0
    assert fast == pytest.approx(slow, abs=1e-4)


def test_the_head_is_not_kept_twice() -> None:
    objective: Any = make_objective("masked_lm", "bert")
    assert isinstance(objective.head.projection, nn.Linear)
    assert not any(name.startswith("head") for name in objective.state_dict())


def test_in_bf16_on_a_cpu_batches_with_other_numbers_of_targets_need_no_other_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    products: set[tuple[int, ...]] = set()
    product = module_under_test._product

    def noted(features: Tensor, *rest: Any, **kept: Any) -> Tensor:
        products.add(tuple(features.shape))
        return product(features, *rest, **kept)

    monkeypatch.setattr(module_under_test, "_product", noted)
    with torch.autocast("cpu", torch.bfloat16):
        for count in (33, 41, 64):
            inputs = problem(count, 6, 20)
            same(inputs, tolerance=2e-2)
            assert differentiated(linear_cross_entropy, inputs)[2].shape == inputs[0].shape
    assert products == {(64, 6)}


def test_what_the_head_multiplies_is_the_same_rounded_up_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = make_objective("masked_lm").eval()
    batch = one_batch("masked_lm")
    index = batch["target_index"][:5]
    found = []
    for step in (32, 1):
        monkeypatch.setattr("sslnlp.nn.ROWS", step)
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            found.append(scored_features(objective.model, objective.head, batch, index))
    assert found[0].shape == found[1].shape == (5, objective.model.config.hidden_size)
    assert torch.allclose(found[0].float(), found[1].float(), atol=2e-2)
