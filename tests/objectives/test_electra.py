"""Replaced-token detection: closed forms, the sampling law, shared embeddings, exactness, and what is left behind."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    ElectraConfig,
    ElectraForPreTraining,
)

from sslnlp.adapt import adapt
from sslnlp.errors import UserError
from sslnlp.evaluation import evaluate_held_out
from sslnlp.keyed import row_keyed_dropout
from sslnlp.objectives.electra import Electra, corrective_losses, generator_config, sample
from tests.contract import make_collator, make_objective, make_stream, one_batch

V, BARRED = 23, [0, 1, 2, 9, 22]
SIZES = {"embedding_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def electra(dropout: float = 0.0, **options: Any) -> Electra:
    torch.manual_seed(0)
    rates = dict.fromkeys(STILL, dropout)
    config = ElectraConfig(vocab_size=V, intermediate_size=32, max_position_embeddings=16, **SIZES, **rates)
    model = ElectraForPreTraining(config)
    adapt(model)
    return Electra(model, **options)


def batch(rows: int = 6, width: int = 10, padding: int = 0) -> dict[str, Any]:
    """Rows of two documents, framed by specials 0 and 1; 2 is the mask; a third of the text is hidden."""
    generator = torch.Generator().manual_seed(1)
    original = torch.randint(3, 9, (rows, width), generator=generator)
    document_ids = (torch.arange(width) >= width // 2).long().expand(rows, width).clone()
    position_ids = torch.arange(width) % (width // 2)
    judged = (position_ids > 0).expand(rows, width).clone()
    original[:, position_ids == 0] = 0
    hidden = judged & (torch.rand(rows, width, generator=generator) < 0.3)
    hidden[0, 1] = True
    labels = torch.where(hidden, original, -100)
    drawable = torch.ones(V - 1, dtype=torch.bool)  # one id fewer than the model has: it is padding of the table
    drawable[[i for i in BARRED if i < V - 1]] = False

    def pad(x: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(x, (0, padding), value=value)

    labels = pad(labels, -100)
    return {
        "input_ids": pad(torch.where(hidden, 2, original), 0),
        "labels": labels,
        "attention_mask": pad(torch.ones(rows, width), 0).bool(),
        "document_ids": pad(document_ids, -1),
        "position_ids": pad(position_ids.expand(rows, width), 0),
        "judged": pad(judged.long(), 0).bool(),
        "target_index": torch.nonzero(labels.flatten() != -100)[:, 0],
        "drawable": drawable,
        "position": torch.arange(rows) + 40,
    }


def part(whole: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some rows of a batch."""
    own = {key: value if key == "drawable" else value[rows] for key, value in whole.items()}
    return own | {"target_index": torch.nonzero(own["labels"].flatten() != -100)[:, 0]}


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("size", [2, 3, 10, 16, 17])
def test_samples_follow_the_softmax_at_the_temperature(size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(size, generator=generator) * 2
    drawable = torch.ones(size, dtype=torch.bool)
    drawable[size // 2] = False
    n = 40_000
    drawn = sample(logits.expand(n, size), torch.rand(n, 2, generator=generator), temperature, drawable)
    share = (logits / temperature).masked_fill(~drawable, -math.inf).softmax(-1)
    found = drawn.bincount(minlength=size) / n
    assert found[size // 2] == 0
    assert ((found - share).abs() <= 5 * (share * (1 - share) / n).sqrt() + 1e-12).all()


def test_only_drawable_ids_whatever_the_draw() -> None:
    drawable = torch.zeros(20, dtype=torch.bool)
    drawable[[3, 7, 11]] = True
    ends = torch.tensor([0.0, 2.0**-25, 0.5, 1 - 2.0**-24, 1.0])  # float32 rounds a draw next to 1 to 1
    draws = torch.cartesian_prod(ends, ends)
    for logits in (torch.zeros(V), torch.full((V,), 50.0).index_fill(0, torch.tensor([3]), -50.0)):
        assert torch.isin(sample(logits.expand(len(draws), V), draws, 1.0, drawable), torch.tensor([3, 7, 11])).all()
    assert sample(torch.zeros(0, V), torch.zeros(0, 2), 1.0, drawable).shape == (0,)


def test_cold_sampling_takes_the_most_probable() -> None:
    logits = torch.randn(50, V, generator=torch.Generator().manual_seed(0))
    drawn = sample(logits, torch.rand(50, 2), 1e-4, torch.ones(V, dtype=torch.bool))
    assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_samples_belong_to_the_row_not_to_the_batch(dropout: float) -> None:
    objective, whole = electra(dropout=dropout).train(), batch()

    def run(seed: int, given: dict[str, Any]) -> Any:
        with row_keyed_dropout(seed, given["position"]):
            return objective._run(given)

    expected = run(5, whole)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        own = run(5, part(whole, rows))
        torch.testing.assert_close(own.score, expected.score[rows], atol=1e-5, rtol=1e-5)
        assert torch.equal(own.replaced, expected.replaced[rows])
    later = {**whole, "position": whole["position"] + 1}
    for other in (run(6, whole), run(5, later)):
        assert not torch.allclose(other.score, expected.score, atol=1e-4)


def test_padding_changes_nothing() -> None:
    objective = electra().eval()
    plain, padded = objective(batch()), objective(batch(padding=5))
    torch.testing.assert_close(plain.terms, padded.terms)
    assert torch.equal(objective.num_targets(batch()), objective.num_targets(batch(padding=5)))


# --- closed forms ----------------------------------------------------------------------------------------------------


def flat_heads(objective: Electra) -> None:
    """Logits of both models equal to a bias."""
    for tensor in (
        objective.generator.generator_predictions.LayerNorm.weight,
        objective.generator.generator_predictions.LayerNorm.bias,
        objective.model.discriminator_predictions.dense_prediction.weight,
        objective.model.discriminator_predictions.dense_prediction.bias,
    ):
        torch.nn.init.zeros_(tensor)


def test_models_that_know_nothing() -> None:
    objective, given = electra(discriminator_weight=7.0).eval(), batch()
    flat_heads(objective)
    output = objective(given)
    torch.testing.assert_close(output.terms, torch.tensor([math.log(V), 7 * math.log(2)]))
    torch.testing.assert_close(output.loss, output.terms.sum())
    hidden, judged = (given["labels"] != -100).sum(), given["judged"].sum()
    assert objective.num_targets(given).tolist() == [hidden, judged]
    # One drawable id in eighteen is right by chance.
    replaced, count = output.metrics["replaced"].tolist()
    assert count == judged
    assert hidden * 0.7 < replaced <= hidden
    # A score of 0 accuses nobody: what was not replaced is judged right, nothing is found.
    assert output.metrics["discriminator_accuracy"].tolist() == [judged - replaced, judged]
    assert output.metrics["replaced_recall"].tolist() == [0, replaced]


def test_a_sample_that_is_right_is_original() -> None:
    objective, given = electra().eval(), batch()
    flat_heads(objective)
    given["labels"] = torch.where(given["labels"] != -100, 5, -100)
    objective.generator.generator_lm_head.bias.data[5] = 100.0  # certain, and right
    output = objective(given)
    assert output.metrics["replaced"][0] == 0
    assert output.metrics["generator_accuracy"] == 1
    assert output.terms[0] < 1e-4
    objective.generator.generator_lm_head.bias.data[6] = 200.0  # certain, and wrong
    output = objective(given)
    assert output.metrics["replaced"][0] == (given["labels"] != -100).sum()
    assert output.metrics["generator_accuracy"] == 0
    # The discriminator reads the sample where a token was hidden, and the text elsewhere.
    objective.model.discriminator_predictions.dense_prediction.bias.data.fill_(-3.0)
    kinds = torch.tensor([math.log1p(math.exp(3.0)), math.log1p(math.exp(-3.0))])
    replaced, judged = output.metrics["replaced"].tolist()
    expected = (replaced * kinds[0] + (judged - replaced) * kinds[1]) / judged
    torch.testing.assert_close(objective(given).terms[1], 50 * expected)


def test_corrective_loss_by_hand() -> None:
    logits, target = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), torch.tensor([1, 0])
    score = torch.tensor([-0.7, 0.4])
    kept, written = torch.sigmoid(-score), logits.softmax(-1)[range(2), target]
    expected = -torch.stack([kept[0] + (1 - kept[0]) * written[0], (1 - kept[1]) * written[1]]).log()
    torch.testing.assert_close(corrective_losses(logits, target, torch.tensor([False, True]), score), expected)
    # A model that is sure loses nothing, whatever the others think of it.
    sure = corrective_losses(logits * 0, target, torch.tensor([False, True]), torch.tensor([-100.0, 100.0]))
    torch.testing.assert_close(sure, torch.tensor([0.0, math.log(3)]))


def test_corrective_is_a_third_kind_of_target() -> None:
    plain, both = electra().eval(), electra(corrective=True, corrective_weight=0.5).eval()
    given = batch()
    torch.testing.assert_close(both(given).terms[:2], plain(given).terms)
    hidden, judged = plain.num_targets(given).tolist()
    assert both.num_targets(given).tolist() == [hidden, judged, hidden]
    assert both(given).metrics["corrective_accuracy"][1] == both(given).metrics["replaced"][0]
    flat_heads(both)
    both.corrector[0].LayerNorm.weight.data.zero_()
    run, output = both._run(given), both(given)
    n = run.replaced.sum()
    # Score 0 copies and writes with probability 1/2 each.
    expected = n * -math.log(0.5 / V) + (hidden - n) * -math.log(0.5 + 0.5 / V)
    torch.testing.assert_close(output.terms[2], 0.5 * expected / hidden)


# --- who learns from what --------------------------------------------------------------------------------------------


def gradients(loss: Tensor, objective: Electra) -> dict[str, Tensor]:
    names, parameters = zip(*objective.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None and grad.abs().sum() > 0}


def test_no_gradient_goes_through_the_samples_or_the_copy() -> None:
    objective = electra(corrective=True)
    terms = objective(batch()).terms
    generator, discriminator, corrector = (gradients(term, objective) for term in terms)
    embeddings = {name for name, _ in objective.named_parameters() if "embeddings." in name}
    assert {name for name in generator if not name.startswith("generator.")} == embeddings
    assert {name for name in discriminator if not name.startswith("model.")} == set()
    assert {name for name in corrector if name.startswith(("generator.", "model.discriminator"))} == set()
    assert all("model.electra.embeddings.word_embeddings.weight" in kind for kind in (discriminator, corrector))


@pytest.mark.parametrize("corrective", [False, True])
def test_accumulation_is_exact(corrective: bool) -> None:
    objective, whole = electra(dropout=0.1, corrective=corrective).train(), batch()
    parameters = list(objective.parameters())
    with row_keyed_dropout(3, whole["position"]):
        expected = torch.autograd.grad(objective(whole).loss, parameters)
    total = objective.num_targets(whole)
    summed = [torch.zeros_like(p) for p in parameters]
    for rows in (slice(0, 1), slice(1, 6)):
        own = part(whole, rows)
        with row_keyed_dropout(3, own["position"]):
            loss = (objective(own).terms * objective.num_targets(own) / total).sum()
        summed = [a + b for a, b in zip(summed, torch.autograd.grad(loss, parameters), strict=True)]
    for got, want in zip(summed, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-4)


def test_a_batch_without_text_is_no_reason_to_stop() -> None:
    objective, given = electra(corrective=True).train(), batch(rows=2)
    given |= {"labels": torch.full_like(given["labels"], -100), "judged": torch.zeros_like(given["judged"])}
    given["target_index"] = torch.zeros(0, dtype=torch.long)
    output = objective(given)
    assert output.terms.tolist() == [0, 0, 0]
    output.loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []
    assert all(not p.grad.any() for p in objective.parameters() if p.grad is not None)


def test_documents_do_not_see_each_other() -> None:
    objective, given = electra().eval(), batch()
    half = given["input_ids"].shape[1] // 2
    other = {key: value.clone() for key, value in given.items()}
    shown = other["judged"] & (other["labels"] == -100)
    shown[:, :half] = False
    other["input_ids"][shown] = 21
    first, second = objective._run(given), objective._run(other)
    torch.testing.assert_close(first.score[:, :half], second.score[:, :half])
    assert not torch.allclose(first.score[:, half:], second.score[:, half:])


# --- one table of embeddings -----------------------------------------------------------------------------------------


def test_embeddings_are_shared_and_stored_once() -> None:
    objective = electra(corrective=True)
    state = objective.state_dict()
    assert [name for name in state if "embeddings." in name] == [
        name for name in state if name.startswith("model.electra.embeddings.")
    ]
    assert not [
        name for name in state if name.startswith(("generator.", "corrector.")) and tuple(state[name].shape) == (V, 12)
    ]
    assert len(list(objective.parameters())) == len(state)
    twin = electra(corrective=True)
    for tensor in twin.parameters():
        torch.nn.init.normal_(tensor)
    twin.load_state_dict(state)
    given = batch()
    assert torch.equal(twin.eval()(given).terms, objective.eval()(given).terms)
    # A copy, or one moved elsewhere, reads its own table through both heads.
    moved = copy.deepcopy(objective).double()
    assert torch.equal(moved(given).terms.float().round(decimals=3), objective(given).terms.round(decimals=3))
    moved.model.get_input_embeddings().weight.data.mul_(1.7)
    changed, before = moved(given).terms, objective(given).terms
    assert (changed[[0, 2]] - before[[0, 2]]).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("share", "width", "heads", "expected"),
    [
        (0.25, 768, 12, (192, 3)),
        (0.25, 64, 2, (16, 1)),
        (1.0, 16, 4, (16, 4)),
        (0.4, 64, 4, (26, 2)),
        (0.01, 16, 4, (1, 1)),
    ],
)
def test_shape_of_the_generator(share: float, width: int, heads: int, expected: tuple[int, int]) -> None:
    config = ElectraConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=40, vocab_size=V)
    small = generator_config(config, share)
    assert (small.hidden_size, small.num_attention_heads) == expected
    assert small.hidden_size % small.num_attention_heads == 0
    kept = ("embedding_size", "num_hidden_layers", "vocab_size", "type_vocab_size", "max_position_embeddings")
    assert [getattr(small, name) for name in kept] == [getattr(config, name) for name in kept]
    assert (config.hidden_size, config.num_attention_heads) == (width, heads)


