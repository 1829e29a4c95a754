"""Render the notebooks from their scripts, executed: `python notebooks/build.py [--check] [NAME ...]`.

The scripts are the truth. A rendered notebook carries the hash of the script it was made from; `--check` names those
that are missing or stale and exits with 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
KEY = "sslnlp_script_sha256"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def scripts() -> list[Path]:
    """The notebooks' scripts: every Python file here that has cells."""
    return [path for path in sorted(FOLDER.glob("*.py")) if re.search(r"^# %%", path.read_text("utf-8"), re.MULTILINE)]


def digest(script: Path) -> str:
    return hashlib.sha256(script.read_bytes()).hexdigest()


def stale() -> list[str]:
    """Names of scripts whose notebook is missing or was rendered from another version of the script."""
    import nbformat

    names = []
    for script in scripts():
        rendered = script.with_suffix(".ipynb")
        if not rendered.is_file() or nbformat.read(rendered, as_version=4).metadata.get(KEY) != digest(script):
            names.append(script.stem)
    return names


def render(script: Path) -> Path:
    """Execute a script's cells in an empty folder and write the notebook beside the script."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(script)
    with tempfile.TemporaryDirectory() as folder:
        # The kernel starts in an empty folder, so the package must be found from there too.
        paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
        client.execute(env=environment)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"  # random otherwise: every rendering would change the file
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _readable(cell.outputs)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], KEY: digest(script)}
    target = script.with_suffix(".ipynb")
    nbformat.write(notebook, target)
    return target


def _readable(outputs: list[Any]) -> list[Any]:
    """Results and what was printed; progress and warnings on stderr say nothing to a reader. Colours are dropped."""
    kept = [o for o in outputs if not (o.output_type == "stream" and o.name == "stderr")]
    for output in kept:
        if output.output_type == "stream":
            output.text = _COLOURS.sub("", output.text)
        elif "data" in output:
            output.data = {"text/plain": _COLOURS.sub("", output.data.get("text/plain", ""))}
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="scripts to render (default: those that are stale)")
    parser.add_argument("--check", action="store_true", help="only say which notebooks are stale")
    arguments = parser.parse_args()
    if arguments.check:
        for name in (names := stale()):
            print(f"stale: notebooks/{name}.ipynb; run python notebooks/build.py {name}")
        return 1 if names else 0
    for name in arguments.names or stale():
        print(f"rendered {render(FOLDER / f'{name}.py').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
