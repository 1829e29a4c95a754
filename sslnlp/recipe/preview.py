"""`sslnlp preview`: the rows as they are, as the model will see them, and what it must say, with the measured rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sslnlp.recipe.build import Parts, build_parts, resolve
from sslnlp.recipe.rows import cut_short
from sslnlp.recipe.schema import Recipe
from sslnlp.tokenizer.words import token_spelling
from sslnlp.types import Batch, Row

_CHANGED, _KEPT, _SEEN, _FRAME = "bold red", "underline green", "cyan", "dim"

# Anything that holds `input_ids` is text, `labels` beside it are targets, what has one number a row or a place is a
# label. No objective is known by name here: a new one is previewed by the names of its batch.


def preview(recipe: Recipe, *, rows: int = 4, console: Console | None = None) -> None:
    """Print the first `rows` rows of the run as a table: the original, each input, and its targets."""
    console = console or Console()
    parts = build_parts(resolve(recipe)[0])
    drawn = parts.stream.rows(range(rows))
    batch = parts.collator(drawn)
    title = f"{recipe.name}: {recipe.objective.name} on {parts.collator.name} rows"
    table = Table(title=escape(title), show_lines=True)
    table.add_column("row", justify="right")
    columns = [*_original(drawn, batch, parts), *_columns(batch, rows, parts)]
    for name, _ in columns:
        table.add_column(name, overflow="fold")
    for b in range(rows):
        table.add_row(str(b), *(cells[b] for _, cells in columns))
    console.print(table)
    for line in (*_rates(batch, drawn, classes=parts.label_names is not None), *cut_short(parts)):
        console.print(line, highlight=False)
    legend = Text("read→target", _CHANGED), "hidden or replaced;", Text("target", _KEPT), "read as it is, scored;"
    console.print(*legend, Text("seen", _SEEN), "seen from the whole text, also from before.")


def _original(drawn: list[Row], batch: Batch, parts: Parts) -> Iterator[tuple[str, list[Text]]]:
    """The text before the collator, where the collator changes its length or order (elsewhere the targets show it)."""
    if "input_ids" not in drawn[0]:
        return
    width = batch["input_ids"].shape[1] if "input_ids" in batch else 0
    aligned = "labels" in batch and batch["labels"].shape == (len(drawn), len(drawn[0]["input_ids"]))
    if width and aligned and not parts.collator.reserve:
        return
    yield "the text", [_pieces(row["input_ids"], row.get("document_ids"), parts.tokenizer) for row in drawn]


def _columns(batch: Mapping[str, Any], rows: int, parts: Parts, title: str = "") -> Iterator[tuple[str, list[Text]]]:
    tokenizer, labels, names = parts.tokenizer, batch.get("labels"), parts.label_names
    if "input_ids" in batch:
        per_token = labels if labels is not None and _aligned(batch) else None
        yield (
            f"{title}what the model reads",
            [_row(batch, b, per_token, tokenizer, shifted=parts.collator.shifted, names=names) for b in range(rows)],
        )
    if isinstance(pixels := batch.get("pixel_values"), Tensor):
        yield f"{title}picture", [_picture(batch, pixels, b) for b in range(rows)]
    if labels is not None and "decoder_document_ids" in batch:
        documents = batch["decoder_document_ids"]
        yield f"{title}what it must write", [_pieces(labels[b], documents[b], tokenizer, _KEPT) for b in range(rows)]
    for name, value in batch.items():
        # The batch of one of several objectives; what holds no tokens itself holds views.
        if isinstance(value, Mapping) and ("labels" in value or "input_ids" not in value):
            yield from _columns(value, rows, parts, f"{name}: ")
        elif isinstance(value, Mapping) and "input_ids" in value:
            yield title + name, [_group(value, b, rows, tokenizer) for b in range(rows)]
        elif name.endswith("_labels") and f"{name.removesuffix('_labels')}_index" in batch:
            kind = name.removesuffix("_labels")
            yield f"{title}{kind}", list(_per_document(batch, kind, rows))
    if labels is not None and labels.ndim == 1:
        yield "label", [Text(names[c] if names else str(c), _KEPT) for c in labels.tolist()]
    elif labels is not None and names and labels.is_floating_point():  # several classes a row
        marked = [[name for name, mark in zip(names, row, strict=True) if mark] for row in labels.tolist()]
        yield "label", [Text(", ".join(said) or "–", _KEPT) for said in marked]


def _picture(batch: Mapping[str, Any], pixel_BCHW: Tensor, b: int) -> Text:
    """What is known of a picture: a terminal shows no pixels."""
    shown = f"{pixel_BCHW.shape[2]} × {pixel_BCHW.shape[3]} pixels"
    if (masked := batch.get("masked")) is not None:
        shown += f", {int(masked[b].sum())} of {masked.shape[1]} patches hidden"
    return Text(shown)


def _aligned(batch: Mapping[str, Any]) -> bool:
    """Whether the labels stand at the tokens they belong to."""
    labels = batch["labels"]
    there = "decoder_document_ids" not in batch and not labels.is_floating_point()  # marks of classes are no tokens
    return there and labels.shape == batch["input_ids"].shape


def _per_document(batch: Mapping[str, Any], kind: str, rows: int) -> Iterator[Text]:
    """The labels of the documents of each row, in their order."""
    width = batch["input_ids"].shape[1]
    row = (batch[f"{kind}_index"] // width).tolist()
    values = batch[f"{kind}_labels"].tolist()
    for b in range(rows):
        yield Text(" ".join(str(value) for r, value in zip(row, values, strict=True) if r == b) or "–", _KEPT)


def _group(encoding: Mapping[str, Tensor], b: int, rows: int, tokenizer: PreTrainedTokenizerBase) -> Text:
    each = encoding["input_ids"].shape[0] // rows  # several negatives a row
    return Text("\n").join(_row(encoding, b * each + i, None, tokenizer) for i in range(each))


def _row(
    encoding: Mapping[str, Any],
    b: int,
    labels: Tensor | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shifted: bool = False,
    names: list[str] | None = None,
) -> Text:
    ids, mask = encoding["input_ids"][b].tolist(), encoding["attention_mask"][b].bool().tolist()
    documents = encoding["document_ids"][b].tolist() if "document_ids" in encoding else [0] * len(ids)
    targets = labels[b].tolist() if labels is not None else [-100] * len(ids)
    seen = encoding["bidirectional"][b].tolist() if "bidirectional" in encoding else [False] * len(ids)
    pieces: list[tuple[str, str]] = []
    for s, (token, real) in enumerate(zip(ids, mask, strict=True)):
        if not real:
            continue
        if s and documents[s] != documents[s - 1]:
            pieces.append((" ¦ ", _FRAME))
        shown, style = _token(token, targets[s], tokenizer, names)
        pieces.append((shown, _SEEN if seen[s] and shifted and targets[s] == -100 else style))
    if padding := mask.count(False):
        pieces.append((f" (+{padding} padding)", _FRAME))
    return _joined(pieces)


def _pieces(ids: Any, documents: Any, tokenizer: PreTrainedTokenizerBase, style: str = "") -> Text:
    """Tokens, document by document."""
    pieces: list[tuple[str, str]] = []
    places = documents.tolist() if documents is not None else [0] * len(ids)
    for s, token in enumerate(ids.tolist()):
        if places[s] < 0:
            continue
        if s and places[s] != places[s - 1]:
            pieces.append((" ¦ ", _FRAME))
        pieces.append((_spelled(token, tokenizer), _FRAME if token in tokenizer.all_special_ids else style))
    return _joined(pieces)


def _token(
    token: int, target: int, tokenizer: PreTrainedTokenizerBase, names: list[str] | None = None
) -> tuple[str, str]:
    """A token and its target (another token, or the class of that number among `names`), and its style."""
    shown = _spelled(token, tokenizer)
    if target == -100:
        return shown, _FRAME if token in tokenizer.all_special_ids else ""
    if names is not None:
        return f"{shown}→{names[target]} ", _KEPT
    if target == token:
        return shown, _KEPT
    return f"{shown}→{_spelled(target, tokenizer).strip()} ", _CHANGED


def _joined(pieces: list[tuple[str, str]]) -> Text:
    """Pieces and their styles as one text, in which what tokens have of a letter is that letter again; `\\xe4` where
    the others of its bytes are elsewhere."""
    text = Text()
    for style, same in groupby(pieces, key=lambda piece: piece[1]):
        whole = "".join(piece for piece, _ in same).encode("utf-8", "surrogateescape")
        text.append(whole.decode("utf-8", "backslashreplace"), style)
    return text


_spelling = cache(token_spelling)


def _spelled(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """One token with the space before it, for every tokenizer kind (a lone `decode` strips it). Bytes of a letter whose
    others are in another token are surrogates, as `surrogateescape` has it."""
    piece, text = str(tokenizer.convert_ids_to_tokens(token)), str(tokenizer.decode([token]))
    if "\ufffd" in text and (spell := _spelling(tokenizer)) is not None:
        return spell(piece).decode("utf-8", "surrogateescape").replace("\n", "⏎")
    if piece.startswith("##"):
        return text.removeprefix("##")
    wordpiece = type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"
    spaced = wordpiece or piece.startswith(("Ġ", "▁"))
    return (" " + text.strip() if spaced else text).replace("\n", "⏎")


# --- the measured rates ----------------------------------------------------------------------------------------------


def _rates(batch: Mapping[str, Any], drawn: list[Row], title: str = "", classes: bool = False) -> Iterator[str]:
    labels = batch.get("labels")
    by_token = labels is not None and labels.ndim == 2 and not labels.is_floating_point()
    if labels is not None and by_token and "attention_mask" in batch:
        real, scored = int(batch["attention_mask"].sum()), int((labels != -100).sum())
        source = sum(int((row["document_ids"] >= 0).sum()) for row in drawn) if "document_ids" in drawn[0] else real
        if "decoder_document_ids" in batch:
            padding = 1 - (real + scored) / (batch["input_ids"].numel() + labels.numel())
            yield (
                f"{title}{source} tokens of text: {real} are read ({100 * real / source:.1f} %), "
                f"{scored} written ({100 * scored / source:.1f} %); {100 * padding:.1f} % of the batch is padding."
            )
        else:
            yield f"{title}{scored} of {real} tokens are targets ({100 * scored / real:.1f} %)."
        if _aligned(batch) and scored > 0 and not classes:
            changed = int(((labels != -100) & (labels != batch["input_ids"])).sum())
            if changed:
                yield f"{title}{changed} of the targets are hidden or replaced ({100 * changed / scored:.1f} %)."
    for name, value in batch.items():
        if isinstance(value, Mapping) and "labels" in value:
            yield from _rates(value, drawn, f"{name}: ", classes)
        elif name.endswith("_labels") and isinstance(value, Tensor) and value.ndim == 1 and value.numel():
            kind = name.removesuffix("_labels")
            shares = ", ".join(f"{c}: {int(n)}" for c, n in enumerate(value.bincount().tolist()))
            yield f"{title}{kind}: {value.numel()} documents have a target ({shares})."
