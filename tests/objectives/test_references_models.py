"""Losses and gradients of packed rows against stock models and plain loops, on one document at a time.

Nothing here calls the package but to make models and batches, and for what is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslnlp.objectives import get_objective
from tests.contract import make_objective, one_batch

Part = dict[str, Tensor]


def made(name: str, architecture: str | None = None, **options: Any) -> Any:
    """The objective, its weights spread so far that attention and softmax are far from even."""
    torch.manual_seed(1)
    objective: Any = get_objective(name)(make_objective(name, architecture).model, **options)
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return objective.train()


def documents(batch: Any) -> Iterator[Part]:
    """What a batch says of each document by itself, keys of the decoder by the decoder's numbers."""
    for row in range(len(batch["position"])):
        for number in range(int(batch["document_ids"][row].max()) + 1):
            yield {
                key: value[row][batch[_numbers(key, batch)][row] == number]
                for key, value in batch.items()
                if value.ndim == 2
            }


def _numbers(key: str, batch: Any) -> str:
    of_decoder = "decoder_document_ids" in batch and key in ("labels", "corrupted", "decoder_position_ids")
    return "decoder_document_ids" if of_decoder or key == "decoder_document_ids" else "document_ids"


def asked(logits: Tensor, labels: Tensor) -> Tensor:
    """The losses of the labels that are asked for."""
    chosen = labels != -100
    return -logits[chosen].log_softmax(-1).gather(1, labels[chosen][:, None])[:, 0]


# --- stock models ----------------------------------------------------------------------------------------------------


def masked(model: Any, part: Part) -> Tensor:
    return asked(model(input_ids=part["input_ids"][None]).logits[0], part["labels"])


def causal(model: Any, part: Part) -> Tensor:
    """Read from left to right, but for a prefix, whose tokens see each other."""
    ids, length = part["input_ids"][None], len(part["input_ids"])
    prefix = part.get("bidirectional", torch.zeros(length, dtype=torch.bool))
    visible = torch.ones(length, length, dtype=torch.bool).tril() | (prefix[:, None] & prefix)
    logits = model(input_ids=ids, attention_mask=visible[None, None]).logits[0]
    return asked(logits[:-1], part["labels"][1:])


def written(model: Any, part: Part) -> Tensor:
    logits = model(input_ids=part["input_ids"][None], labels=part["labels"][None]).logits[0]
    return asked(logits, part["labels"])


# --- our decoders, one query at a time -------------------------------------------------------------------------------


