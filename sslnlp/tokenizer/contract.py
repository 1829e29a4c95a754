"""The tokenizer contract: what a tokenizer can do, measured on text, before anything trains on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.errors import UserError, suggest
from sslnlp.tokenizer.specials import FIM, MODES, drawable_ids, special_id, special_mask, spelling
from sslnlp.tokenizer.words import character_class, word_boundaries

ADVICE: Final[dict[str, str]] = {
    "mask": "it has no mask token; train one with `sslnlp tokenizer`, or set mask_token in its tokenizer_config.json",
    "pad": "it has no padding token; set pad_token in its tokenizer_config.json",
    "pad_is_not_eos": "its padding token is its end-of-text token; give it a pad_token of its own",
    "specials_excluded": "special ids turn up in plain text or among the ids drawn as replacements; "
    "flag its added tokens special",
    "word_starts": "word starts cannot be told from its ids; use unit=token, or another tokenizer",
    "exact_round_trip": "decoding does not give back the text; train one with algorithm bpe or bytes, "
    "and without lowercase",
    "bos": "it has no token that opens a document (bos, or eos in its place); "
    "set bos_token in its tokenizer_config.json",
    "eos": "it has no end-of-text token; set eos_token in its tokenizer_config.json",
    "cls_sep": "it has no cls and sep tokens; set them, or use a tokenizer trained with `sslnlp tokenizer`",
    "sentinels": "it has no <extra_id_0>, <extra_id_1>, ... tokens; train one with `sslnlp tokenizer`",
    "modes": "it has no [NLU], [NLG] and [S2S] tokens; train one with `sslnlp tokenizer`",
    "fim": "it has no <|fim_prefix|>, <|fim_middle|> and <|fim_suffix|> tokens; train one with `sslnlp tokenizer`",
}
"""Each fact of the contract, and what to do where it does not hold."""

WORD_START_AGREEMENT: Final = 0.98
"""Share of tokens whose word start, read off the id, must agree with the text for `word_starts` to hold."""


@dataclass(frozen=True)
class Contract:
    """What holds of a tokenizer, measured on sample texts by `contract`."""

    facts: dict[str, bool]
    """Yes or no for each key of `ADVICE`."""
    figures: dict[str, float]
    """`vocab_size`; `bytes_per_token` and `fertility` (tokens per word; a Han character is a word), without framing;
    `unknown_rate` and `word_start_agreement`, shares of tokens."""

    def to_dict(self) -> dict[str, Any]:
        return {"facts": dict(self.facts), "figures": dict(self.figures)}

    def table(self) -> str:
        """The facts and figures, one a line."""
        facts = [f"{name:<22}{'yes' if held else 'NO   ' + ADVICE[name]}" for name, held in self.facts.items()]
        figures = [f"{name:<22}{value:,.4g}" for name, value in self.figures.items() if name != "vocab_size"]
        return "\n".join([*facts, f"{'vocab_size':<22}{self.figures['vocab_size']:,.0f}", *figures])

    def require(self, names: Iterable[str]) -> None:
        """Raises `UserError` naming the first of `names` that does not hold, and the fix."""
        for name in names:
            if name not in self.facts:
                raise UserError(f"unknown fact {name!r} of a tokenizer contract.{suggest(name, self.facts)}")
            if not self.facts[name]:
                raise UserError(f"the tokenizer does not keep {name!r}: {ADVICE[name]}")


def contract(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Contract:
    """Measures the contract of a fast tokenizer on `texts` (some hundred lines of the corpus are plenty).

    Round trip, word starts, unknown and special ids are observed by encoding and decoding `texts`, not read from the
    tokenizer's settings. Raises `UserError` when there is no text to measure on.
    """
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError("the tokenizer contract needs some text to measure on, and got none")
    # As training text is encoded: a literal "[MASK]" in a document is ordinary text, not a hole.
    with spelling():
        encoded = tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
    ids = [np.array(row, dtype=np.int64) for row in encoded["input_ids"]]
    words = [_word_starts(text) for text in texts]
    tokens = max(1, sum(map(len, ids)))
    unknown = special_id(tokenizer, "unk")
    agreement = _agreement(tokenizer, ids, texts, encoded["offset_mapping"], words)
    figures = {
        "vocab_size": float(len(tokenizer)),
        "bytes_per_token": sum(len(text.encode("utf-8", "replace")) for text in texts) / tokens,
        "fertility": tokens / max(1, sum(map(len, words))),
        "unknown_rate": _unknown(ids, texts, encoded["offset_mapping"], unknown) if unknown is not None else 0.0,
        "word_start_agreement": agreement,
    }
    facts = vocabulary_facts(tokenizer) | {
        "specials_excluded": _specials_excluded(tokenizer, ids),
        "word_starts": agreement >= WORD_START_AGREEMENT,
        "exact_round_trip": all(tokenizer.decode(row) == text for row, text in zip(ids, texts, strict=True)),
    }
    return Contract({name: facts[name] for name in ADVICE}, figures)


def vocabulary_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """The facts of the contract that its vocabulary tells, without any text."""
    has = {role: special_id(tokenizer, role) is not None for role in ("mask", "pad", "bos", "eos", "cls", "sep")}
    vocabulary = tokenizer.get_vocab().keys()
    return {
        "mask": has["mask"],
        "pad": has["pad"],
        "pad_is_not_eos": has["pad"] and special_id(tokenizer, "pad") != special_id(tokenizer, "eos"),
        "bos": has["bos"] or has["eos"],
        "eos": has["eos"],
        "cls_sep": has["cls"] and has["sep"],
        "sentinels": {"<extra_id_0>", "<extra_id_1>"} <= vocabulary,
        "modes": set(MODES) <= vocabulary,
        "fim": set(FIM) <= vocabulary,
    }


def _unknown(ids: Sequence[np.ndarray[Any, Any]], texts: Sequence[str], offsets: Sequence[Any], unknown: int) -> float:
    """The share of the characters, white space aside, that the unknown token stands for: it may be a letter or, of
    WordPiece and a script without spaces, a whole clause."""
    lost = (
        len("".join(text[start:end].split()))
        for row, text, places in zip(ids, texts, offsets, strict=True)
        for start, end in (places[i] for i in np.flatnonzero(row == unknown))
    )
    return sum(lost) / max(1, sum(len("".join(text.split())) for text in texts))


def _specials_excluded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Nothing special among the drawable ids, and nothing but [UNK] in plain text."""
    special = special_mask(tokenizer)
    drawable = drawable_ids(tokenizer)
    if not len(drawable) or special[drawable].any():
        return False
    if (unknown := special_id(tokenizer, "unk")) is not None:
        special[unknown] = False
    return not any(special[row].any() for row in ids)


