"""What `transformers` says while it loads, and bars where nobody looks on, kept from who asked for something else."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """A command prints its results, not how it read the weights; what the loader reports is judged by the caller. What
    `transformers` said before, it says again after."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def shows_bars(console: Console) -> bool:
    """Whether somebody looks on; a file or a pipe would keep what a progress bar leaves behind. In a notebook rich
    needs `ipywidgets` for a bar: without it, it warns instead and shows none."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal


@contextlib.contextmanager
def passing_bars(*columns: ProgressColumn) -> Iterator[Progress]:
    """Progress bars beside what a command prints, gone at its end, and there only where somebody looks on; of other
    `columns` than a name, a bar, how many are done, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    usual = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    with Progress(*(columns or usual), console=screen, transient=True, disable=not shows_bars(screen)) as shown:
        yield shown


def progress_bar(console: Console) -> Progress:
    """Steps done, time gone and left, and what is said of them, which is what gives way on a narrow terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    whole = Column(no_wrap=True)
    counts = (MofNCompleteColumn(table_column=whole), TimeElapsedColumn(whole), TimeRemainingColumn(table_column=whole))
    said = TextColumn("{task.description}", table_column=Column())
    return Progress(BarColumn(bar_width=8), *counts, said, console=console, disable=not shows_bars(console))
