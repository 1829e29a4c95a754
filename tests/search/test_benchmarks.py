"""The benchmarks of search, in miniature: they start, and measure what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import search_quality

ROOT = Path(__file__).resolve().parents[2]


def test_quality_of_a_collection(
    tmp_path: Path,
    corpus: Path,
    make_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus.rename(tmp_path / "cranfield")
    for fusion in ("scores", "ranks"):
        arguments = ["--model", str(make_encoder(tmp_path / fusion)), "--work", str(tmp_path / "work"), "--out"]
        arguments += [str(tmp_path / "out"), "--only", "cranfield", "--fusion", fusion]
        monkeypatch.setattr(sys, "argv", ["search_quality", str(tmp_path), *arguments])
        search_quality.main()
        assert "5 documents" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "cranfield.json").read_text())
    assert set(written["means"]) == {"bm25", "dense", "fused"}


def test_scale_of_a_small_index(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.search_scale", "2000", "--work", str(tmp_path / "work")]
    done = subprocess.run([*command, "--out", str(tmp_path / "scale.json")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "scale.json").read_text())
    assert "fused_exact" in json.dumps(found)
    assert "fused_ann" in json.dumps(found)
