"""How the columns of a table are found: by what they are usually called, in its first rows."""

from __future__ import annotations

HEAD_ROWS = 16
"""Of a table that are looked at for its text: few, because they are held and a row may be a book."""
TEXT_PAIRS = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
)
"""Usual names of two texts that have one label together."""