def test_a_generator_of_full_size_runs() -> None:
    assert torch.isfinite(electra(generator_size=1.0)(batch()).loss)


# --- held out and left behind ----------------------------------------------------------------------------------------


def test_held_out_figures_are_shares_and_do_not_depend_on_the_batch_size() -> None:
    objective, collator, stream = make_objective("electra"), make_collator("electra"), make_stream("electra")
    figures = evaluate_held_out(objective, collator, stream, batch_size=7)
    again = evaluate_held_out(objective, collator, stream, batch_size=20)
    assert figures.keys() == again.keys()
    assert figures == pytest.approx(again, rel=1e-4)
    loss = figures["generator_loss"] + 50 * figures["discriminator_loss"]
    assert figures["loss"] == pytest.approx(loss, rel=1e-4)
    for name in ("auc", "replaced", "replaced_recall", "discriminator_accuracy", "generator_accuracy"):
        assert 0 <= figures[name] <= 1
    given = one_batch("electra")
    found = objective.eval().predict(given)
    assert found["scores"].shape == found["positive"].shape == (int(given["judged"].sum()),)
    assert int(found["positive"].sum()) == int(objective(given).metrics["replaced"][0])


def test_every_later_stage_starts_from_the_discriminator(tmp_path: Any) -> None:
    objective = electra(corrective=True).eval()
    objective.exported.save_pretrained(tmp_path)
    backbone, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    ids = batch()["input_ids"]
    expected = objective.model.electra(ids).last_hidden_state
    torch.testing.assert_close(backbone.eval()(ids).last_hidden_state, expected)
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert all(name.startswith("classifier.") for name in info["missing_keys"])
    again = ElectraForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, objective.exported(ids).logits)


def test_other_models_are_refused() -> None:
    assert "judges each token" in str(Electra.refuses(BertConfig()))
    assert Electra.refuses(ElectraConfig()) is None


@pytest.mark.parametrize(
    "options",
    [
        {"generator_size": 0.0},
        {"generator_size": 1.5},
        {"temperature": 0.0},
        {"discriminator_weight": -1.0},
        {"corrective_weight": math.inf},
    ],
)
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"objective\.{next(iter(options))}"):
        electra(**options)
