"""What prediction reads and writes, row by row, and where it computes: no model is needed to know."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sslnlp.distributed import own_device
from sslnlp.errors import UserError
from sslnlp.predict_rows import rows_of
from sslnlp.report.answers import answer_sections


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder: name a file"),
        ("a.txt.gz", r"predict reads \.txt, \.csv"),
        ("a.csv.zst", r"predict reads \.txt, \.csv"),
        ("b.csv", "there is no file"),
    ],
)
def test_what_is_no_file_of_texts_is_one_clear_line(tmp_path: Path, name: str, message: str) -> None:
    for there in ("a.txt.gz", "a.csv.zst"):
        (tmp_path / there).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        list(rows_of(tmp_path / name, None, None, {}))


def test_a_line_of_json_may_lack_what_others_have(tmp_path: Path) -> None:
    data = tmp_path / "new.jsonl"
    lines = [{"n": 1}, {"text": "the sea"}, *({"id": n, "text": "a leaf"} for n in range(20)), {"n": 2}, {"text": "."}]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in (None, "text"):
        assert [row["text"] for row in rows_of(data, name, None, {})] == [str(line.get("text", "")) for line in lines]
    data.write_text('{"n": 1}\n{"m": 2}\n')
    with pytest.raises(UserError, match="It has n, m; say --text NAME"):
        list(rows_of(data, None, None, {}))


def test_an_id_is_copied_whatever_kind_it_is(tmp_path: Path) -> None:
    """pandas writes the whole numbers of a column that lacks one as floats."""
    ids = (7, 7.0, math.nan, None, "007", 0.5, True, ["a"])
    data = tmp_path / "new.jsonl"
    data.write_text("".join(json.dumps({"id": name, "text": "the sea"}) + "\n" for name in ids))
    copied = [row["id"] for row in rows_of(data, None, None, {})]
    assert copied == ["7", "7", "", "", "007", "0.5", "True", "['a']"]


def test_a_text_with_ends_of_lines_of_its_own_is_one_answer(tmp_path: Path) -> None:
    text = "a rose\u2028is\x85a rose"
    line = json.dumps({"text": text, "label": "red", "predicted": "blue"}, ensure_ascii=False)
    (tmp_path / "held_out.jsonl").write_text(line + "\n", encoding="utf-8")
    [section] = answer_sections("run", tmp_path)
    assert section.tables[0].rows == [["blue", 0, 0], ["red", 1, 0]]


def test_what_keeps_training_from_a_gpu_keeps_everything_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for flag, kind in (("true", "cpu"), ("false", "cuda")):
        monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
        assert own_device().type == kind
