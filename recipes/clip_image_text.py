"""Pictures and words in one space (CLIP): a text tower that was pretrained, and a small vision tower beside it.

    sslnlp train clip_image_text model.pretrained=out/bert/export data.train=pictures.parquet data.valid=others.parquet

Rows have a picture and one caption or several: parquet with images, a folder with a table, or tar shards. The text
tower needs a pooler: pretrain it with `model.architecture=bert`.
"""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(valid_fraction=0.05),
        model=ModelConfig(architecture="bert", size="mini"),
        collator=Options("image_text"),
        objective=Options("clip", vision="tiny"),
        # Every other pair of the batch is a negative: the batch is large and never split.
        train=TrainConfig(epochs=20, batch_size=128, lr=5e-4, schedule="cosine", warmup=0.1, weight_decay=0.1),
        out="out/clip",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
