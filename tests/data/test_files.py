"""What is looked at of paths and patterns before anything reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslnlp.data.files import check_there
from sslnlp.errors import UserError


def test_an_empty_file_is_refused_unless_it_is_a_document_among_others(tmp_path: Path) -> None:
    for name, content in {"a.txt": "words", "none.txt": "", "none.csv": "", "none.png": ""}.items():
        (tmp_path / name).write_text(content)
    one, none, table = (str(tmp_path / name) for name in ("a.txt", "none.txt", "none.csv"))
    check_there(one, [one, none], f"{tmp_path}/*.txt", str(tmp_path), "owner/name", None)
    check_there(f"{tmp_path}/*.png")  # whether pictures are read, only the collator knows
    for empty in (none, [none], table, [one, table]):
        with pytest.raises(UserError, match=r"none\.(txt|csv) is empty"):
            check_there(one, empty)
