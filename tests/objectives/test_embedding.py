"""What the objectives between views owe: candidates, nested widths, frozen layers, queues, and batches of nothing."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from sslnlp.collators.views import PairViewsCollator, ViewsCollator
from sslnlp.errors import UserError
from sslnlp.evaluation import evaluate_held_out
from sslnlp.export import export_model
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.objectives.barlow_twins import BarlowTwins
from sslnlp.objectives.byol import BYOL
from sslnlp.objectives.embedding import Embedding, views
from sslnlp.objectives.functional import barlow_twins, info_nce, vicreg
from sslnlp.objectives.info_nce import COLDEST, InfoNCE
from sslnlp.objectives.joint import Joint
from sslnlp.objectives.moco import MoCo
from sslnlp.objectives.vicreg import VICReg
from sslnlp.train import NonFiniteError, TrainConfig, Trainer
from tests.contract import LENGTH, corpus, difference, make_collator, make_stream, small_tokenizer

NAMES = ("barlow_twins", "byol", "info_nce", "moco", "vicreg")


def encoder(architecture: str = "bert", dropout: float = 0.0, auto: Any = AutoModel) -> Any:
    config = ModelConfig(architecture=architecture, size="nano", dropout=dropout)
    return build_model(config, small_tokenizer(), auto, max_length=LENGTH, seed=0)


def make(name: str, architecture: str = "bert", **options: Any) -> Any:
    torch.manual_seed(0)
    return get_objective(name)(encoder(architecture), **options)


def collator(**options: Any) -> ViewsCollator:
    return ViewsCollator(tokenizer=make_collator("info_nce").tokenizer, **options)


def rows(n: int = 6, start: int = 0) -> Any:
    """Rows of one or two documents of the corpus, each another one."""
    return [framed(corpus()[5 * i + 1], i, *[corpus()[5 * i]][: i % 2]) for i in range(start, start + n)]


def batch_of(n: int = 6, start: int = 0, **options: Any) -> Any:
    """A batch in which every document is a negative of every other."""
    batch = collator(**options)(rows(n, start))
    read = torch.cat([view["hashes"][batch["present"]] for view in views(batch)], dim=1)
    assert all(len(texts.unique()) == len(read) > n for texts in read.T)
    return batch


def framed(text: str, position: int, *others: str) -> dict[str, Any]:
    ids = [make_collator("info_nce").tokenizer(one)["input_ids"] for one in (text, *others)]
    document_ids = np.repeat(np.arange(len(ids), dtype=np.int32), [len(one) for one in ids])
    return {"input_ids": np.concatenate(ids), "document_ids": document_ids, "position": position}


def unit(objective: Embedding, batch: Any, view: int, width: int | None = None) -> torch.Tensor:
    vectors = objective.vectors(batch[f"view_{view}"], batch["present"])
    return F.normalize(vectors[:, :width], dim=-1)


# --- InfoNCE ---------------------------------------------------------------------------------------------------------


def test_each_view_looks_for_the_others_among_all_documents() -> None:
    batch = batch_of(views=["crop", "delete", "text"])
    documents = int(batch["present"].sum())
    target = torch.arange(documents)
    for symmetric, pairs in ((True, [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]), (False, [(0, 1), (0, 2)])):
        objective = make("info_nce", symmetric=symmetric, temperature=0.2).eval()
        output = objective(batch)
        sides = [unit(objective, batch, view) for view in range(3)]
        expected = torch.stack([info_nce(sides[i], sides[j], target, temperature=0.2)[0] for i, j in pairs]).mean()
        assert torch.allclose(output.loss, expected, atol=1e-5)
        assert int(objective.num_targets(batch)) == documents
        found = (sides[0] @ sides[1].T).argmax(1) == target
        assert output.metrics["accuracy"].item() == pytest.approx(found.float().mean().item())


def test_duplicates_are_not_negatives() -> None:
    twins = {"views": ["text", "text"]}
    once = [framed("the cat sees a dog by the lake.", 0), framed("one mouse forgets the fox on a hill.", 1)]
    objective = make("info_nce").eval()
    alone, doubled = collator(**twins)(once), collator(**twins)([*once, {**once[0], "position": 2}])
    # A third row that repeats the first is no candidate for it, and finds the one negative that the first finds.
    a, b = unit(objective, alone, 0)
    one = math.log(1 + math.exp((a @ b).item() / 0.05 - 1 / 0.05))
    assert objective(alone).loss.item() == pytest.approx(one, rel=1e-3)
    # The other's sum has both copies.
    two = math.log(1 + 2 * math.exp((a @ b).item() / 0.05 - 1 / 0.05))
    assert objective(doubled).loss.item() == pytest.approx((2 * one + two) / 3, rel=1e-3)


def test_hard_negatives_are_candidates_of_the_first_view_alone() -> None:
    tokenizer = make_collator("ranking").tokenizer
    given = [
        {"query": f"day {i}", "positive": f"the cat sees mouse {i}", "negatives": [f"an owl {i}", f"the fox {i % 2}"]}
        for i in range(4)
    ]
    pairs = PairViewsCollator(tokenizer=tokenizer)([{**row, "position": i} for i, row in enumerate(given)])
    objective = make("info_nce", temperature=0.1).eval()
    query, positive = unit(objective, pairs, 0), unit(objective, pairs, 1)
    negative = pairs["negative"]
    hard = F.normalize(objective.vectors(negative, torch.ones(8, 1, dtype=torch.bool)), dim=-1)
    target = torch.arange(4)
    there, _ = info_nce(query, torch.cat([positive, hard]), target, temperature=0.1)
    back, _ = info_nce(positive, query, target, temperature=0.1)
    assert torch.allclose(objective(pairs).loss, (there + back) / 2, atol=1e-5)
    objective(pairs).loss.backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_a_learned_temperature_moves_and_stays_above_the_coldest() -> None:
    objective = make("info_nce", temperature=0.5, learn_temperature=True)
    batch = batch_of()
    objective(batch).loss.backward()
    assert objective.log_scale.grad.abs().item() > 0
    with torch.no_grad():
        objective.log_scale.fill_(50.0)
    objective.after_step(1.0)
    assert objective.eval()(batch).metrics["temperature"].item() == pytest.approx(COLDEST)
    fixed = make("info_nce", temperature=0.005)
    fixed.after_step(1.0)
    assert fixed.eval()(batch).metrics["temperature"].item() == pytest.approx(0.005)
    assert "log_scale" not in dict(fixed.named_parameters())


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


# --- MoCo ------------------------------------------------------------------------------------------------------------


def test_the_queue_adds_negatives_after_the_update() -> None:
    objective = make("moco", queue=64, temperature=0.1, momentum=0.5).train()
    first, second = batch_of(4), batch_of(4, start=4)
    documents = int(first["present"].sum())
    target = torch.arange(documents)
    query, key = unit(objective, first, 0), unit(objective, first, 1)
    assert torch.allclose(objective(first).loss, info_nce(query, key, target, temperature=0.1)[0], atol=1e-5)
    assert int(objective.queue.pushed) == 0  # within an update nothing moves
    objective.after_step(0.5)
    assert int(objective.queue.pushed) == documents
    raw = objective.vectors(first["view_1"], first["present"])
    kept = objective.queue.vectors[objective.queue.filled]
    assert torch.allclose(kept, raw, atol=1e-5)

    query, key = unit(objective, second, 0), unit(objective, second, 1)
    candidates = torch.cat([key, F.normalize(kept, dim=-1)])
    target = torch.arange(int(second["present"].sum()))
    assert torch.allclose(objective(second).loss, info_nce(query, candidates, target, temperature=0.1)[0], atol=1e-5)
    # A document in the queue is no negative of itself.
    objective._fresh.clear()
    again = objective(first).loss.item()
    query, key = unit(objective, first, 0), unit(objective, first, 1)
    own = torch.eye(documents, dtype=torch.bool)
    expected, _ = info_nce(
        query, torch.cat([key, F.normalize(kept, dim=-1)]), torch.arange(documents), temperature=0.1,
        excluded_QD=torch.cat([torch.zeros_like(own), own], dim=1),
    )  # fmt: skip
    assert again == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("queue", [3, 20, 0])
def test_the_queue_is_the_same_however_an_update_is_split(queue: int, tmp_path: Path) -> None:
    """Smaller than a batch, wrapped around, and none: 1 × 8 and 4 × 2 rows leave the same keys at the same places."""
    held = []
    for size, accumulate in ((8, 1), (2, 4)):
        # With a learning rate of nearly 0 only what is pushed can differ: the loss of a split batch is another one.
        config = TrainConfig(steps=4, batch_size=size, accumulate=accumulate, lr=1e-12, seed=3, weight_decay=0.0)
        objective = make("moco", queue=queue)
        stream = make_stream("moco", 3)
        Trainer(objective, make_collator("moco", 3), stream, config, out=tmp_path / f"{size}").fit()
        held.append(objective.queue.state_dict())
    assert difference(held[0], held[1]) < 1e-5
    assert torch.equal(held[0]["tags"], held[1]["tags"])
    assert int(held[0]["pushed"]) > 20


def test_what_is_pushed_is_in_the_order_of_positions() -> None:
    """As with several processes, whose rows of one micro-batch do not follow those of the one before."""
    straight, mixed = make("moco", queue=64).train(), make("moco", queue=64).train()
    for objective, batches in ((straight, [(2, 0), (2, 2)]), (mixed, [(2, 2), (2, 0)])):
        for rows_and_start in batches:
            objective(batch_of(*rows_and_start))
        objective.after_step(1.0)
    assert difference(straight.queue.state_dict(), mixed.queue.state_dict()) < 1e-5


def test_what_a_failed_update_has_staged_is_forgotten() -> None:
    objective = make("moco", queue=64).train()
    state = copy.deepcopy(objective.state_dict())
    objective(batch_of())
    assert objective._fresh
    objective.load_state_dict(state)
    objective.after_step(1.0)
    assert int(objective.queue.pushed) == 0
    objective(batch_of())
    objective.after_step(1.0)
    objective.eval()
    with_queue = objective(batch_of(4, start=6)).loss
    assert not objective._fresh  # held-out text is never a negative
    objective.queue.pushed.zero_()
    assert torch.equal(objective(batch_of(4, start=6)).loss, with_queue)  # nor are others the negatives of it


@pytest.mark.parametrize("name", ["moco", "byol"])
def test_the_slow_copy_gets_no_gradient_and_follows(name: str) -> None:
    objective = make(name, momentum=0.5, momentum_end=0.5).train()
    before = copy.deepcopy(objective.teacher.state_dict())
    objective(batch_of()).loss.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    with torch.no_grad():
        for p in objective.model.parameters():
            p += 1
    assert difference(before, objective.teacher.state_dict()) == 0
    objective.after_step(0.5)
    moved = {k: v for k, v in objective.teacher.state_dict().items() if v.is_floating_point()}
    for key, value in moved.items():
        if key.removeprefix("module.") in dict(objective.model.named_parameters()):
            assert torch.allclose(value, before[key] + 0.5, atol=1e-5)


def test_byol_is_the_distance_of_guesses_from_slow_projections() -> None:
    batch = batch_of()
    objective = make("byol").eval()
    a, b = (objective.vectors(batch[f"view_{view}"], batch["present"]) for view in (0, 1))
    slow = [objective.slow_projector(x) for x in (a, b)]  # the copies have not moved yet
    guess = [objective.predictor(objective.projector(x)) for x in (a, b)]
    expected = sum(2 - 2 * F.cosine_similarity(guess[i], slow[1 - i], dim=-1).mean() for i in (0, 1)) / 2
    assert torch.allclose(objective(batch).loss, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("barlow_twins", {"off_diagonal": 0.3}), ("vicreg", {})])
def test_projections_are_compared_in_pairs_of_views(name: str, options: dict[str, float]) -> None:
    batch = batch_of(views=["text", "delete", "crop"])
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0} if name == "vicreg" else {}
    objective = make(name, projector=24, **options, **weights).eval()
    seen = [objective.projector(objective.vectors(batch[f"view_{view}"], batch["present"])) for view in range(3)]
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


def test_held_out_the_second_views_are_searched_with_the_first() -> None:
    from sslnlp.data.stream import Stream

    objective = make("info_nce")
    stream = Stream.fixed(make_stream("info_nce").source)
    figures = evaluate_held_out(objective, collator(views=["text", "text"]), stream, batch_size=16)
    assert figures["mrr@10"] == pytest.approx(1)  # without dropout the twins are equal
    assert {"effective_rank", "alignment", "uniformity", "spread", "accuracy"} <= figures.keys()
    assert figures["alignment"] == pytest.approx(0, abs=1e-5)
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
