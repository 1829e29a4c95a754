"""One run in a folder at a time, and a killed one keeps nobody out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sslnlp.errors import UserError
from sslnlp.locks import Held, exclusive
from sslnlp.recipe import load_recipe, run
from sslnlp.recipe.out import check_beforehand, sole
from sslnlp.recipe.tokenizing import make_tokenizer
from sslnlp.writing import replacing

pytest.importorskip("fcntl")

HOLDER = """
import os, sys, time
from pathlib import Path
from sslnlp.locks import exclusive
with exclusive(Path(sys.argv[1]), "working"):
    if not os.fork():
        print(os.getpid(), flush=True)  # said by the worker, which by then has let go
    time.sleep(600)
"""


def test_a_killed_holder_keeps_nobody_out_even_where_its_worker_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(Held, match=rf"another process \({holder.pid}\) is working"), exclusive(path, "working"):
            pass
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # still there
        assert path.is_file()
        with exclusive(path, "working"):
            assert path.read_text() == f"{os.getpid()}\n"
    finally:
        os.kill(worker, 9)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_turned_away_and_leaves_the_first_alone(resume: bool, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    if resume:
        out.mkdir(parents=True)
        (out / "recipe.json").write_text("{}")
    recipe = load_recipe("pretrain_bert", [f"data.train={tmp_path}/never-read.txt", f"out={out}"])
    with sole(out, str(out), main=True):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=rf"another process \({os.getpid()}\) is training in {out}"):
            run(recipe, resume=resume)
        assert sorted(tmp_path.rglob("*")) == before
    assert out.exists() == (tmp_path / "runs").exists() == resume


def test_who_trains_in_a_folder_is_said_by_the_lock_on_it(tmp_path: Path) -> None:
    """Not that it holds a run, which is looked at sooner."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    recipe = load_recipe("pretrain_bert", [f"out={tmp_path / 'run'}"])
    with sole(tmp_path / "run", "run", main=True):
        check_beforehand(recipe, resume=False)
    with pytest.raises(UserError, match="already holds a run"):
        check_beforehand(recipe, resume=False)


def test_all_processes_are_turned_away_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of them has the lock; the others are told what it found."""
    with sole(tmp_path / "run", "run", main=False):
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr("sslnlp.distributed.broadcast_number", lambda mine: 77.0)
    with (
        pytest.raises(Held, match=r"another process \(77\) is training in run"),
        sole(tmp_path / "run", "run", main=False),
    ):
        pass


def test_a_folder_that_takes_no_lock_is_left_to_the_checks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with sole(tmp_path / "file" / "run", "run", main=True):
        pass


def test_two_that_write_one_file_do_not_write_into_each_other(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    (tmp_path / "predictions.jsonl.tmp").write_text("half of what a killed one wrote")
    with replacing(path) as first:
        first.write("the first\n")
        first.flush()
        with pytest.raises(Held, match=rf"another process is writing {path}: wait for it"), replacing(path) as second:
            second.write("2")
        first.write("whole\n")
    assert path.read_text() == "the first\nwhole\n"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_save_one_tokenizer_do_not_save_into_each_other(tmp_path: Path) -> None:
    """Started together they end together: the second would rename what the first has half written."""
    text, out, begun = (
        tmp_path / "corpus.txt",
        tmp_path / "made" / "tokenizer",
        tmp_path / "made" / ".tokenizer.beginning",
    )
    text.write_text("a text to count the words of\n")
    begun.mkdir(parents=True)
    lock = out.with_name(".tokenizer.lock")
    with exclusive(lock, "writing"), pytest.raises(Held, match=rf"another process \({os.getpid()}\) is writing {out}"):
        make_tokenizer([str(text)], out, algorithm="bytes")
    assert list(out.parent.iterdir()) == [begun]
    make_tokenizer([str(text)], out, algorithm="bytes", console=Console(quiet=True))
    assert list(out.parent.iterdir()) == [out]
