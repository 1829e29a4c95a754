"""Fine-tune a pretrained encoder to score how well a text answers a query: the last, slowest and best look of a search.

    sslnlp search mine pairs.jsonl --out mined.jsonl
    sslnlp train finetune_reranker model.pretrained=out/bert/export data.train=mined.jsonl

Rows hold `query`, `positive` and `negatives`, hard ones: what a search ranks high and is not relevant. The export is a
CrossEncoder of sentence-transformers; `sslnlp search query INDEX TEXT --reranker out/reranker/export` uses it.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.05),
        model=ModelConfig(size="mini"),
        collator=Options("reranking"),
        objective=Options("reranking", loss="listwise"),
        # A row is a query with all its candidates: 8 negatives make 9 pairs of it.
        train=TrainConfig(epochs=1, batch_size=16, relative_lr=2.0, schedule="linear", warmup=0.1),
        out="out/reranker",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
