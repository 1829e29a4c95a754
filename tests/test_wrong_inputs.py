"""Wrong inputs: one clear line, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sslnlp.cli import run_command
from sslnlp.errors import UserError
from sslnlp.search.manifest import writing
from sslnlp.writing import room_in, why
from tests.contract import corpus, small_tokenizer
from tests.wrong_inputs import (
    BERT,
    TINY,
    Make,
    another_architecture,
    another_size,
    another_vocabulary,
    broken_weights,
    labelled,
    mixing_all,
    of_kind,
    out_under_a_file,
    pairs,
    pairs_mixed,
    pairs_other,
    pretrain,
    ranking,
    reading_ahead,
    recipe_file,
    resuming_among_other_files,
    search_collection,
    seen_from_everywhere,
    table,
    taken_out,
    text,
    tokenizer_of,
    tokenizer_without_mask,
    too_few_embeddings,
    too_long,
    unseen_label,
    with_file,
)


@dataclass
class Wrong:
    """One wrong input: the command that has it, and words its one line must hold."""

    name: str
    make: Make
    words: str


CASES = [
    Wrong("no data", lambda _: ["train", "pretrain_bert"], "data.train"),
    Wrong("missing path", pretrain("data.train=nowhere/at/all.txt"), "does not exist"),
    Wrong("glob without a match", pretrain("data.train={}/*.nothing"), "nothing matches"),
    Wrong("unknown extension", with_file("corpus.docx", "words"), "unknown kind of file"),
    Wrong("empty file", with_file("empty.txt", ""), "empty"),
    Wrong("only white space", with_file("blank.txt", "\n \n\t\n" * 50), "no text"),
    Wrong("empty folder", lambda folder: ["train", "pretrain_bert", f"data.train={folder}"], "holds no"),
    Wrong("wrong column", with_file("t.csv", "body,n\nwords,1\n", "data.text=boddy"), "Did you mean 'body'"),
    Wrong("two text columns", with_file("t.csv", "a,b\nwords,more\n"), "data.text=NAME"),
    Wrong("binary file", with_file("binary.txt", b"\x89PNG" + bytes(range(256)) * 40), "binary.txt"),
    Wrong("NUL bytes", with_file("nul.txt", "good words\n\nbad \0 words\n"), "NUL byte (line 3"),
    Wrong("invalid UTF-8", with_file("latin.txt", "caf\xe9 au lait\n".encode("latin-1") * 100), "UTF-8"),
    Wrong("broken JSON line", with_file("t.jsonl", '{"text": "good"}\n{"text": \n'), "line 2"),
    Wrong("damaged parquet", with_file("t.parquet", b"PAR1 but no more"), "parquet"),
    Wrong("damaged gzip", with_file("t.txt.gz", b"\x1f\x8b no gzip"), "t.txt.gz"),
    Wrong("unknown key", pretrain("train.step=5"), "Did you mean 'steps'"),
    Wrong("key of another group", pretrain("train.processes=5"), "Did you mean 'data.processes'"),
    Wrong("unknown section", pretrain("trian.steps=5"), "Did you mean 'train'"),
    Wrong("section for a key", pretrain("train=5"), "group of keys"),
    Wrong("unknown option", pretrain("collator.rte=0.2"), "Did you mean 'rate'"),
    Wrong("option of another class", pretrain("objective.temperature=0.1"), "objective.temperature"),
    Wrong("no key=value", pretrain("steps"), "key=value"),
    Wrong("wrong type", pretrain("train.steps=many"), "a whole number"),
    Wrong("half a step", pretrain("train.steps=1.5"), "a whole number"),
    Wrong("rate above one", pretrain("collator.rate=1.5"), "collator.rate"),
    Wrong("no rows at all", pretrain("train.batch_size=0"), "at least 1"),
    Wrong("negative learning rate", pretrain("train.lr=-1"), "positive"),
    Wrong("unreadable budget", pretrain("train.steps=none", "train.budget=soon"), "duration"),
    Wrong("unknown recipe", lambda _: ["train", "pretrain_brt"], "Did you mean 'pretrain_bert'"),
    Wrong("recipe file that is not there", lambda folder: ["train", str(folder / "no.py")], "does not exist"),
    Wrong("recipe with a syntax error", recipe_file("def recipe(:\n"), "line 1"),
    Wrong("recipe without a function", recipe_file("x = 1\n"), "no function recipe()"),
    Wrong("recipe of another type", recipe_file("def recipe():\n    return {}\n"), "returned dict"),
    Wrong("no recipe.json", lambda folder: ["train", str(text(folder / "recipe.json", "[]"))], "not a recipe"),
    Wrong("unknown objective", pretrain("objective.name=masked_ml"), "Did you mean 'masked_lm'"),
    Wrong("pair that does not fit", pretrain("collator.name=causal_lm"), "collator.name=masked_lm"),
    Wrong("unknown architecture", pretrain("model.architecture=modernbrt"), "Did you mean 'modernbert'"),
    Wrong("decoder for a masked LM", pretrain("model.architecture=gpt2"), "choose model.architecture"),
    Wrong("unknown field of the model", pretrain("model.config.hiden_size=8"), "Did you mean 'hidden_size'"),
    Wrong("width the heads do not divide", pretrain("model.architecture=bert", "model.config.hidden_size=63"), "63"),
    Wrong("missing model", pretrain("model.pretrained={}/no/such/export"), "does not exist"),
    Wrong("no name of a hub", pretrain("model.pretrained=me/tiny@v1"), "nor a model the hub gives: Repo id must"),
    Wrong("folder without a model", pretrain("model.pretrained={}"), "config.json"),
    Wrong("corrupt safetensors", broken_weights, "cannot load model.pretrained"),
    Wrong("sequence longer than the model", too_long, "data.seq_length to 32"),
    Wrong("tokenizer of another model", too_few_embeddings, "embeds 100"),
    Wrong("model without a mask", mixing_all, "does not keep the documents of a packed row apart"),
    Wrong("pairs that are not kept apart", pairs_mixed, "('blenderbot-small') does not keep the documents of a packed"),
    Wrong("encoder-decoder without a table", pairs_other, "('m2m_100') does not run on rows of one document, padded"),
    Wrong("decoder that reads ahead", reading_ahead, "does not run on rows of one document, padded, as objective"),
    Wrong("decoder without a mask of pairs", seen_from_everywhere, "as objective 'prefix_lm' needs it"),
    Wrong("missing tokenizer", pretrain("tokenizer.path={}/no-tokenizer"), "no-tokenizer"),
    Wrong("tokenizer without a mask", tokenizer_without_mask, "mask"),
    Wrong("unknown algorithm", pretrain("tokenizer.algorithm=bpee"), "tokenizer.algorithm"),
    Wrong("vocabulary below the alphabet", pretrain("tokenizer.vocab_size=200"), "vocab_size=200 is too small"),
    Wrong("row of framing alone", pretrain("data.seq_length=2"), "data.seq_length"),
    Wrong("one class", table("text,label\n" + "".join(f"text {n},a\n" for n in range(9))), "1 class"),
    Wrong("no label column", table("text,mark\nwords,1\nmore,2\n"), "data.label=NAME"),
    Wrong("label unseen in training", unseen_label, "'c' of data.valid never occurs"),
    Wrong("no file of other texts", labelled("data.out_of_scope=nowhere.jsonl"), "nowhere.jsonl does not exist"),
    Wrong("other texts of numbers", labelled("data.out_of_scope=x", "objective.name=regression"), "data.out_of_scope"),
    Wrong("no positive column", pairs({"query": "q", "other": "p"}), "positive"),
    Wrong("pairs without text", pairs({"query": "q", "positive": ""}), "no row"),
    Wrong("architecture beside a model", another_architecture, "model.architecture=gpt2 would do nothing"),
    Wrong("size beside a model", another_size, "model.size=base would do nothing"),
    Wrong("vocabulary beside a tokenizer", another_vocabulary, "tokenizer.vocab_size=9999 would do nothing"),
    Wrong("algorithm beside a tokenizer", pretrain("tokenizer.path=t", "tokenizer.algorithm=bytes"), "do nothing"),
    Wrong("unknown activation", pretrain("model.architecture=bert", "model.config.hidden_act=gellu"), "gellu"),
    Wrong("unreachable averages", pretrain("train.betas=2,3"), "train.betas are two shares"),
    Wrong("negative workers", pretrain("train.workers=-1"), "train.workers must be 0 or more, got -1"),
    Wrong("nothing to compare with", ranking("train.batch_size=1"), "train.batch_size=1 gives it one"),
    Wrong("no search collection", ranking("data.beir={}"), "no folder"),
    Wrong("broken search collection", search_collection('{"_id": "d", "txt": "words"}'), "corpus.jsonl, line 1"),
    Wrong("nothing relevant", search_collection('{"_id": "d", "text": "words"}', "0"), "no query has a relevant"),
    Wrong("taken folder", taken_out, "already holds other files, which a run does not go among: choose another out"),
    Wrong("resuming among other files", resuming_among_other_files, "holds other files and no run; choose another out"),
    Wrong("no name for the folder", pretrain("out="), "out= names no folder"),
    Wrong("unwritable folder", out_under_a_file, "cannot write"),
    Wrong(
        "nothing to resume",
        lambda folder: [*pretrain()(folder), "--resume"],
        "holds no run; if it was moved, give its place as out=",
    ),
    Wrong("unknown command", lambda _: ["trian"], "Did you mean 'train'"),
    Wrong("unknown option of a command", lambda _: ["train", "pretrain_bert", "--reusme"], "--resume"),
    Wrong("missing argument", lambda _: ["push", "somewhere"], "REPO_ID"),
    Wrong("report of nothing", lambda folder: ["report", str(folder / "no")], "does not exist"),
    Wrong("push of nothing", lambda folder: ["push", str(folder / "no"), "me/model"], "no"),
    Wrong("tokenizer of two columns", tokenizer_of("a,b\nx,y\n"), "It has a, b; say --text NAME"),
    Wrong("tokenizer of no such column", tokenizer_of("a,b\nx,y\n", "--text", "c"), "no column 'c' (--text)"),
    Wrong("tokenizer from nothing", lambda folder: ["tokenizer", "no/data.txt", "--out", f"{folder}/o"], "no/data.txt"),
    Wrong("preview of no rows", lambda _: ["preview", "pretrain_bert", "--rows", "0"], "--rows"),
    Wrong("plan without data", lambda _: ["plan", "pretrain_bert"], "data.train"),
    Wrong("search of nothing", lambda folder: ["search", "query", str(folder / "no.index"), "words"], "no.index"),
]


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_one_clear_line(
    case: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = case.make(tmp_path)
    if command[0] == "train" and not any(argument.startswith("out=") for argument in command) and len(command) > 2:
        command.insert(2, f"out={tmp_path / 'out'}")
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    code = run_command(command)
    told = capfd.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error:")]
    assert code == 2, told
    assert len(errors) == 1, told
    assert case.words in errors[0]
    assert len(errors[0]) < 600
    assert "Traceback" not in told
    assert listing(tmp_path) == before


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30


@pytest.mark.parametrize(
    "command",
    [["train", "pretrain_bert", "data.train=nowhere.txt"], pytest.param(["nonsense"], marks=pytest.mark.slow)],
    ids=["missing-path", "unknown-command"],
)
def test_the_real_process_says_the_same(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sslnlp", *command]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert [line.startswith("error: ") for line in done.stderr.splitlines()] == [True]
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["nonsense"]) == 2
    assert [line.startswith("error: ") for line in capsys.readouterr().err.splitlines()] == [True]


@pytest.mark.parametrize(("recipe", "kind"), [("pretrain_bert", "deberta-v2"), ("pretrain_gpt", "mamba")])
def test_a_model_without_a_mask_of_pairs_trains_on_rows_of_one_document(
    recipe: str, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = BERT | {"max_position_embeddings": 32} if kind != "mamba" else {"hidden_size": 16, "num_hidden_layers": 1}
    command = [*of_kind(tmp_path, recipe, kind, **fields), f"out={tmp_path / 'out'}"]
    assert run_command(command) == 2
    assert "set data.packing=bucket" in capfd.readouterr().err
    assert run_command([*command, "data.packing=bucket"]) == 0
    assert (tmp_path / "out" / "export" / "model.safetensors").is_file()


def test_pairs_train_a_model_without_a_mask_of_pairs(tmp_path: Path) -> None:
    """`pair_views` makes rows of one text, too."""
    model = of_kind(tmp_path, "pretrain_bert", "deberta-v2", **BERT, max_position_embeddings=32)[2:]
    rows = [{"query": f"question {n} here", "positive": f"an answer to {n}"} for n in range(12)]
    data = text(tmp_path / "pairs.jsonl", "\n".join(json.dumps(row) for row in rows))
    kept = [argument for argument in model if not argument.startswith("data.train=")]
    command = ["train", "embed_simcse", *kept, f"data.train={data}", "collator.name=pair_views", "model.dropout=0.1"]
    assert run_command([*command, f"out={tmp_path / 'out'}"]) == 0


def test_odd_but_good_text_trains(tmp_path: Path) -> None:
    """A byte-order mark, CRLF line ends and one very long line are somebody's data, not errors."""
    body = "\r\n\r\n".join(corpus()).encode()
    path = text(tmp_path / "odd.txt", b"\xef\xbb\xbf" + body + b"\r\n\r\n" + b"long line " * 20_000)
    assert run_command(["train", "pretrain_bert", *TINY, f"data.train={path}", f"out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "export" / "model.safetensors").is_file()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the size of a file stands for the disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["tokenizer", "text", "table"])
def test_a_full_disk_while_data_is_prepared_is_one_line_that_names_the_cache(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With room the same command goes through."""
    cache = tmp_path / "cache"
    rows = "\n".join(json.dumps({"text": f"{line[:60]} {i}", "label": i % 3}) for i, line in enumerate(corpus() * 3))
    command = with_file("rows.jsonl", rows, recipe="finetune_classification")(tmp_path)
    if kind != "table":
        command = pretrain("data.valid_fraction=0.1")(tmp_path)
    if kind == "text":
        small_tokenizer().save_pretrained(tmp_path / "tokenizer")
        command = pretrain(f"tokenizer.path={tmp_path / 'tokenizer'}")(tmp_path)
    command += [f"data.cache={cache}", f"out={tmp_path / 'run'}"]
    with full_disk():
        code = run_command(command)
    said = capfd.readouterr().err.strip().splitlines()
    assert (code, said[-1]) == (
        2, f"error: cannot write to {cache}: no space is left; free some and run the same again"
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
    assert run_command(command) == 0


@pytest.mark.parametrize("kind", ["tokenizer", "run", "mined"])
def test_a_full_disk_where_a_command_writes_is_one_line_that_names_the_place(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = place = tmp_path / kind
    command = ["tokenizer", str(text(tmp_path / "corpus.txt")), f"--out={out}", "--vocab-size=600"]
    if kind == "run":  # all that it reads lies in the cache already
        command = pretrain(f"data.cache={tmp_path / 'cache'}")(tmp_path)
        assert run_command([*command, f"out={tmp_path / 'earlier'}"]) == 0
        command += [f"out={out}"]
    if kind == "mined":
        rows = [{"query": f"what is {line[:20]}", "positive": line} for line in corpus()]
        data = text(tmp_path / "pairs.jsonl", "\n".join(map(json.dumps, rows)))
        command, place = ["search", "mine", str(data), f"--out={out}.jsonl", "--negatives=1"], tmp_path
    capfd.readouterr()
    with full_disk():
        code = run_command(command)
    said = capfd.readouterr().err.strip().splitlines()
    line = f"error: cannot write to {place}: no space is left; free some and run the same again"
    assert (code, said[-1]) == (2, line)
    assert not out.exists()
    assert run_command(command) == 0


@pytest.mark.parametrize("words", ["758 requested and 496 written", "Not enough disk space. Needed: Unknown size"])
def test_a_full_disk_is_known_by_the_words_of_numpy_and_datasets(words: str, tmp_path: Path) -> None:
    message = f"cannot write to {tmp_path}: no space is left"
    with pytest.raises(UserError, match=message), room_in(tmp_path):
        raise OSError(words)
    with pytest.raises(UserError, match="failed: no space is left"), writing(tmp_path / "index"):
        raise OSError(words)
    assert why(OSError("something else")) == "something else"
