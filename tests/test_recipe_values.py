"""Values of the command line: read as the type of their key says, never with a loss."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from sslnlp.errors import UserError
from sslnlp.recipe.overrides import coerce, parse


@pytest.mark.parametrize(
    ("text", "annotation", "expected"),
    [
        ("1_000", int, 1000),
        ("1e3", int, 1000),
        ("0.5", float, 0.5),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("OFF", bool, False),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("none", str | None, None),
        ("a,b", list[str], ["a", "b"]),
        ('["a", "b,c"]', list[str], ["a", "b,c"]),
        ("0.9,0.98", tuple[float, float], (0.9, 0.98)),
        ("corpus.txt", str | list[str] | None, "corpus.txt"),
        ("a.txt,b.txt", str | list[str] | None, ["a.txt", "b.txt"]),
        ('{"query": "title"}', dict[str, str], {"query": "title"}),
        ("bpe", Literal["bpe", "unigram"], "bpe"),
        ("12", Any, 12),
        ("gelu", Any, "gelu"),
    ],
)
def test_text_is_read_as_the_annotation_says(text: str, annotation: Any, expected: Any) -> None:
    value = coerce("key", text, annotation)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("1.5", int),
        ("many", int),
        (True, int),
        (True, float),
        ("2", bool),
        ("none", int),
        ("0.9", tuple[float, float]),
        ("a,b", dict[str, str]),
        ("wordpeice", Literal["bpe", "wordpiece"]),
        (3, str),
        ("x", list[int]),
    ],
)
def test_lossy_values_are_refused(value: Any, annotation: Any) -> None:
    with pytest.raises(UserError, match=r"^key must be .*, got "):
        coerce("key", value, annotation)


def test_parse_keeps_the_value_as_typed() -> None:
    assert parse(["collator.query_prefix=q: ", "out=a=b"]) == {"collator.query_prefix": "q: ", "out": "a=b"}


def test_a_path_below_the_home_folder_is_one_whatever_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    typed = ["model.pretrained=~/bert", "data.train=a~/b", "collator.query_prefix=~ "]
    expected = ["/home/someone/bert", "a~/b", "~ "]
    assert list(parse(typed).values()) == expected


def test_of_two_values_of_a_key_the_last_counts_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert parse(["out=a", "out=b", "name=x", "name=x"]) == {"out": "b", "name": "x"}
    assert caplog.messages == ["out is given more than once: b counts, not a"]


@pytest.mark.parametrize("argument", ["steps", "=3", "train..lr=1", "train.lr =", "--x=1"])
def test_malformed_arguments_are_refused(argument: str) -> None:
    if argument == "train.lr =":
        assert parse([argument]) == {"train.lr": ""}
        return
    with pytest.raises(UserError, match="expected key=value"):
        parse([argument])
