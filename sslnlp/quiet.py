"""What `transformers` says while it loads, and bars where nobody looks on, kept from who asked for something else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


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
    """Whether somebody looks on; a file or a pipe would keep what a progress bar leaves behind."""
    return console.is_terminal or console.is_jupyter
