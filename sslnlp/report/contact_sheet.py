"""A contact sheet: some captions, and the pictures that lie nearest to each, as one PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sslnlp.arrays import Ints, Vectors
from sslnlp.data.pictured import PictureRows
from sslnlp.pictures import decode, whole
from sslnlp.rng import uniform

CAPTIONS, BEST = 10, 5
"""Rows and columns."""
SIDE, GAP, WORDS = 96, 10, 250
"""Pixels: of a picture, between two, and of the column of captions."""
OWN, INK, PAPER = (0, 150, 70), (30, 35, 40), (255, 255, 255)
_LETTERS, _LINES, _SIZE = 36, 4, 13
_FRAME = 4


class Line(NamedTuple):
    """One caption and what it finds; pictures are given by their place among the rows."""

    caption: str
    best: list[int]
    own: set[int]
    """The pictures that the caption belongs to."""
    place: int
    """Of the nearest of these among all, from 1; what is as near counts as nearer."""


def contact_sheet(
    rows: PictureRows, captions: Sequence[Sequence[str]], picture_ND: Vectors, texts: Callable[[Sequence[str]], Vectors]
) -> tuple[bytes, list[tuple[str, int]]]:
    """A PNG, and its captions from the top with the place of their own picture.

    `captions` and `picture_ND` are of `rows`; `texts` turns captions into vectors. The captions are drawn by what their
    pictures hold, so that two models on the same pictures are shown with the same ones.
    """
    lines = found(rows.extra["picture"], captions, picture_ND, texts)
    return draw(lines, rows), [(line.caption, line.place) for line in lines]


def found(
    hash_N: Ints, captions: Sequence[Sequence[str]], picture_ND: Vectors, texts: Callable[[Sequence[str]], Vectors]
) -> list[Line]:
    """At most ten different captions, of different pictures, with the five pictures nearest to each. Equal pictures are
    one."""
    different = np.sort(np.unique(hash_N, return_index=True)[1])
    drawn_N2 = uniform(0, "contact sheet", hash_N, 2)
    drawn: dict[str, str] = {}
    for n in sorted((n for n in different.tolist() if captions[n]), key=lambda n: drawn_N2[n, 0]):
        caption = captions[n][int(drawn_N2[n, 1] * len(captions[n]))]
        drawn.setdefault(_same(caption), caption)
    said = list(drawn.values())[:CAPTIONS]
    owners: dict[str, set[int]] = {}
    where = {int(hash_N[n]): n for n in different.tolist()}
    for n, some in enumerate(captions):
        for caption in some:
            owners.setdefault(_same(caption), set()).add(where[int(hash_N[n])])
    lines = []
    for caption, vector_D in zip(said, texts(said), strict=True):
        similarity = dict(zip(different.tolist(), (picture_ND[different] @ vector_D).tolist(), strict=True))
        own = owners[_same(caption)]
        nearest = max(similarity[n] for n in own)
        place = 1 + sum(value >= nearest for n, value in similarity.items() if n not in own)
        best = sorted(similarity, key=lambda n: -similarity[n])[:BEST]
        lines.append(Line(caption, best, own, place))
    return lines


def draw(lines: Sequence[Line], rows: PictureRows) -> bytes:
    """A row for each line: the caption and the place of its own picture, then the best ones, the own in a frame."""
    width = 2 * GAP + WORDS + BEST * (SIDE + GAP)
    sheet = Image.new("RGB", (width, GAP + len(lines) * (SIDE + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    for n, line in enumerate(lines):
        top = box(n, 0)[1]
        # Letters of the East are twice as wide.
        letters = _LETTERS // (2 if any(ord(letter) > 0x2E7F for letter in line.caption) else 1)
        words = textwrap.wrap(line.caption, letters, max_lines=_LINES, placeholder=" …") or [""]
        pen.multiline_text((GAP, top), "\n".join(words), INK, _font_of(line.caption) or font)
        pen.text((GAP, top + SIDE - 16), f"its own: place {line.place}", OWN, font)
        for column, at in enumerate(line.best):
            left, top, right, bottom = box(n, column)
            pixels = whole(decode(rows.rows([at])[0]["image"], size=SIDE), SIDE)
            if at in line.own:
                edge = (left - _FRAME, top - _FRAME, right + _FRAME - 1, bottom + _FRAME - 1)
                pen.rectangle(edge, fill=OWN)
            sheet.paste(Image.fromarray(pixels), (left, top))
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _font_of(caption: str) -> ImageFont.FreeTypeFont | None:
    """A font that has the letters of a caption: Pillow's own has those of English. None where none is found."""
    if caption.isascii():
        return None
    try:
        from matplotlib.font_manager import FontProperties, findfont, fontManager
        from matplotlib.ft2font import FT2Font
    except ImportError:  # an extra; without it the letters that are missing show as boxes
        return None
    letters = {ord(letter) for letter in caption if not letter.isspace()}
    usual = findfont(FontProperties())
    for path in dict.fromkeys([usual, *(font.fname for font in fontManager.ttflist)]):
        try:
            if letters <= FT2Font(path).get_charmap().keys():
                return ImageFont.truetype(path, _SIZE)
        except (OSError, RuntimeError):  # a font that one of the two cannot read
            continue
    return None


def box(line: int, column: int) -> tuple[int, int, int, int]:
    """Where the picture of a line and a column is drawn: left, top, right, bottom, in pixels."""
    left, top = 2 * GAP + WORDS + column * (SIDE + GAP), GAP + line * (SIDE + GAP)
    return left, top, left + SIDE, top + SIDE


def _same(caption: str) -> str:
    return caption.strip().lower()
