"""The command line: its commands do their work, errors map to exit codes, help is quick."""

from __future__ import annotations

import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors.torch import load_file

from sslnlp import __version__, cli, distributed
from sslnlp.cli import run_command
from sslnlp.errors import UserError
from sslnlp.recipe import load_recipe, resolve
from sslnlp.recipe.build import build_parts
from sslnlp.recipe.preview import preview
from sslnlp.recipe.running import _progress
from tests.contract import corpus

ROOT = Path(__file__).resolve().parents[1]
TINY = ["model.size=nano", "train.steps=3", "train.batch_size=2", "tokenizer.vocab_size=520", "data.seq_length=32"]


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300
    )


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """Not timed: what makes a command slow to start is what it imports."""
    code = (
        "import sys; from sslnlp.cli import run_command; code = run_command(['--help']);"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'accelerate'} & set(sys.modules);"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))"
    )
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("quickstart", "tokenizer", "train", "preview", "plan", "report", "search", "push"):
        assert name in done.stdout


def test_a_run_waits_for_no_library_it_does_not_use() -> None:
    """`evaluate` brings scipy.stats; a run that has no metric of theirs starts without."""
    code = (
        "import sys, sslnlp.recipe.running;"
        "heavy = {'evaluate', 'scipy.stats', 'sklearn', 'sentence_transformers', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"sslnlp {__version__}"


@pytest.mark.parametrize(
    "command", ["quickstart", "tokenizer", "train", "preview", "plan", "report", "push", "search", "search index"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*command.split(), "--help"]) == 0
    assert "Usage: sslnlp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("two\nlines"), 2, "error: two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "error: No such file or directory: a.txt"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: out of memory: lower train.batch_size"),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried 640 bytes"),
            2,
            "error: out of memory: lower train.batch_size",
        ),
        (
            RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:41356."),
            1,
            "error: another process of this run has ended, and so does this one",
        ),
        (RuntimeError("odd"), 1, "error: unexpected RuntimeError: odd (run with --debug for the traceback)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sslnlp.recipe.complete.load_complete", fail)
    assert run_command(["train", "pretrain_bert"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(told)
    assert len(shown.splitlines()) == 1
    assert run_command(["train", "--debug", "pretrain_bert"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "pretrain_bert"], "; go on with --resume"),
        (["curve"], "; the same command goes on"),
        (["search", "build", "pairs.jsonl", "--out", "out", "--documents", "notes"], "; the same command goes on"),
        (["quickstart"], "; the same command goes on"),
    ],
    ids=["train", "curve", "search build", "quickstart"],
)
def test_an_interrupted_run_says_how_to_go_on(
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    from sslnlp.train import Interrupted

    monkeypatch.chdir(tmp_path)  # the checkout may hold a finished `out/quickstart`

    def stop(*_: object, **__: object) -> None:
        raise Interrupted(7, signal.SIGTERM)

    commands = "curve.command.curve", "text_to_search.text_to_search", "quickstart.run.quickstart"
    for place in ("recipe.complete.load_complete", *commands):
        monkeypatch.setattr(f"sslnlp.{place}", stop)
    assert run_command(arguments) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith(f"saved at step 7{told}\n")


@pytest.mark.parametrize(("rank", "lines"), [("1", 0), ("0", 1)])  # in this order, which leaves the log as it was
def test_one_process_of_a_launch_says_what_all_have_to_say_and_each_what_went_wrong(
    rank: str,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from sslnlp.train import Interrupted

    def end(error: Exception) -> list[str]:
        def stop(*_: object, **__: object) -> None:
            logging.getLogger("sslnlp.train").warning("back to step 3")
            raise error

        monkeypatch.setattr("sslnlp.recipe.complete.load_complete", stop)
        run_command(["train", "pretrain_bert"])
        return capsys.readouterr().err.splitlines()

    monkeypatch.setenv("LOCAL_RANK", rank)
    assert len(end(Interrupted(7, signal.SIGTERM))) == lines
    assert len(caplog.messages) == lines
    assert end(UserError("row 17 is bad")) == ["error: row 17 is bad"]


def test_what_is_not_done_together_is_refused_under_a_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(["curve", "data.train=a.csv"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: sslnlp curve is done by one process")
    assert said.count("\n") == 1
    for command in ("train", "plan"):
        assert run_command([command, "nope.py"]) == 2
        assert "launcher" not in capsys.readouterr().err


def test_a_recipe_file_runs_by_itself(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ROOT / "recipes" / "pretrain_bert.py"
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", [str(recipe), *TINY, f"data.train={text_file}", f"out={out}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(recipe), run_name="__main__")
    assert ended.value.code == 0
    assert (out / "export" / "config.json").is_file()


def test_tokenizer_command(text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer[v1]"  # brackets are no markup
    command = ["tokenizer", str(text_file), "--out", str(out), "--vocab-size", "600", "--algorithm", "wordpiece"]
    assert run_command(command) == 0
    printed = capsys.readouterr().out
    assert "mask" in printed
    assert printed.splitlines()[-1].endswith(f"; use it with tokenizer.path={out}")  # whole, to be copied
    assert json.loads((out / "contract.json").read_text())["facts"]["pad"] is True
    assert run_command(command) == 2  # taken now
    assert "already exists" in capsys.readouterr().err
    # The saved tokenizer goes into a run as it is.
    small = [key for key in TINY if not key.startswith("tokenizer.")]
    recipe = load_recipe("pretrain_bert", [*small, f"data.train={text_file}", f"tokenizer.path={out}"])
    parts = build_parts(resolve(recipe)[0])
    assert parts.contract.figures["vocab_size"] <= 600


def shown(recipe: str, *arguments: str) -> str:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    preview(load_recipe(recipe, [*TINY, *arguments]), rows=2, console=console)
    return console.export_text()


def test_preview_marks_the_targets(text_file: Path) -> None:
    masked = shown("pretrain_bert", f"data.train={text_file}")
    assert "[MASK]→" in masked
    assert "tokens are targets" in masked
    causal = shown("pretrain_gpt", f"data.train={text_file}")
    assert "[BOS]" in causal
    assert "→" not in causal.split("tokens are targets")[0]


@pytest.mark.parametrize("algorithm", ["bytes", "bpe"])
def test_preview_puts_letters_together_from_the_bytes_of_their_tokens(algorithm: str, tmp_path: Path) -> None:
    """A letter that is cut, by the row's end or a mask between its tokens, is shown by the bytes that are there."""
    text = "北京是中华人民共和国的首都，位于华北平原的北部。"
    (tmp_path / "zh.txt").write_text(text * 3, encoding="utf-8")
    keys = [f"data.train={tmp_path / 'zh.txt'}", f"tokenizer.algorithm={algorithm}", "tokenizer.vocab_size=390"]
    keys += ["data.seq_length=64", "data.valid_fraction=0", f"data.cache={tmp_path}"]
    page = shown("pretrain_gpt", *keys)
    letters = "".join(letter for letter in page if letter in text)  # without the table's frame
    assert any(text[i : i + 8] in letters for i in range(len(text) - 8))
    assert "\ufffd" not in page
    assert "\ufffd" not in shown("pretrain_bert", *keys, "model.architecture=bert")


def test_preview_shows_pairs_and_labels(tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": f"what is thing {n}", "positive": text} for n, text in enumerate(corpus()[:40])]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    assert "what is thing" in shown("finetune_ranking", f"data.train={pairs}")
    table = tmp_path / "table.csv"
    table.write_text("text,label\n" + "".join(f"some words {n},{'sad' if n % 2 else 'glad'}\n" for n in range(40)))
    assert "glad" in (page := shown("finetune_classification", f"data.train={table}")) or "sad" in page


def test_preview_shows_tags_and_several_labels(tmp_path: Path) -> None:
    words = [["Ada", f"left {n}"] for n in range(18)]
    rows = [{"tokens": said, "tags": ["B-PER", "O"], "text": said[1], "label": ["sad", "odd"]} for said in words]
    (table := tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = shown("finetune_tagging", f"data.train={table}")
    assert "→B-PER" in page
    assert "tokens are targets" in page
    assert "hidden or replaced (" not in page
    page = shown("finetune_classification", f"data.train={table}", "objective.name=multi_label", "data.text=text")
    assert "odd, sad" in page
    assert "tokens are targets" not in page


def test_a_key_written_as_an_option_says_how_keys_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "pretrain_bert", "--data.train=a.txt"]) == 2
    assert "a key of a recipe has no dashes: data.train=..." in capsys.readouterr().err
    assert run_command(["train", "pretrain_bert", "--rsume"]) == 2
    assert "(see --help)" in capsys.readouterr().err


def test_debug_stands_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--debug", "train", "no_such_recipe"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("error: unknown recipe")


def test_a_bar_is_for_a_terminal_and_keeps_its_numbers_on_a_narrow_one() -> None:
    """Of an 80-column terminal the counts and times are whole; a log gets the last figures as one line, or nothing."""
    metrics = {"loss": 6.1284, "valid_loss": 5.861, "tokens_per_second": 12_419.7}
    for width in (80, 60):
        screen = io.StringIO()
        console = Console(file=screen, width=width, force_terminal=True, color_system=None)
        with _progress(console) as show:
            show(1990, 2000, metrics)
        assert "1990/2000 0:00:00 -:--:-- loss 6.128" in screen.getvalue()
    for said in ("1990/2000  loss 6.128  valid loss 5.861  12,420 tokens/s\n", ""):
        log = io.StringIO()
        with _progress(Console(file=log, width=80)) as show:
            if said:
                show(1990, 2000, metrics)
        assert log.getvalue() == said


def test_a_log_gets_a_line_now_and_then_and_the_last_one_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslnlp.recipe.running.LINE_SECONDS", 0.0)
    log = io.StringIO()
    with _progress(Console(file=log, width=80)) as show:
        for step in (10, 20):
            show(step, 20, {"loss": 6.0})
    assert log.getvalue() == "10/20  loss 6\n20/20  loss 6\n"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("Über den Fluß → und zurück", encoding="utf-8")
    return tmp_path / "notes"


def test_a_command_that_is_piped_leaves_no_bar(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["search", "index", str(notes), "--out", str(notes.parent / "index")]) == 0
    assert capsys.readouterr().err == ""


def test_a_sign_that_the_screen_cannot_show_ends_nothing(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = str(notes.parent / "index")
    assert run_command(["search", "index", str(notes), "--out", index]) == 0
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert run_command(["search", "query", index, "Fluß"]) == 0
    screen.seek(0)
    assert "?ber den Flu? ? und zur?ck" in screen.read()


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "no_such_recipe"])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(text_file: Path, tmp_path: Path) -> None:
    """Launched together they share caches and `out`, and reach the weights of one process with twice the rows."""
    keys = [key for key in TINY if not key.startswith("train.batch_size")] + [f"data.train={text_file}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sslnlp"]
    command = ["train", "pretrain_bert", *keys]
    two = process(*launcher, *command, "train.batch_size=2", f"out={tmp_path / 'two'}", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("done: ") == 1
    assert run_command([*command, "train.batch_size=4", f"out={tmp_path / 'one'}"]) == 0
    weights = [load_file(tmp_path / name / "export" / "model.safetensors") for name in ("two", "one")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("code", "stays"), [(0, False), (2, True)], ids=["done", "failed"])
def test_a_finished_process_takes_leave_of_the_others(
    code: int, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without, gloo's threads could outlive it: it aborted, and its launcher called a finished run failed. One that
    failed waits for nobody."""
    monkeypatch.setattr(cli, "run_command", lambda _: code)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(SystemExit):
            cli.main([])
        assert dist.is_initialized() == stays
    finally:
        distributed.leave()
    assert not dist.is_initialized()
