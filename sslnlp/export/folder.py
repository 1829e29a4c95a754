"""Writing the folder: stock weights and configuration, tokenizer, card, recipe; whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.card import CardFacts, model_card, public
from sslnlp.errors import UserError
from sslnlp.export.modules import LABEL_NAMES, LENGTHS, POOLINGS, save_embedder, save_head, save_ranker
from sslnlp.export.reloaded import ExportError, check_modes, compare, compare_map, picture_size, state_of
from sslnlp.modes import Modes, write_self_check
from sslnlp.picture_encoder import POOLING
from sslnlp.pictures import DEVIATION, MEAN
from sslnlp.quiet import quiet_loading
from sslnlp.tokenizer.specials import forget_last_call, vocabulary_size
from sslnlp.types import LinearMap
from sslnlp.writing import write_json


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    *,
    card: CardFacts | Mapping[str, Any],
    recipe: Mapping[str, Any],
    pooling: str | None = None,
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    lengths: Mapping[str, int] | None = None,
    vector_map: LinearMap | None = None,
    head: LinearMap | None = None,
    per_token: bool = False,
    modes: Modes | None = None,
    max_length: int,
) -> Path:
    """Write `directory` (config, safetensors, tokenizer, README.md, recipe.json) and return it.

    The folder is written beside its place, loaded with the stock class that its config names, compared with `model`
    (every tensor bit for bit, outputs on a probe batch) and only then renamed; an export that was there before is
    replaced in that moment. `recipe` is written with paths of this machine cut to their last part: the folder is
    public, the run's own recipe.json keeps them. `max_length` (tokens) becomes the tokenizer's limit; `tokenizer` is
    None for a model of pictures alone, whose `pooling` is written into its configuration.

    With `pooling` (`mean`, `cls`, `last`, `weighted`, `max`) the folder is also a sentence-transformers model:
    `normalize` scales vectors to length one, `prompts` maps `query` and `document` to the text put before each, and
    `lengths` to the tokens of each that are read (`sslnlp search` does so; sentence-transformers knows `max_length`).

    With a `vector_map` pooled vectors go through it, a `Dense` layer, before they are scaled.

    With a `head` (on vectors of length one) the last module of that is a `Dense` layer, so that sentence-transformers
    encodes a text to its logits; `label_names` in the configuration says what they are called.

    With `per_token` each token has a vector (late interaction) and sentence-transformers reads a `MultiVectorEncoder`.
    Without that and without `pooling`, `prompts` are those of a cross-encoder; its `CrossEncoder` needs no more files
    than transformers does, and `sslnlp search` reads prompts and lengths.

    With `modes` (name -> fields of the configuration) the model is meant to be used in several ways: the logits of each
    are stored in `self_check.safetensors`, the card tells how to choose one, and `self_check(folder)` compares.

    Raises `UserError` when the model cannot be published (weights not finite, more tokens than embeddings, full disk)
    and `ExportError` when the reloaded model differs. Nothing is left half-written in either case.
    """
    directory = Path(directory)
    if pooling is not None and pooling not in POOLINGS:
        raise UserError(f"unknown pooling {pooling!r}; accepted: {', '.join(POOLINGS)}")
    model = getattr(model, "_orig_mod", model)
    _check_weights(model, tokenizer)
    with _replacing(directory) as aside:
        tower_pooling = pooling if tokenizer is None else None
        if tower_pooling is not None:
            model.config.update({POOLING: tower_pooling})
            pooling = None
        with quiet_loading():
            _save_model(model, aside)
        if (size := picture_size(model)) is not None:
            _save_processor(tokenizer, aside, size)
        if tokenizer is not None:
            # Last: the processor writes a tokenizer without its limit.
            _save_tokenizer(tokenizer, aside, max_length, model)
        kinds = {"prompts": {"query": "", "document": "", **(prompts or {})}, LENGTHS: dict(lengths or {})}
        ranks = "tokens" if per_token else "pairs" if prompts and pooling is None else None
        if ranks is not None:
            save_ranker(aside, ranks, kinds)
        if pooling is not None:
            save_embedder(model, aside, pooling, normalize, kinds, max_length, vector_map)
        if head is not None:
            save_head(head, [model.config.id2label[c] for c in range(len(head.weight))], aside)
        if modes:
            write_self_check(model, modes, aside)
        facts = replace(
            _complete(CardFacts.of(card), model, normalize, max_length, head),
            modes=modes or {}, pictures=tokenizer is None, pooling=pooling or tower_pooling, prompts=prompts or {},
            mapped=vector_map is not None,
        )  # fmt: skip
        if ranks is not None:
            facts = replace(facts, ranks=ranks, label_names=())
        (aside / "README.md").write_text(model_card(facts), encoding="utf-8")
        write_json(aside / "recipe.json", public(recipe))
        with quiet_loading():
            compare(model, tokenizer, aside, max_length)
            compare_map(vector_map, aside)
            check_modes(aside)
    return directory


@contextlib.contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """An empty folder beside `directory` that takes its place at the end; taken away again if the body raises."""
    aside = directory.with_name(f".{directory.name}.unfinished")
    moved = directory.with_name(f".{directory.name}.replaced")
    try:
        if moved.exists() and not directory.exists():  # an earlier replacement was killed between its two renames
            os.rename(moved, directory)
        for left_over in (aside, moved):
            if left_over.exists():
                shutil.rmtree(left_over)
        aside.mkdir(parents=True)
        yield aside
        if directory.exists():
            os.rename(directory, moved)
        os.rename(aside, directory)
        shutil.rmtree(moved, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        # safetensors and tokenizers report a full disk as their own exceptions, with the system's words at the end.
        if isinstance(error, OSError) or "(os error " in str(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            advice = "make room, or name another place; a run that is trained goes on with --resume"
            raise UserError(f"cannot write the export to {str(directory)!r}: {reason}; {advice}") from error
        raise


def _check_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"the model is not exported: {name!r} is not finite (NaN, inf); use an earlier checkpoint")
    if tokenizer is None:
        return
    reader: Any = getattr(model, "text_model", model)
    rows = reader.get_input_embeddings().weight.shape[0]
    if (size := vocabulary_size(tokenizer)) > rows:
        raise UserError(f"the model is not exported: the tokenizer has {size} tokens but the model embeds only {rows}")


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise ExportError(f"{name} is not a class of transformers, so no stock installation could load it")
    model.save_pretrained(folder, state_dict=state_of(model))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # may be a path of this machine
    config.pop(LABEL_NAMES, None)  # of what this model started from
    if "Classification" not in name:  # with them a stock pipeline would put a random head under real names
        config.pop("id2label", None), config.pop("label2id", None)
    write_json(folder / "config.json", config)
    for weights in folder.glob("*.safetensors"):  # safetensors leaves them readable by their owner alone
        shutil.copymode(folder / "config.json", weights)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int, model: PreTrainedModel) -> None:
    forget_last_call(tokenizer)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        # The name transformers 5 writes is unknown to 4.x; this one means the same class in both.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        # 4.x takes a mapping under this name and the list under the older one; 5 reads both.
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    config["model_max_length"] = max_length
    inputs, text = tokenizer.model_input_names, getattr(model.config, "text_config", model.config)
    if "token_type_ids" in inputs and getattr(text, "type_vocab_size", 0) < 2:
        # BERT's kinds name them for models that refuse them, or add the vector of a token for them, as GPT-2 does.
        config["model_input_names"] = [name for name in inputs if name != "token_type_ids"]
    if not model.can_generate() or model.config.is_encoder_decoder:  # decoders go on from the right end of a prompt
        # A model that counts positions from the left end takes a text behind padding for another one; and stock tools
        # pad whatever they encode, which the mask takes out again, so any special token serves.
        config["padding_side"] = "right"
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            config["pad_token"] = str(tokenizer.eos_token)
    for private in ("name_or_path", "_commit_hash", "is_local", "local_files_only"):
        config.pop(private, None)
    write_json(path, config)


def _save_processor(tokenizer: PreTrainedTokenizerBase | None, folder: Path, size: int) -> None:
    """What turns pictures (and texts) into the inputs of the model; needs no torchvision."""
    pictures = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size},
        image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3,
    )  # fmt: skip
    if tokenizer is None:
        pictures.save_pretrained(folder)
    else:
        transformers.VisionTextDualEncoderProcessor(pictures, tokenizer).save_pretrained(folder)


def _complete(
    facts: CardFacts, model: PreTrainedModel, normalize: bool, max_length: int, head: LinearMap | None
) -> CardFacts:
    labels: list[str] = []
    if head is not None or "Classification" in type(model).__name__:
        labels = [name for _, name in sorted((model.config.id2label or {}).items())]
    return replace(
        facts,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),  # tied ones are counted once
        max_length=max_length,
        normalize=normalize,
        label_names=labels,
        several=model.config.problem_type == "multi_label_classification",
        head=head is not None,
    )
