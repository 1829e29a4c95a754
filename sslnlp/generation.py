"""Text from a model that fills masks: start from masks alone, and take them away step by step.

Shape suffixes: R texts, S tokens of a text, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.arrays import Floats
from sslnlp.errors import UserError, suggest
from sslnlp.models import max_positions
from sslnlp.nn import evaluating
from sslnlp.rng import bits, uniform
from sslnlp.tokenizer import drawable_ids, framing

ORDERS = ("random", "confident")

Ids = npt.NDArray[np.int64]


@torch.no_grad()
def diffuse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int = 64,
    steps: int | None = None,
    temperature: float = 1.0,
    order: str = "random",
    prompt: str = "",
    number: int = 1,
    seed: int = 0,
) -> list[str]:
    """Texts written by iterative unmasking (Sahoo et al., 2024, arXiv:2406.07524; Chang et al., 2022,
    arXiv:2202.04200).

    For any stock masked LM (`AutoModelForMaskedLM`); one trained as `masked_diffusion` has seen every rate of masks,
    others only their own. Each step predicts all masks and keeps an even share of the predictions, so that after
    `steps` none is left. Text i is the same for any `number`.

    Args:
        length: masks behind the prompt, so tokens to be written there.
        steps: how often the model is run, at most once for each mask. None: once for each; fewer is faster and worse,
            because tokens kept in the same step do not know of each other.
        temperature: 1 samples from the model, less is safer and duller, 0 takes the most probable token.
        order: `random` (what the model's distribution is defined by) or `confident`: the predictions stay that the
            model gives the highest probability, whatever the temperature.
        prompt: text that stands as it is; mask tokens written in it (`tokenizer.mask_token`) are filled too.
        number: how many texts.
        seed: draws depend on it, on the text's number, the step and the place.

    Returns:
        `number` texts, prompt included, without special tokens.
    Raises `UserError` for values out of range, a tokenizer without a mask, or a text longer than the model reads.
    """
    if min(length, temperature) < 0 or number < 1 or (steps is not None and steps < 1):
        raise UserError("diffuse() takes length and temperature of at least 0, and number and steps of at least 1")
    if order not in ORDERS:
        raise UserError(f"unknown order {order!r}.{suggest(order, ORDERS)}")
    ids_RS = np.tile(_start(model, tokenizer, prompt, length), (number, 1))
    masked_RS = ids_RS == tokenizer.mask_token_id
    masks = int(masked_RS[0].sum())
    steps = min(steps or masks, masks)
    texts = range(number)
    place_RS = uniform(seed, "diffuse/order", texts, ids_RS.shape[1])
    with evaluating(model):
        for step in range(steps):
            batch = torch.from_numpy(ids_RS).to(model.device)
            logits = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
            logits_RSV = _of_words(logits, tokenizer)
            draw_RS = bits(seed, f"diffuse/token/{step}", texts, ids_RS.shape[1]) >> np.uint64(11)
            drawn_RS = _draw(logits_RSV, temperature, torch.from_numpy(draw_RS.astype(np.int64)).double() * 2.0**-53)
            key_RS = place_RS if order == "random" else -_certainty(logits_RSV, drawn_RS)
            left = masks * (steps - step - 1) // steps
            keep = int(masked_RS[0].sum()) - left
            first_RS = np.argsort(np.where(masked_RS, key_RS, np.inf), axis=1, kind="stable")[:, :keep]
            np.put_along_axis(ids_RS, first_RS, np.take_along_axis(drawn_RS, first_RS, 1), 1)
            np.put_along_axis(masked_RS, first_RS, False, 1)
    return [str(tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip() for ids in ids_RS]


def _start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> Ids:
    """int64 [S]: prompt and masks, framed as the documents of an encoder are."""
    if tokenizer.mask_token_id is None:
        raise UserError("diffuse() starts from masks, and this tokenizer has no mask token; use an encoder's tokenizer")
    frame = framing(tokenizer, "encoder")
    text = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    ids = [*frame.prefix, *text, *[tokenizer.mask_token_id] * length, *frame.suffix]
    longest = max_positions(model.config)
    if longest is not None and len(ids) > longest:
        raise UserError(f"prompt and length make {len(ids)} tokens, the model reads {longest}; give a smaller length")
    return np.array(ids, dtype=np.int64)


def _of_words(logits_RSV: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """float64 [R, S, V]: the logits, -inf for what is not written: special tokens, and ids outside the vocabulary."""
    allowed_V = torch.zeros(logits_RSV.shape[-1], dtype=torch.bool)
    allowed_V[torch.from_numpy(drawable_ids(tokenizer))] = True
    # In float64: at the precision of float32 sampling loses the tail, and texts come out poorer than the model.
    return logits_RSV.double().cpu().masked_fill(~allowed_V, -torch.inf)


def _draw(logits_RSV: torch.Tensor, temperature: float, draw_RS: torch.Tensor) -> Ids:
    """An id for each place, int64 [R, S], by inverting the cumulated probabilities at this temperature."""
    if temperature == 0:
        return logits_RSV.argmax(-1).numpy()
    total_RSV = (logits_RSV / temperature).softmax(-1).cumsum(-1)
    # Scaled to the last sum, which rounding leaves a little off 1: a draw never falls behind the last possible id.
    drawn_RS1 = torch.searchsorted(total_RSV, (draw_RS[..., None] * total_RSV[..., -1:]), right=True)
    return drawn_RS1[..., 0].numpy()


def _certainty(logits_RSV: torch.Tensor, drawn_RS: Ids) -> Floats:
    """float64 [R, S]: the model's own probability of each id. At a low temperature all would come out near 1, and be
    told apart by rounding or by their place."""
    share_RSV = logits_RSV.softmax(-1)
    return share_RSV.gather(-1, torch.from_numpy(drawn_RS)[..., None])[..., 0].numpy()
