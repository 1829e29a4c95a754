"""What the pages show runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from sslnlp.collators import COLLATORS, get_collator
from sslnlp.objectives import OBJECTIVES, get_objective
from sslnlp.recipe.schema import options_of, public_keys
from tests.contract import corpus, small_tokenizer

DOCS = Path(__file__).parents[1] / "docs"


def test_the_loop_of_the_page_on_concepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small_tokenizer().save_pretrained("out/bert/export")
    Path("corpus.txt").write_text("\n".join(corpus()[:60]))
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


def test_every_key_and_option_stands_on_a_page() -> None:
    """A command tells its options itself, `--help`; what recipes take, nobody tells but the pages."""
    measured = {"log.md", "results.md", "speed.md"}  # a command there repeats a measurement and explains nothing
    pages = [DOCS.parent / "README.md", *(page for page in DOCS.rglob("*.md") if page.name not in measured)]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    keys = set(public_keys())
    keys |= {f"collator.{option}" for name in COLLATORS for option in options_of(get_collator(name))}
    keys |= {f"objective.{option}" for name in OBJECTIVES for option in options_of(get_objective(name))}
    # `collator.rate`, or `rate_end` behind it; `documents=N`, as `sslnlp report` takes what is `report.documents` here.
    told = {key for key in keys if key in text or re.search(rf"[`\s.]{key.partition('.')[2] or key}[`=]", text)}
    assert keys == told


def _headings(page: Path) -> set[str]:
    """What a link may name behind `#`, as GitHub makes it of a heading."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ +(.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", line.strip().lower()).replace(" ", "-") for line in shown}


@pytest.mark.parametrize("page", [*sorted(DOCS.parent.glob("*.md")), *sorted(DOCS.rglob("*.md"))], ids=lambda p: p.stem)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not heading or heading in _headings(target), link
