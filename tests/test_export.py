"""Every kind of model leaves a folder that stock libraries load with the same weights, outputs and tokens."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from sslnlp.card import CardFacts
from sslnlp.errors import UserError
from sslnlp.export import ExportError, export_model, folder, modules
from sslnlp.export.reloaded import state_of
from sslnlp.nn import Pooling
from sslnlp.search.encoder import Encoder
from sslnlp.types import LinearMap

TEXTS = ["A quick brown fox jumps over the lazy dog.", "Grüße aus München!", "def f(x): return x + 1"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<extra_id_0>", "<extra_id_1>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[SEP]",
        bos_token="[CLS]",
        extra_special_tokens=["<extra_id_0>", "<extra_id_1>"],
    )


def tiny(name: str, tokenizer: PreTrainedTokenizerFast, **more: Any) -> PreTrainedModel:
    """A model of the named class with every parameter drawn anew, so that no default value passes for a saved one."""
    cls = getattr(transformers, name)
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    stack = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name.startswith(("Bart", "T5")):
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_layers": 1}
        sizes |= {"num_heads": 2, "d_kv": 8, "d_ff": 24, "decoder_start_token_id": 3}
    elif name.startswith("GPT2"):
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    elif name.startswith("Qwen3"):
        sizes = {**stack, "num_key_value_heads": 1, "head_dim": 8}
    else:
        sizes = {**stack, "max_position_embeddings": 64, "cls_token_id": 2}
    torch.manual_seed(1)
    options = {"add_pooling_layer": False} if name in ("BertModel", "RobertaModel") else {}
    model = cls(cls.config_class(**{**common, **sizes, **more}), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path, **options: Any) -> Path:
    options = {"card": {"title": "tiny"}, "recipe": {"train": {"steps": 3}}, "max_length": 32, **options}
    return export_model(model, tokenizer, path, **options)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("BertForMaskedLM", True),
        ("ModernBertForMaskedLM", False),
        ("GPT2LMHeadModel", True),
        ("Qwen3ForCausalLM", False),
        ("BertForSequenceClassification", None),
        ("GPT2ForSequenceClassification", None),
        ("BartForSequenceClassification", None),
        ("BertModel", None),
        ("RobertaModel", None),
        ("BartForConditionalGeneration", True),
        ("T5ForConditionalGeneration", False),
    ],
)
def test_every_kind_of_model_comes_back_the_same(
    name: str, tied: bool | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    more = {} if tied is None else {"tie_word_embeddings": tied}
    model = tiny(name, tokenizer, **more)
    model.train()

    path = write(model, tokenizer, tmp_path / "export")

    assert model.training, "an export in the middle of a run changes nothing"
    again = getattr(transformers, name).from_pretrained(path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export"]
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == [name]
    assert (path / "model.safetensors").stat().st_mode == (path / "config.json").stat().st_mode
    assert "_name_or_path" not in config
    assert json.loads((path / "recipe.json").read_text()) == {"train": {"steps": 3}}


def test_tokenizer_folder_loads_anywhere_and_cuts_at_max_length(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer(TEXTS, truncation=True, max_length=5, padding=True)  # of which nothing is to stay
    path = write(tiny("BertForMaskedLM", tokenizer), tokenizer, tmp_path / "export")

    again = AutoTokenizer.from_pretrained(path)

    kept = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    assert kept["truncation"] is None
    assert kept["padding"] is None
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert again.model_max_length == 32
    assert len(again("x y " * 100, truncation=True)["input_ids"]) == 32
    assert again.mask_token_id == tokenizer.mask_token_id
    assert set(tokenizer.all_special_ids) == set(again.all_special_ids)
    written = json.loads((path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(written.get("extra_special_tokens"), list), "4.x refuses a list here"


def test_a_compiled_part_leaves_no_trace_in_the_names(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny("BertForMaskedLM", tokenizer)
    before = dict(model.state_dict())
    model.bert.encoder = torch.compile(model.bert.encoder, backend="eager")
    assert any("_orig_mod" in key for key in model.state_dict())

    path = write(model, tokenizer, tmp_path / "export")

    again = transformers.BertForMaskedLM.from_pretrained(path).state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[key], before[key]) for key in before)
    whole = torch.compile(tiny("BertForMaskedLM", tokenizer), backend="eager")
    write(whole, tokenizer, tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()


def test_an_export_is_replaced_whole(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tiny("BertForMaskedLM", tokenizer), tokenizer, tmp_path / "export", pooling="mean")
    (tmp_path / ".export.unfinished").mkdir()
    (tmp_path / ".export.unfinished" / "torn").write_text("left by a kill")

    write(tiny("BertForSequenceClassification", tokenizer), tokenizer, path)

    assert json.loads((path / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    assert not (path / "modules.json").exists(), "nothing of the older export is mixed in"
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_a_kill_between_the_two_renames_is_repaired(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(tiny("BertForMaskedLM", tokenizer), tokenizer, tmp_path / "export")
    path.rename(tmp_path / ".export.replaced")
    broken = tiny("BertForMaskedLM", tokenizer)
    broken.cls.predictions.bias.data[0] = float("nan")

    with pytest.raises(UserError, match=r"cls\.predictions\.bias"):
        write(broken, tokenizer, path)
    write(tiny("GPT2LMHeadModel", tokenizer), tokenizer, path)

    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_a_comparison_that_fails_keeps_the_older_export(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tiny("BertForMaskedLM", tokenizer), tokenizer, tmp_path / "export")
    before = (path / "model.safetensors").read_bytes()
    model = tiny("BertForMaskedLM", tokenizer)

    with monkeypatch.context() as patch:  # what is written is rounded, what it is compared with is not
        patch.setattr(folder, "state_of", lambda m: {k: v.half().float() for k, v in state_of(m).items()})
        with pytest.raises(ExportError, match="is not the model's"):
            write(model, tokenizer, path)

    # The same weights under another config: only the outputs tell.
    twisted = tiny("BertForMaskedLM", tokenizer)
    twisted.config.hidden_act = "relu"
    with pytest.raises(ExportError, match="computes something else"):
        write(twisted, tokenizer, path)

    assert (path / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("limit", [100, 3_000, 9_000])
def test_a_full_disk_is_one_clear_line_and_keeps_the_older_export(
    limit: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = write(tiny("BertForMaskedLM", tokenizer), tokenizer, tmp_path / "export")
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    # config.json has about 800 bytes, model.safetensors 4,600, tokenizer.json 9,600: each writer fails in turn.
    model = tiny("GPT2LMHeadModel", tokenizer, n_embd=2, n_layer=1, n_head=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write the export .*File too large.*; make room, or ") as error:
            write(model, tokenizer, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_what_cannot_be_published_is_one_clear_line(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny("BertForMaskedLM", tokenizer)
    with pytest.raises(UserError, match="unknown pooling 'avg'"):
        write(model, tokenizer, tmp_path / "export", pooling="avg")
    with pytest.raises(UserError, match=r"unknown model card fact 'titel'\. Did you mean 'title'"):
        write(model, tokenizer, tmp_path / "export", card={"titel": "x"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the export"):
        write(model, tokenizer, tmp_path / "file" / "export")
    model.resize_token_embeddings(100)
    with pytest.raises(UserError, match="embeds only 100"):
        write(model, tokenizer, tmp_path / "export")

    class Own(transformers.BertForMaskedLM):
        pass

    with pytest.raises(ExportError, match="Own is not a class of transformers"):
        write(Own(tiny("BertForMaskedLM", tokenizer).config), tokenizer, tmp_path / "export")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "pooling", "normalize", "mapped"),
    [
        ("BertModel", "mean", True, False),
        ("BertModel", "cls", False, False),
        ("ModernBertModel", "mean", True, False),
        ("Qwen3Model", "last", True, False),
        ("Qwen3Model", "weighted", True, False),
        ("BertModel", "max", False, False),
        ("BertModel", "mean", True, True),
        ("BertModel", "cls", False, True),
    ],
)
def test_sentence_transformers_gives_our_vectors(
    name: str, pooling: str, normalize: bool, mapped: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = tiny(name, tokenizer).eval()
    prompts = {"query": "query: ", "document": "passage: "}
    width = model.config.hidden_size
    through = LinearMap(torch.randn(width, width), torch.randn(width)) if mapped else None
    path = write(
        model, tokenizer, tmp_path / "e",
        pooling=pooling, normalize=normalize, prompts=prompts, max_length=24, vector_map=through,
    )  # fmt: skip

    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")

    encoders = {"": theirs.encode, "query: ": theirs.encode_query, "passage: ": theirs.encode_document}
    for prompt, encode in encoders.items():
        batch = tokenizer(
            [prompt + text for text in TEXTS], padding=True, truncation=True, max_length=24, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            if pooling == "max":  # only exported: what others trained
                ours = hidden.masked_fill(batch["attention_mask"][..., None] == 0, -torch.inf).amax(1)
            else:
                ours = Pooling(pooling)(hidden, batch["attention_mask"])
        if through is not None:
            ours = torch.nn.functional.linear(ours, through.weight, through.bias)
        if normalize:
            ours = torch.nn.functional.normalize(ours, dim=-1)
        assert torch.allclose(torch.from_numpy(encode(TEXTS)), ours, atol=1e-5)
    if pooling != "max":
        searching = Encoder.load(str(path)).encode(TEXTS, "document")
        np.testing.assert_allclose(searching, theirs.encode_document(TEXTS), atol=1e-5)
    assert theirs.max_seq_length == 24
    assert theirs.similarity_fn_name == ("cosine" if normalize else "dot")
    card = ModelCard.load(path / "README.md")
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
    # What the card tells a person to type, with and without sentence-transformers.
    with_it, without = (
        block.replace("PATH_OR_NAME", str(path)) for block in re.findall(r"```python\n(.*?)```", card.content, re.S)
    )
    typed: dict[str, Any] = {}
    exec(with_it, typed)
    plain: dict[str, Any] = {}
    exec(without, plain)
    assert torch.allclose(torch.from_numpy(typed["vectors"]), plain["vectors"], atol=1e-5)
    # It puts before the texts what training put there.
    given = ["first text", "second text"]
    np.testing.assert_allclose(typed["vectors"], theirs.encode_document(given), atol=1e-5)
    np.testing.assert_allclose(typed["asked"], theirs.encode_query(["a question"]), atol=1e-5)
    assert np.abs(typed["vectors"] - theirs.encode(given)).max() > 1e-3
    assert "# before a question: 'query: '" in without


@pytest.mark.parametrize("pad", ["[PAD]", None])
def test_a_text_has_the_same_vector_alone_and_padded_whatever_the_tokenizers_side(
    pad: str | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    left = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, padding_side="left", pad_token=pad, eos_token="[SEP]"
    )
    path = write(tiny("BertModel", left).eval(), left, tmp_path / "e", pooling="mean")
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    alone = [theirs.encode([text])[0] for text in TEXTS]
    assert len({len(tokenizer(text)["input_ids"]) for text in TEXTS}) > 1, "some are padded"
    assert torch.allclose(torch.from_numpy(theirs.encode(TEXTS)), torch.tensor(np.array(alone)), atol=1e-5)
    writer = write(tiny("GPT2LMHeadModel", left).eval(), left, tmp_path / "gpt")
    assert AutoTokenizer.from_pretrained(writer).padding_side == "left", "a prompt goes on from its right end"


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BartForConditionalGeneration", "BertForMaskedLM"])
def test_a_tokenizer_names_segments_to_a_model_that_has_them_alone(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    segments = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", eos_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    path = write(tiny(name, segments).eval(), segments, tmp_path / "e")
    again = AutoTokenizer.from_pretrained(path)
    assert ("token_type_ids" in again(TEXTS[0])) is name.startswith("Bert")
    if name != "BertForMaskedLM":
        getattr(transformers, name).from_pretrained(path).generate(
            **again(TEXTS[0], return_tensors="pt"), max_new_tokens=2
        )


def test_a_backbone_taken_from_a_head_loads_as_auto_model(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = tiny("ModernBertForMaskedLM", tokenizer)
    path = write(model, tokenizer, tmp_path / "export")
    backbone = AutoModel.from_pretrained(path)
    assert torch.equal(backbone.embeddings.tok_embeddings.weight, model.get_input_embeddings().weight)


def test_nothing_published_names_a_path_of_the_machine(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    secret = str(tmp_path / "home" / "me" / "corpus.txt")
    recipe = {"data": {"train": [secret, "org/name", "data/x.txt"], "note": f"see {secret}."}, "out": str(tmp_path)}
    card = CardFacts(title="t", sources=[secret], hyperparameters={"out": tmp_path, "why": f"from {secret}"})
    model = tiny("BertForMaskedLM", tokenizer)
    model.config._name_or_path = tokenizer.name_or_path = str(tmp_path / "home")

    path = write(model, tokenizer, tmp_path / "export", recipe=recipe, card=card)

    for file in path.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    data = json.loads((path / "recipe.json").read_text())["data"]
    assert data == {"train": ["corpus.txt", "org/name", "data/x.txt"], "note": "see corpus.txt."}


def test_a_map_that_is_not_read_back_as_it_was_is_no_export(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("BertModel", tokenizer).eval()
    width = model.config.hidden_size
    given = {"pooling": "mean", "vector_map": LinearMap(torch.rand(width, width), torch.rand(width))}
    save = modules.save_dense
    monkeypatch.setattr(
        modules, "save_dense", lambda at, place, linear: save(at, place, linear._replace(bias=linear.bias + 1e-6))
    )
    with pytest.raises(ExportError, match="map of the vectors was read back differently"):
        write(model, tokenizer, tmp_path / "e", **given)
    assert not (tmp_path / "e").exists()
