"""Sentence vectors by SimCSE: a text, read twice with other dropout, is to find itself among the texts of the batch.

    sslnlp train embed_simcse data.train=sentences.txt model.pretrained=out/bert/export

One sentence or short passage a document. It sharpens what a pretrained model knows, in few steps; from nothing it
learns little, as two readings of a text share its words. For search take embed_moco. The export is a
sentence-transformers model."""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        # Dropout is all that differs between the two views.
        model=ModelConfig(architecture="modernbert", size="mini", dropout=0.1),
        collator=Options("views", views=["text", "text"]),
        # The mean, as few models of one's own have learnt to say anything at [CLS].
        objective=Options("info_nce", temperature=0.05),
        # Every other document of the batch is a negative: the batch is never split.
        train=TrainConfig(steps=1000, batch_size=64, relative_lr=4.0, schedule="linear", warmup=0.1),
        out="out/simcse",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
