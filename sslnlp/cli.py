"""The command line. Everything heavy is imported inside the command that needs it, so `--help` answers at once, and
there after a look at what was typed, so that a mistake in it is told at once."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sslnlp import __version__
from sslnlp.errors import UserError
from sslnlp.predict_cli import predict_command
from sslnlp.search.cli import search_app
from sslnlp.text_to_search_cli import build_command

app = typer.Typer(
    name="sslnlp",
    help="From raw text to a tokenizer, a model, a classifier, a ranker and a checkpoint stock transformers loads.",
    epilog="Start with: sslnlp quickstart. Any command: --debug shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped name (pretrain_bert), a .py file, or a run's recipe.json.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Any key of the recipe, e.g. data.train=corpus.txt train.steps=2000 model.size=mini.",
    ),
]


_INTERRUPTED = 130
_SAME = "the same command goes on"
_GO_ON = {"train": "go on with --resume", "curve": _SAME, "search": _SAME, "quickstart": _SAME}
"""Command -> how a run that was stopped in it is taken up again."""
_PEER_ENDED = ("connection closed by peer", "connection reset by peer")  # as gloo and NCCL say it
_TOGETHER = ("train", "plan")
"""The commands that several processes do together."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # as torch says it of a GPU and of a CPU


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sslnlp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (stands anywhere).")] = False,
) -> None:
    command = context.invoked_subcommand
    if command not in _TOGETHER and "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            f"sslnlp {command} is done by one process, and several would write over each other's files: start it "
            f"without a launcher, which is for sslnlp {' and '.join(_TOGETHER)}"
        )


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the runs and the report.")] = Path("out/quickstart"),
    budget: Annotated[str, typer.Option(help="Time for all training together, e.g. 90s, 5m.")] = "5m",
) -> None:
    """The whole story on an embedded corpus: tokenizer, pretraining, fine-tuning, search, report. Offline, on a CPU."""
    from sslnlp.train_config import parse_duration

    parse_duration(budget)
    from sslnlp.quickstart.begun import begun_in

    begun_in(out)
    from sslnlp.quickstart.run import quickstart as tell

    tell(out, budget=budget)


@app.command()
def tokenizer(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Files, globs, folders or hub names.")],
    out: Annotated[Path, typer.Option(help="Folder to write the tokenizer to.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens in the vocabulary, specials included.")] = 8192,
    algorithm: Annotated[str, typer.Option(help="bpe (byte-level), wordpiece, unigram or bytes.")] = "bpe",
    text: Annotated[str | None, typer.Option(help="The text column, when it is not obvious.")] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Fold case; decoding then loses it.")] = False,
    memory_mb: Annotated[int, typer.Option(help="Memory the training may use, in MB.")] = 1024,
) -> None:
    """Train a tokenizer within a memory budget, and print its contract: what objectives may rely on."""
    from sslnlp.data.files import check_there

    check_there(data)
    from sslnlp.recipe import make_tokenizer

    make_tokenizer(
        data, out, vocab_size=vocab_size, algorithm=algorithm, text=text, lowercase=lowercase, memory_mb=memory_mb
    )


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest valid checkpoint in `out`.")] = False,
) -> None:
    """Run a recipe: from text to a trained model and its export."""
    from sslnlp.recipe.complete import load_complete
    from sslnlp.recipe.out import check_beforehand

    asked = load_complete(recipe, overrides or [])
    check_beforehand(asked, resume=resume)
    from sslnlp.recipe import run

    run(asked, resume=resume)


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Tokenise one of N shares of the documents: 1/8, 2/8, ... 8/8.")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join the shards, once all are in the cache.")] = False,
) -> None:
    """Tokenise the text of a recipe before training; in shards, on several machines, where it is much."""
    from sslnlp.recipe.complete import load_complete

    asked = load_complete(recipe, overrides or [])
    from sslnlp.data.dealing import Shard

    part = None if shard is None else Shard.parse(shard)
    from sslnlp.recipe.prepare import prepare as make

    make(asked, shard=part, merge=merge)


@app.command()
def preview(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 4,
) -> None:
    """Show what the model will see: rows, and the targets in them, readable."""
    from sslnlp.recipe.complete import load_complete

    asked = load_complete(recipe, overrides or [])
    from sslnlp.recipe.preview import preview as show

    show(asked, rows=rows)


