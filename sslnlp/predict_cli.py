"""`sslnlp predict`: what an export says of texts, or of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sslnlp.errors import UserError
from sslnlp.quiet import passing_bars


def predict_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An export, or its name on a hub.")],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help=".txt (a text a line), .jsonl, .csv, .tsv, .parquet; pictures.")
    ],
    out: Annotated[Path, typer.Option(help="Where the predictions go, as JSON lines.")],
    text: Annotated[str | None, typer.Option(help="The column of texts or pictures, when it is not obvious.")] = None,
    pair: Annotated[str | None, typer.Option(help="The column of the second text, for models of pairs.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Classify pictures by these names: cat,dog or a file with one a line.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(metavar="'A PHOTO OF A {}'", help="What a name is put into; may be repeated.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Classes with their probabilities; 0: all.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts or pictures at once.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of a file that is there.")] = False,
) -> None:
    """Classify every text of a file, or with --labels every picture: labels with probabilities."""
    from sslnlp.predict_rows import check_rows
    from sslnlp.search.model_folder import resolve
    from sslnlp.writing import check_new, check_output

    if labels is None and template:
        raise UserError("--template is what the names of --labels are put into: give --labels too")
    if labels is not None and pair is not None:
        raise UserError("--labels classifies pictures, which have no --pair")
    check_output(out, labels, data)
    check_new(out, overwrite)
    if labels is None:
        check_rows(model, data, text, pair)
    else:
        resolve(model)
    names = None if labels is None else read_labels(labels)
    from rich.progress import MofNCompleteColumn, SpinnerColumn

    from sslnlp.predict import predict_file
    from sslnlp.predict_pictures import predict_pictures

    with passing_bars(SpinnerColumn(), MofNCompleteColumn()) as shown:
        task = shown.add_task("read", total=None)

        def progress(done: int) -> None:
            shown.update(task, advance=done)

        if names is not None:
            count = predict_pictures(
                model, data, out, names,
                templates=template or (), image=text, top=top, batch_size=batch_size, progress=progress,
            )  # fmt: skip
        else:
            count = predict_file(
                model, data, out, text=text, pair=pair, top=top, batch_size=batch_size, progress=progress
            )
    typer.echo(f"{count:,} predictions: {out}")


def read_labels(given: str) -> list[str]:
    """`cat,dog`, or the name of a text file with one a line. Raises `UserError` for fewer than two, and for twice
    the same."""
    path = Path(given)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else given.split(",")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the labels in {given}: {error}") from None
    labels = [line.strip() for line in lines if line.strip()]
    if len(labels) < 2:
        raise UserError(
            f"--labels needs at least two names, separated by commas or one a line of a file; got {given!r}"
        )
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"--labels names {twice[0]!r} twice")
    return labels
