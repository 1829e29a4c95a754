"""What the objectives between views owe: nested widths, frozen layers, closed forms, and batches of nothing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForMaskedLM

from sslnlp.errors import UserError
from sslnlp.evaluation import evaluate_held_out
from sslnlp.export import export_model
from sslnlp.nn import document_pool
from sslnlp.objectives import get_objective
from sslnlp.objectives.barlow_twins import BarlowTwins
from sslnlp.objectives.byol import BYOL
from sslnlp.objectives.embedding import Documents, live
from sslnlp.objectives.functional import barlow_twins, info_nce, vicreg
from sslnlp.objectives.info_nce import InfoNCE
from sslnlp.objectives.joint import Joint
from sslnlp.objectives.moco import MoCo
from sslnlp.objectives.vicreg import VICReg
from sslnlp.train import NonFiniteError, TrainConfig, Trainer
from tests.contract import LENGTH, make_collator, make_stream
from tests.objectives.text_views import batch_of, collator, encoder, framed, make, rows, unit

NAMES = ("barlow_twins", "byol", "info_nce", "moco", "vicreg")


# --- options of all --------------------------------------------------------------------------------------------------


def test_nested_widths_are_the_mean_of_the_losses_of_cut_vectors() -> None:
    batch = batch_of(views=["text", "delete"])
    objective = make("info_nce", dimensions=[16, 4]).eval()
    assert objective.dimensions == [4, 16, 64]
    target = torch.arange(int(batch["present"].sum()))
    losses = []
    for width in (4, 16, 64):
        a, b = (unit(objective, batch, view, width) for view in (0, 1))
        losses += [info_nce(a, b, target, temperature=0.05)[0], info_nce(b, a, target, temperature=0.05)[0]]
    assert torch.allclose(objective(batch).loss, torch.stack(losses).mean(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_where_documents_stand_is_counted_if_it_is_not_told(name: str) -> None:
    batch, objective = batch_of(), make(name).eval()
    assert batch["documents"].tolist() == batch["present"].flatten().nonzero().flatten().tolist()
    untold = {key: value for key, value in batch.items() if key != "documents"}
    assert torch.equal(objective(untold).loss, objective(batch).loss)


@pytest.mark.parametrize("name", NAMES)
def test_nested_widths_reach_every_objective(name: str) -> None:
    batch = batch_of()
    plain, nested, full = make(name).eval(), make(name, dimensions=[8]).eval(), make(name, dimensions=[64]).eval()
    assert full(batch).loss.item() == pytest.approx(plain(batch).loss.item(), rel=1e-6)
    assert nested(batch).loss.item() != pytest.approx(plain(batch).loss.item(), rel=1e-3)
    nested.train()(batch).loss.backward()
    assert all(p.grad is not None for p in nested.parameters() if p.requires_grad)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "roberta", "electra"])
def test_the_last_layers_train_and_the_others_are_as_they_were(architecture: str) -> None:
    objective = make("info_nce", architecture, train_layers=1).train()
    before = copy.deepcopy(objective.state_dict())
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    batch = batch_of()
    objective(batch).loss.backward()
    optimizer.step()
    moved = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    depth = objective.model.config.num_hidden_layers
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert depth == 2
    assert moved
    assert not moved & frozen
    last = (f"layers.{depth - 1}.", f"layer.{depth - 1}.", "final_norm")
    assert all(any(part in name for part in last) for name in moved)
    assert any("embed" in name for name in frozen)
    assert any("layers.0." in name or "layer.0." in name for name in frozen)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_layers": 0}, "1 to 2"),
        ({"train_layers": 3}, "1 to 2"),
        ({"dimensions": [65]}, "1 to 64"),
        ({"dimensions": [0]}, "1 to 64"),
        ({"pooling": "max"}, "objective.pooling"),
    ],
)
def test_bad_options_of_all(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(name, **options)


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (InfoNCE, {"temperature": 0.0}, "temperature"),
        (InfoNCE, {"temperature": 0.001, "learn_temperature": True}, "begins at"),
        (MoCo, {"temperature": -1.0}, "temperature"),
        (MoCo, {"queue": -1}, "queue"),
        (MoCo, {"momentum": 1.5}, "momentum"),
        (BYOL, {"hidden": 0}, "hidden"),
        (BarlowTwins, {"projector": 0}, "projector"),
        (BarlowTwins, {"off_diagonal": -0.1}, "off_diagonal"),
        (VICReg, {"variance": -1.0}, "variance"),
    ],
)
def test_bad_options(cls: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        cls(encoder(), **options)


def test_an_encoder_decoder_is_not_one_stack() -> None:
    for name in ("info_nce", "ranking", "classification", "few_shot", "reranking"):
        assert "one stack" in str(get_objective(name).refuses(AutoConfig.for_model("t5")))
    assert get_objective("span_corruption").refuses(AutoConfig.for_model("t5")) is None
    assert InfoNCE.refuses(AutoConfig.for_model("llama")) is None


# --- batches of little or nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_nothing_is_no_target_and_no_gradient(name: str) -> None:
    objective = make(name).train()
    batch = collator()([framed("", 0), framed("a", 1)])
    assert int(objective.num_targets(batch)) == 0
    output = objective(batch)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    for parameter in objective.parameters():
        if parameter.requires_grad:
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()
            assert parameter.grad is None or not parameter.grad.any()
    assert all(bool(torch.isfinite(value).all()) for value in output.metrics.values())
    assert output.metrics["effective_rank"].tolist() == [0, 0]
    objective.after_step(1.0)
    assert all(bool(torch.isfinite(value).all()) for value in objective.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("repeated", [1, 5])
def test_one_document_and_its_duplicates(name: str, repeated: int) -> None:
    """Nothing to tell it from: finite, whatever the loss, and for a contrast 0."""
    objective = make(name).train()
    batch = collator(views=["text", "text"])([framed("the cat sees a dog by the lake.", i) for i in range(repeated)])
    for _ in range(3):
        output = objective(batch)
        assert torch.isfinite(output.loss)
        objective.zero_grad()
        output.loss.backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in objective.parameters())
        objective.after_step(1.0)
        if name in ("info_nce", "moco"):
            assert output.loss.item() == pytest.approx(0, abs=1e-6)
    if repeated > 1:
        total, count = output.metrics["spread"].tolist()
        assert total / count == pytest.approx(0, abs=1e-4)
        total, count = output.metrics["effective_rank"].tolist()
        assert total / count == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_not_finite_says_so(name: str, tmp_path: Path) -> None:
    objective = make(name)
    with torch.no_grad():
        next(objective.model.parameters()).fill_(math.nan)
    config = TrainConfig(steps=1, batch_size=8, seed=3)
    with pytest.raises(NonFiniteError, match="not finite"):
        Trainer(objective, make_collator(name), make_stream(name), config, out=tmp_path).fit()


# --- closed forms -----------------------------------------------------------------------------------------------------


def test_byol_is_the_distance_of_guesses_from_slow_projections() -> None:
    batch = batch_of()
    objective = make("byol").eval()
    a, b = (objective.vectors(batch[f"view_{view}"], Documents.of(batch)) for view in (0, 1))
    slow = [objective.slow_projector(x) for x in (a, b)]  # the copies have not moved yet
    guess = [objective.predictor(objective.projector(x)) for x in (a, b)]
    expected = sum(2 - 2 * F.cosine_similarity(guess[i], slow[1 - i], dim=-1).mean() for i in (0, 1)) / 2
    assert torch.allclose(objective(batch).loss, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("barlow_twins", {"off_diagonal": 0.3}), ("vicreg", {})])
def test_projections_are_compared_in_pairs_of_views(name: str, options: dict[str, float]) -> None:
    batch = batch_of(views=["text", "delete", "crop"])
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0} if name == "vicreg" else {}
    objective = make(name, projector=24, **options, **weights).eval()
    seen = [objective.projector(objective.vectors(batch[f"view_{view}"], Documents.of(batch))) for view in range(3)]
    assert seen[0].shape[1] == 24
    losses = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        if name == "vicreg":
            invariance, variance, covariance = vicreg(seen[a], seen[b])
            losses.append(2 * invariance + 3 * variance + 5 * covariance)
        else:
            losses.append(barlow_twins(seen[a], seen[b], **options))
    assert torch.allclose(objective(batch).loss, torch.stack(losses).mean(), rtol=1e-5)


# --- beside masked LM, held out, exported ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_joint_with_masked_lm(name: str) -> None:
    weights = {"masked_lm": 1.0, name: 0.1}
    cls = Joint.bound({"weights": weights})
    torch.manual_seed(0)
    joint = cls(encoder(auto=AutoModelForMaskedLM), weights=weights).eval()
    assert (cls.couples_rows, cls.pooling) == (name != "byol", "mean")
    parts = get_collator_batch(cls)
    output = joint(parts)
    alone = joint.joined[name](parts["views"])
    assert torch.allclose(output.terms[1], 0.1 * alone.loss)
    assert joint.num_targets(parts).tolist()[1] == int(parts["views"]["present"].sum())
    assert f"{name}/effective_rank" in output.metrics
    output.loss.backward()
    assert all(p.grad is not None for p in joint.parameters() if p.requires_grad)


def get_collator_batch(cls: Any) -> Any:
    from sslnlp.collators.joint import JointCollator
    from sslnlp.sums import count_tokens

    made = JointCollator(tokenizer=make_collator("masked_lm").tokenizer, **cls.collator_options({}))
    batch = made(rows())
    inner = batch["views"]
    seen = sum(int(part["attention_mask"].sum()) for part in (batch["masked_lm"], inner["view_0"], inner["view_1"]))
    assert int(count_tokens(batch)) == seen
    return batch


@pytest.mark.parametrize(
    ("views", "searched"), [(["text", "text+delete"], True), (["text", "text"], False)], ids=["views", "twins"]
)
def test_held_out_the_second_views_are_searched_with_the_first(views: list[str], searched: bool) -> None:
    """Without dropout twins are equal: each would find itself, and the first evaluation of a run would be its best."""
    from sslnlp.data.stream import Stream

    objective = make("info_nce")
    stream = Stream.fixed(make_stream("info_nce").source)
    figures = evaluate_held_out(objective, collator(views=views), stream, batch_size=16)
    assert ({"mrr@10", "ndcg@10", "recall@100", "map"} <= figures.keys()) == searched
    assert ("mrr@10" in figures) == searched
    assert {"effective_rank", "alignment", "uniformity", "spread", "accuracy"} <= figures.keys()
    assert (figures["alignment"] == pytest.approx(0, abs=1e-5)) != searched
    assert 1 < figures["effective_rank"] < 16 * 4


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("info_nce", "mean"), ("moco", "cls"), ("byol", "last"), ("barlow_twins", "weighted"), ("vicreg", "mean")],
)
def test_the_export_is_a_sentence_transformers_model(name: str, pooling: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sslnlp.search.encoder import Encoder

    objective = make(name, "modernbert", pooling=pooling).eval()
    tokenizer = make_collator(name).tokenizer
    folder = export_model(
        objective.exported, tokenizer, tmp_path / "export", card={"title": "t"}, recipe={}, pooling=objective.pooling,
        max_length=LENGTH,
    )  # fmt: skip
    texts = ["The cat sees a dog by the lake.", "One mouse.", "On day 3 the old owl forgets the fox on a hill."]
    batch = collator(views=["text", "text"], min_tokens=1)([framed(text, i) for i, text in enumerate(texts)])
    ours = unit(objective, batch, 0).detach()
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert torch.allclose(ours, torch.tensor(theirs), atol=1e-5)
    assert torch.allclose(ours, torch.tensor(Encoder.load(str(folder)).encode(texts, "query")), atol=1e-5)


# --- compiled --------------------------------------------------------------------------------------------------------


def test_to_the_compiler_any_number_of_documents_is_the_same() -> None:
    """Each that was new was compiled anew, up to the compiler's limit, from which on all of it ran eagerly."""
    graphs: list[torch.fx.GraphModule] = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    @torch.compile(backend=keep)
    def step(states: torch.Tensor, documents: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = document_pool(2 * states, documents)
        return live(first + 1, second + 1)

    compiled = []
    for number in (3, 5, 7, 9):
        documents = torch.arange(number).repeat_interleave(2).expand(2, -1)
        figures = step(torch.randn(2, 2 * number, 8), documents)
        assert int(figures["spread"][1]) == number
        compiled.append(len(graphs))
    assert compiled[1] == compiled[3] > compiled[0]
    assert not any("item()" in reason for reason in torch._dynamo.utils.counters["graph_break"])
