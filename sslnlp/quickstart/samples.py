"""What the exported models answer, read by stock `transformers` classes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from sslnlp.quickstart.plan import Plan
from sslnlp.quiet import quiet_loading

CLOZE = ("Return a copy of the {mask}.", "Raises {mask} if the index is out of range.", "The {mask} of the matrix.")
PROMPTS = ("Return the", "Raises an exception if", "Parameters\n")
BEST, TOKENS = 3, 24
"""Fillings of a gap that are shown, and tokens that a beginning is gone on with."""


@quiet_loading()
def fill(plan: Plan) -> list[tuple[str, str]]:
    """(text with a gap, the most probable fillings) by the exported encoder."""
    folder = str(plan.out / "encoder" / "export")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    answers = []
    for cloze in CLOZE:
        encoding = tokenizer(cloze.format(mask=tokenizer.mask_token), return_tensors="pt")
        with torch.no_grad():
            logits = model(**encoding).logits[0]
        gap = int((encoding["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0])
        words = [tokenizer.decode([i]).strip() for i in logits[gap].topk(BEST).indices.tolist()]
        answers.append((cloze.format(mask="____"), ", ".join(words)))
    return answers


@quiet_loading()
def continue_text(plan: Plan) -> list[tuple[str, str]]:
    """(beginning, how the exported decoder goes on), the most probable token each time."""
    folder = str(plan.out / "decoder" / "export")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    answers = []
    for prompt in PROMPTS:
        encoding: Any = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        length = encoding["input_ids"].shape[1]
        made = model.generate(
            **encoding, max_length=length + TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        text = tokenizer.decode(made[0, length:], skip_special_tokens=True)
        answers.append((" ".join(prompt.split()), " ".join(text.split())))
    return answers
