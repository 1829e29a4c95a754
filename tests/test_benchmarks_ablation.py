"""The ablation in miniature: every technique is measured alone and in the stack, on work that is the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import ablation
from benchmarks.ablation import PAIRED, TECHNIQUES, Variant, documents, pairs, same_losses

SIZES = {"layers": 1, "width": 64, "vocabulary": 128, "length": 16, "batch": 4, "batches": 2}


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_every_technique_has_its_ratios(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(ablation, "warn_if_slower", lambda *_: 9.0)
    sizes = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]
    ablation.main([kind, *sizes, "--rounds", "2", "--steps", "1", "--warmup", "1", "--out", str(tmp_path / "found")])
    story = json.loads((tmp_path / "found.json").read_text())
    expected = {*TECHNIQUES, *PAIRED} - {"bf16", "compile"} - ({"targets", "last"} if kind == "causal" else set())
    assert set(story["gains"]) == expected
    for line in story["gains"].values():
        assert all(low <= ratio <= high for clock in ("wall", "cpu") for ratio, low, high in line[clock].values())
        assert line["pays"] == (line["cpu"]["stack"][1] > 1)
    assert all(len(rounds) == 2 for rounds in story["rounds"].values())


def test_alone_and_in_the_stack_differ_by_the_technique_only() -> None:
    found = pairs("masked", half=True, compiled=True)
    for name in TECHNIQUES:
        plain, alone, without, stack = found[name]
        assert alone.on - plain.on == stack.on - without.on == {name}
        assert plain.on == ({"targets", "dropout"} if name == "last" else set())
        assert stack.on == set(TECHNIQUES)
    for name in PAIRED:
        plain, alone, without, stack = found[name]
        assert plain != alone
        assert without != stack
        assert plain.on | {"compile"} == alone.on | {"compile"}


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_packed_documents_are_the_padded_ones(kind: str) -> None:
    made = documents(kind, SIZES | {"batch": 9})
    rows = {name: sum(len(batch["input_ids"]) for batch in batches) for name, batches in made.items()}
    assert rows["packed"] < rows["padded"]
    for padded, packed in zip(made["padded"], made["packed"], strict=True):
        for name in ("input_ids", "labels", "position_ids"):
            values = [batch[name][batch["document_ids"] >= 0].sort().values for batch in (padded, packed)]
            assert torch.equal(*values)
        texts = [
            sorted(tuple(row[own == d].tolist()) for row, own in rows for d in range(int(own.max()) + 1))
            for rows in (list(zip(b["input_ids"], b["document_ids"], strict=True)) for b in (padded, packed))
        ]
        assert texts[0] == texts[1]


def test_other_losses_end_the_run() -> None:
    stack, without = Variant(frozenset({"dropout", "chunks"})), Variant(frozenset({"dropout"}))
    assert len(same_losses({stack: [5.0, 4.0], without: [5.0, 4.001]})) == 2
    with pytest.raises(SystemExit, match="did not do the same work"):
        same_losses({stack: [5.0, 4.0], without: [5.0, 4.2]})
    # Dropout makes a loss of its own, and other rows are other work.
    same_losses({stack: [5.0, 4.0], Variant(frozenset()): [5.0, 4.2], Variant(stack.on, "packed"): [7.0, 6.0]})
