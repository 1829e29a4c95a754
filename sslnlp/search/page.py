"""What `sslnlp search serve` shows for a query, as data and as a page without scripts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from sslnlp.errors import UserError
from sslnlp.search.index import DEPTH, Explained, Index
from sslnlp.search.snippets import Snippet, pieces, printable, snippet

MAX_QUERY = 1000
"""Characters of a query; a longer one is a document, and an encoder would cut it anyway."""
MAX_RESULTS = 100
DEFAULT_RESULTS = 10
THUMBNAILS = "/thumbnail"
"""Where the server has thumbnails, by `id`."""

PARTS = {"bm25": "BM25", "dense": "vectors", "fused": "fused", "reranked": "reranked"}
"""The parts of the pipeline, and what the page calls them."""


@dataclass(frozen=True)
class Result:
    """One document as it is shown."""

    rank: int
    id: str
    title: Snippet
    snippet: Snippet
    places: Mapping[str, tuple[int, float] | None]
    """Rank and score in each part; None where the part took no part or did not list it."""
    why: str
    thumbnail: str = ""
    """Where this server has a small picture of it; empty for texts."""


@dataclass(frozen=True)
class Answer:
    """What was found for a query, how long each step took, and what there is to say about it."""

    query: str
    mode: str
    k: int
    results: list[Result]
    seconds: dict[str, float]
    """Step -> seconds; `all` is the whole answer."""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain objects; `matches` are character spans [start, end) in `title` and `snippet`."""
        hits = [
            {
                "rank": result.rank,
                "id": result.id,
                "title": {"text": result.title.text, "matches": result.title.matches},
                "snippet": {"text": result.snippet.text, "matches": result.snippet.matches},
                "places": {
                    part: place and {"rank": place[0], "score": place[1]} for part, place in result.places.items()
                },
                **({"thumbnail": result.thumbnail} if result.thumbnail else {}),
            }
            for result in self.results
        ]
        return {
            "query": self.query, "mode": self.mode, "k": self.k, "note": self.note, "seconds": self.seconds,
            "hits": hits,
        }  # fmt: skip


class Stopwatch:
    """Adds up the seconds inside chosen methods of an index's parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, step: str, owner: Any, method: str) -> None:
        """Time every call of `owner.method` as `step`."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start

        setattr(owner, method, timed)


def watched(index: Index) -> Stopwatch:
    """Load what `index` needs for its modes, and time it from now on."""
    stopwatch = Stopwatch()
    if "bm25" in index.modes:
        stopwatch.watch("BM25", index.bm25, "search")
    if "dense" in index.modes:
        stopwatch.watch("query to vector", index.encoder, "encode")
        stopwatch.watch("vectors", index.dense, "search")
    if "reranked" in index.modes:
        stopwatch.watch("reranking", index.reranker, "score")
    return stopwatch


def ask(index: Index, stopwatch: Stopwatch, query: str, mode: str | None, k: int) -> Answer:
    """Search, and say for every result where each part of the pipeline ranked it.

    All parts are asked whatever the mode, so that a result of one can be compared with the others; the reranker, which
    costs a hundred times as much, only in its own mode. Raises UserError for what cannot be searched.
    """
    if len(query) > MAX_QUERY:
        raise UserError(f"the query has {len(query):,} characters; at most {MAX_QUERY:,} are searched; shorten it")
    if not 1 <= k <= MAX_RESULTS:
        raise UserError(f"the number of results must be from 1 to {MAX_RESULTS}, not {k}")
    chosen = index.resolve_mode(mode)
    stopwatch.seconds.clear()
    start = time.perf_counter()
    cheap = [name for name in index.modes if name != "reranked"]
    explained = index.explain(query, DEPTH, chosen if chosen == "reranked" else cheap[-1])
    ranked = sorted((place.rank, at) for at, e in enumerate(explained) if (place := e.places[chosen]) is not None)
    results = [_result(index, query, rank, explained[at]) for rank, at in ranked[:k]]
    note = index.wordless_query(query, chosen)
    if not note and chosen not in ("bm25", "dense") and all(e.places["bm25"] is None for e in explained):
        note = "BM25 contributed nothing: no document holds a word of the query."
    seconds = time.perf_counter() - start
    rest = seconds - sum(stopwatch.seconds.values())
    return Answer(query, chosen, k, results, {**stopwatch.seconds, "the rest": rest, "all": seconds}, note)


def _result(index: Index, query: str, rank: int, explained: Explained) -> Result:
    document = index.documents[explained.hit.row]
    places = {name: None if place is None else (place.rank, place.score) for name, place in explained.places.items()}
    return Result(
        rank=rank,
        id=explained.hit.id,
        title=snippet(document.title, query, index.analyzer, width=300),
        snippet=snippet(document.text, query, index.analyzer, width=280),
        places={name: places[name] for name in index.modes},
        why=_why(places) if "fused" in index.modes else "",
        thumbnail=f"{THUMBNAILS}?id={quote(explained.hit.id, safe='')}" if index.pictures else "",
    )


def _why(places: Mapping[Any, tuple[int, float] | None]) -> str:
    """Which of words and meaning brought a result up, in a few words."""
    words, meaning = places["bm25"], places["dense"]
    if words is None:
        return "Found by meaning alone: not in BM25’s list."
    if meaning is None:
        return "Found by its words alone: not in the vectors’ list."
    if max(words[0], meaning[0]) <= 10:
        return "High both by its words and by its meaning."
    return f"Higher by its {'words than by its meaning' if words[0] <= meaning[0] else 'meaning than by its words'}."


def clean(query: str) -> str:
    """A query as it came in an address, without what cannot be typed: control characters and halves of pairs."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+", " ", query).strip()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sslnlp", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pieces": pieces, "printable": printable, "duration": duration, "score": score}
    return environment


def render(
    *,
    name: str,
    documents: int | None = None,
    pictures: bool = False,
    modes: tuple[str, ...] = (),
    query: str = "",
    mode: str = "",
    k: int = DEFAULT_RESULTS,
    answer: Answer | None = None,
    error: str = "",
) -> str:
    """The page: an empty one, one with an answer, or one that says what is wrong."""
    return (
        _environment()
        .get_template("search.html.jinja")
        .render(
            name=name, documents=documents, pictures=pictures, modes=modes, query=query, mode=mode, k=k,
            answer=answer, error=error, parts=PARTS, counts=sorted({10, 20, 50, k}), max_query=MAX_QUERY, depth=DEPTH,
        )
    )  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else (
        f"{1000 * seconds:.1f} ms"
    )  # fmt: skip


def score(value: float) -> str:
    """A score with four significant digits."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
