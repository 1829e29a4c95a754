"""The race to equal quality: its runs are told apart, and a folder of them is not mixed with others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality


def run_line(side: str, bits: list[float], **job: Any) -> dict[str, Any]:
    curve = [{"step": n, "wall": 10.0 * n, "cpu": 10.0 * n, "bits_per_byte": b} for n, b in enumerate(bits, 1)]
    shared = {"train": "t", "valid": "v", "size": "tiny", "budget": "60s", "tuned": True, "lr": 1e-3, "batch": 4}
    return {
        "name": side, "side": side, "seed": 0, "job": {**shared, "length": 2.0, **job}, "curve": curve,
        "bits_per_byte": bits[-1], "wall": 10.0, "cpu": 10.0, "tokens": 1000,
    }  # fmt: skip


def folder_of(tmp_path: Path, *lines: dict[str, Any]) -> argparse.Namespace:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return argparse.Namespace(
        out=tmp_path, train="t", valid="v", size="tiny", budget="60s", seeds=[0], peers=["defaults"], vocabulary=300
    )


def test_a_peer_that_never_was_as_good_is_told_from_one_that_was(tmp_path: Path) -> None:
    asked = folder_of(tmp_path, run_line("ours", [2.0]), run_line("peer", [3.0, 2.5, 2.1]))
    quality.show(asked)
    summary = json.loads((tmp_path / "quality.json").read_text())["summary"]["tuned"]
    assert summary["ratio"][0] == 3.0
    assert (summary["seeds"], summary["seeds_not_reached"]) == (1, 1)
    with (tmp_path / "quality.jsonl").open("a") as file:
        file.write(json.dumps(run_line("peer", [2.2, 2.0])) + "\n")
    quality.show(asked)
    summary = json.loads((tmp_path / "quality.json").read_text())["summary"]["tuned"]
    assert summary["ratio"][0] == 2.0
    assert (summary["seeds"], summary["seeds_not_reached"]) == (1, 0)


def test_a_race_is_held_with_what_was_tuned_and_run_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = folder_of(tmp_path, run_line("ours", [2.0]))
    monkeypatch.setattr(quality, "run_side", lambda *_: pytest.fail("a run was begun"))
    with pytest.raises(SystemExit, match=r"first: python -m benchmarks\.quality tune"):
        quality.race(asked)
    assert quality.our_run(asked, 0)["bits_per_byte"] == 2.0
    asked.budget = "45s"
    with pytest.raises(SystemExit, match="holds a run with budget 60s: give the same, or another folder"):
        quality.our_run(asked, 0)


def test_a_run_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the run of nobody failed"):
        quality.run_side("nobody", {"out": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
