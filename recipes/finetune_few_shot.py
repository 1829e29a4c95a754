"""Classify with few labels: texts of one class are pulled together, then logistic regression on their vectors.

    sslnlp train finetune_few_shot model.pretrained=out/encoder/export data.train=labelled.csv data.unlabelled=more.csv

Best from a sentence encoder. `train.steps=0` leaves it as it is (frozen features); unlabelled texts of the same kind
help much when labels are few. `sslnlp curve` compares methods over draws and seeds.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.1),
        model=ModelConfig(size="mini"),
        collator=Options("same_class"),
        objective=Options("few_shot"),
        # Each text of a batch comes with another of its class, so twice as many are encoded.
        train=TrainConfig(
            steps=100, batch_size=32, relative_lr=2.0, embedding_lr_scale=4.0, schedule="linear", warmup=0.1
        ),
        out="out/few_shot",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
