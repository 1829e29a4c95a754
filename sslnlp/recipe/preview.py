"""`sslnlp preview`: the rows as the model will see them, with the targets marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sslnlp.recipe.build import build_parts, resolve
from sslnlp.recipe.schema import Recipe
from sslnlp.types import Batch

_CHANGED, _KEPT, _FRAME = "bold red", "underline green", "dim"


def preview(recipe: Recipe, *, rows: int = 4, console: Console | None = None) -> None:
    """Print the first `rows` rows of the run as a table: each input, and its targets where they stand."""
    console = console or Console()
    parts = build_parts(resolve(recipe)[0])
    batch = parts.collator(parts.stream.rows(range(rows)))
    table = Table(title=f"{recipe.name}: {recipe.objective.name} on {parts.collator.name} rows", show_lines=True)
    table.add_column("row", justify="right")
    columns = list(_columns(batch, rows, parts.tokenizer, parts.label_names))
    for name, _ in columns:
        table.add_column(name, overflow="fold")
    for b in range(rows):
        table.add_row(str(b), *(cells[b] for _, cells in columns))
    console.print(table)
    if "labels" in batch and batch["labels"].ndim == 2:
        scored = (batch["labels"] != -100).sum()
        real = batch["attention_mask"].sum()
        console.print(f"{int(scored)} of {int(real)} tokens are targets ({100 * int(scored) / int(real):.1f} %).")
        legend = Text("read→target", _CHANGED), "hidden or replaced;", Text("target", _KEPT), "read as it is, scored."
        console.print(*legend)


def _columns(
    batch: Batch, rows: int, tokenizer: PreTrainedTokenizerBase, label_names: list[str] | None
) -> Iterator[tuple[str, list[Text]]]:
    # Anything that holds `input_ids` is text; what has one number a row is a label. No objective is known by name here.
    labels = batch.get("labels")
    if "input_ids" in batch:
        per_token = labels if labels is not None and labels.shape == batch["input_ids"].shape else None
        yield "what the model reads", [_row(batch, b, per_token, tokenizer) for b in range(rows)]
    for name, value in batch.items():
        if isinstance(value, Mapping) and "input_ids" in value:
            yield name, [_group(value, b, rows, tokenizer) for b in range(rows)]
    if labels is not None and labels.ndim == 1:
        names = [label_names[c] if label_names else str(c) for c in labels.tolist()]
        yield "label", [Text(name, _KEPT) for name in names]


def _group(encoding: Mapping[str, Tensor], b: int, rows: int, tokenizer: PreTrainedTokenizerBase) -> Text:
    each = encoding["input_ids"].shape[0] // rows  # several negatives a row
    return Text("\n").join(_row(encoding, b * each + i, None, tokenizer) for i in range(each))


def _row(encoding: Mapping[str, Any], b: int, labels: Tensor | None, tokenizer: PreTrainedTokenizerBase) -> Text:
    ids, mask = encoding["input_ids"][b].tolist(), encoding["attention_mask"][b].bool().tolist()
    documents = encoding["document_ids"][b].tolist() if "document_ids" in encoding else [0] * len(ids)
    targets = labels[b].tolist() if labels is not None else [-100] * len(ids)
    text = Text()
    for s, (token, real) in enumerate(zip(ids, mask, strict=True)):
        if not real:
            continue
        if s and documents[s] != documents[s - 1]:
            text.append(" ¦ ", _FRAME)
        text.append_text(_token(token, targets[s], tokenizer))
    if padding := mask.count(False):
        text.append(f" (+{padding} padding)", _FRAME)
    return text


def _token(token: int, target: int, tokenizer: PreTrainedTokenizerBase) -> Text:
    shown = _spelled(token, tokenizer)
    if target == -100:
        return Text(shown, _FRAME if token in tokenizer.all_special_ids else "")
    if target == token:
        return Text(shown, _KEPT)
    return Text(f"{shown}→{_spelled(target, tokenizer).strip()} ", _CHANGED)


def _spelled(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """One token with the space before it, for every tokenizer kind (a lone `decode` strips it)."""
    piece, text = str(tokenizer.convert_ids_to_tokens(token)), str(tokenizer.decode([token]))
    if piece.startswith("##"):
        return text.removeprefix("##")
    wordpiece = type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"
    spaced = wordpiece or piece.startswith(("Ġ", "▁"))
    return (" " + text.strip() if spaced else text).replace("\n", "⏎")
