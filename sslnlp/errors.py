"""The one exception a person sees, what every check of names says, and what others' errors come to in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, and what to do about it.

    The command line prints it without a traceback and exits with code 2.
    """


def suggest(word: str, accepted: Iterable[str]) -> str:
    """`" Did you mean 'rate'? Accepted: rate, seed."`: the tail of an unknown-name message."""
    names = sorted(accepted)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if near and len(names) > 40:
        return hint  # a list nobody reads to its end hides the hint
    return f"{hint} Accepted: {', '.join(names) or '(none)'}."


def usual_name(present: Iterable[str], usual: Iterable[str]) -> str | None:
    """The first `usual` name of a column that is `present`; where none is, the first that one column alone has but for
    capitals and white space around it (`Text`, ` label `), which is called as it stands there."""
    there, names = list(present), list(usual)
    exact = next((name for name in names if name in there), None)
    if exact is not None:
        return exact
    plain = [column.strip().lower() for column in there]
    return next((there[plain.index(name)] for name in names if plain.count(name) == 1), None)


def reason_of(error: BaseException, most: int = 300) -> str:
    """What an error of another library says, in a line of at most so many characters; its type where that is blank."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_line(message: object) -> str:
    """The first line of what an error of another library says, whose further ones are advice to programmers."""
    return next((line.strip() for line in str(message).splitlines() if line.strip()), type(message).__name__)
