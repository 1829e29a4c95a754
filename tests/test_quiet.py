"""Bars and what libraries say, where somebody looks on and where nobody does."""

from __future__ import annotations

import importlib.machinery
import io
import sys
import warnings
from types import ModuleType

import pytest
from rich.console import Console

from sslnlp.quiet import progress_bar, shows_bars


def notebook() -> Console:
    return Console(force_jupyter=True, file=io.StringIO())


def test_a_notebook_without_widgets_shows_no_bar_and_no_warning_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as if it were not installed
    assert not shows_bars(notebook())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with progress_bar(notebook()) as bar:
            bar.add_task("", total=None)


def test_a_notebook_with_widgets_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    widgets = ModuleType("ipywidgets")
    widgets.__spec__ = importlib.machinery.ModuleSpec("ipywidgets", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    assert shows_bars(notebook())


def test_a_terminal_shows_bars_and_a_file_none() -> None:
    assert shows_bars(Console(force_terminal=True, force_jupyter=False, file=io.StringIO()))
    assert not shows_bars(Console(force_terminal=False, force_jupyter=False, file=io.StringIO()))
