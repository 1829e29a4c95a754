"""What a collator is: a pure function from rows at positions to a batch with targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class Collator(ABC):
    """Makes the targets of one kind of self-supervision. Pure: the same rows at the same positions give the same batch.

    Subclasses are keyword-only dataclasses; each field is an option of the recipe (`collator.<field>`), checked
    in `__post_init__` with a `UserError`. All random draws go through `sslnlp.rng` with (`seed`, `row["position"]`).
    """

    name: ClassVar[str]
    """The registry name."""
    makes: ClassVar[frozenset[str]]
    """The keys of the batch this collator promises; an objective's `needs` must be among them."""
    reads: ClassVar[str] = "tokens"
    """What it takes: `tokens` (packed or padded rows of text), `rows` (mappings of a labelled or paired table) or
    `pictures` (with their captions)."""
    reads_text: ClassVar[bool] = True
    """Whether there is text in what it takes; without, there is no tokenizer, and the model reads pictures."""
    columns: ClassVar[tuple[str, ...]] = ()
    """For `reads = "rows"`: the columns a row must have, in order of meaning."""
    label_kind: ClassVar[str | None] = None
    """What the `label` column of its rows holds: `one` class, `several`, a `number`, `tags`; None: there is none."""
    requires: ClassVar[frozenset[str]] = frozenset()
    """Facts of the tokenizer contract it relies on (`mask`, `pad_is_not_eos`, ...), checked before anything trains."""

    shifted: ClassVar[bool] = False
    """Whether a label is predicted from the position before it (decoders); must agree with the objective."""

    lengths: ClassVar[tuple[str, ...]] = ()
    """Options that bound the tokens of a row (`max_length`, ...). Defaults are cut to what the model reads."""
    inherits: ClassVar[tuple[str, ...]] = ()
    """Options that a stage takes over from the run whose export it starts from (the prefixes of queries, ...)."""

    tokenizer: PreTrainedTokenizerBase
    seed: int = 0
    horizon: int | None = None
    """Rows in the whole run; set by the loop. Schedules (a decaying mask rate) are functions of position / horizon."""

    @abstractmethod
    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate rows into a batch whose keys include `makes`."""

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Collator]:
        """The class that these options make; another one only where what it makes or requires depends on them."""
        return cls

    def check_rows(self, rows: Sequence[Row]) -> None:  # noqa: B027 - a hook: most collators refuse no text
        """Refuse text that has no targets of this kind, by some of its rows, before anything trains: `UserError`."""

    @property
    def reserve(self) -> int:
        """Tokens that collating adds to a document piece at most; packing leaves that much room beside each."""
        return 0

    def source_length(self, seq_length: int) -> int:
        """Tokens of a packed row such that no row of the batch, once collated, is longer than `seq_length`."""
        return seq_length

    @property
    def prompts(self) -> dict[str, str]:
        """The text put before an input of each kind (`query`, `document`); an embedder's export writes it down."""
        return {}

    @property
    def text_lengths(self) -> dict[str, int]:
        """Tokens an input of each kind may have, where kinds differ; an embedder's export writes them down too."""
        return {}

    def for_evaluation(self, seed: int) -> Collator:
        """The same collator with the draws fixed for held-out text: no schedule, its own seed."""
        from dataclasses import replace

        return replace(self, seed=seed, horizon=None)
