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
# Everything here runs offline on a CPU in about a minute. The text is the documentation that this Python carries;
# the models are far too small and trained far too briefly to be good. What you see is the path.

# %%
import logging
import os
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SSLNLP_CACHE"] = "out/cache"
warnings.filterwarnings("ignore")
logging.getLogger("sslnlp").setLevel(logging.ERROR)

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
# One value says everything about a run. The command line changes the same fields: `train.steps=120`.

# %%
from rich.console import Console

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig, run
from sslnlp.recipe.preview import preview

quiet = Console(quiet=True)
data = DataConfig(train=str(corpus.train_text), valid=str(corpus.valid_text), text="text", seq_length=64)
bert = Recipe(
    objective=Options("masked_lm"),
    collator=Options(rate=0.3, unit="word"),
    data=data,
    tokenizer=TokenizerConfig(vocab_size=2048),
    model=ModelConfig(architecture="modernbert", size="nano"),
    train=TrainConfig(steps=120, batch_size=32, lr=5e-3),
    out="out/bert",
)

# %% [markdown]
# ## What the model will see
#
# Whole words are hidden, documents that share a row are kept apart, special tokens are never targets.

# %%
preview(bert, rows=2, console=Console(width=100))

# %% [markdown]
# ## Train
#
# The tokenizer is trained first, checked against what the objective needs, and kept in the run's folder.

# %%
import json


def result(folder: Path) -> dict:
    return json.loads((folder / "recipe.json").read_text())["result"]


result(run(bert, console=quiet))

# %% [markdown]
# Guessing gets one masked token in 2,048 right. The export is a plain folder: stock classes read it.

# %%
from transformers import pipeline
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
fill = pipeline("fill-mask", model="out/bert/export")
for answer in fill(f"Return a {fill.tokenizer.mask_token} of the array.", top_k=3):
    print(f"{answer['score']:.3f}  {answer['token_str']}")

# %% [markdown]
# ## Stopped and resumed
#
# Order, masks and dropout are functions of (seed, position), so a run that stops half-way and goes on ends with the
# same weights. Here one run is straight; the other is thrown back to an earlier checkpoint and resumed.

# %%
import hashlib
import shutil
from dataclasses import replace

from sslnlp.recipe import override


def fingerprint(folder: str) -> str:
    return hashlib.sha256(Path(folder, "export", "model.safetensors").read_bytes()).hexdigest()[:16]


short = override(
    replace(bert, out="out/straight"), {"train.steps": "40", "train.save_every": "20", "train.keep_best": "false"}
)
run(short, console=quiet)
straight = fingerprint("out/straight")
shutil.rmtree(max(Path("out/straight/state").glob("step-*")))
shutil.rmtree("out/straight/export")
run(short, resume=True, console=quiet)
straight == fingerprint("out/straight")

# %% [markdown]
# ## A decoder, with the same tokenizer
#
# Its held-out figure is a code length, comparable across tokenizers: bits per byte of text.

# %%
gpt = Recipe(
    objective=Options("causal_lm"),
    data=data,
    tokenizer=TokenizerConfig(path="out/bert/tokenizer"),
    model=ModelConfig(architecture="llama", size="nano"),
    train=TrainConfig(steps=120, batch_size=32, lr=5e-3),
    out="out/gpt",
)
result(run(gpt, console=quiet))

# %% [markdown]
# ## The report
#
# Figures with unit, meaning and the level of guessing, and the curves, on one page that fetches nothing.

# %%
from sslnlp.report import make_report

make_report(Path("out/bert"), against=["out/gpt"], out="out/report").name
