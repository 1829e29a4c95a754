"""The piece of a document that shows why it was found."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import NamedTuple

from sslnlp.search.analysis import Analyzer, Term


class Snippet(NamedTuple):
    """A piece of text and the character spans [start, end) in it that match the query."""

    text: str
    matches: list[tuple[int, int]]


def snippet(text: str, query: str, analyzer: Analyzer, width: int = 240) -> Snippet:
    """At most about `width` characters of `text` around the most different terms of `query`, cut between words.

    Without a match (a dense result need not share a word) the text's beginning.
    """
    text = unicodedata.normalize("NFC", text)  # as the analyzer compares words
    wanted = set(analyzer.terms(query))
    found = [term for term in analyzer.located(text) if term.term in wanted]
    if not found:
        start, end = 0, _word_end(text, width)
    else:
        first, last = _densest(found, width)
        # What is left of the width goes in front and behind evenly, so the match is read in its sentence.
        spare = max(0, width - (last.end - first.start)) // 2
        start = _word_start(text, min(first.start, max(0, min(first.start - spare, len(text) - width))))
        end = _word_end(text, max(last.end, start + width))
    lead, trail = "… " if start > 0 else "", " …" if end < len(text) else ""
    piece = printable(text[start:end])
    shift = len(lead) - start
    matches = [(term.start + shift, term.end + shift) for term in found if start <= term.start and term.end <= end]
    return Snippet(lead + piece + trail, matches)


def pieces(found: Snippet) -> list[tuple[str, bool]]:
    """The text in pieces, each marked or not. Matches that overlap (pairs of Chinese characters do) become one."""
    cut: list[tuple[str, bool]] = []
    done = 0
    for start, end in sorted(found.matches):
        if start > done:
            cut.append((found.text[done:start], False))
        if cut and cut[-1][1] and start <= done:
            cut[-1] = (cut[-1][0] + found.text[done:end], True)
        else:
            cut.append((found.text[start:end], True))
        done = max(done, end)
    return [*cut, (found.text[done:], False)] if done < len(found.text) else cut


def printable(text: str) -> str:
    """`text` safe for a terminal: each line break, control character or half of a surrogate pair becomes one space,
    so offsets stay and a document cannot move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _densest(found: list[Term], width: int) -> tuple[Term, Term]:
    """First and last term of the window of `width` characters with the most different terms (then the most)."""
    inside: Counter[str] = Counter()
    best, winner, left = (0, 0), (found[0], found[0]), 0
    for right, term in enumerate(found):
        inside[term.term] += 1
        while term.end - found[left].start > width and left < right:
            inside[found[left].term] -= 1
            inside += Counter()  # drops the terms that fell to zero
            left += 1
        score = (len(inside), right - left + 1)
        if score > best:
            best, winner = score, (found[left], term)
    return winner


def _word_start(text: str, at: int) -> int:
    if at <= 0 or not (text[at - 1].isalnum() and text[at].isalnum()):
        return max(0, at)
    blank = text.rfind(" ", max(0, at - 30), at)
    return blank + 1 if blank >= 0 else at


def _word_end(text: str, at: int) -> int:
    if at >= len(text):
        return len(text)
    blank = text.find(" ", at, at + 30)
    return blank if blank >= 0 else at
