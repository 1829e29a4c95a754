"""What a causal model writes: continuations of held-out text and how much they repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.collators.tokens import pad_id
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure
from sslnlp.evaluation.written import repetition_figure
from sslnlp.models import max_positions
from sslnlp.nn import evaluating
from sslnlp.rng import key
from sslnlp.tokenizer import framing
from sslnlp.types import Batch

SHOWN = 8
"""Texts that are kept to be looked at."""


@dataclass(frozen=True)
class Continuation:
    """The beginning of a text, and what follows it, as token ids without what frames a text."""

    prompt: list[int]
    people: list[int]
    """How the text goes on."""
    sampled: list[int]
    greedy: list[int]
    """At most as long as `people`; shorter where the model ended the text."""


def continue_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    number: int = 64,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
    top_p: float = 0.95,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Continuation]:
    """Lets a causal model go on from the beginnings of texts: sampled from its nucleus, and greedily.

    The longest texts are taken (of those long enough, the first), and what is written is cut to the length of what
    really follows, so that the two compare. A text that is too short gives half of itself as prompt.

    Args:
        number: texts, at most.
        prompt_tokens, new_tokens: how long the prompt and what follows is; less where the model reads less.
        top_p: the share of the distribution that is sampled from (Holtzman et al., 2020, arXiv:1904.09751).
        seed: draws depend on it and on `batch_size`; the caller's random state is left as it is.

    Raises `UserError` for a model that cannot continue text, values out of range, and where no text has 2 tokens.
    """
    if model.config.is_encoder_decoder or not model.can_generate():
        raise UserError(f"{type(model).__name__} does not continue text; use a causal language model")
    if min(number, prompt_tokens, new_tokens, batch_size) < 1 or not 0 < top_p <= 1:
        raise UserError("number, prompt_tokens, new_tokens and batch_size must be at least 1, top_p above 0, at most 1")
    prefix = list(framing(tokenizer, "decoder").prefix)
    if (longest := max_positions(model.config)) is not None and len(prefix) + prompt_tokens + new_tokens > longest:
        prompt_tokens = min(prompt_tokens, max(1, longest // 4))
        new_tokens = min(new_tokens, longest - len(prefix) - prompt_tokens)
    whole = prompt_tokens + new_tokens
    encoded = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:whole] for text in texts]
    encoded = sorted((ids for ids in encoded if len(ids) > 1), key=len, reverse=True)[:number]
    if not encoded or new_tokens < 1:
        raise UserError("no text is long enough to be continued; give texts of at least 2 tokens")
    halves = [(ids[:cut], ids[cut:]) for ids in encoded for cut in [min(prompt_tokens, (len(ids) + 1) // 2)]]
    written: list[list[list[int]]] = [[], []]
    with evaluating(model), _drawing(model, seed):
        for start in range(0, len(halves), batch_size):
            prompts = [prefix + prompt for prompt, _ in halves[start : start + batch_size]]
            inputs = _left_padded(prompts, pad_id(tokenizer))
            width = inputs["input_ids"].shape[1]
            for made, nucleus in zip(written, (top_p, None), strict=True):
                ids_BS = generate(model, tokenizer, inputs, new_tokens, nucleus)
                made.extend(until_end(ids, tokenizer) for ids in ids_BS[:, width:].tolist())
    return [
        Continuation(prompt, people, sampled[: len(people)], greedy[: len(people)])
        for (prompt, people), sampled, greedy in zip(halves, *written, strict=True)
    ]


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    orders: Sequence[int] = (4,),
    **options: Any,
) -> tuple[dict[str, list[str]], dict[str, Figure]]:
    """Samples to look at, by how they were written, and `repetition@n` for n in `orders`, of three kinds of text.

    `repetition@n` is that of sampled text, `repetition@n/greedy` that of the most probable tokens,
    `repetition@n/people` that of the held-out text itself, at the same places. `options` are those of `continue_texts`.
    """
    found = continue_texts(model, tokenizer, texts, **options)
    kinds = {"": [one.sampled for one in found], "/greedy": [one.greedy for one in found]}
    kinds["/people"] = [one.people for one in found]
    figures = {f"repetition@{n}{kind}": repetition_figure(ids, n) for n in orders for kind, ids in kinds.items()}

    def shown(kind: str) -> list[str]:
        return [
            f"{one_line(tokenizer, one.prompt)} ⟶ {one_line(tokenizer, ids)}"
            for one, ids in zip(found[:SHOWN], kinds[kind], strict=False)
        ]

    return {"Held-out beginnings, sampled on": shown(""), "The same, most probable": shown("/greedy")}, figures


# --- writing ----------------------------------------------------------------------------------------------------------


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Batch,
    new_tokens: int,
    top_p: float | None = None,
) -> Tensor:
    """int64 [B, T]: what is written, behind the prompt of a decoder; sampled from the nucleus `top_p`, None = greedily.

    Every option is said: a model's own may penalise repetition, which is what is measured.
    """
    way: dict[str, Any] = {"do_sample": False}
    if top_p is not None:
        way = {"do_sample": True, "top_p": top_p, "top_k": 0, "temperature": 1.0}
    # A length in all, not `max_new_tokens`: stock code warns of two ways where the model has a longest of its own.
    begun = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    config = GenerationConfig(
        max_length=begun + new_tokens, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
        pad_token_id=pad_id(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None), **way,
    )  # fmt: skip
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.no_grad():
        made: Tensor = model.generate(**moved, generation_config=config)
    return made.cpu()


@contextmanager
def _drawing(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """The draws of this seed inside, the caller's random state as it was after."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(key(seed, "continuations"))
        yield


def _left_padded(prompts: Sequence[list[int]], pad: int) -> Batch:
    """`input_ids` and `attention_mask` int64 [B, S]: what is written goes on at the right end of each."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def until_end(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids before the first end of text."""
    ids = list(ids)
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids


def one_line(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """On one line."""
    return " ".join(str(tokenizer.decode(list(ids))).split())
