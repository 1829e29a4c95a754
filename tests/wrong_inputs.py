"""Commands with something wrong in them, each made in a folder: what the cases of `test_wrong_inputs` consist of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.contract import corpus, small_tokenizer

TINY = ["model.size=nano", "train.steps=3", "train.batch_size=2", "tokenizer.vocab_size=520", "data.seq_length=32"]
Make = Callable[[Path], list[str]]


def text(path: Path, content: str | bytes | None = None) -> Path:
    data = "\n\n".join(corpus()) if content is None else content
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def pretrain(*arguments: str) -> Make:
    """`train pretrain_bert` on a good corpus, spoilt by `arguments`; `{}` in them is the test's folder."""

    def make(folder: Path) -> list[str]:
        given = [argument.replace("{}", str(folder)) for argument in arguments]
        settled = {"model.pretrained": "model.size", "tokenizer.path": "tokenizer.vocab_size"}
        keys = {argument.partition("=")[0] for argument in given}
        left_out = keys | {settled[key] for key in keys & settled.keys()}
        small = [argument for argument in TINY if argument.partition("=")[0] not in left_out]
        return ["train", "pretrain_bert", *small, f"data.train={text(folder / 'good.txt')}", *given]

    return make


def with_file(name: str, content: str | bytes, *arguments: str, recipe: str = "pretrain_bert") -> Make:
    """`train` on a file of this content."""

    def make(folder: Path) -> list[str]:
        return ["train", recipe, *TINY, f"data.train={text(folder / name, content)}", *arguments]

    return make


def tokenizer_of(content: str, *options: str) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "t.csv").write_text(content)
        return ["tokenizer", str(folder / "t.csv"), "--out", str(folder / "o"), *options]

    return make


def table(content: str, *arguments: str) -> Make:
    return with_file("table.csv", content, *arguments, recipe="finetune_classification")


def labelled(*arguments: str) -> Make:
    return table("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)), *arguments)


def pairs(*rows: object) -> Make:
    return with_file("pairs.jsonl", "\n".join(json.dumps(row) for row in rows), recipe="finetune_ranking")


def recipe_file(content: str) -> Make:
    return lambda folder: ["train", str(text(folder / "mine.py", content))]


def tokenizer_without_mask(folder: Path) -> list[str]:
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("mask_token")
    path.write_text(json.dumps(config))
    return pretrain("tokenizer.path={}/tokenizer")(folder)


def model_folder(folder: Path, *, weights: bytes | None, positions: int = 32, vocabulary: int | None = None) -> Path:
    """A BERT with our tokenizer; its weights file is then overwritten with `weights`."""
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = small_tokenizer()
    config = BertConfig(
        vocab_size=vocabulary or len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=positions,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if weights is not None:
        (folder / "model" / "model.safetensors").write_bytes(weights)
    return folder / "model"


def broken_weights(folder: Path) -> list[str]:
    return pretrain(f"model.pretrained={model_folder(folder, weights=b'not tensors')}")(folder)


def too_long(folder: Path) -> list[str]:
    return pretrain(f"model.pretrained={model_folder(folder, weights=None)}", "data.seq_length=64")(folder)


def too_few_embeddings(folder: Path) -> list[str]:
    return pretrain(f"model.pretrained={model_folder(folder, weights=None, vocabulary=100)}")(folder)


def mixing_all(folder: Path) -> list[str]:
    """A model that mixes whatever stands in a row, by Fourier transforms, and reads no mask."""
    from transformers import FNetConfig, FNetForMaskedLM

    tokenizer = small_tokenizer()
    config = FNetConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, intermediate_size=16, max_position_embeddings=32
    )
    FNetForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return pretrain("model.pretrained={}/model")(folder)


def of_kind(folder: Path, recipe: str, kind: str, *arguments: str, **fields: object) -> list[str]:
    """Any recipe of raw text from a small model of another kind, with our tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    wraps = {"pretrain_bert": AutoModelForMaskedLM, "pretrain_gpt": AutoModelForCausalLM}
    tokenizer = small_tokenizer()
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **fields)
    wraps.get(recipe, AutoModelForSeq2SeqLM).from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    _, _, *rest = pretrain(f"model.pretrained={folder / 'model'}", *arguments)(folder)
    return ["train", recipe, *rest]


LAYERS = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def pairs_mixed(folder: Path) -> list[str]:
    """Its learned positions come after a norm, so they cannot begin anew in each document of a row."""
    return of_kind(folder, "pretrain_bart", "blenderbot-small", decoder_start_token_id=2, **LAYERS)


def pairs_other(folder: Path) -> list[str]:
    return of_kind(folder, "pretrain_bart", "m2m_100", "data.packing=bucket", decoder_start_token_id=2, **LAYERS)


def seen_from_everywhere(folder: Path) -> list[str]:
    """A mask of a whole row cannot say which tokens are seen from ahead as well."""
    small = {"hidden_size": 16, "n_layer": 1, "n_head": 2}
    return of_kind(folder, "pretrain_gpt", "bloom", "data.packing=bucket", "objective.name=prefix_lm", **small)


BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def reading_ahead(folder: Path) -> list[str]:
    return of_kind(folder, "pretrain_gpt", "bert-generation", "data.packing=bucket", **BERT)


def another_size(folder: Path) -> list[str]:
    return [*pretrain(f"model.pretrained={model_folder(folder, weights=None)}")(folder), "model.size=base"]


def another_architecture(folder: Path) -> list[str]:
    return [*pretrain(f"model.pretrained={model_folder(folder, weights=None)}")(folder), "model.architecture=gpt2"]


def another_vocabulary(folder: Path) -> list[str]:
    small_tokenizer().save_pretrained(folder / "tokenizer")
    return [*pretrain("tokenizer.path={}/tokenizer")(folder), "tokenizer.vocab_size=9999"]


def ranking(*arguments: str) -> Make:
    """`train finetune_ranking` on good pairs, from fresh weights."""
    rows = [json.dumps({"query": f"q {n}", "positive": f"p {n}"}) for n in range(20)]
    return with_file("pairs.jsonl", "\n".join(rows), *arguments, recipe="finetune_ranking")


def search_collection(corpus_line: str, judged: str = "1") -> Make:
    """`train finetune_ranking` with a collection to measure, one line of whose corpus is given."""

    def make(folder: Path) -> list[str]:
        (folder / "beir" / "qrels").mkdir(parents=True)
        text(folder / "beir" / "corpus.jsonl", corpus_line)
        text(folder / "beir" / "queries.jsonl", '{"_id": "q", "text": "words"}')
        text(folder / "beir" / "qrels" / "test.tsv", f"query-id\tcorpus-id\tscore\nq\td\t{judged}\n")
        return ranking(f"data.beir={folder / 'beir'}")(folder)

    return make


def unseen_label(folder: Path) -> list[str]:
    valid = text(folder / "valid.csv", "text,label\none text,c\n")
    return table("text,label\n" + "a text,a\nb text,b\n" * 5, f"data.valid={valid}")(folder)


def taken_out(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    text(folder / "out" / "precious.txt", "mine")
    return pretrain()(folder)


def resuming_among_other_files(folder: Path) -> list[str]:
    return [*taken_out(folder), "--resume"]


def out_under_a_file(folder: Path) -> list[str]:
    text(folder / "a_file", "x")
    return [*pretrain()(folder), f"out={folder / 'a_file' / 'run'}"]
