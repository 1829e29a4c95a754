import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from sslnlp.errors import UserError
from sslnlp.export import export_model
from sslnlp.search.dense import write_vectors
from sslnlp.search.encoder import Encoder, EncoderSettings, read_settings
from sslnlp.search.model_folder import fingerprint

TEXTS = ["heat", "the lift of a wing in a slipstream", "a flat plate " * 9, "unknown wordz"]
PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_vectors_are_those_of_sentence_transformers(
    tmp_path: Path, make_encoder: Callable[..., Path], pooling: str
) -> None:
    folder = make_encoder(tmp_path / "m", pooling=pooling, prompts=PROMPTS)
    ours, theirs = Encoder.load(str(folder)), SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours.encode(TEXTS, "query", batch_size=2), theirs.encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(ours.encode(TEXTS, "document"), theirs.encode_document(TEXTS), atol=1e-6)


def test_a_plain_encoder_folder_is_mean_pooled_and_normalised(
    tmp_path: Path, make_encoder: Callable[..., Path]
) -> None:
    folder = make_encoder(tmp_path / "m")
    (folder / "modules.json").unlink()
    encoder = Encoder.load(str(folder))
    assert encoder.max_length == 30
    ids = encoder.tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mean = encoder.model(input_ids=ids).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encoder.encode([TEXTS[1]], "query")[0], (mean / mean.norm()).numpy(), atol=1e-6)


def test_a_query_is_read_as_far_as_sentence_transformers_says(
    tmp_path: Path, make_encoder: Callable[..., Path]
) -> None:
    folder = make_encoder(tmp_path / "m", prompts=PROMPTS)
    limits = {"max_seq_length": 12, "query_length": 6, "document_length": 9}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    ours, theirs = Encoder.load(str(folder)), SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours.encode(TEXTS, "query"), theirs.encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(ours.encode(TEXTS, "document"), theirs.encode_document(TEXTS), atol=1e-6)


def test_texts_are_put_in_lower_case_where_the_folder_says_so(
    tmp_path: Path, make_encoder: Callable[..., Path]
) -> None:
    folder = make_encoder(tmp_path / "m", prompts=PROMPTS)
    words = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(words | {"normalizer": None}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    ours, theirs = Encoder.load(str(folder)), SentenceTransformer(str(folder), device="cpu")
    texts = [text.title() for text in TEXTS]
    np.testing.assert_allclose(ours.encode(texts, "query"), theirs.encode_query(texts), atol=1e-6)
    np.testing.assert_array_equal(ours.encode(texts, "document"), ours.encode(TEXTS, "document"))


def test_a_pooling_without_the_prompt_is_refused_where_there_is_one(
    tmp_path: Path, make_encoder: Callable[..., Path]
) -> None:
    for prompts in (PROMPTS, {"query": "", "document": ""}):
        folder = make_encoder(tmp_path / prompts["query"] / "m", prompts=prompts)
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"include_prompt": False}))
        if prompts is PROMPTS:
            with pytest.raises(UserError, match="leaves its prompts out of the pooling"):
                Encoder.load(str(folder))
        else:
            Encoder.load(str(folder))


def test_dot_product_models_keep_their_lengths(tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(tmp_path / "m", similarity_fn_name="dot")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    assert not read_settings(folder).normalize
    assert np.ptp(np.linalg.norm(Encoder.load(str(folder)).encode(TEXTS, "query"), axis=1)) > 0.01


def test_fingerprint_is_of_what_decides_a_vector(tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(tmp_path / "m")
    first = fingerprint(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("a card")
    assert fingerprint(copy) == first
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert fingerprint(copy) != first
    assert fingerprint(make_encoder(tmp_path / "other", seed=1)) != first


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", '{"pooling_mode": "max"}', "pools by 'max'"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}', "cls"),
        ("modules.json", '[{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "d"}]', "Dense"),
        ("config_sentence_transformers.json", '{"similarity_fn_name": "euclidean"}', "euclidean"),
        ("config_sentence_transformers.json", '{"max_lengths": {"query": "64"}}', "holds '64'"),
        ("modules.json", "{", "not readable JSON"),
        ("config_sentence_transformers.json", "[1]", "holds list, not what its name says"),
        ("model.safetensors", "garbage", "cannot load"),
    ],
)
def test_what_cannot_be_run_is_refused(
    tmp_path: Path, make_encoder: Callable[..., Path], file: str, content: str, message: str
) -> None:
    folder = make_encoder(tmp_path / "m")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        Encoder.load(str(folder))


def test_an_encoder_with_absent_weights_is_refused(tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    folder = make_encoder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "attention.output" not in name}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 4 of its weights, encoder\.layer\.0\.attention\.output"):
        Encoder.load(str(folder))


def test_our_own_export_is_read_as_it_was_trained(tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    source = Encoder.load(str(make_encoder(tmp_path / "m")))
    (tmp_path / "run").mkdir()
    lengths = {"query": 6, "document": 9}
    export = export_model(
        source.model, source.tokenizer, tmp_path / "run" / "export",
        card={"title": "tiny"}, recipe={}, pooling="last", normalize=True, prompts=PROMPTS, lengths=lengths,
        max_length=9,
    )  # fmt: skip
    assert read_settings(export) == EncoderSettings(
        pooling="last", normalize=True, max_length=9, prompts=PROMPTS, lengths=lengths
    )
    encoder = Encoder.load(str(export))
    assert encoder.max_length == 9
    # [CLS] query: ... [SEP] leaves a query two words, and a document five.
    words = ["the", "lift", "of", "a", "wing", "in", "a", "slipstream"]
    for kind, room in (("query", 2), ("document", 5)):
        cut, whole, shorter = (encoder.encode([" ".join(words[:n])], kind) for n in (room, len(words), room - 1))
        np.testing.assert_array_equal(cut, whole)
        assert np.abs(whole - shorter).max() > 1e-3
    assert SentenceTransformer(str(export), device="cpu").max_seq_length == 9
    with pytest.raises(UserError, match=r"did you mean .*export"):
        Encoder.load(str(tmp_path / "run"))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        Encoder.load(str(tmp_path / "nowhere" / "deep" / "down"))


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    encoder = Encoder.load(str(make_encoder(tmp_path / "m")))
    with torch.no_grad():
        encoder.model.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        write_vectors(tmp_path / "v.npy", TEXTS, len(TEXTS), encoder)
