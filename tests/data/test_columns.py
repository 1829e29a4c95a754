from __future__ import annotations

import pytest

from sslnlp.data import open_source
from sslnlp.errors import UserError


def test_a_csv_of_semicolons_is_read_as_excel_writes_it(tmp_path):
    rows = ["\ufefftext;label;cost", "Well, yes;1;0,37", '"a; b";2;1,5', ""]
    (path := tmp_path / "a.csv").write_bytes("\r\n".join(rows).encode())
    source = open_source(str(path), cache=str(tmp_path / "cache"))
    assert source.table()[:] == {"text": ["Well, yes", "a; b"], "label": [1, 2], "cost": ["0,37", "1,5"]}
    assert list(source.documents()) == ["Well, yes", "a; b"]
    (other := tmp_path / "b.csv").write_text('cost,label,text\n"1,2",3,no\n')
    both = open_source([str(path), str(other)], cache=str(tmp_path / "cache"))
    assert both.table()["text"] == list(both.documents()) == ["Well, yes", "a; b", "no"]
    other.write_text('text,"cost;EUR"\nno,1\n')  # a comma is there, and counts
    assert open_source(str(other), cache=str(tmp_path / "cache")).table()[0] == {"text": "no", "cost;EUR": 1}


def test_a_text_that_pandas_left_out_is_empty(tmp_path):
    (path := tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"text": NaN}\n')
    assert list(open_source(str(path)).documents()) == ["x", ""]


def test_a_text_in_capitals_is_found_where_nothing_else_is_the_text(tmp_path):
    (path := tmp_path / "a.csv").write_text("Text ,Title,note\nx,t,n\n")
    assert list(open_source(str(path)).documents()) == ["x"]
    path.write_text("Text,TEXT,note\nx,t,n\n")
    with pytest.raises(UserError, match=r"Text, TEXT, note; say data\.text=NAME"):
        list(open_source(str(path)).documents())


def test_loose_semicolons_are_told_what_separates(tmp_path):
    (path := tmp_path / "a.csv").write_text("text;label\nOh; yes;1\n")
    with pytest.raises(UserError, match=r"more values in its first row.*separate columns by ';'"):
        list(open_source(str(path)).documents())
