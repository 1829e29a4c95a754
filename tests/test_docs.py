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


WRITES = re.compile(r"(?<=\s)(?:out=|--out )(out/\w+)")


def test_the_examples_of_the_readme_read_what_stands_above_them() -> None:
    page = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## One example of each task\n+```bash\n(.*?)```", page, re.DOTALL)
    assert block is not None
    written: dict[str, str] = {}
    for line in block[1].splitlines():
        command = line.split("#")[0]
        makes = WRITES.findall(command)
        reads = {path for path in re.findall(r"out/\w+", command) if path not in makes}
        assert reads <= written.keys(), command
        written |= dict.fromkeys(makes, command)
        if " clip_image_text " in command:  # the recipe's own architecture has no pooler, and is refused
            assert all("model.architecture=bert" in written[path] for path in reads), command
    assert len(written) > 10


def test_the_readme_counts_the_notebooks() -> None:
    number = {2: "two", 3: "three", 4: "four"}[len(list((DOCS.parent / "notebooks").glob("*.ipynb")))]
    assert f"\n{number} [notebooks](notebooks)" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
