"""Vectors without negatives: from one view of a document predict what a slow copy of the model makes of another.

    sslnlp train embed_byol data.train=corpus.txt model.pretrained=out/bert/export

BYOL (Grill et al., 2020). An update may be split in any way, as no document is compared with others. Watch `mrr@10` and
`spread` rather than the loss. The export is a sentence-transformers model."""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="modernbert", size="mini", dropout=0.1),
        collator=Options("views", views=["crop+delete", "crop+delete"], crop_min=0.2, crop_max=0.6, rate=0.1),
        objective=Options("byol", momentum=0.99, momentum_end=1.0),
        train=TrainConfig(steps=2000, batch_size=64, lr=2e-4, schedule="cosine", warmup=0.1),
        out="out/byol",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
