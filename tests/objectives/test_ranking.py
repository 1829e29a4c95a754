"""The bi-encoder objective: what counts as a negative, and what the vectors are."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from sslnlp.adapt import adapt
from sslnlp.collators.ragged import pack_texts
from sslnlp.errors import UserError
from sslnlp.keyed import row_keyed_dropout
from sslnlp.objectives.ranking import Ranking


def objective(**options: Any) -> Ranking:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Ranking(BertModel(config, add_pooling_layer=False), **options)


def encoding(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def batch(rows: int = 4, negatives: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def texts(n: int) -> list[list[int]]:
        return torch.randint(1, 40, (n, 5), generator=generator).tolist()

    made: dict[str, Any] = {
        "query": encoding(texts(rows)),
        "positive": encoding(texts(rows)),
        "query_hash": torch.arange(rows),
        "positive_hash": 100 + torch.arange(rows),
        "position": torch.arange(rows),
    }
    if negatives:
        made["negative"] = encoding(texts(rows * negatives))
        made["negative_hash"] = 200 + torch.arange(rows * negatives)
    return made


def logits(objective: Ranking, given: dict[str, Any], side: str = "positive") -> torch.Tensor:
    return objective.embed(given["query"]) @ objective.embed(given[side]).T / objective.temperature


def test_vectors_have_length_one_and_ignore_padding() -> None:
    for pooling in ("mean", "cls"):
        model = objective(pooling=pooling).eval()
        short, padded = model.embed(encoding([[5, 6, 7]])), model.embed(encoding([[5, 6, 7, 0, 0]]))
        assert short.norm().item() == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(short, padded, atol=1e-6, rtol=1e-5)
        assert model.pooling == pooling
    assert Ranking.pooling == "mean"


def test_loss_is_cross_entropy_over_the_batch() -> None:
    model, given = objective(), batch(4)
    expected = torch.nn.functional.cross_entropy(logits(model, given), torch.arange(4))
    torch.testing.assert_close(model(given).loss, expected)
    assert model.num_targets(given) == 4


def test_symmetric_averages_both_directions() -> None:
    model, given = objective(symmetric=True), batch(4)
    table, own = logits(model, given), torch.arange(4)
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(model(given).loss, (cross_entropy(table, own) + cross_entropy(table.T, own)) / 2)


def test_explicit_negatives_join_every_querys_candidates() -> None:
    model, given = objective(), batch(3, negatives=2)
    table = torch.cat([logits(model, given), logits(model, given, "negative")], dim=1)
    assert table.shape == (3, 9)
    torch.testing.assert_close(model(given).loss, torch.nn.functional.cross_entropy(table, torch.arange(3)))


def test_a_collapsed_model_scores_log_n_and_finds_nothing() -> None:
    model, given = objective(), batch(4, negatives=1)
    for name in ("query", "positive", "negative"):
        given[name] = encoding([[5, 6, 7]] * 4)
    output = model(given)
    assert output.loss.item() == pytest.approx(math.log(8), rel=1e-4)
    assert output.metrics["accuracy"] == 0
    assert output.metrics["positive_similarity"].item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_same_pair_twice_is_not_its_own_negative(symmetric: bool) -> None:
    # Rows 0 and 1 are the same pair: each has itself, and row 2. With the copy masked, two candidates stay.
    model, given = objective(symmetric=symmetric), batch(3)
    for side in ("query", "positive"):
        given[side] = encoding([[5, 6, 7]] * 3)
    given["query_hash"], given["positive_hash"] = torch.tensor([1, 1, 2]), torch.tensor([10, 10, 20])
    # Rows 0 and 1 choose between 2 candidates; row 2 (another pair) among 3.
    assert model(given).loss.item() == pytest.approx((2 * math.log(2) + math.log(3)) / 3, rel=1e-4)


def test_a_negative_that_is_the_positive_is_left_out() -> None:
    model, given = objective(), batch(2, negatives=1)
    given["negative_hash"] = given["positive_hash"].clone()  # each row's negative is its positive's text
    table = torch.cat([logits(model, given), logits(model, given, "negative")], dim=1)
    table[0, 2] = table[1, 3] = -math.inf
    torch.testing.assert_close(model(given).loss, torch.nn.functional.cross_entropy(table, torch.arange(2)))


def test_every_parameter_learns_and_one_batch_is_learnt() -> None:
    model, given = objective(), batch(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(given).loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
    output = model(given)
    assert output.loss < 0.1
    assert output.metrics["accuracy"] == 1


WRONG = [
    {"temperature": 0.0},
    {"temperature": -1.0},
    {"pooling": "sum"},
    {"distill": "mse"},
    {"distill_weight": 0.0},
    {"distill_weight": 1.5},
    {"distill_temperature": 0.0},
]


@pytest.mark.parametrize("options", WRONG)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        objective(**options)


# --- a teacher's scores --------------------------------------------------------------------------------------------


def own_logits(model: Ranking, given: dict[str, Any]) -> torch.Tensor:
    """[B, 1 + n]: each query against its positive and its own negatives."""
    rows = len(given["query_hash"])
    positive, negative = logits(model, given), logits(model, given, "negative")
    own = [torch.cat([positive[i, i, None], negative[i].view(rows, -1)[i]]) for i in range(rows)]
    return torch.stack(own)


@pytest.mark.parametrize("distill", ["margin_mse", "kl"])
def test_a_teacher_that_agrees_costs_nothing(distill: str) -> None:
    model, given = objective(distill=distill, distill_weight=1.0), batch(3, negatives=2)
    given["scores"] = own_logits(model, given).detach() + torch.tensor([[3.0], [0.0], [-7.0]])  # offsets do not count
    output = model(given)
    assert output.loss.item() == pytest.approx(0, abs=1e-6)
    assert output.metrics["distillation"] == output.loss
    output.loss.backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-3


def test_the_parts_of_the_loss_are_weighted_and_in_their_unit() -> None:
    given = batch(3, negatives=2)
    given["scores"] = torch.tensor([[4.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    plain = objective()(given).loss
    model = objective(distill="margin_mse", distill_weight=0.3, distill_temperature=2.0)
    own = own_logits(model, given)
    margins = own[:, :1] - own[:, 1:]
    wanted = torch.tensor([[2.0, 1.5], [-1.0, 0.0], [0.0, 0.0]])  # the scores' margins, halved
    expected = 0.7 * plain + 0.3 * (margins - wanted).square().mean()
    torch.testing.assert_close(model(given).loss, expected)
    model = objective(distill="kl", distill_weight=0.3, distill_temperature=2.0)
    teacher = (given["scores"] / 2).softmax(-1)
    divergence = (teacher * (teacher.log() - own.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(model(given).loss, 0.7 * plain + 0.3 * divergence)


@pytest.mark.parametrize("distill", ["margin_mse", "kl"])
def test_a_model_learns_its_teachers_order(distill: str) -> None:
    """The teacher ranks the first negative above the positive: so does the model that learnt from it alone."""
    model, given = objective(distill=distill, distill_weight=1.0), batch(4, negatives=2)
    given["scores"] = torch.tensor([[0.0, 4.0, -4.0]]).repeat(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(given).loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
    own = own_logits(model, given)
    assert (own.argsort(1, descending=True) == torch.tensor([1, 0, 2])).all()


def test_without_scores_training_is_refused_and_held_out_pairs_are_measured() -> None:
    model, given = objective(distill="kl"), batch(3, negatives=2)
    with pytest.raises(UserError, match=r"needs rows with 'negatives' and a teacher's 'scores'"):
        model(given)
    output = model.eval()(given)
    torch.testing.assert_close(output.loss, objective().eval()(given).loss)
    assert "distillation" not in output.metrics


# --- rows without padding ---------------------------------------------------------------------------------------------

SMALL = {
    "bert": {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    # Layers 0 and 3 are global; the local ones see two tokens to each side, less than a text has.
    "modernbert": {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, "local_attention": 4},
    "roberta": {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "gpt2": {"n_layer": 2, "n_head": 2},
    "mpnet": {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    # Takes no mask of pairs, so texts of a row would see each other.
    "deberta": {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
}
POOLED = ("bert", "roberta")
RATES = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout", "mlp_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)


def ranker(architecture: str, rate: float = 0.0, **options: Any) -> Ranking:
    torch.manual_seed(0)
    default = AutoConfig.for_model(architecture)
    rates = {name: rate for name in RATES if hasattr(default, name)}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = AutoConfig.for_model(architecture, vocab_size=60, hidden_size=16, **SMALL[architecture], **rates, **ids)
    model = AutoModel.from_config(config, **({"add_pooling_layer": False} if architecture in POOLED else {}))
    adapt(model)
    # A spread of the first weights at which attention is far from even: a token seen too much would show.
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(10)
    return Ranking(model, **options).train()


def ragged_batch(negatives: int = 2, longest: int = 30) -> dict[str, Any]:
    """Texts of 2 to `longest` tokens, padded side by side, and where they stand packed."""
    generator = torch.Generator().manual_seed(2)

    def side(n: int, most: int) -> dict[str, torch.Tensor]:
        lengths = torch.randint(2, most + 1, (n,), generator=generator)
        lengths[0] = most
        ids = torch.randint(3, 60, (n, most), generator=generator)
        mask = (torch.arange(most) < lengths[:, None]).long()
        return {"input_ids": ids * mask, "attention_mask": mask}

    given = batch(6, negatives=negatives) | {"query": side(6, longest // 2), "positive": side(6, longest)}
    if negatives:
        given["negative"] = side(6 * negatives, longest)
    masks = [given[name]["attention_mask"] for name in ("query", "positive", "negative") if name in given]
    return given | {"places": pack_texts(masks)}


def runs(model: Ranking) -> list[tuple[int, ...]]:
    """The shapes of ids that the encoder is given from here on."""
    seen: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return seen


def loss_and_gradients(model: Ranking, given: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(given).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roberta", "gpt2", "mpnet"])
def test_packed_rows_are_the_padded_computation(architecture: str, pooling: str) -> None:
    model, given = ranker(architecture, pooling=pooling), ragged_batch()
    padded = {name: value for name, value in given.items() if name != "places"}
    seen = runs(model)
    loss, gradients = loss_and_gradients(model, given)
    assert seen == [tuple(given["places"].shape)]
    other, expected = loss_and_gradients(model, padded)
    assert len(seen) == 4
    assert loss.item() == pytest.approx(other.item(), abs=1e-5)
    assert loss.item() > 0.1
    assert gradients.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("distill", ["margin_mse", "kl"])
def test_a_teacher_is_learnt_from_alike_packed_padded_and_in_parts(distill: str) -> None:
    model, given = ranker("bert", distill=distill), ragged_batch()
    given["scores"] = torch.linspace(-3, 3, 18).view(6, 3)
    loss, gradients = loss_and_gradients(model, {name: value for name, value in given.items() if name != "places"})
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for size in (None, 2):
        model.mini_batch_size = size
        other, found = loss_and_gradients(model, given)
        assert other.item() == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_what_drops_out_keeps_its_own_rows(architecture: str) -> None:
    """Dropped elements are keyed by row of the batch, so there the texts are padded; held out, nothing drops."""
    model, given = ranker(architecture, rate=0.1), ragged_batch()
    seen = runs(model)
    losses = []
    for one in (given, {name: value for name, value in given.items() if name != "places"}):
        with row_keyed_dropout(7, given["position"]):
            losses.append(model(one).loss)
    assert torch.equal(*losses)
    assert len(seen) == 6
    model.eval()(given)
    assert seen[6:] == [tuple(given["places"].shape)]


def test_a_model_that_cannot_be_packed_is_padded() -> None:
    model, given = ranker("deberta"), ragged_batch(negatives=0)
    seen = runs(model)
    assert torch.isfinite(model(given).loss)
    assert seen == [(6, 15), (6, 30)]
