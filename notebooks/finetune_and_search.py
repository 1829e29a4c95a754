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
# Offline, on two cores, in three or four minutes. Every figure stands beside the same model untrained and a method
# without any neural network. The models are tiny and see a minute of training: enough to be ahead of the untrained
# ones, not of methods that count words.

# %%
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SSLNLP_CACHE"] = "out/cache"

# %% [markdown]
# ## An encoder to start from
#
# The corpus is the documentation that this Python carries; the notebook `pretrain` has this part in steps. A recipe
# that comes with the package is taken, and smaller: what is not given here is as in `recipes/pretrain_bert.py`.
#
# Its settings matter most where training is short: embeddings start from which tokens stand near each other
# (`embedding_init`), a tenth of the targets stays as it is and a tenth is drawn (`replace="bert"`), the optimizer is
# Muon. With AdamW, random embeddings and `[MASK]` alone, two hundred updates learn how frequent tokens are and no more.
# The vectors of texts then differ in a few directions only, fewer than those of random weights, and a ranker that
# starts from there ends behind one that starts from noise.

# %%
from rich.console import Console

from sslnlp.quickstart.corpus import write_corpus
from sslnlp.quickstart.harvest import harvest
from sslnlp.recipe import load_recipe, override, read_result, run

quiet = Console(quiet=True)  # without it a run tells what it reads, how far it is and what it reached
corpus = write_corpus(harvest(source_bytes=800_000), Path("out/corpus"), classes=5, test=40, least=60)
encoder = override(
    load_recipe("pretrain_bert"),
    {
        "data.train": corpus.train_text,
        "data.valid": corpus.valid_text,
        "data.text": "text",
        "data.seq_length": 64,
        "tokenizer.vocab_size": 2048,
        "model.size": "nano",
        "train.steps": 600,
        "train.batch_size": 32,
        "train.lr": 1e-2,
        "out": "out/encoder",
    },
)
read_result(run(encoder, console=quiet))["measures"]

# %% [markdown]
# A model that knew how frequent tokens are and nothing else would have a loss of about 6.4, and be right for one hidden
# token in twenty.
#
# ## Classify: which library does a text document?
#
# The names of the libraries are masked out of the texts. Eight labels a class, drawn three times, then 32. Which texts
# are drawn decides much, so the intervals are wide; but the draws are the same for all, so what two starts reach can be
# compared draw by draw. `label_curve` trains each start on each draw and measures all of them on the same test file,
# which chooses nothing. TF-IDF reads whole texts, the classifiers their first 64 tokens.

# %%
import json

from sslnlp.curve import label_curve

classifier = override(
    load_recipe("finetune_classification"),
    {
        "model.pretrained": "out/encoder/export",
        "model.config.classifier_pooling": "mean",  # masking teaches the first token nothing about the text
        "data.train": corpus.labelled["train"],
        "data.valid": corpus.labelled["test"],
        "collator.max_length": 64,
        "train.steps": 60,
        "train.lr": 1e-3,
        "out": "out/classifier",
    },
)
label_curve({"pretrained": classifier}, Path("out/curve"), labels=[8, 32], draws=3, seeds=1)
table = json.loads(Path("out/curve/report.json").read_text())["sections"][0]["tables"][0]
for row in (table["columns"], *table["rows"]):
    print("".join(f"{cell:>16s}" for cell in row))
accuracy: dict[str, list[float]] = {"pretrained": [], "untrained": []}
for line in Path("out/curve/results.jsonl").read_text().splitlines():
    one = json.loads(line)
    accuracy.setdefault(one["cell"]["method"], []).append(one["measures"]["accuracy"])
gains = [ours - fresh for ours, fresh in zip(accuracy["pretrained"], accuracy["untrained"], strict=True)]
print("\npretrained above untrained, draw by draw:", *(f"{100 * gain:+.1f}" for gain in gains))

# %% [markdown]
# With all labels, as one run. The label names are in the export, so a stock pipeline answers with them.

# %%
from transformers import pipeline

run(override(classifier, {"train.steps": 200}), console=quiet)
print(read_result("out/classifier")["measures"])
classify = pipeline("text-classification", model="out/classifier/export")
classify("Compute the eigenvalues of a square matrix.")

# %% [markdown]
# ## Rank: summary lines find their documentation
#
# In-batch contrastive training on pairs; measured on pairs of held-out modules. `model.fresh` takes the encoder's shape
# and tokenizer, and new weights.

# %%
from sslnlp.quickstart.baselines import bm25

ranker = override(
    load_recipe("finetune_ranking"),
    {
        "model.pretrained": "out/encoder/export",
        "data.train": corpus.pairs,
        "data.beir": corpus.beir,
        "collator.query_length": 32,
        "collator.document_length": 64,
        "train.steps": 60,
        "train.lr": 2e-3,
        "train.keep_best": False,
        "out": "out/ranker",
    },
)
untrained = override(ranker, {"model.fresh": True, "out": "out/ranker-untrained"})
figures = {
    "pretrained": read_result(run(ranker, console=quiet))["measures"]["beir_ndcg@10"],
    "untrained": read_result(run(untrained, console=quiet))["measures"]["beir_ndcg@10"],
    "BM25": bm25(corpus)["ndcg@10"],
}
for name, value in figures.items():
    print(f"{value:.2f}  nDCG@10, {name}")

# %% [markdown]
# BM25 is far ahead: a summary and its documentation share rare words, and a vector of 64 numbers from a minute of
# training cannot hold those.
#
# ## Search
#
# One index holds BM25 and the vectors, and answers from either or from both, fused by their scores.

# %%
from sslnlp.search.index import Index, build_index

build_index(corpus.beir, "out/index", model="out/ranker/export")
index = Index("out/index")
for mode in index.modes:
    print(f"{mode}:")
    for hit in index.search("remove a file or directory", mode, k=3):
        print("  ", " ".join(index.documents[hit.row].text.split())[:90])
