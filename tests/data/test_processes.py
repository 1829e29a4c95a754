"""Several processes that read make the store of one, byte for byte; what goes wrong in one of them is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sslnlp import distributed
from sslnlp.data import DataConfig, prepare_text, processes, sources
from sslnlp.errors import UserError
from tests.data.test_prepare import TEXTS, write
from tests.data.test_shards import MANY, files_of, several


def test_processes_make_the_store_of_one(tiny, tmp_path):
    spec = several(tmp_path / "texts", MANY, 12)
    alone = prepare_text(DataConfig(train=spec, valid_fraction=0.1), tiny, cache_dir=tmp_path / "one")
    config = DataConfig(train=spec, valid_fraction=0.1, processes=2)
    got = prepare_text(config, tiny, cache_dir=tmp_path / "several")
    assert got.train.path.parent.name == alone.train.path.parent.name  # found by a run with another number
    assert files_of(got.train.path.parent) == files_of(alone.train.path.parent)


def test_as_many_as_there_are_cores_and_files_for(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PROCESS_BYTES", 1000)
    monkeypatch.setattr(distributed, "own_cores", lambda: 4)
    source = sources.open_source(write(tmp_path / "a.txt", ["x" * 2500]))
    assert processes.processes_of(DataConfig(train="a.txt"), source) == 2
    assert processes.processes_of(DataConfig(train="a.txt", processes=7), source) == 7
    assert processes.processes_of(DataConfig(train="a.txt", limit=2), source) == 1
    monkeypatch.setattr(distributed, "own_cores", lambda: 1)
    assert processes.processes_of(DataConfig(train="a.txt"), source) == 1


def test_what_one_says_of_the_data_is_one_error(tiny, tmp_path):
    spec = write(tmp_path / "a.jsonl", TEXTS)
    with open(spec, "a", encoding="utf-8") as file:
        file.write('{"text": "cut off\n')
    with pytest.raises(UserError, match=r"a\.jsonl"):
        prepare_text(DataConfig(train=spec, processes=2), tiny, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("text-*"))


def test_a_killed_one_and_one_that_fails_are_told(tiny, tmp_path, monkeypatch, capfd):
    ends = {1: "import time; time.sleep(60)", 2: "import os; os.kill(os.getpid(), 9)"}

    def start(folder, shard) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", ends[shard.number]], stdout=subprocess.PIPE, encoding="utf-8")

    monkeypatch.setattr(processes, "_start", start)
    config = DataConfig(train=write(tmp_path / "a.txt", TEXTS), processes=2)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"share 2/2 .* killed \(signal 9\).* data.processes=N"):
        prepare_text(config, tiny, cache_dir=tmp_path / "cache")
    ends[2] = "raise ValueError('a defect of ours')"
    with pytest.raises(RuntimeError, match=r"share 2/2 of the text failed: see above"):
        prepare_text(config, tiny, cache_dir=tmp_path / "cache")
    assert "a defect of ours" in capfd.readouterr().err
    assert time.monotonic() - began < 50  # the other one is not waited for


@pytest.mark.slow
def test_a_full_disk_in_one_of_them_is_one_line_that_names_the_cache(tiny, tmp_path, monkeypatch, capfd):
    """A limit on the size of a file stands for the disk."""
    resource = pytest.importorskip("resource")
    start = processes._start

    def limited(folder, shard) -> subprocess.Popen[str]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            return start(folder, shard)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(processes, "_start", limited)
    config = DataConfig(train=several(tmp_path / "texts", MANY, 12), processes=2)
    with pytest.raises(UserError, match=f"cannot write to {tmp_path / 'cache'}: no space is left"):
        prepare_text(config, tiny, cache_dir=tmp_path / "cache")
    assert "Traceback" not in capfd.readouterr().err
    monkeypatch.undo()
    assert len(prepare_text(config, tiny, cache_dir=tmp_path / "cache").train) > 100


def test_one_whose_parent_is_killed_ends_wherever_it_is(tiny, tmp_path):
    """It would write into the files of the next run, until it next says how far it is. And it has no need of torch."""
    reads = "import sys, time; from sslnlp.data import processes as p; "
    reads += "p.read_share = lambda *_, **__: (print('reads', 'torch' in sys.modules, flush=True), time.sleep(600))"
    work = {"data": {"train": write(tmp_path / "a.txt", TEXTS)}, "cache_dir": str(tmp_path), "fingerprint": "f"}
    (tmp_path / "work.json").write_text(json.dumps(work))
    (tmp_path / "tokenizer.json").write_text(tiny.backend_tokenizer.to_str(), encoding="utf-8")
    command = [sys.executable, "-c", f"{reads}; p.main()", str(tmp_path), "1", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"reads False\n"
            process.stdin.close()  # as the system does it when the parent is gone
            assert process.wait(60) == 1
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_one_is_gone_on_with(tiny, tmp_path, monkeypatch):
    spec = several(tmp_path / "texts", MANY, 12)
    config = DataConfig(train=spec, processes=2)
    whole = files_of(prepare_text(DataConfig(train=spec), tiny, cache_dir=tmp_path / "whole").train.path)
    started = processes._start

    def start(folder, shard) -> subprocess.Popen[str]:
        process = started(folder, shard)
        if shard.number == 2:
            done = folder / "1-of-2" / "pieces.npy"

            def kill() -> None:  # as soon as the other has finished its share, or before
                while not done.exists() and process.poll() is None:
                    time.sleep(0.01)
                process.kill()

            os.kill(process.pid, signal.SIGSTOP)
            threading.Thread(target=kill).start()
        return process

    monkeypatch.setattr(processes, "_start", start)
    with pytest.raises(UserError, match=r"share 2/2 .* killed \(signal 9\)"):
        prepare_text(config, tiny, cache_dir=tmp_path / "cut")
    (read,) = (tmp_path / "cut").glob(".text-*.building/read")
    before = (read / "1-of-2" / "pieces.npy").stat()
    begun: list[int] = []

    def once_more(folder, shard) -> subprocess.Popen[str]:
        begun.append((read / "1-of-2" / "pieces.npy").stat().st_mtime_ns)
        return started(folder, shard)

    monkeypatch.setattr(processes, "_start", once_more)
    assert files_of(prepare_text(config, tiny, cache_dir=tmp_path / "cut").train.path) == whole
    assert begun == [before.st_mtime_ns] * 2
