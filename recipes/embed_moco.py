"""Vectors for search from raw text: of two crops of a document one finds the other, among a queue of past ones.

    sslnlp train embed_moco data.train=corpus.txt model.pretrained=out/bert/export

Documents of a paragraph or more, as the crops are parts of them. Contriever's way (Izacard et al., 2022). The export is
a sentence-transformers model; `sslnlp search` indexes with it."""

import sys

from sslnlp.recipe import DataConfig, ModelConfig, Options, Recipe, TokenizerConfig, TrainConfig


def recipe() -> Recipe:
    return Recipe(
        data=DataConfig(seq_length=128),
        tokenizer=TokenizerConfig(algorithm="bpe", vocab_size=8192),
        model=ModelConfig(architecture="modernbert", size="mini"),
        # Crops of 10 to 50 % of a document, and a tenth of their words deleted.
        collator=Options("views", views=["crop+delete", "crop+delete"], crop_min=0.1, crop_max=0.5, rate=0.1),
        objective=Options("moco", queue=4096, momentum=0.99, temperature=0.05),
        train=TrainConfig(steps=2000, batch_size=64, relative_lr=2.0, schedule="linear", warmup=0.1),
        out="out/moco",
    )


if __name__ == "__main__":
    from sslnlp.cli import main

    main(["train", __file__, *sys.argv[1:]])
