# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tuning and search: from a pretrained encoder to a classifier and a search engine
#
# Offline, on a CPU, in about a minute. Every figure stands beside the same model untrained and a method without any
# neural network. The models are tiny and see seconds of training: do not expect them to win.

# %%
import json
import logging
import os
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SSLNLP_CACHE"] = "out/cache"
warnings.filterwarnings("ignore")
logging.getLogger("sslnlp").setLevel(logging.ERROR)

# %% [markdown]
# ## An encoder to start from
#
# The corpus is the documentation that this Python carries; the notebook `pretrain` has this part in steps.

# %%
from rich.console import Console

from sslnlp.quickstart.corpus import write_corpus
from sslnlp.quickstart.harvest import harvest
from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig, run

corpus = write_corpus(harvest(source_bytes=800_000), Path("out/corpus"), classes=5, test=15, least=60)
quiet = Console(quiet=True)


def result(recipe: Recipe) -> dict:
    return json.loads((run(recipe, console=quiet) / "recipe.json").read_text())["result"]["measures"]


encoder = Recipe(
    objective=Options("masked_lm"),
    data=DataConfig(train=str(corpus.train_text), valid=str(corpus.valid_text), text="text", seq_length=64),
    tokenizer=TokenizerConfig(vocab_size=2048),
    model=ModelConfig(architecture="modernbert", size="nano"),
    train=TrainConfig(steps=200, batch_size=32, lr=1.5e-3),
    out="out/encoder",
)
result(encoder)

# %% [markdown]
# ## Classify: which library does a text document?
#
# The names of the libraries are masked out of the texts. 32 labels a class; the test file is scored once, at the end,
# so it chooses nothing (`keep_best=False`).

# %%
from sslnlp.quickstart.baselines import bm25, few_label_file, tfidf

few = few_label_file(corpus, 32, seed=0, path=Path("out/few.jsonl"))


def start(pretrained: bool) -> dict:
    """The encoder's weights, or fresh ones of the same shape; its tokenizer either way."""
    model = ModelConfig(pretrained="out/encoder/export") if pretrained else ModelConfig(size="nano")
    return {"model": model, "tokenizer": TokenizerConfig(path="out/encoder/export")}


def classifier(pretrained: bool) -> Recipe:
    return Recipe(
        objective=Options("classification"),
        collator=Options(max_length=64),
        data=DataConfig(train=str(few), valid=str(corpus.labelled["test"])),
        train=TrainConfig(steps=100, batch_size=16, lr=1e-3, keep_best=False),
        out=f"out/classifier-{'pretrained' if pretrained else 'untrained'}",
        **start(pretrained),
    )


figures = {
    "pretrained": result(classifier(True))["accuracy"],
    "untrained": result(classifier(False))["accuracy"],
    "TF-IDF + logistic regression": tfidf(corpus, few)["accuracy"],
    "guessing": 1 / len(corpus.labels),
}
for name, value in figures.items():
    print(f"{value:.2f}  {name}")

# %% [markdown]
# The label names are in the export, so a stock pipeline answers with them.

# %%
from transformers import pipeline
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
classify = pipeline("text-classification", model="out/classifier-pretrained/export")
classify("Compute the eigenvalues of a square matrix.")[0]["label"] in corpus.labels

# %% [markdown]
# ## Rank: summary lines find their documentation
#
# In-batch contrastive training on pairs; measured on pairs of held-out modules.


# %%
def ranker(pretrained: bool) -> Recipe:
    return Recipe(
        objective=Options("ranking"),
        collator=Options(query_length=32, document_length=64),
        data=DataConfig(train=str(corpus.pairs), beir=str(corpus.beir)),
        train=TrainConfig(steps=60, batch_size=64, lr=1e-3, keep_best=False),
        out=f"out/ranker-{'pretrained' if pretrained else 'untrained'}",
        **start(pretrained),
    )


figures = {
    "pretrained": result(ranker(True))["beir_ndcg@10"],
    "untrained": result(ranker(False))["beir_ndcg@10"],
    "BM25": bm25(corpus)["ndcg@10"],
}
for name, value in figures.items():
    print(f"{value:.2f}  nDCG@10, {name}")

# %% [markdown]
# ## Search
#
# One index holds BM25 and the vectors; results of both are fused by rank.

# %%
from sslnlp.search.index import Index, build_index

build_index(str(corpus.beir), "out/index", model="out/ranker-pretrained/export")
index = Index("out/index")
for hit in index.search("remove a file or directory", k=3):
    print(" ".join(index.documents[hit.row].text.split())[:90])
