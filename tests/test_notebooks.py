"""Notebooks are rendered from scripts; a stale or broken one fails."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_build", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return load(FOLDER / "build.py")


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def test_there_is_a_notebook_for_each_script_and_none_is_stale(build: ModuleType) -> None:
    assert [script.stem for script in build.scripts()] == ["finetune_and_search", "picture_search", "pretrain"]
    assert build.stale() == []


def test_a_changed_script_makes_its_notebook_stale(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    script = tmp_path / "pretrain.py"
    script.write_text(script.read_text() + "\n# %%\n1 + 1\n")
    assert load(tmp_path / "build.py").stale() == ["pretrain"]
    (tmp_path / "finetune_and_search.ipynb").unlink()
    assert load(tmp_path / "build.py").stale() == ["finetune_and_search", "pretrain"]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_notebooks_were_executed_in_order_without_errors_and_are_small(path: Path) -> None:
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_code_of_a_notebook_is_that_of_its_script(path: Path) -> None:
    script = path.with_suffix(".py").read_text()
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]) in script
