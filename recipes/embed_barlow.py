"""Vectors without negatives or copies: features of two views agree, and no feature tells what another does.

    sslnlp train embed_barlow data.train=corpus.txt model.pretrained=out/bert/export

Barlow Twins (Zbontar et al., 2021); for VICReg: objective.name=vicreg. A batch of 64 documents will do, but it is not
to be split. The export is a sentence-transformers model."""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="modernbert", size="mini", dropout=0.1),
        collator=Options("views", views=["crop+delete", "crop+delete"], crop_min=0.2, crop_max=0.6, rate=0.1),
        objective=Options("barlow_twins", projector=1024, off_diagonal=0.005),
        train=TrainConfig(steps=2000, batch_size=64, lr=2e-4, schedule="cosine", warmup=0.1),
        out="out/barlow",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
