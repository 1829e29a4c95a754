"""How packed rows run through any stock model: its hidden states, and whether it keeps documents apart.

Shape suffixes: B rows, S tokens, T target tokens, H width, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.masks import (
    attention_inputs,
    distances,
    for_attention,
    is_causal,
    of_layers,
    same_document,
    starts_suffice,
)
from sslnlp.nn import evaluating, uncompiled
from sslnlp.types import Encoding
from sslnlp.varlen import STARTS, document_starts, kernel_agrees


def seq2seq_logits(model: PreTrainedModel, batch: Encoding) -> Tensor:
    """Logits [B, T, V] of a stock encoder-decoder for `labels` [B, T] at their own place, the labels before it given.

    `batch` is what `collators.seq2seq.seq2seq_batch` makes: decoder document d reads source document d and nothing of
    the others; each begins with the model's start token. Works for learned positions (BART) and relative ones (T5).
    """
    read, written = _both_stacks(model, batch)
    encoded, decoder = model.get_encoder()(**read), dict(written)
    across = {"encoder_outputs": encoded, "attention_mask": decoder.pop("encoder_attention_mask")}
    logits: Tensor = model(
        **across, use_cache=False, **{f"decoder_{name}": value for name, value in decoder.items()}
    ).logits
    return logits


def seq2seq_states(model: PreTrainedModel, batch: Encoding) -> Tensor:
    """What the decoder makes of the same batch, [B, T, H], before the model's head."""
    read, written = _both_stacks(model, batch)
    encoded = model.get_encoder()(**read)
    states: Tensor = model.get_decoder()(
        encoder_hidden_states=encoded.last_hidden_state, use_cache=False, **written
    ).last_hidden_state
    return states


def _both_stacks(model: PreTrainedModel, batch: Encoding) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the encoder and what the decoder is given."""
    source_BS, target_BT = batch["document_ids"], batch["decoder_document_ids"]
    behind_SS, behind_TT = distances(source_BS), distances(target_BT)
    read, causal = same_document(source_BS, source_BS), same_document(target_BT, target_BT) & (behind_TT >= 0)
    _check_rows(model, batch, pairs=True)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    shifted = _placed(decoder, _decoder_input_ids(model.config, batch), batch["decoder_position_ids"], decodes=True)
    return {
        "attention_mask": of_layers(encoder.config, read, behind_SS, model.dtype, causal=False),
        **_placed(encoder, batch["input_ids"], batch["position_ids"]),
    }, {
        "encoder_attention_mask": for_attention(decoder.config, same_document(target_BT, source_BS), model.dtype),
        "attention_mask": of_layers(decoder.config, causal, behind_TT, model.dtype, causal=True),
        **shifted,
    }


def _decoder_input_ids(config: PreTrainedConfig, batch: Encoding) -> Tensor:
    """int64 [B, T]: the labels moved one place to the right inside each document, behind the model's start token."""
    labels_BT = batch["labels"]
    previous = torch.nn.functional.pad(labels_BT[:, :-1], (1, 0), value=0).clamp(min=0)
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise UserError("the model's config does not say what its decoder starts from; set decoder_start_token_id")
    return torch.where(batch["decoder_position_ids"] == 0, start, previous)


def _placed(stack: Any, ids_BT: Tensor, position_BT: Tensor, *, decodes: bool = False) -> dict[str, Tensor]:
    """The ids, or, where a stack adds learned positions 0 to T - 1 and takes no others, embeddings that make up for it.

    Relative positions are right as they are: documents do not see each other. Marian and Pegasus scale embeddings in
    the stack: of those that are given, the decoder does it too and the encoder does not.
    """
    table = getattr(stack, "embed_positions", None)
    if table is None:
        return {"input_ids": ids_BT}
    index = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    offset = getattr(table, "offset", 0)
    embedded = stack.get_input_embeddings()(ids_BT)
    moved = table.weight[position_BT + offset] - table.weight[index + offset]
    scale = getattr(stack, "embed_scale", 1.0)  # where the table of embeddings does not scale itself, as BART's does
    return {"inputs_embeds": embedded + moved / scale if decodes else embedded * scale + moved}


def hidden_states(model: PreTrainedModel, encoding: Encoding, **options: Any) -> Tensor:
    """The last hidden states [B, S, H] of the backbone, documents isolated; of pictures (`pixel_values`), the state of
    the whole and those of its patches. `options` are handed to the backbone."""
    output: Tensor = _backbone_output(model, encoding, **options).last_hidden_state
    return output