def linear(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def norm(layer: Any, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def sinusoids(length: int, width: int) -> Tensor:
    """Section 3.5 of Vaswani et al. (2017)."""
    angle = [[place / 10_000 ** (2 * (i // 2) / width) for i in range(width)] for place in range(length)]
    return torch.tensor([[math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(row)] for row in angle])


def embedded(layer: Any, ids: Tensor, table: Tensor, known: Tensor | float = 1.0) -> Tensor:
    return linear(layer.widen, norm(layer.norm, table[ids]) * known) + sinusoids(len(ids), layer.hidden_size)


def attended(layer: Any, x: Tensor, context: Tensor, visible: Tensor) -> Tensor:
    """Section 3.2 of Vaswani et al., with the norms before each part."""
    normed = norm(layer.context_norm, context)
    query, width = linear(layer.query, norm(layer.query_norm, x)), x.shape[1] // layer.heads
    taken = []
    for t, seen in enumerate(visible):
        key, value = linear(layer.key, normed[seen]), linear(layer.value, normed[seen])
        heads = [slice(h * width, (h + 1) * width) for h in range(layer.heads)]
        taken.append(torch.cat([(key[:, h] @ query[t, h] / math.sqrt(width)).softmax(0) @ value[:, h] for h in heads]))
    x = x + linear(layer.out, torch.stack(taken))
    return x + linear(layer.down, F.gelu(linear(layer.up, norm(layer.mlp_norm, x))))


def rewritten(objective: Any, part: Part, vector: Tensor) -> Tensor:
    """The losses of a document's tokens, each from the vector and the tokens before it."""
    decoder, labels, table = objective.decoder, part["labels"], objective.model.get_input_embeddings().weight
    known = torch.ones(len(labels), 1)
    known[0] = 0
    x = embedded(decoder.embed, labels.roll(1), table, known)
    visible = torch.ones(len(labels), len(labels), dtype=torch.bool).tril()
    for layer, condition in zip(decoder.layers, decoder.conditions, strict=True):
        x = x + linear(condition, vector)
        x = attended(layer, x, x, visible)
    return asked(linear(decoder.narrow, norm(decoder.norm, x)) @ table.T + decoder.bias, labels)


def tsdae(objective: Any, batch: Any) -> Tensor:
    parts = list(documents(batch))
    vectors = [objective.model(input_ids=part["input_ids"][None]).last_hidden_state[0, 0] for part in parts]
    return torch.cat([rewritten(objective, part, v) for part, v in zip(parts, vectors, strict=True)]).mean()


def vae(objective: Any, batch: Any) -> Tensor:
    """0.3 × KL, of which 0.5 nats a dimension are free (equation 12 of Kingma et al., 2016), beside the rewriting."""
    losses, cost = [], torch.zeros(())
    for part in documents(batch):
        pooled = objective.model(input_ids=part["input_ids"][None]).last_hidden_state[0].mean(0)
        mean, log_variance = linear(objective.posterior, pooled).chunk(2)
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
        cost = cost + 0.3 * torch.where(kl > 0.5, kl, 0.5).sum()
        losses.append(rewritten(objective, part, linear(objective.widen, mean)))
    return (torch.cat(losses).sum() + cost) / len(torch.cat(losses))


def retromae(objective: Any, batch: Any) -> Tensor:
    """Section 3.3 of Xiao et al., with a decoder that sees the vector alone (all others are hidden at a rate of 1)."""
    first, second = [], []
    for part in documents(batch):
        output = objective.model(input_ids=part["input_ids"][None], output_hidden_states=True)
        first.append(asked(output.logits[0], part["labels"]))
        vector, length = output.hidden_states[-1][0, :1], len(part["labels"])
        decoder = objective.decoder
        query = vector + sinusoids(length, vector.shape[1])
        hidden = attended(decoder.layer, query, vector, torch.ones(length, 1, dtype=torch.bool))
        logits = objective.model.cls(norm(decoder.norm, hidden))
        second.append(asked(logits, part["decoder_targets"]))
    return torch.cat(first).mean() + torch.cat(second).mean()


def electra(objective: Any, batch: Any) -> Tensor:
    """Section 2 of Clark et al., with samples so cold that each is the most probable token that may be drawn."""
    generated, judged = [], []
    for part in documents(batch):
        logits = objective.generator(input_ids=part["input_ids"][None]).logits[0]
        generated.append(asked(logits, part["labels"]))
        hidden = part["labels"] != -100
        drawable = F.pad(batch["drawable"], (0, logits.shape[1] - len(batch["drawable"])))
        sample = torch.where(drawable, logits, -math.inf).argmax(-1)
        text = torch.where(hidden, part["labels"], part["input_ids"])
        read = torch.where(hidden, sample, text)
        chance = objective.model(input_ids=read[None]).logits[0].sigmoid()
        judged.append(-torch.where(read == text, 1 - chance, chance).log()[part["judged"]])
    return torch.cat(generated).mean() + 7 * torch.cat(judged).mean()


def of_each(losses: Callable[[Any, Part], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda objective, batch: torch.cat([losses(objective.model, part) for part in documents(batch)]).mean()


CASES: list[tuple[str, str, Callable[[Any, Any], Tensor], dict[str, Any]]] = [
    *[("masked_lm", architecture, of_each(masked), {}) for architecture in ("bert", "modernbert", "roberta")],
    *[("causal_lm", architecture, of_each(causal), {}) for architecture in ("gpt2", "llama", "qwen3")],
    *[(name, "llama", of_each(causal), {}) for name in ("fim", "prefix_lm", "ul2_decoder")],
    *[("denoising", "bart", of_each(written), {}), ("span_corruption", "t5", of_each(written), {})],
    ("ul2", "t5", of_each(written), {}),
    ("tsdae", "bert", tsdae, {"layers": 2}),
    ("vae", "bert", vae, {"beta": 0.3, "ramp": 0.0, "word_dropout": 0.0}),
    ("retromae", "bert", retromae, {"decoder_rate": 1.0}),
    ("electra", "electra", electra, {"temperature": 1e-6, "discriminator_weight": 7.0}),
]


@pytest.mark.parametrize(("name", "architecture", "expected", "options"), CASES, ids=[f"{a}-{b}" for a, b, *_ in CASES])
def test_packed_rows_are_their_documents(
    name: str, architecture: str, expected: Callable[[Any, Any], Tensor], options: dict[str, Any]
) -> None:
    objective, batch = made(name, architecture, **options), one_batch(name, rows=20 if name == "ul2" else 6)
    assert int(batch["document_ids"].max()) > 0
    if name == "electra":  # its most frequent sample is now and then the token that was there
        hidden = batch["labels"][batch["labels"] != -100]
        objective.generator.generator_lm_head.bias.data[hidden.mode().values] = 5.0
    if name == "vae":  # half of z has next to no variance, so that a draw is the mean; the other half is not read
        half = objective.widen.in_features // 2
        with torch.no_grad():
            objective.posterior.weight[2 * half :] = 0
            objective.posterior.bias[2 * half :] = torch.cat([torch.full((half,), -22.0), torch.zeros(half)])
            objective.widen.weight[:, half:] = 0
        objective.widen.weight.requires_grad_(False)  # its gradient has the draws of that half
    loss, wanted = objective(batch).loss, expected(objective, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    found, given = (torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss, wanted))
    largest = max(float(g.abs().max()) for g in given if g is not None)
    for ours, theirs, parameter in zip(found, given, parameters, strict=True):
        theirs = torch.zeros_like(parameter) if theirs is None else theirs
        torch.testing.assert_close(ours, theirs, atol=1e-4 * largest, rtol=1e-3)