def _word_starts(text: str) -> set[int]:
    """Where words start in `text`, character by character: the reference the ids are compared with."""
    starts: set[int] = set()
    before = "space"
    for i, character in enumerate(text):
        kind = character_class(character)
        if kind in ("mark", "spaceless") or (kind == "word" and before != "word"):
            starts.add(i)
        before = kind
    return starts


def _agreement(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[np.ndarray[Any, Any]],
    texts: Sequence[str],
    offsets: Sequence[Sequence[tuple[int, int]]],
    words: Sequence[set[int]],
) -> float:
    """Share of tokens for which `word_boundaries` (ids alone) and the offsets into the text say the same."""
    boundaries = word_boundaries(tokenizer)
    used: set[int] = set().union(*(row.tolist() for row in ids))
    blank = {token for token in used if not tokenizer.decode([token]).strip()}
    agree = total = 0
    for row, text, spans, starts in zip(ids, texts, offsets, words, strict=True):
        if not len(row):
            continue
        claimed = boundaries.starts(row[None])[0].tolist()
        reached = 0  # a token that begins inside a character another has begun starts nothing
        led = False  # a lone ▁ or Ġ starts the word that follows it
        for token, claim, (begin, end) in zip(row.tolist(), claimed, spans, strict=True):
            if token in blank:
                led = claim
                continue
            while begin < end and text[begin].isspace():
                begin += 1
            agree += (claim or led) == (begin in starts and begin >= reached)
            total += 1
            reached, led = end, False
    return agree / total if total else 0.0
