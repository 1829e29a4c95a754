"""Training a tokenizer from a stream of texts within a memory budget."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sslnlp.errors import UserError, suggest
from sslnlp.tokenizer.counting import WordCounts
from sslnlp.tokenizer.framing import set_framing
from sslnlp.tokenizer.specials import EXTRA, ROLES, SPECIALS
from sslnlp.tokenizer.words import byte_characters

log = logging.getLogger(__name__)

MAX_WORDS: Final = 1 << 24
"""Word occurrences a trainer is fed at most; larger counts are thinned evenly (about 7 s of feeding)."""
MAX_SYMBOLS: Final = 1 << 30
"""Characters it is fed at most: the trainers add up pairs in 32-bit integers that overflow without a word."""
BYTES: Final = "bytes"
"""The algorithm that needs no training."""
_SEPARATOR = "\0"  # between words on their way to the trainer; taken out of the words themselves
_SPACE: Final = "▁"  # in Unigram, put before each text: in the vocabulary also where the corpus has no space


@dataclass(frozen=True)
class _Algorithm:
    """How one kind of tokenizer is put together. `count` is the pre-tokenizer words are counted with."""

    model: Callable[[], Any]
    trainer: Callable[[int, list[str]], Any]
    normalizer: Callable[[bool], Any]
    pre_tokenizer: Callable[[], Any]
    count: Callable[[], Any]
    decoder: Callable[[], Any]
    alphabet: Callable[[Iterable[str]], int]
    """Entries that the vocabulary must hold beside the specials, given the distinct words."""
    bytes_per_word: int = 900
    """Memory a distinct word takes, in the counter and in the trainer."""


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 8192,
    algorithm: str = "bpe",
    memory_mb: int = 1024,
    lowercase: bool = False,
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer and reserves `SPECIALS` in it.

    `algorithm`: `bpe` (byte-level; decodes to exactly what was encoded, has no unknown token), `wordpiece` (BERT's
    normaliser; white space is lost) or `unigram` (▁ for spaces; Kudo, 2018). `vocab_size` counts the specials; a
    small corpus may give fewer. `lowercase` folds case in all. Texts are read once, as a stream: only word
    counts are kept, in about `memory_mb` MiB, and rare words are dropped (and logged) beyond it.

    `bytes` trains nothing and reads no text: its vocabulary is the 256 bytes of UTF-8 behind the specials (byte b has
    id `len(SPECIALS) + b`), whatever `vocab_size` is, and it decodes to exactly what was encoded.

    The result frames like an encoder; `set_framing(tokenizer, "decoder")` makes it a decoder's.
    Raises `UserError` for an unknown algorithm, no text, or a `vocab_size` that cannot hold specials and alphabet.
    """
    if algorithm not in (*_ALGORITHMS, BYTES):
        raise UserError(f"unknown tokenizer algorithm {algorithm!r}.{suggest(algorithm, (*_ALGORITHMS, BYTES))}")
    if memory_mb < 1:
        raise UserError(f"memory_mb must be at least 1, got {memory_mb}")
    if algorithm == BYTES:
        return _wrap(_bytes(lowercase))
    kind = _ALGORITHMS[algorithm]
    split = _splitter(kind.normalizer(lowercase), kind.count())
    counts = WordCounts(split=split, memory_mb=memory_mb, bytes_per_word=kind.bytes_per_word)
    counts.add(texts)
    counts.finish()
    if not counts.words:
        raise UserError("there is no text to train the tokenizer on: the corpus is empty or only white space")
    if counts.dropped:
        log.warning(
            "tokenizer: %.2f%% of the word occurrences (the rarest words) were dropped to stay within memory_mb=%d",
            100 * counts.dropped / (counts.dropped + counts.words.total()),
            memory_mb,
        )
    alphabet: list[str] = []
    if algorithm != "bpe":
        alphabet = _choose_alphabet(counts, (vocab_size - len(SPECIALS)) // 4)
    needed = len(SPECIALS) + kind.alphabet(counts.words)
    if vocab_size < needed:
        raise UserError(
            f"vocab_size={vocab_size} is too small for {algorithm}: {len(SPECIALS)} special tokens and an alphabet of "
            f"{needed - len(SPECIALS)} need {needed}; choose a larger vocab_size"
            + ("" if algorithm == "bpe" else ", or algorithm bpe, which needs only the 256 bytes")
        )
    backend = Tokenizer(kind.model())
    backend.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(_SEPARATOR)
    backend.train_from_iterator(_repeated(counts), kind.trainer(vocab_size, alphabet))
    if (normalizer := kind.normalizer(lowercase)) is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = kind.pre_tokenizer()
    backend.decoder = kind.decoder()
    return _wrap(backend)


def stand_in() -> PreTrainedTokenizerFast:
    """For one that is yet to be trained: it has all the tokens that ours have, and reads no text."""
    return train_tokenizer((), algorithm=BYTES)


def _bytes(lowercase: bool) -> Tokenizer:
    """Byte-level BPE without a single merge: what every stock installation can load, and no model file of our own."""
    spelling = byte_characters()
    tokens = [*SPECIALS, *(spelling[byte] for byte in range(256))]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.add_special_tokens(list(SPECIALS))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    # Without merges the usual split into words changes nothing but the time it takes.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _splitter(normalizer: Any, pre_tokenizer: Any) -> Callable[[str], list[str]]:
    """Text to words by the tokenizer's own normaliser and pre-tokenizer."""

    def split(text: str) -> list[str]:
        normal = text if normalizer is None else normalizer.normalize_str(text)
        words = (word.replace(_SEPARATOR, "") for word, _ in pre_tokenizer.pre_tokenize_str(normal))
        return [word for word in words if word]

    return split


def _repeated(counts: WordCounts, batch: int = 4096) -> Iterator[str]:
    """Each word as often as it counts, in strings of at most about `batch` words: the trainers take no weights."""
    pieces: list[str] = []
    size = 0
    for word, count in counts.scaled(MAX_WORDS, MAX_SYMBOLS):
        while count:
            n = min(count, batch - size)
            pieces.append((word + _SEPARATOR) * n)
            count, size = count - n, size + n
            if size == batch:
                yield "".join(pieces)
                pieces, size = [], 0
    if pieces:
        yield "".join(pieces)


def _choose_alphabet(counts: WordCounts, comfortable: int, coverage: float = 0.9995) -> list[str]:
    """The characters a WordPiece or Unigram vocabulary holds; words with any other are taken out of `counts`.

    All of them, if they are at most `comfortable` many; otherwise the most frequent ones that cover `coverage` of the
    text (a web-scale English corpus has thousands of stray Han characters and signs, each seen a few times).
    """
    characters: Counter[str] = Counter()
    for word, count in counts.words.items():
        for character in word:
            characters[character] += count
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    if len(ranked) > comfortable:
        enough = coverage * characters.total()
        covered, kept = 0, 0
        while kept < len(ranked) and (covered < enough or kept < comfortable):
            covered, kept = covered + ranked[kept][1], kept + 1
        if kept < len(ranked):
            log.warning(
                "tokenizer: %d of %d characters, the rarest, are left to [UNK] (%.3f%% of the text)",
                len(ranked) - kept, len(ranked), 100 * (1 - covered / characters.total()),
            )  # fmt: skip
        ranked = ranked[:kept]
        known = {character for character, _ in ranked}
        counts.words = Counter({word: count for word, count in counts.words.items() if known.issuperset(word)})
    return sorted(character for character, _ in ranked)


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=list(EXTRA),
        clean_up_tokenization_spaces=False,
        # A plain encoder takes no token types, and ModernBERT refuses them.
        model_input_names=["input_ids", "attention_mask"],
        **ROLES,
    )
    set_framing(tokenizer, "encoder")
    return tokenizer


