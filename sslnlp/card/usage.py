"""How a card says to load the model, by what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sslnlp.card.facts import CardFacts
from sslnlp.card.text import code, one_line

# The task a hub files a class under, and the Auto class that loads it.
TASKS = (
    ("DualEncoderModel", "zero-shot-image-classification", "VisionTextDualEncoderModel"),
    ("ForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
    ("ForCausalLM", "text-generation", "AutoModelForCausalLM"),
    ("LMHeadModel", "text-generation", "AutoModelForCausalLM"),
    ("ForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
    ("ForTokenClassification", "token-classification", "AutoModelForTokenClassification"),
    ("ForConditionalGeneration", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ("ForPreTraining", None, "AutoModelForPreTraining"),
)
# How a hub files what ranks, and how sentence-transformers calls it.
RANKERS = {"pairs": ("text-ranking", "cross-encoder"), "tokens": ("sentence-similarity", "multi-vector")}


def task_of(facts: CardFacts) -> tuple[str | None, str]:
    if facts.ranks is not None:
        return RANKERS[facts.ranks][0], "AutoModel"
    if facts.pictures:
        return "image-feature-extraction", "AutoModel"
    if facts.pooling is not None:
        return "feature-extraction" if facts.head else "sentence-similarity", "AutoModel"
    for ending, task, auto in TASKS:
        if facts.architecture.endswith(ending):
            return task, auto
    return "feature-extraction", "AutoModel"


def snippet(facts: CardFacts) -> str:
    # The folder is named by a placeholder: the card cannot know under which name it will be published.
    task, auto = task_of(facts)
    if facts.ranks is not None:
        return f"{_python(_ranking(facts))}\n\n{_RERANKING}"
    if facts.head:
        return f"{_python(_CLASSES)}\n\nWith probabilities, for a file: `sslnlp predict PATH_OR_NAME texts.csv`."
    if "DualEncoder" in facts.architecture:
        return _python(_TEXTS_OF_PICTURE)
    if facts.pictures:
        return _python(_picture(facts.pooling or "cls"))
    if facts.pooling is not None:
        embedder = _python(_embedder(facts))
        return f"{embedder}\n\nWithout sentence-transformers, the same vectors:\n\n{_python(_vectors(facts))}"
    if task in ("fill-mask", "text-generation", "text-classification", "token-classification"):
        pair = "text_pair" in (facts.data.get("columns") or {})
        # Without anything between words a pipeline would take a whole text for one.
        words = "simple" if facts.collator_options.get("joiner") == "" else "first"
        lines = _python(_pipeline(task, pair=pair, several=facts.several, length=facts.max_length, words=words))
        ends = sorted({name[:2] for name in facts.label_names if name[:2] in ("E-", "S-", "L-", "U-")})
        return f"{lines}\n\n{_ENDS.format(' and '.join(map(code, ends)))}" if ends else lines
    return _python(
        [
            f"from transformers import {auto}, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_NAME")',
            f'model = {auto}.from_pretrained("PATH_OR_NAME")',
        ]
    )


def _python(lines: Sequence[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _embedder(facts: CardFacts) -> list[str]:
    encode = ['vectors = model.encode(["first text", "second text"])']
    if any(facts.prompts.values()):  # plain `encode` puts neither before a text
        encode = [
            'vectors = model.encode_document(["first text", "second text"])  # version 5 or later',
            'asked = model.encode_query(["a question"])',
        ]
    return [
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("PATH_OR_NAME")',
        *encode,
    ]


_CLASSES = (
    "from sentence_transformers import SentenceTransformer",
    "from transformers import AutoConfig",
    "",
    'model = SentenceTransformer("PATH_OR_NAME")',
    'names = AutoConfig.from_pretrained("PATH_OR_NAME").label_names',
    'logits = model.encode(["first text", "second text"])',
    "print([names[c] for c in logits.argmax(1)])",
)
# No stock processor turns a photograph upright, and those of older versions show black where one is transparent.
_OPENED = 'ImageOps.exif_transpose(Image.open("picture.png"))'
_TEXTS_OF_PICTURE = (
    "from PIL import Image, ImageOps",
    "from transformers import VisionTextDualEncoderModel, VisionTextDualEncoderProcessor",
    "",
    'model = VisionTextDualEncoderModel.from_pretrained("PATH_OR_NAME")',
    'processor = VisionTextDualEncoderProcessor.from_pretrained("PATH_OR_NAME")',
    f'texts, pictures = ["first text", "second text"], [{_OPENED}]  # without transparency',
    'inputs = processor(text=texts, images=pictures, padding=True, truncation=True, return_tensors="pt")',
    "print(model(**inputs).logits_per_image.softmax(-1))",
)


def _picture(pooling: str) -> list[str]:
    whole = _WHOLE[pooling]
    return [
        *(["import torch"] if "torch." in whole else []),
        "from PIL import Image, ImageOps",
        "from transformers import AutoImageProcessor, AutoModel",
        "",
        'processor = AutoImageProcessor.from_pretrained("PATH_OR_NAME")',
        'model = AutoModel.from_pretrained("PATH_OR_NAME", add_pooling_layer=False)',
        f'inputs = processor({_OPENED}, return_tensors="pt")  # without transparency',
        "hidden = model(**inputs).last_hidden_state",
        f"whole = {whole}",
    ]


def _pipeline(task: str, *, pair: bool, several: bool, length: int | None, words: str) -> list[str]:
    text = 'f"One {pipe.tokenizer.mask_token} word."' if task == "fill-mask" else '"One text"'
    if task == "text-classification" and pair:
        text = '{"text": "One text", "text_pair": "Another one"}'
    if task == "text-generation":
        # Unasked the pipeline writes 256 tokens, or as many as the model has positions, which takes its time on a CPU.
        text += f", max_new_tokens={max(1, min(32, (length or 64) // 2))}"
    # Of a word that something stands before, only the first token was trained to name its tag.
    settings = {"token-classification": f', aggregation_strategy="{words}"'}
    # Unasked the pipeline cuts nothing off: a long text gets another answer than in training, or none.
    settings["text-classification"] = ", truncation=True"
    if several:  # of any number of classes that a text has, it would say one
        settings["text-classification"] += ", top_k=None"
    return [
        "from transformers import pipeline",
        "",
        f'pipe = pipeline("{task}", model="PATH_OR_NAME"{settings.get(task, "")})',
        f"print(pipe({text}))",
    ]


_ENDS = (
    "A stock pipeline knows `B-` and `I-` alone: where tags begin with {}, an entity comes in several pieces and "
    "neighbours in one. Join them by their tags, or train on IOB2."
)
_POOLED = {
    "mean": "(hidden * mask).sum(1) / mask.sum(1)",
    "cls": "hidden[:, 0]",
    "last": "hidden[torch.arange(len(hidden)), batch.attention_mask.sum(1) - 1]",
    "weighted": "(hidden * (place := mask.cumsum(1) * mask)).sum(1) / place.sum(1)",
    "max": "hidden.masked_fill(mask == 0, -torch.inf).amax(1)",
}
"""What sentence-transformers does with hidden [B, S, H] and mask [B, S, 1], padding on the right."""


_WHOLE = {
    "mean": "hidden.mean(1)",
    "cls": "hidden[:, 0]",
    "last": "hidden[:, -1]",
    "weighted": "(hidden * (place := torch.arange(1.0, 1 + hidden.shape[1])[:, None])).sum(1) / place.sum()",
}
"""The vector of a picture, of hidden [B, S, H]: no state is padding."""


_RERANKING = (
    'To put what a search finds in its order: `sslnlp search query INDEX "a question" --reranker PATH_OR_NAME`.'
)


def _ranking(facts: CardFacts) -> list[str]:
    given = 'query, texts = "a question", ["first text", "second text"]'
    if facts.ranks == "tokens":
        return [
            "from sentence_transformers import MultiVectorEncoder  # version 6 or later",
            "",
            'model = MultiVectorEncoder("PATH_OR_NAME")',
            given,
            "scores = model.similarity(model.encode_query([query]), model.encode_document(texts))[0]",
        ]
    # CrossEncoder puts no prompt before the second text.
    query, text = (
        f"{facts.prompts[kind]!r} + {name}" if facts.prompts.get(kind) else name
        for kind, name in (("query", "query"), ("document", "text"))
    )
    return [
        "from sentence_transformers import CrossEncoder",
        "",
        'model = CrossEncoder("PATH_OR_NAME")',
        given,
        f"scores = model.predict([({query}, {text}) for text in texts])",
    ]


def _vectors(facts: CardFacts) -> list[str]:
    pooled, mapped = _POOLED[facts.pooling or "mean"], []
    if facts.mapped:
        pooled = f"torch.nn.functional.linear({pooled}, dense['linear.weight'], dense['linear.bias'])"
        mapped = ['dense = load_file(cached_file("PATH_OR_NAME", "2_Dense/model.safetensors"))']
    if facts.normalize:
        pooled = f"torch.nn.functional.normalize({pooled}, dim=-1)"
    prompts = {kind: facts.prompts.get(kind) or "" for kind in ("query", "document")}
    texts, given = '["first text", "second text"]', []
    if any(prompts.values()):
        before = f"  # before a question: {prompts['query']!r}"
        texts, given = "texts", [f"texts = [{prompts['document']!r} + text for text in {texts}]{before}"]
    return [
        "import torch",
        *(["from safetensors.torch import load_file"] if mapped else []),
        "from transformers import AutoModel, AutoTokenizer",
        *(["from transformers.utils import cached_file"] if mapped else []),
        "",
        'tokenizer, model = (auto.from_pretrained("PATH_OR_NAME") for auto in (AutoTokenizer, AutoModel))',
        *mapped,
        *given,
        f'batch = tokenizer({texts}, padding=True, padding_side="right", truncation=True, '
        'return_token_type_ids=False, return_tensors="pt")',
        "with torch.no_grad():",
        "    hidden, mask = model(**batch).last_hidden_state, batch.attention_mask[..., None]",
        f"vectors = {pooled}",
    ]


def modes(facts: CardFacts) -> str:
    """How to load the model in each of its ways; an empty string where it has only one."""
    if not facts.modes:
        return ""
    _, auto = task_of(facts)
    lines = [f"from transformers import AutoConfig, {auto}", "", 'config = AutoConfig.from_pretrained("PATH_OR_NAME")']
    for name, settings in facts.modes.items():
        lines += [f"config.{key} = {value!r}  # {one_line(name)}" for key, value in settings.items()]
        lines.append(
            f'{re.sub(r"[^a-z0-9]+", "_", name.lower())} = {auto}.from_pretrained("PATH_OR_NAME", config=config)'
        )
    names = " and ".join(code(name) for name in facts.modes)
    text = (
        f"The same weights work in several ways: {names}. In each, the logits at a position are for the next token; "
        "where the model reads in both directions, they fill a mask that stands there."
    )
    check = (
        "A version of transformers that does not know these settings ignores them without a word. "
        "`self_check.safetensors` holds the logits of each way on a probe; "
        "`python -c \"from sslnlp.export import self_check; self_check('FOLDER')\"` compares."
    )
    return "\n\n".join(["## Ways to use it", text, "```python\n" + "\n".join(lines) + "\n```", check])
