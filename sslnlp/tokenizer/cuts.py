"""Where a text may be cut so that its parts, tokenised one by one, give the ids of the whole.

A tokenizer that looks at one pre-token at a time is blind to everything beyond it, so a cut between two pre-tokens
changes nothing. For pre-tokenizers it knows, a `Cutter` finds such places in a block of UTF-8 by table look-ups alone:
each character has a class, and three neighbouring classes say whether to cut before the middle one. Cuts are a
subset of the pre-tokenizer's: where a rule would need more than its neighbours (contractions, white space outside
ASCII, characters that the normaliser splits or joins), nothing is cut.

The class of a character is asked of the tokenizer's own normaliser and pre-tokenizer, so that no other version of
Unicode has a say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from sslnlp.arrays import Bools, Bytes, Ints
from sslnlp.tokenizer.junctions import Junctions

SEPARATOR: Final = 0xFF
"""Stands before each text of a block and after the last: a byte that UTF-8 never uses."""

END, LETTER, NUMBER, SPACE, BLANK, QUOTE, OTHER, UNSURE = range(8)
UNSEEN: Final = 255
_TEXT = (LETTER, NUMBER, QUOTE, OTHER)
_WHITE = (SPACE, BLANK)
# Of the character on the right a rule knows only whether it is a letter, other text, or anything else: two bits.
_AS_RIGHT = np.zeros(8, np.uint8)
_AS_RIGHT[LETTER], _AS_RIGHT[[NUMBER, QUOTE, OTHER]] = 1 << 6, 2 << 6

Rule = Callable[[int, int, int], bool]

WORDS: Final = r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s"
"""How our Unigram tokenizers split, before `Metaspace`."""
_LEADS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_RESTS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPACED: Final = (_LEADS + "{1,3}" + _RESTS, _LEADS + _RESTS)
"""How Llama 3 and Qwen split, before `ByteLevel`."""


def _byte_level(left: int, this: int, right: int) -> bool:
    r"""GPT-2: `'s|'t|...| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`."""
    if this in _WHITE:  # the last of a run stands apart from those before it, and a space leads what follows
        return left in _TEXT or right in _TEXT
    if this == UNSURE or left in (UNSURE, SPACE):
        return False
    if left == BLANK:
        return True
    if left == QUOTE and this == LETTER:
        return False
    return left != this and {left, this} != {QUOTE, OTHER}


def _words(left: int, this: int, right: int) -> bool:
    """`WORDS`: every white space begins a piece, and only a space is joined to what follows."""
    if this in _WHITE:
        return True
    if this == UNSURE or left in (UNSURE, SPACE):
        return False
    return left == BLANK or (left != this and {left, this} != {QUOTE, OTHER})


def _spaced(left: int, this: int, right: int) -> bool:
    """`_SPACED`: no match holds a space behind anything but white space, and a letter takes the space before it."""
    return this == SPACE and left in _TEXT and right == LETTER


def _bert(left: int, this: int, right: int) -> bool:
    """White space is lost, punctuation and Han characters stand alone; a space goes with the word it leads."""
    return this in (OTHER, *_WHITE) or left in (OTHER, BLANK)


def _before_spaces(left: int, this: int, right: int) -> bool:
    """`Metaspace` alone."""
    return this == SPACE


Pieces = Callable[[str], list[str]]
"""A short text's pre-tokens, after normalisation."""


def _of_runs(*runs: tuple[int, str]) -> Callable[[Pieces, str], int]:
    """For pre-tokenizers of runs: the class with which a character makes one run, here between two examples."""

    def classify(pieces: Pieces, character: str) -> int:
        for kind, one in runs:
            if len(pieces(f"{one}{character}{one}")) == 1:
                return QUOTE if character == "'" and kind == OTHER else kind
        if not character.isascii():
            return UNSURE
        return SPACE if character == " " else BLANK

    return classify


def _by_space(pieces: Pieces, character: str) -> int:
    if character == " ":
        return SPACE
    return LETTER if len(pieces(f"a{character}a")) == 1 else UNSURE


def _of_bert(pieces: Pieces, character: str) -> int:
    found = pieces(f"a{character}a")
    if len(found) == 1:
        return LETTER
    if found[0] != "a" or found[-1] != "a":
        return UNSURE
    return OTHER if len(found) > 2 else SPACE if character == " " else BLANK


def _by_blanks(pieces: Pieces, character: str) -> int:
    if pieces(f"a{character}a") != ["a", "a"]:
        return LETTER
    return SPACE if character == " " else BLANK


_CLASSES: Final[dict[Rule, Callable[[Pieces, str], int]]] = {
    _byte_level: _of_runs((LETTER, "a"), (NUMBER, "1"), (OTHER, "!")),
    _spaced: _of_runs((LETTER, "a"), (NUMBER, "1"), (OTHER, "!")),
    _words: _of_runs((LETTER, "a"), (OTHER, "!")),  # digits and letters make one run
    _before_spaces: _by_space,
    _bert: _of_bert,
}