def _wordpiece_alphabet(words: Iterable[str]) -> int:
    """Each character, and each once more as `##c` when it ever continues a word."""
    first, rest = set[str](), set[str]()
    for word in words:
        first.update(word)
        rest.update(word[1:])
    return len(first) + len(rest)


def _metaspace(scheme: str) -> Any:
    """A space becomes ▁ at the head of what it leads; words, runs of punctuation and line breaks are pieces apart."""
    pieces = pre_tokenizers.Split(Regex(r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s"), "isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.Metaspace(prepend_scheme=scheme)])


# A mask stands for a token with the space before it, as in training: "a [MASK]" has no lone space (as in RoBERTa).
_ADDED: Final = [AddedToken(token, special=True, lstrip=token == ROLES["mask_token"]) for token in SPECIALS]
_COMMON: Final[dict[str, Any]] = {"special_tokens": _ADDED, "show_progress": False}

_ALGORITHMS: Final[dict[str, _Algorithm]] = {
    "bpe": _Algorithm(
        model=models.BPE,
        trainer=lambda size, _: trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **_COMMON
        ),
        normalizer=lambda lowercase: normalizers.Lowercase() if lowercase else None,
        pre_tokenizer=lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        count=lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel,
        alphabet=lambda _: 256,
    ),
    "wordpiece": _Algorithm(
        model=lambda: models.WordPiece(unk_token="[UNK]"),
        trainer=lambda size, alphabet: trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, initial_alphabet=alphabet, **_COMMON
        ),
        normalizer=lambda lowercase: normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer,
        count=pre_tokenizers.BertPreTokenizer,
        decoder=lambda: decoders.WordPiece(cleanup=False),
        alphabet=_wordpiece_alphabet,
    ),
    "unigram": _Algorithm(
        model=models.Unigram,
        trainer=lambda size, alphabet: trainers.UnigramTrainer(
            vocab_size=size, initial_alphabet=sorted({*alphabet, _SPACE}), unk_token="[UNK]", **_COMMON
        ),
        normalizer=lambda lowercase: normalizers.Lowercase() if lowercase else None,
        pre_tokenizer=lambda: _metaspace("first"),
        count=lambda: _metaspace("never"),
        decoder=lambda: decoders.Metaspace(prepend_scheme="first"),
        alphabet=lambda words: len({_SPACE}.union(*words)),
        bytes_per_word=1800,  # suffix array and lattices
    ),
}
