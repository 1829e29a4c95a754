"""Fine-tune a pretrained model to sort texts into the classes of a labelled table.

    sslnlp train finetune_classification model.pretrained=out/bert/export data.train=labelled.csv

The text and label columns are found, or named: data.text=..., data.label=.... Leave model.pretrained out to see what
the same model reaches untrained. The export answers `pipeline("text-classification")` with the label names.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.1),
        model=ModelConfig(size="mini", dropout=0.1),
        collator=Options("classification"),
        objective=Options("classification"),
        # Small labelled sets are seen several times; the learning rate follows the weights they start from.
        train=TrainConfig(
            epochs=5, batch_size=16, relative_lr=6.0, embedding_lr_scale=4.0, schedule="linear", warmup=0.1
        ),
        out="out/classifier",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