_PIECES: Final[dict[Rule, tuple[tuple[int, ...], tuple[int, ...]]]] = {
    _byte_level: ((LETTER, NUMBER, OTHER, SPACE, BLANK),) * 2,
    _spaced: ((LETTER, SPACE), (LETTER,)),  # signs go with the letters after them or not, digits by threes
}
"""Rules over `ByteLevel`: with which classes a chunk begins and goes on that is one pre-token for certain."""


class Cutter:
    """Cuts for one tokenizer; made by `of`.

    Args:
        backend: the tokenizer whose normaliser and pre-tokenizer are asked about characters.
        rule, classify: of its pre-tokenizer.
        foreign: what characters outside ASCII are: asked for (True) or never cut at (False), as for normalisers that
            compose characters.
        glued: see the attribute.
        junctions: where cuts inside a run of characters outside ASCII are harmless too.
    """

    def __init__(
        self,
        backend: Tokenizer,
        rule: Rule,
        classify: Callable[[str], int],
        *,
        foreign: bool,
        glued: bool,
        junctions: Junctions | None,
    ) -> None:
        self.glued = glued
        """A text's first part keeps the separator before it: it is tokenised in another way than the others."""
        self._normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
        self._classify, self._foreign, self._junctions = classify, foreign, junctions
        first, rest = _PIECES.get(rule, ((), ()))
        self.spells_bytes = rule in _PIECES
        """The model sees the bytes of text, spelt as `ByteLevel` does."""
        self._first, self._rest = np.isin(np.arange(8), first), np.isin(np.arange(8), rest)
        self._classes = np.full(0x110000, UNSEEN, np.uint8)
        self._stable = np.zeros(0x110000, np.bool_)
        of_byte = np.full(256, UNSURE, np.uint8)
        of_byte[:128] = [classify(chr(byte)) for byte in range(128)]
        if not foreign:  # a stroke behind them (U+0338) may be composed with them, to what BERT counts among letters
            of_byte[list(b"<=>")] = UNSURE
        of_byte[SEPARATOR] = END
        self._of_byte = (of_byte | _AS_RIGHT[of_byte]).tobytes()
        triples = np.zeros(256, np.uint8)
        for seen, left, this in np.ndindex(3, 8, 8):
            here = not glued if left == END else rule(left, this, (END, LETTER, OTHER)[seen])
            triples[seen << 6 | left << 3 | this] = this == END or here
        self._rule = triples.tobytes()

    @classmethod
    def of(cls, backend: Tokenizer, facts: dict[str, Any]) -> Cutter | str:
        """The cutter of a tokenizer, or why it has none. `facts` are what `tokenizer.json` says of the backend."""
        rule, glued = _known(facts["pre_tokenizer"])
        if rule is None:
            return f"pre-tokenizer {_name(facts['pre_tokenizer'])}"
        foreign = _normal(facts["normalizer"], by_character=rule is _bert)
        if foreign is None:
            return f"normaliser {_name(facts['normalizer'])}"
        model = facts["model"]
        if model["type"] not in ("BPE", "WordPiece", "Unigram", "WordLevel") or model.get("dropout"):
            return f"model {model['type']}" + (" with dropout" if model.get("dropout") else "")
        classes = _by_blanks if facts["pre_tokenizer"]["type"].startswith("Whitespace") else _CLASSES[rule]
        normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
        pre_tokenize = backend.pre_tokenizer.pre_tokenize_str

        def classify(character: str) -> int:
            return classes(lambda text: [piece for piece, _ in pre_tokenize(normalize(text))], character)

        junctions = Junctions.of(facts) if rule in _PIECES and foreign else None
        return cls(backend, rule, classify, foreign=foreign, glued=glued, junctions=junctions)

    def cuts(self, block: Bytes) -> tuple[Bools, Bytes]:
        """bool [n]: cut before this byte; and the class of each byte, uint8 [n].

        `block` is UTF-8 with a `SEPARATOR` before each text and after the last; at the first and the last byte, which
        have one neighbour, the answer is True and False.
        """
        classes = np.frombuffer(bytearray(block).translate(self._of_byte), np.uint8)
        lead = np.flatnonzero(block >= 0xC0)
        lead = lead[block[lead] != SEPARATOR]
        inner = self._read_foreign(block, classes, lead) if len(lead) else None
        code = classes & 7
        code[1:] |= code[:-1].copy() << 3
        code[:-1] |= classes[1:] & 0xC0
        cuts = np.frombuffer(bytearray(code).translate(self._rule), np.bool_)
        if len(lead):
            cuts &= (block & 0xC0) != 0x80
        if inner is not None:
            cuts[inner] = True
        cuts[0], cuts[-1] = True, False
        classes &= 7
        return cuts, classes

    def single(self, block: Bytes, starts: Ints) -> Bools:
        """bool [n]: which of the chunks in `block`, none empty, are one pre-token for certain.

        `block` has a `SEPARATOR` before each and after the last; `starts` [n] are the places behind those.
        """
        _, classes = self.cuts(block)
        fits = self._rest[classes]
        fits[starts - 1] = True
        fits[starts] = self._first[classes[starts]]
        found: Bools = np.logical_and.reduceat(fits, starts - 1)
        return found

    def _read_foreign(self, block: Bytes, classes: Bytes, lead: Ints) -> Ints | None:
        """Fills in the classes of characters outside ASCII; the places of harmless cuts inside their runs."""
        if not self._foreign:
            return None
        points, lengths = _code_points(block, lead)
        kinds = self._classes[points]
        if (kinds == UNSEEN).any():
            new = np.unique(points[kinds == UNSEEN])
            characters = [chr(point) for point in new.tolist()]
            self._classes[new] = [self._classify(character) for character in characters]
            self._stable[new] = [self._normalize(character) == character for character in characters]
            kinds = self._classes[points]
        for n in range(4):
            classes[(lead + n)[lengths > n]] = kinds[lengths > n] | _AS_RIGHT[kinds[lengths > n]]
        if self._junctions is None:
            return None
        run = (lead[1:] == lead[:-1] + lengths[:-1]) & (kinds[1:] == kinds[:-1]) & self._rest[kinds[1:]]
        run &= self._stable[points[1:]] & self._stable[points[:-1]]
        second = np.flatnonzero(run) + 1
        harmless = self._junctions.harmless(points[second - 1], points[second])
        inner: Ints = lead[second[harmless]]
        return inner


