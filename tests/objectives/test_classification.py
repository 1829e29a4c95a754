"""The classification objective: the loss, its exactness under accumulation, and the inputs each architecture takes."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedModel,
    RobertaConfig,
)

from sslnlp.errors import UserError
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives.classification import CLOSEST, STRENGTH, Classification
from sslnlp.objectives.fitted_head import fitted_head
from sslnlp.objectives.regression import Regression
from sslnlp.objectives.text_head import output_layer

SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS = {
    "bert": BertConfig(**SIZES, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "roberta": RobertaConfig(**SIZES, num_labels=3, type_vocab_size=1, pad_token_id=0),
    "modernbert": ModernBertConfig(
        **SIZES, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
}


def model(architecture: str = "bert") -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[architecture])


def batch(rows: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 30, (rows, 5), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.arange(rows) % 3,
        "position": torch.arange(rows),
    }


def test_loss_is_the_models_own_and_the_batch_stays_untouched() -> None:
    objective, given = Classification(model()).eval(), batch()
    before = {name: tensor.clone() for name, tensor in given.items()}
    output = objective(given)
    stock = objective.model(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], labels=given["labels"]
    )
    torch.testing.assert_close(output.loss, stock.loss)
    right = stock.logits.argmax(-1) == given["labels"]
    assert output.metrics["accuracy"].item() == pytest.approx(right.float().mean().item())
    assert all(torch.equal(given[name], before[name]) for name in before)
    assert given.keys() == before.keys()


@pytest.mark.parametrize("options", [{}, {"class_weights": [0.2, 1.8, 1.0], "label_smoothing": 0.1}])
def test_accumulation_is_exact(options: dict) -> None:
    objective, whole = Classification(model(), **options).train(), batch(6)
    expected = torch.autograd.grad(objective(whole).loss, list(objective.parameters()))
    parts = [{name: tensor[s] for name, tensor in whole.items()} for s in (slice(0, 1), slice(1, 6))]
    targets = sum(int(objective.num_targets(part)) for part in parts)
    loss = sum(objective(part).loss * objective.num_targets(part) / targets for part in parts)
    for got, want in zip(torch.autograd.grad(loss, list(objective.parameters())), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_multiply_the_rows_of_their_class(smoothing: float) -> None:
    objective = Classification(model(), class_weights=[0.0, 2.0, 0.5], label_smoothing=smoothing).train()
    given = batch(6)
    logits, labels = objective.predict(given)["logits"], given["labels"]
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(objective(given).loss, (2 * each[labels == 1].sum() + each[labels == 2].sum() / 2) / 6)


def test_held_out_loss_is_plain() -> None:
    given = batch()
    plain = Classification(model()).eval()(given).loss
    shaped = Classification(model(), class_weights=[5.0, 1.0, 1.0], label_smoothing=0.3)
    assert not torch.allclose(shaped.train()(given).loss, plain)
    torch.testing.assert_close(shaped.eval()(given).loss, plain)


def test_rows_without_a_label_have_no_weight() -> None:
    objective, given = Classification(model()).eval(), batch(6)
    some = {**given, "labels": given["labels"].clone()}
    some["labels"][4:] = -100
    assert objective.num_targets(some) == 4
    torch.testing.assert_close(
        objective(some).loss, objective({name: tensor[:4] for name, tensor in given.items()}).loss
    )


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_every_architecture_takes_pairs_and_every_parameter_learns(architecture: str) -> None:
    objective = Classification(model(architecture)).train()
    given = {**batch(), "token_type_ids": torch.tensor([[0, 0, 0, 1, 1]]).expand(6, 5)}
    objective(given).loss.backward()
    assert [n for n, p in objective.named_parameters() if p.grad is None] == []


def test_segments_reach_a_model_that_has_them() -> None:
    objective, given = Classification(model("bert")).eval(), batch()
    pair = {**given, "token_type_ids": torch.tensor([[0, 0, 0, 1, 1]]).expand(6, 5)}
    assert not torch.allclose(objective.predict(pair)["logits"], objective.predict(given)["logits"])


def test_overfits_one_batch() -> None:
    objective, given = Classification(model()).train(), batch()
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        objective(given).loss.backward()
        optimizer.step()
    output = objective.eval()(given)
    assert output.loss < 0.1
    assert output.metrics["accuracy"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"class_weights": [1.0]},
        {"class_weights": [1.0, -1.0, 1.0]},
    ],
)
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(UserError, match=r"objective\."):
        Classification(model(), **options)


def test_one_class_is_refused() -> None:
    config = BertConfig(**SIZES, num_labels=1)
    with pytest.raises(UserError, match="at least 2 classes"):
        Classification(AutoModelForSequenceClassification.from_config(config))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert"])
def test_a_new_head_begins_as_logistic_regression(architecture: str) -> None:
    objective, given = Classification(model(architecture)).train(), batch(40)
    given["labels"][::7] = -100
    assert objective.begins
    body = {name: weight.clone() for name, weight in objective.named_parameters()}
    objective.begin([{name: rows[at : at + 16] for name, rows in given.items()} for at in range(0, 40, 16)])
    assert objective.training
    changed = {name for name, weight in objective.named_parameters() if not torch.equal(weight, body[name])}
    last = output_layer(objective.model)
    assert {objective.get_parameter(name).shape for name in changed} == {last.weight.shape, last.bias.shape}
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = objective.eval().predict(given)["logits"].detach()
    known = given["labels"] >= 0
    features = seen[0].detach().numpy()
    features = (features - features[known].mean(0)) / unit(features[known])
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000).fit(features[known], given["labels"][known])
    np.testing.assert_allclose(logits.softmax(-1), fitted.predict_proba(features), atol=1e-3)


def unit(vectors: np.ndarray) -> float:
    """What the head of `vectors` is regularised by: how far they lie apart, or half their length."""
    apart, length = (np.linalg.norm(some, axis=1).mean() for some in (vectors - vectors.mean(0), vectors))
    return float(max(apart, CLOSEST * length))


def test_what_all_texts_share_changes_nothing_in_a_fitted_head() -> None:
    draws = np.random.default_rng(0)
    vectors, labels = draws.standard_normal((60, 8)).astype(np.float32), np.arange(60) % 3
    vectors[:, :3] += np.eye(3, dtype=np.float32)[labels]
    shared = 50 * draws.standard_normal(8).astype(np.float32)
    weight, bias = fitted_head(vectors, labels, 4, strength=10.0)  # class 3 does not occur
    moved, moved_bias = fitted_head(vectors + shared, labels, 4, strength=10.0)
    np.testing.assert_allclose((vectors + shared) @ moved.T + moved_bias, vectors @ weight.T + bias, atol=2e-2)
    held, _ = fitted_head(vectors + shared, labels, 4, strength=10.0, closest=0.5)
    assert np.linalg.norm(held) < 0.5 * np.linalg.norm(moved)  # they lie far less than half their length apart
    long, long_bias = fitted_head(7 * vectors, labels, 4, strength=10.0)
    np.testing.assert_allclose(7 * vectors @ long.T + long_bias, vectors @ weight.T + bias, atol=2e-2)


def test_two_classes_and_one_that_does_not_occur() -> None:
    objective, given = Classification(model()), batch(30)
    given["labels"] = (torch.arange(30) % 2) * 2  # 0 and 2
    objective.begin([given])
    logits = objective.eval().predict(given)["logits"]
    assert not (logits.argmax(-1) == 1).any()
    right = (logits.argmax(-1) == given["labels"]).float().mean()
    assert right > 0.6


def test_a_new_head_begins_with_the_weights_of_the_classes() -> None:
    objective, given = Classification(model(), class_weights=[0.0, 9.0, 1.0]), batch(40)
    objective.begin([given])
    last, seen = output_layer(objective.model), []
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    shares = objective.eval().predict(given)["logits"].detach().softmax(-1)
    kept = given["labels"] > 0
    features = seen[0].detach().numpy()
    features = (features - features[kept].mean(0)) / unit(features[kept])
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000, class_weight={1: 9.0, 2: 1.0})
    fitted.fit(features[kept], given["labels"][kept])
    odds = shares[:, 1:] / shares[:, 1:].sum(1, keepdim=True)
    np.testing.assert_allclose(odds, fitted.predict_proba(features), atol=1e-3)


def decoder() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, num_labels=3, pad_token_id=0)
    return AutoModelForSequenceClassification.from_config(config)


def test_numbers_far_from_zero_are_told_where_a_head_has_no_bias(caplog: pytest.LogCaptureFixture) -> None:
    model = decoder()
    model.score, model.config.num_labels = torch.nn.Linear(16, 1, bias=False), 1
    told = "no bias, and the labels lie around 1931 with a deviation of 40"
    assert Regression(model, mean=2.0, std=1.0).mean == 0.0
    assert "no bias" not in caplog.text
    assert Regression(model, mean=1931.2, std=40.0).mean == 0.0
    assert told in caplog.text
    caplog.clear()
    model.score = torch.nn.Linear(16, 1)
    assert Regression(model, mean=1931.2, std=40.0).mean == 1931.2
    assert "no bias" not in caplog.text


def test_the_head_of_a_decoder_begins_so_too_on_batches_of_any_width() -> None:
    objective, wide = Classification(decoder()), batch(30)
    narrow = {**batch(), "input_ids": batch()["input_ids"][:, :3], "attention_mask": batch()["attention_mask"][:, :3]}
    wide["input_ids"][::4, 3:] = 0
    wide["attention_mask"][::4, 3:] = 0
    objective.begin([narrow, wide])
    # What the last real token says, place 2 of the narrow rows and of every fourth wide one; the head has no bias.
    vectors, logits = [], []
    for given in (narrow, wide):
        last = given["attention_mask"].sum(1) - 1
        with torch.no_grad():
            states = (
                objective.eval()
                .model.transformer(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
                .last_hidden_state
            )
            logits.append(objective.predict(given)["logits"])
        vectors.append(states[torch.arange(len(last)), last])
    features = torch.cat(vectors).numpy()
    scale = 1 / unit(features)
    labels = torch.cat([narrow["labels"], wide["labels"]])
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000, fit_intercept=False).fit(features * scale, labels)
    np.testing.assert_allclose(torch.cat(logits).softmax(-1), fitted.predict_proba(features * scale), atol=1e-3)


def test_a_head_stays_as_it_is_where_its_logits_are_not_linear_or_there_is_one_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for bent, labels in ((True, torch.arange(6) % 3), (False, torch.ones(6, dtype=torch.int64))):
        objective = Classification(model())
        if bent:
            plain = objective.logits
            monkeypatch.setattr(objective, "logits", lambda batch, plain=plain: plain(batch).square() + 1)
        before = output_layer(objective.model).weight.clone()
        objective.begin([{**batch(), "labels": labels}])
        assert torch.equal(output_layer(objective.model).weight, before)


def test_a_head_that_was_trained_is_not_fitted_anew(tmp_path) -> None:
    def built(**options: Any) -> PreTrainedModel:
        config = ModelConfig(pretrained=str(tmp_path), **options)
        return build_model(config, None, AutoModelForSequenceClassification, max_length=8, num_labels=3)

    AutoModel.from_config(CONFIGS["bert"]).save_pretrained(tmp_path)
    assert Classification(built()).begins
    assert Classification(built(lora_rank=2)).begins
    assert not Classification(built(), head="random").begins
    model().save_pretrained(tmp_path)
    assert not Classification(built()).begins
    assert not Classification(built(lora_rank=2)).begins
    assert Classification(built(fresh=True)).begins
    with pytest.raises(UserError, match=r"objective.head='fited' is not known. .*fitted"):
        Classification(model(), head="fited")
