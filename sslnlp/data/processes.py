"""A large corpus read and tokenised by several processes of one machine, each its share of the documents (`dealing`).

They are fresh interpreters, not forks: a fork of a process that has threads (torch, tokenizers) may hang. A process
says on its standard output, a JSON line each, how many documents it has read, what it warns of, and what is wrong.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import sslnlp
from sslnlp.data.config import DataConfig
from sslnlp.data.dealing import Shard, read_share
from sslnlp.data.sources import Source, open_part
from sslnlp.errors import UserError
from sslnlp.writing import room_in

log = logging.getLogger(__name__)

PROCESS_BYTES = 256 << 20
"""Of files for each process. Less is not read sooner: each has its imports, and meets most of the words anew."""
MOST = 16
"""Processes that are started unasked, each of about 0.6 GiB."""


def processes_of(config: DataConfig, source: Source) -> int:
    """How many processes read the source: `data.processes`, else as many as there are cores and enough files for."""
    if config.processes is not None:
        return config.processes
    if source.hub or config.limit is not None:  # how much is read is not known
        return 1
    from sslnlp.distributed import own_cores  # with torch, which those that only read do without

    size = sum(file.stat().st_size for files in source.files.values() for file in files)
    return max(1, min(own_cores(), MOST, size // PROCESS_BYTES))


def read_in_processes(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    of: int,
    *,
    fingerprint: str,
    cache_dir: str | Path,
    advance: Callable[[int], None],
) -> list[Path]:
    """Read `data.train` in `of` processes, each share into a folder below `folder`; returns these folders.

    Raises `UserError` for what is wrong with the data, and when a process is killed; what was read is kept, and the
    next call with the same `of` goes on from there.
    """
    work = {"data": asdict(config), "cache_dir": str(cache_dir), "fingerprint": fingerprint}
    (folder / "work.json").write_text(json.dumps(work))
    (folder / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    shards = [Shard(number, of) for number in range(1, of + 1)]
    warned: set[str] = set()

    def follow(shard: Shard, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            told: dict[str, Any] = json.loads(line)
            advance(told.get("read", 0))
            if "error" in told:
                raise UserError(told["error"])
            if (warning := told.get("warning")) is not None and warning not in warned:
                warned.add(warning)
                log.warning("%s", warning)
        if process.wait() < 0:
            raise UserError(
                f"the process that reads share {shard.number}/{of} of the text was killed (signal {-process.returncode}"
                "): if memory is short, choose fewer with data.processes=N; what was read is kept"
            )
        if process.returncode:
            raise RuntimeError(f"the process that reads share {shard.number}/{of} of the text failed: see above")

    running = [_start(folder, shard) for shard in shards]
    try:
        with ThreadPoolExecutor(of) as pool:
            try:
                for done in as_completed([pool.submit(follow, *one) for one in zip(shards, running, strict=True)]):
                    done.result()
            finally:
                for process in running:
                    process.terminate()
    finally:
        for process in running:
            with process:
                pass
    return [folder / str(shard) for shard in shards]


def _start(folder: Path, shard: Shard) -> subprocess.Popen[str]:
    from sslnlp.distributed import own_cores

    threads = str(max(1, own_cores() // shard.of))
    root = str(Path(sslnlp.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    command = "from sslnlp.data.processes import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, str(folder), str(shard.number), str(shard.of)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip


# --- inside such a process -------------------------------------------------------------------------------------------


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _tell(warning=record.getMessage())


def main() -> None:
    """Read one share: FOLDER NUMBER OF."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("sslnlp").addHandler(_Told(logging.WARNING))
    folder, shard = Path(sys.argv[1]), Shard(int(sys.argv[2]), int(sys.argv[3]))
    work = json.loads((folder / "work.json").read_text())
    config = DataConfig(**work["data"])
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    try:
        with room_in(folder.parent.parent):
            source = open_part(config, "train", work["cache_dir"])
            read_share(
                config, source, shard, tokenizer, folder / str(shard),
                fingerprint=work["fingerprint"], advance=lambda n: _tell(read=n),
            )  # fmt: skip
    except UserError as error:
        _tell(error=str(error))
    except BrokenPipeError:  # the parent is gone
        os._exit(1)


def _end_with_parent() -> None:
    """A parent that is killed closes our standard input, of which nothing is read. What we wrote on would stand among
    what the process of the next run writes into the same files."""
    os.read(0, 1)
    os._exit(1)


def _tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)