@app.command()
def plan(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Say before training: parameters, tokens, FLOPs, memory, measured speed and the expected time."""
    from sslnlp.recipe.complete import load_complete

    asked = load_complete(recipe, overrides or [])
    from sslnlp.recipe.plan import plan as show

    show(asked)


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN|KEY=VALUE", help="Folders of runs, and what to measure with.")
    ],
) -> None:
    """Measure what runs left behind: report.json, report.html, figures/, and a short form in the model card.

    No labels are needed. More is measured with files:
      pairs=FILE                        minimal pairs
      sts=FILE                          scored pairs of sentences
      probe_train=FILE probe_test=FILE  labelled texts or pictures (label=COLUMN)
      beir=FOLDER                       a search collection
      texts=FILE, pictures=FILE         others than those held out

    Several runs stand side by side; documents=N bounds the work, measures=false leaves it out, out=FOLDER says where.
    """
    folders = [Path(argument) for argument in runs if "=" not in argument or Path(argument).is_dir()]
    overrides = [argument for argument in runs if Path(argument) not in folders]
    if not folders:
        raise UserError("say which run: sslnlp report RUN [RUN ...] [key=value ...]")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"run folder {str(folder)!r} does not exist")
    from rich.console import Console
    from rich.markup import escape

    from sslnlp.recipe.overrides import keywords
    from sslnlp.report.command import report_runs

    given = keywords(report_runs, overrides)
    with Console(stderr=True).status("reading") as status:
        page = report_runs(folders, lambda line: status.update(escape(f"measuring {line}")), **given)
    typer.echo(f"report: {page}")


@app.command()
def curve(
    overrides: Overrides = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: RECIPE [KEY=VALUE]...'", help="A method and its own keys; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results and the report.")] = Path("out/curve"),
    labels: Annotated[str, typer.Option(help="Labels a class, and all.")] = "8,64,all",
    draws: Annotated[int, typer.Option(min=1, help="Draws of the training texts.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each draw.")] = 3,
    keep: Annotated[bool, typer.Option("--keep", help="Leave each run's folder, with its export.")] = False,
) -> None:
    """How good a classifier gets with how many labels: draws x seeds of each method, beside TF-IDF and no pretraining.

    Example: sslnlp curve model.pretrained=out/bert/export data.train=train.csv data.valid=test.csv
    """
    from sslnlp.curve.command import curve as measure

    typer.echo(f"report: {measure(overrides or [], method or [], out, labels, draws, seeds, keep=keep)}")


app.command("predict")(predict_command)


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or an export.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
) -> None:
    """Upload export/ to a model hub; HF_ENDPOINT and the usual token places are respected."""
    from sslnlp.hub import push as upload

    typer.echo(f"pushed: {upload(run, repo_id, private=private, revision=revision)}")


search_app.command("build")(build_command)
app.add_typer(search_app)


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 130 interrupted, 1 a fault of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("SSLNLP_DEBUG"))
    arguments = [argument for argument in arguments if argument != "--debug"]
    _log_to_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a sign that the screen's encoding lacks becomes "?" there
        sys.stdout.reconfigure(errors="replace")
    try:
        code = app(args=arguments, prog_name="sslnlp", standalone_mode=False)
        if code == _INTERRUPTED:  # typer catches Ctrl-C itself
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else 1
        message, code = _explain(error, next(iter(arguments), ""))
        if message:
            print(f"{message}\n", end="", file=sys.stderr)  # at once: processes launched together share the screen
        return code


def _explain(error: BaseException, command: str) -> tuple[str, int]:
    """The one line a person reads about an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "interrupted", _INTERRUPTED
    if isinstance(error, UserError):
        return f"error: {_one_line(str(error))}", 2
    if (usage := getattr(error, "format_message", None)) is not None:  # typer's own: a missing or unknown option
        text = _one_line(usage())  # empty when help was printed for want of a command
        key = str(getattr(error, "option_name", "")).lstrip("-")
        advice = f"a key of a recipe has no dashes: {key}=..." if "." in key else "see --help"
        return f"error: {text} ({advice})" if text else "", 2
    if (signum := getattr(error, "signum", None)) is not None:  # of an interrupted run, which was saved
        advice = f"; {_GO_ON[command]}" if command in _GO_ON else ""
        return f"{_one_line(str(error))}{advice}" if _speaks() else "", 128 + int(signum)
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"error: {_one_line(error.strerror or str(error))}{where}", 2
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
        advice = "lower train.batch_size (and raise train.accumulate), data.seq_length or model.size"
        return f"error: out of memory: {advice}", 2
    if isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _PEER_ENDED):
        return "error: another process of this run has ended, and so does this one: what that one said tells why", 1
    return f"error: unexpected {type(error).__name__}: {_one_line(str(error))} (run with --debug for the traceback)", 1


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000]


def _speaks() -> bool:
    """Whether this process says what all of those launched together on this machine have to say. What has gone wrong is
    said by each, as it may have in one alone."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _log_to_stderr() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("sslnlp").setLevel(logging.INFO if _speaks() else logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> Any:
    """The `sslnlp` command."""
    code = run_command(arguments)
    if code == 0 and (distributed := sys.modules.get("sslnlp.distributed")) is not None:
        distributed.leave()
    sys.exit(code)