def packed_hidden_states(model: PreTrainedModel, encodings: Sequence[Encoding], place_RT: Tensor) -> list[Tensor]:
    """The last hidden states [B, S, H] of padded encodings, by one run over rows without padding.

    `place_RT` int64 [R, T] says where the real tokens stand (see `collators.ragged.pack_texts`): places in the
    concatenation of the flattened encodings, -1 = nothing. At the padding of an encoding the states are 0. The model
    must be one that `isolates`.
    """
    shapes = [encoding["input_ids"].shape for encoding in encodings]
    rows = [shape[0] for shape in shapes]
    numbers = torch.split(torch.arange(sum(rows), device=place_RT.device), rows)
    text_P = torch.cat([n.repeat_interleave(width) for n, (_, width) in zip(numbers, shapes, strict=True)])
    ids_P = torch.cat([encoding["input_ids"].flatten() for encoding in encodings])
    position_P = torch.cat([(encoding["attention_mask"].long().cumsum(1) - 1).flatten() for encoding in encodings])
    empty_RT = place_RT < 0
    at_RT = place_RT.clamp(min=0)
    packed = {
        "input_ids": ids_P[at_RT],
        "document_ids": text_P[at_RT].masked_fill(empty_RT, -1),
        "position_ids": position_P[at_RT].masked_fill(empty_RT, 0),
    }
    states_NH = hidden_states(model, packed).flatten(0, 1)
    # One place more than there are, for what stands at the end of rows that are not full.
    back_PH = states_NH.new_zeros(len(ids_P) + 1, states_NH.shape[1])
    back_PH = back_PH.index_copy(0, place_RT.masked_fill(empty_RT, len(ids_P)).flatten(), states_NH)[:-1]
    parts = torch.split(back_PH, [rows * width for rows, width in shapes])
    return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]


def isolates(model: PreTrainedModel, *, rounding: float = 0.0) -> bool:
    """Whether the texts of a packed row have the hidden states in this model that each has in a row of its own.

    Tried on a probe: some architectures take no mask of pairs (DeBERTa), hand on a state from token to token (Mamba),
    or place tokens by where they stand in the row.
    """

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids, real = _probe(model)
        probe = {"input_ids": ids, "attention_mask": real.long()}
        (together,) = packed_hidden_states(model, [probe], torch.arange(8, device=ids.device)[None])
        yield together[real], hidden_states(model, probe)[real]

    return agree(model, compared, rounding)


def takes_starts(module: torch.nn.Module, device: torch.device, precision: str) -> bool:
    """Whether every stock model in it keeps documents apart, by a kernel of this device, where the batch says where
    they start (`varlen`). Of the models a probe tells, of the kernel a trial on random numbers."""
    if device.type != "cuda" or precision != "bf16":
        return False
    models = {id(backbone): backbone for part in _models(module) for backbone in [backbone_of(part)]}
    return bool(models) and all(_takes_starts(model, device) for model in models.values())


def _takes_starts(model: PreTrainedModel, device: torch.device) -> bool:
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not starts_suffice(model.config) or not heads:
        return False
    width = getattr(config, "head_dim", None) or config.hidden_size // heads

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids, real = _probe(model)
        document = torch.where(real, torch.arange(2, device=ids.device)[:, None], -1)
        row = {"input_ids": ids[real][None], "document_ids": document[real][None]}
        row["position_ids"] = torch.arange(5, device=ids.device).expand_as(ids)[real][None]
        row[STARTS] = document_starts(row["document_ids"].cpu()).to(ids.device)
        alone = hidden_states(model, {"input_ids": ids, "attention_mask": real.long()})
        yield hidden_states(model, row)[0], alone[real]

    return kernel_agrees(device, width, causal=is_causal(model.config)) and agree(model, compared, _rounding(model))


def isolates_pairs(model: PreTrainedModel, *, alone: bool = False, rounding: float = 0.0) -> bool:
    """Whether `seq2seq_logits` of a packed row are those that the encoder-decoder has for each of its pairs by itself;
    with `alone`, of rows of one pair each, padded.

    Tried on a probe, as `isolates` is: some have learned positions that cannot be made up for (Blenderbot-small: they
    come after a norm), sinusoidal ones that are no table (M2M100), or attention in blocks (LED, LongT5).
    """

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids, real = _probe(model)
        document, place = torch.where(real, 0, -1), torch.arange(5, device=ids.device).expand_as(ids)
        if not alone:  # both in one row
            ids, place = ids[real][None], place[real][None]
            document = (place == 0).cumsum(1) - 1
        batch = {"input_ids": ids, "document_ids": document, "position_ids": place, "labels": ids.flip(1)}
        batch |= {"decoder_document_ids": document, "decoder_position_ids": place}
        together, given = seq2seq_logits(model, batch), _decoder_input_ids(model.config, batch)
        for own in [(0, slice(5)), (1, slice(3))] if alone else [(0, slice(5)), (0, slice(5, 8))]:
            pair = {"input_ids": ids[own][None], "decoder_input_ids": given[own][None]}
            yield together[own], model(**pair, use_cache=False).logits[0]

    return agree(model, compared, rounding)


