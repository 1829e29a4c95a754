"""What a run leaves behind: a plain Hugging Face folder, loaded again and compared before it is called done."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp import rng
from sslnlp.card import CardFacts, model_card, public
from sslnlp.errors import UserError
from sslnlp.modes import Modes, self_check, write_self_check
from sslnlp.picture_encoder import POOLING
from sslnlp.pictures import DEVIATION, MEAN
from sslnlp.types import LinearHead
from sslnlp.vision import reads_pictures
from sslnlp.writing import write_json

__all__ = ["ExportError", "export_model", "self_check"]

_COMPILED = "_orig_mod."
# Our pooling names in the words of sentence-transformers.
_POOLINGS = {
    "mean": "mean_tokens",
    "cls": "cls_token",
    "last": "lasttoken",
    "weighted": "weightedmean_tokens",
    "max": "max_tokens",
}
_PROBE_TOKENS = 16
_HEAD = "model.safetensors"
LENGTHS = "max_lengths"
"""Our key of config_sentence_transformers.json, which ignores it: kind of text -> tokens that are read."""
LABEL_NAMES = "label_names"
"""Our key of config.json for the logits of a head that transformers does not know."""


class ExportError(RuntimeError):
    """The written model is not the model that was trained: a defect to report, not a user's mistake."""


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
    head: LinearHead | None = None,
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
    aside = directory.with_name(f".{directory.name}.unfinished")
    moved = directory.with_name(f".{directory.name}.replaced")
    if pooling is not None and pooling not in _POOLINGS:
        raise UserError(f"unknown pooling {pooling!r}; accepted: {', '.join(_POOLINGS)}")
    model = getattr(model, "_orig_mod", model)
    _check_weights(model, tokenizer)
    try:
        if moved.exists() and not directory.exists():  # an earlier replacement was killed between its two renames
            os.rename(moved, directory)
        for left_over in (aside, moved):
            if left_over.exists():
                shutil.rmtree(left_over)
        aside.mkdir(parents=True)
        if pooling is not None and tokenizer is None:
            model.config.update({POOLING: pooling})
            pooling = None
        with _quiet():
            _save_model(model, aside)
        if (size := _picture_size(model)) is not None:
            _save_processor(tokenizer, aside, size)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, aside, max_length)  # last: the processor writes a tokenizer without its limit
        kinds = {"prompts": {"query": "", "document": "", **(prompts or {})}, LENGTHS: dict(lengths or {})}
        ranks = "tokens" if per_token else "pairs" if prompts and pooling is None else None
        if ranks is not None:
            _save_ranker(aside, ranks, kinds)
        if pooling is not None:
            _save_embedder(model, aside, pooling, normalize, kinds, max_length)
        if head is not None:
            _save_head(head, [model.config.id2label[c] for c in range(len(head.weight))], aside)
        if modes:
            write_self_check(model, modes, aside)
        facts = replace(_complete(CardFacts.of(card), model, pooling, normalize, max_length, head), modes=modes or {})
        facts = replace(facts, pictures=tokenizer is None)
        if ranks is not None:
            facts = replace(facts, ranks=ranks, prompts=prompts or {}, label_names=())
        (aside / "README.md").write_text(model_card(facts), encoding="utf-8")
        write_json(aside / "recipe.json", public(recipe))
        with _quiet():
            _compare(model, tokenizer, aside, max_length)
            _check_modes(aside)
        if directory.exists():
            os.rename(directory, moved)
        os.rename(aside, directory)
        shutil.rmtree(moved, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        # safetensors and tokenizers report a full disk as their own exceptions, with the system's words at the end.
        if isinstance(error, OSError) or "(os error " in str(error):
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise UserError(f"cannot write the export to {str(directory)!r}: {reason}") from error
        raise
    return directory


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers: an export writes and reads one small model, in a second or so."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _check_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"the model is not exported: {name!r} is not finite (NaN, inf); use an earlier checkpoint")
    if tokenizer is None:
        return
    reader: Any = getattr(model, "text_model", model)
    rows = reader.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the model is not exported: the tokenizer has {len(tokenizer)} tokens but the model embeds only {rows}"
        )


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights under the names stock classes use, also when a part of the model was compiled."""
    return {name.replace(_COMPILED, ""): tensor for name, tensor in model.state_dict().items()}


def _save_model(model: PreTrainedModel, folder: Path) -> None:
    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise ExportError(f"{name} is not a class of transformers, so no stock installation could load it")
    model.save_pretrained(folder, state_dict=_state(model))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # may be a path of this machine
    config.pop(LABEL_NAMES, None)  # of what this model started from
    if "Classification" not in name:  # with them a stock pipeline would put a random head under real names
        config.pop("id2label", None), config.pop("label2id", None)
    write_json(folder / "config.json", config)
    for weights in folder.glob("*.safetensors"):  # safetensors leaves them readable by their owner alone
        shutil.copymode(folder / "config.json", weights)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_length: int) -> None:
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
    for private in ("name_or_path", "_commit_hash", "is_local", "local_files_only"):
        config.pop(private, None)
    write_json(path, config)


def _save_embedder(
    model: PreTrainedModel, folder: Path, pooling: str, normalize: bool, by_kind: Mapping[str, Any], max_length: int
) -> None:
    """The files that sentence-transformers (2 and later) reads beside the plain ones; `by_kind` joins its settings."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    for path, _ in kinds[1:]:
        (folder / path).mkdir()
    width = model.get_input_embeddings().weight.shape[1]
    width = getattr(model.config, "hidden_size", None) or width
    modes = {f"pooling_mode_{name}": name == _POOLINGS[pooling] for name in _POOLINGS.values()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    versions = {"transformers": transformers.__version__, "pytorch": torch.__version__}
    settings = {
        "__version__": versions,
        **by_kind,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if normalize else "dot",
    }
    write_json(folder / "config_sentence_transformers.json", settings)


def _save_ranker(folder: Path, ranks: str, by_kind: Mapping[str, Any]) -> None:
    """What `sslnlp search` reads of a reranker beside the plain files; for `tokens` also what sentence-transformers
    (6 or later) does: the vector of each token at length one."""
    settings = {"__version__": {"transformers": transformers.__version__, "pytorch": torch.__version__}, **by_kind}
    if ranks == "pairs":
        default = "query" if by_kind["prompts"]["query"] else None
        settings |= {"model_type": "CrossEncoder", "default_prompt_name": default}
    else:
        settings |= {"model_type": "MultiVectorEncoder", "default_prompt_name": None, "similarity_fn_name": "maxsim"}
        steps = {
            "": "base.modules.transformer.Transformer",
            "1_MultiVectorMask": "multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
            "2_Normalize": "base.modules.normalize.Normalize",
        }
        modules = [
            {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.{kind}"}
            for n, (path, kind) in enumerate(steps.items())
        ]
        read = {f"{kind}_length": length for kind, length in by_kind[LENGTHS].items()}
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        read |= {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
        for place in ("1_MultiVectorMask", "2_Normalize"):
            (folder / place).mkdir()
        write_json(folder / "modules.json", modules)
        write_json(folder / "sentence_bert_config.json", read | {"modality_config": {"text": text}})
        write_json(folder / "1_MultiVectorMask" / "config.json", {"skiplist_words": []})
        write_json(folder / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
    write_json(folder / "config_sentence_transformers.json", settings)


def _picture_size(model: PreTrainedModel) -> int | None:
    """Pixels of a side of the pictures that the model reads; None where it reads none."""
    vision = getattr(model.config, "vision_config", model.config)
    return int(vision.image_size) if reads_pictures(vision) else None


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


def _save_head(head: LinearHead, names: list[str], folder: Path) -> None:
    """One more module behind those of an embedder, as sentence-transformers (2.3 and later) writes it, and the names of
    its logits, where no pipeline takes them for those of a classifier of transformers."""
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", described | {LABEL_NAMES: names})
    place = "3_Dense"
    (folder / place).mkdir()
    weights = {"linear.weight": head.weight, "linear.bias": head.bias}
    safetensors.torch.save_file(
        {k: v.detach().float().contiguous() for k, v in weights.items()}, folder / place / _HEAD
    )
    outputs, width = head.weight.shape
    config = {"in_features": width, "out_features": outputs, "bias": True}
    write_json(folder / place / "config.json", config | {"activation_function": "torch.nn.modules.linear.Identity"})
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    number = len(modules)
    modules.append({"idx": number, "name": str(number), "path": place, "type": "sentence_transformers.models.Dense"})
    write_json(folder / "modules.json", modules)


def _complete(
    facts: CardFacts,
    model: PreTrainedModel,
    pooling: str | None,
    normalize: bool,
    max_length: int,
    head: LinearHead | None,
) -> CardFacts:
    labels: list[str] = []
    if head is not None or "Classification" in type(model).__name__:
        labels = [name for _, name in sorted((model.config.id2label or {}).items())]
    return replace(
        facts,
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),  # tied ones are counted once
        max_length=max_length,
        pooling=pooling,
        normalize=normalize,
        label_names=labels,
        head=head is not None,
    )


def _compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, max_length: int) -> None:
    """Load the folder as a stranger would and raise `ExportError` on the first difference."""
    (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    # A bare BERT gets a pooler by default; a model trained without one has no weights to give it.
    options = {"add_pooling_layer": False} if getattr(model, "pooler", model) is None else {}
    again = getattr(transformers, name).from_pretrained(folder, local_files_only=True, **options).to(model.device)
    ours, theirs = _state(model), _state(again)
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise ExportError(f"the export does not hold the same weights as the model: {', '.join(odd[:3])}")
    for key, tensor in ours.items():
        if tensor.shape != theirs[key].shape or not torch.equal(tensor, theirs[key].to(tensor.dtype)):
            raise ExportError(f"the export's weight {key!r} is not the model's")
    probe = _probe(model, tokenizer, max_length)
    for i, (a, b) in enumerate(zip(_outputs(model, probe), _outputs(again, probe), strict=True)):
        # Equal weights on the same device: only another attention kernel may move the last bits.
        worst = float((a - b).abs().max())
        if not worst <= 1e-4 * max(1.0, float(a.abs().max())):
            raise ExportError(f"the reloaded {name} computes something else (output {i} differs by {worst:.3g})")
    text = "One probe, 2 lines."
    if tokenizer is not None and _load_tokenizer(folder)(text)["input_ids"] != tokenizer(text)["input_ids"]:
        raise ExportError("the reloaded tokenizer splits a text differently")


def _check_modes(folder: Path) -> None:
    try:
        self_check(folder)
    except UserError as error:
        raise ExportError(f"the reloaded model is not the one that was trained: {error}") from error


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> dict[str, Tensor]:
    """Two rows of what the model reads: pictures, texts or both."""
    batch = {} if tokenizer is None else _probe_texts(model, tokenizer, max_length)
    if (size := _picture_size(model)) is not None:
        pixels = torch.from_numpy(rng.uniform(0, "export picture", [0, 1], 3 * size * size)).float()
        batch["pixel_values"] = pixels.view(2, 3, size, size).to(model.device)
    return batch


def _probe_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Tensor]:
    """Two rows of drawn tokens [2, S], the second padded when there is a padding token; each row ends with one eos."""
    length = max(2, min(_PROBE_TOKENS, max_length))
    special = set(tokenizer.all_special_ids)
    plain = np.array([i for i in range(len(tokenizer)) if i not in special] or range(len(tokenizer)))
    drawn = plain[(rng.uniform(0, "export probe", [0, 1], length) * len(plain)).astype(np.int64)]
    ids, mask = torch.from_numpy(drawn), torch.ones(2, length, dtype=torch.long)
    ends = [length, length]
    if tokenizer.pad_token_id is not None:
        ends[1] = math.ceil(length / 2)
        ids[1, ends[1] :], mask[1, ends[1] :] = tokenizer.pad_token_id, 0
    if tokenizer.eos_token_id is not None:  # sequence classifiers on BART and T5 read the state at eos
        for row, end in enumerate(ends):
            ids[row, end - 1] = tokenizer.eos_token_id
    batch = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
    if model.config.is_encoder_decoder and "SequenceClassification" not in type(model).__name__:
        batch["decoder_input_ids"] = batch["input_ids"]
    return batch


def _outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Every floating tensor the model returns, in order, as float32; without dropout and without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return [t.float() for t in _tensors(model(**batch).to_tuple())]
    finally:
        for module, training in modes:
            module.training = training


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.is_floating_point():
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
