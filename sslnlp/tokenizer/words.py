"""Where words start in a sequence of token ids, for any fast tokenizer.

Every id is looked at once, when the table is built: does its text begin with a space, which kind of character is
first, which is last. A block of ids then costs one table look-up and a comparison with the left neighbour; the
tokenizer, its post-processor and the text are not needed.

A word starts
- at a space (Ġ, ▁, white space; in WordPiece at every token without `##`),
- at each punctuation mark or symbol, which is a word of its own, and after it,
- at each character of a script without spaces (Han, kana, Thai, ...). A token of several such characters, as
  byte-level BPE and Unigram learn them, is one unit: its inside cannot be masked apart.
Letters, marks and digits run on (`GPT2`, `3rd` are one word), and the bytes of one character are never parted.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from sslnlp.arrays import Bools, Bytes, Ints
from sslnlp.errors import UserError
from sslnlp.scripts import SPACELESS
from sslnlp.tokenizer.specials import special_mask, vocabulary_size

ALWAYS: Final = 1
"""The token starts a word whatever stands before it."""
NEVER: Final = 2
"""The token goes on with a word whatever stands before it (`##ing`, the second byte of a character)."""
OPEN: Final = 4
"""The token ends inside a word: letters that follow without a space belong to it."""
INHERIT: Final = 8
"""The token is the rest of a character: whether it ends inside a word is known to the token that began it."""

_spaceless = re.compile(f"[{SPACELESS}]").match
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@functools.lru_cache(maxsize=4096)  # texts are few characters many times over
def character_class(character: str) -> str:
    """`space`, `word` (letters, accents, digits), `spaceless` (scripts without spaces) or `mark` (all the rest)."""
    if character.isspace():
        return "space"
    if unicodedata.category(character)[0] not in "LMN":
        return "mark"
    return "spaceless" if _spaceless(character) else "word"


@dataclass(frozen=True)
class WordBoundaries:
    """Word starts from a table of flags per id (`ALWAYS`, `NEVER`, `OPEN`, `INHERIT`): uint8 [V]."""

    flags: Bytes

    def starts(self, input_ids: Ints) -> Bools:
        """bool [..., S] for int64 `input_ids` [..., S]: this token is the first of a word.

        The first token of a row always is, and so is each special token and the token after it. Where documents meet
        without a special token, the caller adds the boundary.
        """
        flags = self.flags[input_ids]
        left = self._left(flags)
        starts: Bools = (flags & ALWAYS).astype(np.bool_)
        starts |= (flags & NEVER == 0) & (left & OPEN == 0)
        starts[..., :1] = True
        return starts

    def _left(self, flags: Bytes) -> Bytes:
        """The flags of the left neighbour, or, where that is the rest of a character, of the token that began it."""
        left = np.zeros_like(flags)
        left[..., 1:] = flags[..., :-1]
        if (flags & INHERIT).any():
            index = np.arange(flags.shape[-1])
            origin = np.maximum.accumulate(np.where(flags & INHERIT == 0, index, 0), axis=-1)
            left[..., 1:] = np.take_along_axis(flags, origin, axis=-1)[..., :-1]
        return left


def word_boundaries(tokenizer: PreTrainedTokenizerBase) -> WordBoundaries:
    """The table for a fast tokenizer: WordPiece, byte-level BPE, BPE or Unigram with ▁, or whole words. `UserError` for
    one that is not fast."""
    describe = _describer(tokenizer)
    flags = np.full(vocabulary_size(tokenizer), ALWAYS, dtype=np.uint8)
    added = tokenizer.added_tokens_decoder
    for token, i in tokenizer.get_vocab().items():
        # Added tokens are matched as they stand, whatever the model below would make of them.
        flags[i] = _flags(added[i].content.encode()) if i in added else describe(token)
    flags[special_mask(tokenizer)] = ALWAYS
    return WordBoundaries(flags)


def described(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a fast tokenizer says of its parts (its `tokenizer.json`); `UserError` for one written in Python."""
    if not tokenizer.is_fast:
        raise UserError(
            f"where words and sentences begin is read off a fast tokenizer, and {type(tokenizer).__name__} has no "
            "tokenizer.json; convert it or choose another"
        )
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return parts


def _describer(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """From a vocabulary entry to its flags, by what the tokenizer says of itself."""
    model = described(tokenizer)["model"]
    if model["type"] == "WordPiece":
        continuing = model["continuing_subword_prefix"]
        return lambda token: NEVER if token.startswith(continuing) else ALWAYS
    spelling = token_spelling(tokenizer)
    return (lambda token: _flags(spelling(token))) if spelling else lambda _: ALWAYS


def token_spelling(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes] | None:
    """From a vocabulary entry to the UTF-8 bytes it stands for, which may begin and end inside a character.

    None where the vocabulary does not say where spaces were (WordPiece, vocabularies of whole words).
    """
    backend = described(tokenizer)
    if backend["model"]["type"] == "WordPiece":
        return None
    kinds = {part["type"]: part for key in ("pre_tokenizer", "decoder") for part in _parts(backend[key])}
    if "ByteLevel" in kinds:
        inverse = {character: byte for byte, character in byte_characters().items()}
        return lambda token: bytes(inverse[c] for c in token) if all(c in inverse for c in token) else token.encode()
    space = kinds.get("Metaspace", {}).get("replacement", "▁")
    if "Metaspace" in kinds or any(token.startswith(space) for token in tokenizer.get_vocab()):
        return lambda token: _metaspace_bytes(token, space)
    return None


def _parts(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The members of a pre-tokenizer or decoder, sequences unrolled."""
    if component is None:
        return []
    members = component.get("pretokenizers") or component.get("decoders")
    return [part for member in members for part in _parts(member)] if members else [component]


def _metaspace_bytes(token: str, space: str) -> bytes:
    """The UTF-8 bytes of a ▁ token; `<0xE4>` is the byte it names."""
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(space, " ").encode()


def byte_characters() -> dict[int, str]:
    """Byte to printable character, the map of byte-level tokenizers (Radford et al., 2019).

    Printable Latin-1 bytes stand for themselves; the others are numbered upwards from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def _flags(raw: bytes) -> int:
    """Flags of a token from its UTF-8 bytes, which may begin and end inside a character."""
    body = raw.lstrip(bytes(range(0x80, 0xC0)))
    if not body:
        return NEVER | INHERIT
    text = complete_characters(body)
    last = OPEN if character_class(text[-1]) == "word" else 0
    if len(body) < len(raw):
        return NEVER | last
    if text == " ":
        return ALWAYS | OPEN  # a space that was not merged with the word it leads
    return last if character_class(text[0]) == "word" else ALWAYS | last


def complete_characters(body: bytes) -> str:
    """`body` as text, a character cut off at its end filled up to one of the same block (`E4 B8` is some Han sign)."""
    for filler in (b"\xa0", b"\xbf", b"\x80", b"\x90"):
        for n in range(4):
            try:
                text = (body + filler * n).decode()
            except UnicodeDecodeError:
                continue
            if n == 0 or not text[-1].isspace():
                return text
    return body.decode("utf-8", "replace")