def reads_alone(model: PreTrainedModel, *, plain: bool = True, rounding: float = 0.0) -> bool:
    """Whether rows of one text each, padded, have the hidden states in this model that they have by the plain mask.

    With `plain`, a model that takes no other mask (DeBERTa, Mamba) is given the plain one from here on: of rows of one
    text it says the same as a mask of pairs.
    """

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids, real = _probe(model)
        place = torch.arange(5, device=ids.device).expand_as(ids)
        row = {
            "input_ids": ids,
            "attention_mask": real,
            "document_ids": torch.where(real, 0, -1),
            "position_ids": place,
        }
        states = hidden_states(model, row)
        yield states[real], hidden_states(model, {"input_ids": ids, "attention_mask": real.long()})[real]
        if is_causal(model.config):  # so it is said, but BertGeneration sees what is ahead unless it is a decoder
            begun = {"input_ids": ids[:1, :3], "attention_mask": torch.ones_like(ids[:1, :3])}
            yield states[0, :3], hidden_states(model, begun)[0]

    for masks in (False, True) if plain else (False,):
        setattr(backbone_of(model), _PLAIN, masks)
        if agree(model, compared, rounding):
            return True
    setattr(backbone_of(model), _PLAIN, False)
    return False


def sees_ahead(model: PreTrainedModel) -> bool:
    """Whether the logits of a text's first tokens change with those that follow. Not where the model raises."""

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids = _probe(model)[0][:1]
        other = torch.cat([ids[:, :3], ids[:, :2]], dim=1)
        first, second = (model(input_ids=each).logits[0, :3] for each in (ids, other))
        # Of equal shapes, so all but equal where nothing is seen; what is said to be causal is doubted for more.
        rounding = _rounding(model) if is_causal(model.config) else 1e-5
        far = torch.linalg.vector_norm(first - second) > rounding * torch.linalg.vector_norm(second)
        yield far.float(), torch.ones(())  # weights that are no numbers tell nothing

    return agree(model, compared)


# Attributes of a backbone, which its copies have as well.
_PLAIN = "_sslnlp_plain_mask"
"""Its rows hold one text each, and it is given the plain mask of them."""
_TRUSTED = "_sslnlp_rows_trusted"
"""Whether it is given rows without a look at what they hold; None, or absent: it was not tried yet."""


def model_inputs(model: PreTrainedModel, encoding: Encoding) -> dict[str, Any]:
    """The `attention_inputs` of an encoding, or the plain mask for a model of rows of one text (`reads_alone`).

    A model is tried before its first rows with `document_ids`. Raises `UserError` for rows of several documents where
    it does not keep them apart, and for any where it does not run on rows of one, padded.
    """
    _check_rows(model, encoding)
    if getattr(backbone_of(model), _PLAIN, False):
        return {"attention_mask": encoding["attention_mask"].long()}
    return attention_inputs(model.config, encoding, model.dtype)


def trust_rows(module: torch.nn.Module) -> None:
    """The models in it are given rows as they come: whoever makes these has tried the models on such."""
    for model in _models(module):
        setattr(model.base_model, _TRUSTED, True)


def _models(module: torch.nn.Module) -> Iterator[PreTrainedModel]:
    return (part for part in module.modules() if isinstance(part, PreTrainedModel))


def _check_rows(model: PreTrainedModel, encoding: Encoding, *, pairs: bool = False) -> None:
    if "document_ids" in encoding and not getattr(backbone_of(model), _TRUSTED, False):
        _try_rows(model, encoding, pairs)


