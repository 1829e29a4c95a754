# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pretraining: from raw text to models that stock `transformers` loads
#
# Everything here runs offline on two cores in two or three minutes. The text is the documentation that this Python
# carries; the models are far too small and trained far too briefly to be good. What you see is the path.

# %%
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SSLNLP_CACHE"] = "out/cache"

# %% [markdown]
# ## Text
#
# Docstrings and help topics, read without importing anything. Whole modules are held out.

# %%
from sslnlp.quickstart.corpus import write_corpus
from sslnlp.quickstart.harvest import harvest

corpus = write_corpus(harvest(source_bytes=400_000), Path("out/corpus"), test=5, least=20)
{name: corpus.facts[name] for name in ("train entries", "held-out entries", "train characters")}

# %% [markdown]
# ## A recipe
#
# One value says everything about a run. The command line changes the same fields: `train.steps=300`. Embeddings start
# from which tokens stand near each other, a tenth of the targets stays as it is and a tenth is drawn (`replace`), and
# the optimizer is Muon: that is what so short a run needs to learn more than how frequent tokens are.

# %%
from rich.console import Console

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig, read_result, run
from sslnlp.recipe.preview import preview

quiet = Console(quiet=True)  # without it a run tells what it reads, how far it is and what it reached
data = DataConfig(train=str(corpus.train_text), valid=str(corpus.valid_text), text="text", seq_length=64)
short = TrainConfig(steps=300, batch_size=32, optimizer="muon", lr=1e-2, betas=(0.5, 0.98))
bert = Recipe(
    objective=Options("masked_lm"),
    collator=Options(rate=0.3, unit="word", replace="bert"),
    data=data,
    tokenizer=TokenizerConfig(vocab_size=2048),
    model=ModelConfig(architecture="modernbert", size="nano", embedding_init="cooccurrence"),
    train=short,
    out="out/bert",
)

# %% [markdown]
# ## What the model will see
#
# Targets are whole words; special tokens never are.

# %%
preview(bert, rows=2, console=Console(width=100))

# %% [markdown]
# ## Train
#
# The tokenizer is trained first, checked against what the objective needs, and kept in the run's folder.

# %%
read_result(run(bert, console=quiet))["measures"]

# %% [markdown]
# What to hold the accuracy against is not one in 2,048: whoever always says the most frequent token is right more
# often.

# %%
import json
from collections import Counter

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("out/bert/export")
texts = [json.loads(line)["text"] for line in corpus.valid_text.open(encoding="utf-8")]
counts = Counter(token for text in texts for token in tokenizer(text, verbose=False)["input_ids"])
token, count = counts.most_common(1)[0]
round(count / counts.total(), 3), tokenizer.decode([token])

# %% [markdown]
# The export is a plain folder: stock classes read it.

# %%
from transformers import pipeline

fill = pipeline("fill-mask", model="out/bert/export")
for text in ("Return a {} of the array.", "Raises an {} if the index is out of range."):
    answers = fill(text.format(fill.tokenizer.mask_token), top_k=3)
    print(text.format("____"), *(f"{answer['token_str']!r} {answer['score']:.3f}" for answer in answers))

# %% [markdown]
# ## Stopped and resumed
#
# Order, masks and dropout are functions of (seed, position), so a run that stops half-way and goes on ends with the
# same weights. Here a run of 40 updates comes to its end; then its export and its last checkpoint are thrown away, and
# it goes on from the 20th.

# %%
import hashlib
import shutil

from sslnlp.recipe import override

every = {"train.eval_every": 20, "train.save_every": 20}
brief = override(bert, {"train.steps": 40, "train.keep_best": False, "out": "out/brief", **every})


def fingerprint() -> str:
    return hashlib.sha256(Path("out/brief/export/model.safetensors").read_bytes()).hexdigest()[:16]


run(brief, console=quiet)
straight = fingerprint()
shutil.rmtree("out/brief/export")
shutil.rmtree("out/brief/state/step-00000040")
run(brief, resume=True, console=quiet)
fingerprint() == straight

# %% [markdown]
# ## A decoder, with the same tokenizer
#
# Its held-out figure is a code length, comparable across tokenizers: bits per byte of text. A general compressor, which
# has seen no other text, stands beside it.

# %%
from dataclasses import replace

from sslnlp.quickstart.baselines import xz_bits_per_byte

gpt = Recipe(
    objective=Options("causal_lm"),
    data=data,
    tokenizer=TokenizerConfig(path="out/bert/tokenizer"),
    model=ModelConfig(architecture="llama", size="nano", embedding_init="cooccurrence"),
    train=replace(short, embedding_lr_scale=4.0, eps=1e-6),
    out="out/gpt",
)
measures = read_result(run(gpt, console=quiet))["measures"]
print(f"{measures['bits_per_byte']:.2f}  bits per byte, decoder")
print(f"{xz_bits_per_byte(corpus):.2f}  bits per byte, xz -9")
generate = pipeline("text-generation", model="out/gpt/export")
generate("Return the", max_new_tokens=12, do_sample=False)[0]["generated_text"]

# %% [markdown]
# ## The report
#
# Both exports are measured on the same held-out texts, of each the part that the models read: here its first 64 tokens,
# so `bits_per_byte` is not that of whole texts above. The page has every figure with unit, meaning, interval and the
# level of guessing, and the curves; it fetches nothing.

# %%
from sslnlp.report.command import report_runs

page = report_runs([Path("out/bert"), Path("out/gpt")], out="out/report")
cards = json.loads(page.with_suffix(".json").read_text())["cards"]
for name, card in cards.items():
    for figure in ("mask_accuracy", "bits_per_byte", "known_item_mrr"):
        if (found := card["figures"].get(figure)) is not None:
            print(f"{name:5s} {figure:15s} {found['value']:.3f}   by guessing {found['chance']:.3f}")
