"""A five-document corpus and a tiny encoder written as a sentence-transformers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

DOCUMENTS = [
    {"_id": "007", "title": "Wings", "text": "The lift of a wing in a slipstream depends on the angle of the wing."},
    {"_id": "8", "title": "Heat", "text": "Heat flows from the hot plate to the cold plate."},
    {"_id": "n-9", "title": "", "text": "Boundary layers over a flat plate grow with distance."},
    {"_id": "10", "title": "Noise", "text": "Engines make noise; flying engines make more noise."},
    {"_id": "11", "title": "Plates", "text": "A flat plate in a slipstream."},
]
WORDS = sorted({word.strip(".;:").lower() for row in DOCUMENTS for word in f"{row['title']} {row['text']}".split()})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A BEIR folder: the documents, two queries, three judgements of which one names an absent document."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    queries = [{"_id": "q1", "text": "slipstream plate"}, {"_id": "q2", "text": "noise"}, {"_id": "q3", "text": "heat"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\t007\t1\nq2\t10\t2\nq2\tgone\t1\nq3\t8\t0\n"
    )
    return folder


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., Path]:
    """make_encoder(folder, seed=0, pooling="mean", **config_sentence_transformers) -> folder of a tiny BERT."""

    def make(folder: Path, seed: int = 0, pooling: str = "mean", width: int = 16, **facts: Any) -> Path:
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage"]
        vocabulary = {word: at for at, word in enumerate([*specials, *(w for w in WORDS if w not in specials)])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        words.normalizer = normalizers.Lowercase()
        words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        words.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
        generator = torch.Generator().manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=32,
        )  # fmt: skip
        model = BertModel(config, add_pooling_layer=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        modules = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(steps)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
        (folder / "config_sentence_transformers.json").write_text(json.dumps(facts))
        (folder / "1_Pooling").mkdir()
        flags = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken", "max": "max_tokens"}
        modes = {f"pooling_mode_{flag}": name == pooling for name, flag in flags.items()}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, **modes}))
        return folder

    return make
