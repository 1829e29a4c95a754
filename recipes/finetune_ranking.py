"""Fine-tune a pretrained encoder for search: a query and its relevant text become near vectors.

    sslnlp train finetune_ranking model.pretrained=out/bert/export data.train=pairs.jsonl

Rows hold `query` and `positive`, and may hold `negatives` and a teacher's `scores` of all of them, as `sslnlp search
mine` writes them (objective.distill=kl learns the scores); other names: data.columns.query=title. A BEIR folder in
data.beir is measured at the end. The export is a sentence-transformers model too; `sslnlp search` indexes with it.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.05),
        model=ModelConfig(size="mini"),
        collator=Options("ranking"),
        objective=Options("ranking", temperature=0.05),
        # Every other pair of the batch is a negative: the batch is large and never split.
        train=TrainConfig(epochs=3, batch_size=64, relative_lr=6.0, schedule="linear", warmup=0.1),
        out="out/ranker",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
