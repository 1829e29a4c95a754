"""What a model writes: continuations and how much they repeat themselves; texts rebuilt from what was left of them.

Shapes: B texts of a batch, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.held_out import evaluating
from sslnlp.tokenizer import framing
from sslnlp.tokenizer.specials import special_id

GRAM = 4
PROMPT, WRITTEN = 16, 64
"""Tokens of a prompt and of what is written after it."""
SHOWN = 3


def repetition(tokens: Sequence[int], n: int = GRAM) -> tuple[int, int]:
    """How many n-grams of a text came before in it, and how many it has (seq-rep-n; Welleck et al., 2020,
    arXiv:1908.04319)."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    number: int = 24,
    seed: int = 0,
) -> tuple[dict[str, list[str]], dict[str, Figure]]:
    """Let a causal model go on from the first 16 tokens of held-out texts, sampling from its distribution and greedily.

    Returns some of the texts by title, and the figures `repetition@4` (sampled), `repetition@4/greedy` and
    `repetition@4/people`: that of the texts themselves at the same length, the level to compare with.

    Raises `UserError` when no text is long enough.
    """
    prefix = list(framing(tokenizer, "decoder").prefix)
    longest = min(PROMPT + WRITTEN, (getattr(model.config, "max_position_embeddings", None) or 512) - len(prefix))
    real = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=longest)["input_ids"]
        if len(ids) == longest:
            real.append(ids)
        if len(real) == number:
            break
    if not real or longest <= PROMPT:
        raise UserError(f"no held-out text has {longest} tokens, so nothing was continued")
    prompt = torch.tensor([prefix + ids[:PROMPT] for ids in real], device=model.device)
    written: dict[str, list[list[int]]] = {"people": [ids[PROMPT:] for ids in real]}
    plain = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": longest - PROMPT}
    plain |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, options in (("sampled", {"do_sample": True, "top_k": 0}), ("greedy", {"do_sample": False})):
            out = model.generate(prompt, **plain, **options)[:, prompt.shape[1] :].tolist()
            written[name] = [_until(ids, tokenizer.eos_token_id) for ids in out]
    figures = {}
    for name, title in (("sampled", ""), ("greedy", "/greedy"), ("people", "/people")):
        repeated, all_of_them = np.array([repetition(ids) for ids in written[name]]).T
        figures[f"repetition@{GRAM}{title}"] = ratio_figure(repeated, all_of_them)
    samples = {
        f"Written on from held-out text ({name})": [
            f"{tokenizer.decode(ids[:PROMPT])} ▸ {tokenizer.decode(more)}"
            for ids, more in zip(real[:SHOWN], written[name], strict=False)
        ]
        for name in ("sampled", "greedy")
    }
    return samples, figures


def _until(ids: Sequence[int], end: int | None) -> list[int]:
    return list(ids[: ids.index(end)]) if end is not None and end in ids else list(ids)


@torch.no_grad()
def reconstructions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
) -> tuple[dict[str, list[str]], dict[str, Figure]]:
    """Let an encoder-decoder write, greedily, what `targets` say of corrupted `sources`: ids, framing included.

    Figures: `rebuilt_exactly`, the share of texts without a fault, and `rebuilt_similarity`: the tokens that agree in
    order, twice, over the tokens of both (Ratcliff and Obershelp, 1988); 0 when nothing does, 1 when all do.
    """
    roles = (special_id(tokenizer, role) for role in ("bos", "eos", "cls", "sep", "pad"))
    frame = {i for i in (*roles, model.config.decoder_start_token_id) if i is not None}
    exact, similar, shown = [], [], []
    with evaluating(model):
        for source, target in zip(sources, targets, strict=True):
            ids = torch.tensor([list(source)], device=model.device)
            out = model.generate(ids, do_sample=False, num_beams=1, max_new_tokens=len(target) + 8)[0].tolist()
            wrote, wanted = ([i for i in row if i not in frame] for row in (out, target))
            exact.append(float(wrote == wanted))
            similar.append(SequenceMatcher(None, wrote, wanted, autojunk=False).ratio())
            shown.append(f"{tokenizer.decode(source)} ▸ {tokenizer.decode(wrote)}")
    samples = {"Rebuilt from held-out text": shown[:SHOWN]}
    return samples, {"rebuilt_exactly": ratio_figure(exact), "rebuilt_similarity": ratio_figure(similar)}