@uncompiled
def _try_rows(model: PreTrainedModel, encoding: Encoding, pairs: bool) -> None:
    """Refuse rows that the model would not read document by document, and remember what it can do."""
    kind = f"{type(model).__name__} ({model.config.model_type!r})"
    untold = getattr(backbone_of(model), _PLAIN, False) and "bidirectional" in encoding  # by the plain mask
    if untold or getattr(backbone_of(model), _TRUSTED, None) is None:
        near = _rounding(model)
        apart = isolates_pairs(model, rounding=near) if pairs else isolates(model, rounding=near)
        alone = apart or (
            isolates_pairs(model, alone=True, rounding=near)
            if pairs
            else reads_alone(model, plain="bidirectional" not in encoding, rounding=near)
        )
        if not alone:
            ids, _ = _probe(model)
            found = model(input_ids=ids, **({"decoder_input_ids": ids} if pairs else {}))  # one that cannot says why
            if not bool(found[0].isfinite().all()):  # weights that are no numbers tell nothing, and are not the rows'
                return
            raise UserError(
                f"{kind} does not run on rows with document_ids: it reads a document otherwise than by itself, be it "
                "packed with others or alone, padded; choose another model"
            )
        setattr(backbone_of(model), _TRUSTED, apart)
    document_BS = encoding["document_ids"]
    several = ((document_BS != document_BS[:, :1]) & (document_BS >= 0)).any()
    if not getattr(backbone_of(model), _TRUSTED) and bool(several):
        raise UserError(
            f"{kind} does not keep the documents of a packed row apart, and would learn from the text beside them; "
            "give it rows of one document each"
        )


def _rounding(model: PreTrainedModel) -> float:
    """How far states that should be equal may be apart, as a share of their length.

    On a GPU, and in half precision, only what is plainly wrong can be told from rounding.
    """
    exact = all(p.device.type == "cpu" and p.dtype.itemsize >= 4 for p in model.parameters())
    return 1e-5 if exact and torch.get_float32_matmul_precision() == "highest" else 0.1


def _probe(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Ids [2, 5] of two texts of 5 and 3 tokens, and where they are."""
    device, vocabulary = model.device, model.config.get_text_config().vocab_size
    # From the middle of the vocabulary: RoBERTa counts its positions by the padding id, which is at one of the ends.
    ids = ((torch.arange(10, device=device) + vocabulary // 2) % vocabulary).view(2, 5)
    return ids, torch.tensor([[True] * 5, [True] * 3 + [False] * 2], device=device)


def agree(
    model: PreTrainedModel, compared: Callable[[], Iterable[tuple[Tensor, Tensor]]], rounding: float = 0.0
) -> bool:
    """Whether the two of each pair are equal to rounding, in evaluation mode; not where the model raises.

    rounding: what more they may differ by, as a share of their length.
    """

    def equal(found: Tensor, wanted: Tensor) -> bool:
        near = torch.linalg.vector_norm(found - wanted) <= rounding * torch.linalg.vector_norm(wanted)
        return bool(near) or torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)

    trusted = getattr(backbone_of(model), _TRUSTED, None)
    setattr(backbone_of(model), _TRUSTED, True)  # the rows of a trial are what is tried
    try:
        with evaluating(model), torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            return all(equal(found, wanted) for found, wanted in compared())
    except UserError:
        raise
    except Exception:  # stock models raise all kinds for inputs they do not know
        return False
    finally:
        setattr(backbone_of(model), _TRUSTED, trusted)


def drops_out(model: PreTrainedModel) -> bool:
    """Whether some part of the model drops out in training: modules say so in `p`, others in `...dropout...`."""
    rates = (value for part in model.modules() for name, value in vars(part).items() if name == "p" or "drop" in name)
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def all_hidden_states(model: PreTrainedModel, encoding: Encoding) -> list[Tensor]:
    """The output [B, S, H] of every layer of the backbone, first to last (not the embeddings), documents isolated."""
    states: tuple[Tensor, ...] = _backbone_output(model, encoding, output_hidden_states=True).hidden_states
    return list(states[1:])


def backbone_of(model: PreTrainedModel) -> Any:
    """The stock model beneath the heads, and beneath what peft's `get_peft_model` put around them."""
    found: Any = model.base_model
    return found if isinstance(found, PreTrainedModel) else getattr(found, "model", found).base_model


def _backbone_output(model: PreTrainedModel, encoding: Encoding, **options: Any) -> Any:
    if "pixel_values" in encoding:  # a picture has nothing to keep apart, and all of it is there
        return backbone_of(model)(pixel_values=encoding["pixel_values"], **options)
    inputs = model_inputs(model, encoding) | options
    if "token_type_ids" in encoding:
        inputs["token_type_ids"] = encoding["token_type_ids"]
    if getattr(model.config, "use_cache", False):
        inputs["use_cache"] = False
    return backbone_of(model)(input_ids=encoding["input_ids"], **inputs)