def _code_points(block: Bytes, lead: Ints) -> tuple[Ints, Bytes]:
    """The characters that begin at `lead` (valid UTF-8, not ASCII), and their lengths in bytes."""
    first = block[lead].astype(np.int64)
    lengths = (2 + (first >= 0xE0) + (first >= 0xF0)).astype(np.uint8)
    last = len(block) - 1
    points = first & np.array([0, 0, 0x1F, 0x0F, 0x07])[lengths]
    for n in range(1, 4):
        follows = block[np.minimum(lead + n, last)]
        points = np.where(lengths > n, points << 6 | (follows & 0x3F), points)
    return points, lengths


def _known(facts: dict[str, Any] | None) -> tuple[Rule | None, bool]:
    """The rule of a pre-tokenizer, and whether a text's first part is tokenised in its own way."""
    match facts:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return _byte_level, False
        case {"type": "BertPreTokenizer"} | {"type": "WhitespaceSplit"} | {"type": "Whitespace"}:
            return _bert, False
        case {"type": "Metaspace", "split": True, "prepend_scheme": scheme}:
            return _before_spaces, scheme != "never"
        case {"type": "Sequence", "pretokenizers": [{"type": "Split"} as split, {"type": "Metaspace"} as spaces]}:
            if _isolates(split, WORDS) and spaces["split"] and spaces["prepend_scheme"] in ("first", "never"):
                return _words, spaces["prepend_scheme"] == "first"
        case {"type": "Sequence", "pretokenizers": [{"type": "Split"} as split, {"type": "ByteLevel"} as spelt]}:
            plain = not spelt["add_prefix_space"] and not spelt["use_regex"]
            if plain and any(_isolates(split, pattern) for pattern in _SPACED):
                return _spaced, False
    return None, False


def _isolates(split: dict[str, Any], pattern: str) -> bool:
    return split["pattern"] == {"Regex": pattern} and split["behavior"] == "Isolated" and not split["invert"]


def _normal(facts: dict[str, Any] | None, *, by_character: bool) -> bool | None:
    """Whether characters outside ASCII may be classed one by one; None for a normaliser that is not known."""
    match facts:
        case None | {"type": "Lowercase"}:
            return True
        case {"type": "BertNormalizer"}:
            # Marks are reordered, but only inside what is never cut; tabs become spaces, which others keep.
            return True if by_character else None
        case {"type": "NFC"} | {"type": "NFD"} | {"type": "NFKC"} | {"type": "NFKD"} | {"type": "StripAccents"}:
            return False
        case {"type": "Sequence", "normalizers": parts}:
            found = [_normal(part, by_character=by_character) for part in parts]
            return None if None in found else all(found)
    return None


def _name(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return "none"
    parts = facts.get("pretokenizers") or facts.get("normalizers") or []
    return str(facts["type"]) + (f"[{', '.join(_name(part) for part in parts)}]" if parts else "")
