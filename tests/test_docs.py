"""What the pages show runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from tests.contract import corpus, small_tokenizer

DOCS = Path(__file__).parents[1] / "docs"


def test_the_loop_of_the_page_on_concepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_tokenizer().save_pretrained("out/bert/export")
    Path("corpus.txt").write_text("\n".join(corpus()))
    code = re.search(r"```python\n(.*?)```", (DOCS / "concepts.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    assert names["step"] == len(names["loader"]) > 1  # type: ignore[arg-type]
    AutoModelForMaskedLM.from_pretrained("out/mine")
