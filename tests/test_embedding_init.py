"""Embeddings that start from counts: the factors, and what fresh models make of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from transformers import AutoModelForMaskedLM

from sslnlp.data.cooccurrence import cooccurrences
from sslnlp.embedding_init import DEVIATION, PRIOR, UNSEEN, associations, repeated_associations
from sslnlp.errors import UserError
from sslnlp.objectives.base import Objective
from sslnlp.recipe import Parts, Recipe, build_objective, build_parts, load_recipe, override, resolve, run


def parts(text_file: Path, recipe: str, **keys: object) -> Parts:
    small = {"model.size": "nano", "tokenizer.vocab_size": 500, "data.seq_length": 32, "train.steps": 2}
    small |= {"data.train": str(text_file), "train.batch_size": 4, "model.embedding_init": "cooccurrence"}
    return build_parts(resolve(override(load_recipe(recipe), small | keys))[0])


def counted(made: Parts, size: int, window: int) -> sparse.csr_matrix:
    assert made.text is not None
    return sum(cooccurrences(made.text.store, size, window=window, prefix=made.text.prefix, suffix=made.text.suffix))


def table(objective: Objective) -> torch.Tensor:
    return objective.model.get_input_embeddings().weight.detach()


@pytest.mark.parametrize("rank", [8, 40])
@pytest.mark.parametrize("unseen", [0, 1, 25])
def test_factors_are_those_of_the_matrix_written_out(rank: int, unseen: int) -> None:
    drawn = np.random.default_rng(0)
    counts = drawn.poisson(np.outer(drawn.pareto(1, 40), drawn.pareto(1, 40))).astype(np.float32)
    gone = drawn.permutation(40)[:unseen]
    counts[gone], counts[:, gone] = 0, 0
    found = associations(sparse.csr_matrix(counts), rank)
    left, right = counts.sum(1), counts.sum(0)
    p_left, p_right = (left + UNSEEN) / (left + UNSEEN).sum(), (right + UNSEEN) / (right + UNSEEN).sum()
    wished = np.log((counts + PRIOR * p_right) / (left[:, None] + PRIOR) / p_right)
    weights = np.sqrt(np.outer(p_left, p_right))
    u, values, v = np.linalg.svd(weights * wished)
    best = (u[:, :rank] * values[:rank]) @ v[:rank]
    np.testing.assert_allclose(weights * (found.left @ found.right.T), best, atol=2e-4)
    np.testing.assert_allclose(found.log_frequency, np.log(p_right), rtol=1e-5)
    assert found.counted.tolist() == (left > 0).tolist()


def test_what_a_second_half_of_the_text_does_not_repeat_is_no_association() -> None:
    """Pairs x, y of the same eight of 32 tokens, or of any: the first are associated, and one in eight is drawn."""
    drawn = np.random.default_rng(0)
    block = np.arange(32) // 8
    truth = np.where(block[:, None] == block, 8.0, 1.0)
    halves = [drawn.poisson(truth).astype(np.float32) for _ in range(2)]
    found = repeated_associations(*(sparse.csr_matrix(half) for half in halves), 31)
    plain = associations(sparse.csr_matrix(halves[0] + halves[1]), 31)
    wished = np.log((truth + PRIOR / 64) / (truth.sum(1, keepdims=True) + PRIOR / 2) / truth.sum(0) * truth.sum())

    def error(told: np.ndarray) -> float:
        return float(np.square(told - wished).mean())

    assert error(found.left @ found.right.T) < 0.5 * error(plain.left @ plain.right.T)


def test_a_decoder_with_a_head_of_its_own_starts_as_a_bigram_model(text_file: Path) -> None:
    made = parts(text_file, "pretrain_gpt")
    assert made.text is not None
    objective = build_objective(made)
    model, head = objective.model, objective.model.get_output_embeddings().weight.detach()
    states = model.model.norm(table(objective)).detach()
    told = torch.log_softmax(states @ head.T, -1).numpy()
    counts = counted(made, len(head), window=1).toarray()
    following = counts.sum(0) / counts.sum()
    cost = -(counts * told).sum() / counts.sum()
    frequencies = -(following[following > 0] * np.log(following[following > 0])).sum()
    uniform = np.log(len(head))
    assert cost < frequencies - 0.5 < uniform - 0.5


@pytest.mark.parametrize(
    ("recipe", "changed"),
    [
        ("pretrain_bert", ["model.embeddings.tok_embeddings.weight", "head.norm.weight"]),
        ("pretrain_t5", ["shared.weight", "decoder.final_layer_norm.weight"]),
    ],
)
def test_one_table_starts_with_a_direction_for_each_neighbourhood(
    text_file: Path, recipe: str, changed: list[str]
) -> None:
    made = parts(text_file, recipe)
    assert made.text is not None
    started, random = (
        build_objective(made),
        build_objective(made.under(override(made.recipe, {"model.embedding_init": "random"}), {})),
    )
    counts = counted(made, len(table(started)), window=4)
    seen = np.asarray((counts + counts.T).sum(1)).ravel() > 0
    assert 0 < seen.sum() < len(seen)
    torch.testing.assert_close(table(started)[~seen], table(random)[~seen], rtol=0, atol=0)
    length = torch.tensor(DEVIATION * table(random).shape[1] ** 0.5)
    torch.testing.assert_close(table(started)[seen].norm(dim=1), length.expand(int(seen.sum())))
    others = zip(started.model.named_parameters(), random.model.named_parameters(), strict=True)
    assert [name for (name, a), (_, b) in others if not torch.equal(a, b)] == changed


def test_the_same_text_and_seed_give_the_same_start_found_or_counted(text_file: Path) -> None:
    made = parts(text_file, "pretrain_gpt")
    assert made.text is not None
    first = table(build_objective(made))
    kept = list(made.text.store.path.glob("bigrams-*.npz"))
    assert len(kept) == 1
    torch.testing.assert_close(table(build_objective(made)), first, rtol=0, atol=0)
    kept[0].unlink()
    torch.testing.assert_close(table(build_objective(made)), first, rtol=0, atol=0)
    other = override(made.recipe, {"train.seed": 1})
    assert not torch.equal(table(build_objective(made.under(other, {}))), first)


@pytest.mark.parametrize("left", ["nothing", "half", "other"])
def test_counts_that_are_damaged_are_counted_again(text_file: Path, left: str) -> None:
    made = parts(text_file, "pretrain_gpt")
    assert made.text is not None
    first = table(build_objective(made))
    kept = next(made.text.store.path.glob("bigrams-*.npz"))
    whole = kept.read_bytes()
    kept.write_bytes({"nothing": b"", "half": whole[: len(whole) // 2], "other": b"\0" * 100}[left])
    torch.testing.assert_close(table(build_objective(made)), first, rtol=0, atol=0)
    assert kept.stat().st_size == len(whole)


def test_weights_that_were_trained_stay(text_file: Path, tmp_path: Path) -> None:
    def again(out: str, **keys: object) -> Recipe:
        return parts(text_file, "pretrain_bert", out=str(tmp_path / out), **keys).recipe

    export = run(again("first")) / "export"
    made = parts(text_file, "pretrain_bert", **{"model.pretrained": str(export)})
    trained = AutoModelForMaskedLM.from_pretrained(export).get_input_embeddings().weight
    torch.testing.assert_close(table(build_objective(made)), trained.detach(), rtol=0, atol=0)
    fresh = parts(text_file, "pretrain_bert", **{"model.pretrained": str(export), "model.fresh": True})
    assert not torch.equal(table(build_objective(fresh)), trained)


def test_nothing_is_counted_where_no_raw_text_is_read() -> None:
    keys = {"data.train": "labelled.csv", "model.embedding_init": "cooccurrence"}
    with pytest.raises(UserError, match=r"counts in raw text, which objective 'classification' does not read"):
        resolve(override(load_recipe("finetune_classification"), keys))


@pytest.mark.parametrize("recipe", ["pretrain_gpt", "pretrain_bert"])
def test_text_without_neighbours_and_a_vocabulary_below_the_width_give_a_start(
    text_file: Path, tmp_path: Path, recipe: str
) -> None:
    lonely = tmp_path / "lonely.txt"
    lonely.write_text("a\n\nb\n\nc")
    narrow = {"tokenizer.algorithm": "bytes", "model.size": "small", "data.valid_fraction": 0}
    for path in (lonely, text_file):
        weights = table(build_objective(parts(path, recipe, **narrow)))
        assert len(weights) < weights.shape[1]
        assert weights.isfinite().all()
        assert weights.std() > 0.01


@pytest.mark.parametrize("architecture", ["modernbert", "bert", "roberta"])
def test_a_masked_model_starts_as_undecided_as_from_random_embeddings(text_file: Path, architecture: str) -> None:
    made = parts(text_file, "pretrain_bert", **{"model.architecture": architecture})
    objective = build_objective(made)
    batch = made.collator([made.stream[i] for i in range(4)])
    assert objective.eval()(batch).loss.item() == pytest.approx(np.log(len(table(objective))), abs=0.3)


@pytest.mark.parametrize(
    ("recipe", "architecture"), [("pretrain_gpt", "gpt2"), ("pretrain_t5", "t5"), ("pretrain_bart", "bart")]
)
def test_a_head_that_is_the_embeddings_starts_without_wild_logits(
    text_file: Path, recipe: str, architecture: str
) -> None:
    """They would be 20 nats from the truth."""
    made = parts(text_file, recipe, **{"model.architecture": architecture})
    objective = build_objective(made).eval()
    batch = made.collator([made.stream[i] for i in range(4)])
    assert objective(batch).loss.item() < np.log(len(table(objective))) + 2


@pytest.mark.parametrize("width", [2, 8, 12])
def test_the_narrowest_decoders_have_a_start_too(text_file: Path, width: int) -> None:
    narrow = {"model.config.hidden_size": width, "model.config.num_attention_heads": 1, "model.config.head_dim": 2}
    objective = build_objective(parts(text_file, "pretrain_gpt", **narrow, **{"model.config.num_key_value_heads": 1}))
    assert all(weight.isfinite().all() for weight in objective.parameters())
    assert table(objective).std() > 0
