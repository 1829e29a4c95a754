"""The files that sentence-transformers and `sslnlp search` read beside the plain ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from sslnlp.types import LinearMap
from sslnlp.vector_map import save_dense
from sslnlp.writing import write_json

POOLINGS = {
    "mean": "mean_tokens",
    "cls": "cls_token",
    "last": "lasttoken",
    "weighted": "weightedmean_tokens",
    "max": "max_tokens",
}
"""Our pooling names in the words of sentence-transformers."""
LENGTHS = "max_lengths"
"""Our key of config_sentence_transformers.json, which ignores it: kind of text -> tokens that are read."""
LABEL_NAMES = "label_names"
"""Our key of config.json for the logits of a head that transformers does not know."""


def save_embedder(
    model: PreTrainedModel,
    folder: Path,
    pooling: str,
    normalize: bool,
    by_kind: Mapping[str, Any],
    max_length: int,
    vector_map: LinearMap | None = None,
) -> None:
    """The files that sentence-transformers (2 and later) reads beside the plain ones; `by_kind` joins its settings."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if vector_map is not None:
        save_dense(folder, "2_Dense", vector_map)
        kinds.append(("2_Dense", "Dense"))
    if normalize:
        kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    for path, _ in kinds[1:]:
        (folder / path).mkdir(exist_ok=True)
    width = model.get_input_embeddings().weight.shape[1]
    width = getattr(model.config, "hidden_size", None) or width
    modes = {f"pooling_mode_{name}": name == POOLINGS[pooling] for name in POOLINGS.values()}
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


def save_ranker(folder: Path, ranks: str, by_kind: Mapping[str, Any]) -> None:
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


def save_head(head: LinearMap, names: list[str], folder: Path) -> None:
    """One more module behind those of an embedder, as sentence-transformers (2.3 and later) writes it, and the names of
    its logits, where no pipeline takes them for those of a classifier of transformers."""
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", described | {LABEL_NAMES: names})
    place = "3_Dense"
    save_dense(folder, place, head)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    number = len(modules)
    modules.append({"idx": number, "name": str(number), "path": place, "type": "sentence_transformers.models.Dense"})
    write_json(folder / "modules.json", modules)
