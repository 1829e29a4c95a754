"""The one exception a person sees, and the near-match helper every strict name check uses."""

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
